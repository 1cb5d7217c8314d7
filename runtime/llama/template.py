"""The chat template out of a model file, rendered without trusting it. Only for the child.

A template is a program by the file's author. Jinja2's immutable sandbox keeps it from Python's attributes
(CVE-2024-34359 was a template outside of one); what is left is exhaustion, and each way has its bound:

- loops: a timer raises inside the interpreter after `RENDER_S_MAX` of CPU, again and again until it is out;
- memory: the address space may grow by `RENDER_BYTES_MAX` while a template renders;
- one long call in C, which no timer interrupts: arithmetic takes small numbers only, filters are an allow-list;
- output: counted as it comes, at most `PROMPT_BYTES_MAX`.

What still hangs is found by the daemon: it knows that the child was in a template when it fell silent.
"""

import contextlib
import datetime as dt
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

from protocol.limits import MIB, PROMPT_BYTES_MAX

RENDER_S_MAX = 0.5  # of CPU: a busy machine is not the template's fault; honest ones take under 20 ms
RENDER_BYTES_MAX = 64 * MIB
TEMPLATE_CHARS_MAX = 256 * 1024
NUMBER_BITS_MAX = 256
TIMER_REPEAT_S = 0.05  # a timeout that was swallowed (by `__del__`, say) comes again

# What models without a template of their own are given: llama.cpp does the same.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# What the chat templates of well-known models use; each other one would only widen the surface.
FILTERS = frozenset({
    "abs", "attr", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum",
    "title", "trim", "unique", "upper",
})  # fmt: skip


class TemplateError(Exception):
    """The template failed; the message is one line for the user."""


class _TimeUp(BaseException):
    """Not an `Exception`, so that no filter swallows it."""


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"**", "*", "/", "//", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, of numbers that take no time: 9**9**9 is one call that nothing stops."""
        for value in (left, right):
            if not isinstance(value, int | float) or (
                isinstance(value, int) and value.bit_length() > NUMBER_BITS_MAX
            ):
                raise TemplateError(
                    f"the chat template uses {operator} on something other than small numbers"
                )
        if operator == "**":
            raise TemplateError("the chat template raises a number to a power")
        return super().call_binop(context, operator, left, right)


class RenderBounds:
    """The time and memory that a template gets. Made before the sandbox closes, since /proc is out of sight after.

    Attributes:
        others_bytes: what another thread may take meanwhile.
    """

    def __init__(self) -> None:
        self.others_bytes = 0
        self._armed = False
        sizes = Path("/proc/self/statm")
        self._statm = os.open(sizes, os.O_RDONLY) if sizes.exists() else None

    @contextlib.contextmanager
    def enforce(self) -> Iterator[None]:
        """Run the body under the bounds; main thread only, since signals arrive there.

        Raises:
            TemplateError: the body went over one of them.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        handler = signal.signal(signal.SIGPROF, self._time_up)
        try:
            if self._statm is not None:
                pages = int(os.pread(self._statm, 64, 0).split()[0])
                limit = pages * resource.getpagesize() + RENDER_BYTES_MAX + self.others_bytes
                resource.setrlimit(resource.RLIMIT_AS, (limit if soft < 0 else min(limit, soft), hard))
            self._armed = True
            signal.setitimer(signal.ITIMER_PROF, RENDER_S_MAX, TIMER_REPEAT_S)
            try:
                yield
            finally:
                self._armed = False
        except _TimeUp:
            raise TemplateError(f"the chat template ran for over {RENDER_S_MAX} s of CPU") from None
        except MemoryError:
            raise TemplateError(
                f"the chat template took over {RENDER_BYTES_MAX // MIB} MiB of memory"
            ) from None
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, handler)
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    def _time_up(self, _signal: int, _frame: FrameType | None) -> None:
        if self._armed:
            raise _TimeUp


class ChatTemplate:
    """One model's template, compiled.

    Args:
        source: Jinja2, from the model file.
        bos: the text of the model's begin-of-text token, "" if it has none.
        eos: the same for the end of text.
        bounds: shared by all templates of this process.

    Raises:
        TemplateError: it does not compile within the bounds.
    """

    def __init__(self, source: str, bos: str, eos: str, bounds: RenderBounds) -> None:
        if len(source) > TEMPLATE_CHARS_MAX:
            raise TemplateError(
                f"the chat template has {len(source)} characters, expected at most {TEMPLATE_CHARS_MAX}"
            )
        self._bounds = bounds
        self._bos, self._eos = bos, eos
        environment = _Environment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols],
            autoescape=False,
            cache_size=0,
        )
        environment.filters = {name: f for name, f in environment.filters.items() if name in FILTERS}
        environment.filters["tojson"] = _to_json
        environment.globals = {
            name: environment.globals[name] for name in ("range", "dict", "namespace", "cycler", "joiner")
        }
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        with bounds.enforce(), _named_failures():
            self._template = environment.from_string(source)

    def render(self, turns: tuple[tuple[str, str], ...]) -> str:
        """Return the prompt for a chat of (role, content), ready for the assistant's answer.

        Raises:
            TemplateError: it failed, refused the chat, or went over a bound.
        """
        parts, size = [], 0
        with self._bounds.enforce(), _named_failures():
            for part in self._template.generate(
                messages=[{"role": role, "content": content} for role, content in turns],
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
                tools=None,
                documents=None,
            ):
                parts.append(part)
                size += len(part)
                if size > PROMPT_BYTES_MAX:
                    raise TemplateError(f"the chat template wrote over {PROMPT_BYTES_MAX} characters")
            return "".join(parts)


@contextlib.contextmanager
def _named_failures() -> Iterator[None]:
    """Turn whatever a template raises into one line; time and memory are `enforce`'s to name."""
    try:
        yield
    except (TemplateError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  (a stranger's program may raise anything)
        line = " ".join(str(error).split())[:256]
        raise TemplateError(f"the chat template failed: {type(error).__name__}: {line}") from None


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    """JSON as models were trained on: without Jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: object) -> NoReturn:
    line = " ".join(str(message).split())[:256]
    raise TemplateError(f"the chat template refused the chat: {line}")


def _strftime_now(pattern: str) -> str:
    """The date in UTC, so that a successor in another time zone renders the same prompt."""
    return dt.datetime.now(dt.UTC).strftime(str(pattern)[:64])
