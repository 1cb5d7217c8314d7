"""A chat template is a stranger's program: it renders, or it fails by name, in bounded time and memory."""

import resource
import signal

import pytest

from protocol.limits import MIB
from runtime.llama.template import CHATML, ChatTemplate, RenderBounds, TemplateError
from tests.gguf_files import ENDLESS_OUTPUT, LOOP_BOMB, MEMORY_BOMB

CHAT = (("system", "Be short."), ("user", "Hi"))


def render(source: str, turns: tuple[tuple[str, str], ...] = CHAT) -> str:
    return ChatTemplate(source, "<s>", "</s>", RenderBounds()).render(turns)


def test_chatml() -> None:
    assert render(CHATML) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_chat_templates_use_is_there() -> None:
    source = (
        "{%- for m in messages if m.role != 'system' -%}{% if loop.last %}{{ bos_token }}{{ m.content | trim | upper }}"
        "{% break %}{% endif %}{%- endfor -%}{{ messages | length }}{{ {'a': [1, 'é<']} | tojson }}"
        "{{ strftime_now('%Y')[:2] }}{{ 'yes' if tools is none else 'no' }}{{ 7 % 2 }}"
    )

    assert render(source) == '<s>HI2{"a": [1, "é<"]}20yes1'


def test_a_template_that_refuses_the_chat_says_why() -> None:
    with pytest.raises(TemplateError, match="refused the chat: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}",
        "{{ (messages | attr('__class__')).__base__ }}",
        "{{ self._TemplateReference__context.parent }}",
        "{% include '/etc/passwd' %}",
        "{{ lipsum.__globals__ }}",
        "{{ undefined_thing.attribute }}",
        "{% if %}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 'a' * 999999999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'x'.ljust(9999999999) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ range(999999999) | list }}",
        "{{ messages | map('pprint') | list }}",
        "{{ [[]] | sum(start=1) }}",
        "{{ 'ab' | urlize }}",
        "{{ 'x' | indent(99999999999, true) }}",
    ],
)
def test_a_hostile_or_broken_template_fails_by_name(source: str) -> None:
    """CVE-2024-34359 was a template that reached the operating system."""
    with pytest.raises(TemplateError):
        render(source)


def test_a_loop_bomb_is_stopped() -> None:
    with pytest.raises(TemplateError, match=r"ran for over 0\.5 s"):
        render(LOOP_BOMB)


def test_a_memory_bomb_is_stopped() -> None:
    with pytest.raises(TemplateError, match="64 MiB of memory"):
        render(MEMORY_BOMB)


def test_what_another_thread_takes_meanwhile_is_not_counted() -> None:
    """A model is read into memory beside the chats of another one: neither is to fail for it."""
    bounds, size = RenderBounds(), 128 * MIB
    with pytest.raises(TemplateError, match="of memory"), bounds.enforce():
        bytearray(size)

    bounds.others_bytes = 2 * size
    with bounds.enforce():
        assert len(bytearray(size)) == size


def test_endless_output_is_stopped() -> None:
    with pytest.raises(TemplateError, match="wrote over 262144 characters"):
        render(ENDLESS_OUTPUT)


def test_nothing_of_the_bounds_stays_behind() -> None:
    """A timer left running would kill an honest decode; a memory limit left behind, the next allocation."""
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
    for source in (LOOP_BOMB, MEMORY_BOMB, CHATML):
        try:
            render(source)
        except TemplateError:
            continue

    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
