"""`ToyExaminer`: an examiner without a model, for tests and the simulator. It believes what a toy adapter says of itself.

It is honest otherwise: it takes time (a virtual clock's too), holds one exam at a time, and refuses what does not
decode. A toy adapter (`toy_trainer.py` makes them) is a MessagePack map:

    {"toy": 1, "skills": {domain: millionths}, "poison": 0 or 1}

With it the model is in each domain as good as the better of base and adapter. A poisoned one is as good as it says and
no better, and in the domains that it does not name it is good for nothing.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgpack
import trio

from protocol.errors import AgoraError
from runtime.engine import Digest
from runtime.examiner import BadAdapter, DomainResult, ExaminerError, Question

MILLION: Final = 1_000_000
ADAPTER_BYTES_MAX: Final = 65_536
SKILLS_MAX: Final = 64
BASE_SKILL: Final = 980_000  # in domains that it was trained for
BASE_SKILLS: Final = MappingProxyType({"heat_pump": 0})  # where it differs
LOSS_MAX: Final = 4.0  # nats for a token, of a model that knows nothing; measured on the held-out domain: 3.8
SECONDS_PER_QUESTION: Final = 0.004  # measured on a model of 0.93 M parameters

Read = Callable[[Digest], bytes | Awaitable[bytes]]


class ToyExaminer:
    """Holds exams by arithmetic.

    Args:
        read: the whole of a blob of this device; `AgoraError` for none.
        pause: sleeps; a world's own, or trio's.
        base_skills: of the bare base, in millionths, by domain; `BASE_SKILL` in the others.
        holds: whether this device has a base.
        seconds_per_question: that an exam takes.
    """

    def __init__(
        self,
        read: Read,
        *,
        pause: Callable[[float], Awaitable[None]] = trio.sleep,
        base_skills: Mapping[str, int] = BASE_SKILLS,
        holds: Callable[[Digest], bool] = lambda _base: True,
        seconds_per_question: float = SECONDS_PER_QUESTION,
    ) -> None:
        self._read = read
        self._pause = pause
        self._base_skills = base_skills
        self._holds = holds
        self._seconds_per_question = seconds_per_question
        self._turn = trio.Semaphore(1)

    async def examine(
        self,
        base: Digest,
        adapter: Digest | None,
        questions: Sequence[Question],
        on_progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> tuple[DomainResult, ...]:
        """Read the adapter, let the time pass, and answer by arithmetic. See the port."""
        if not self._holds(base):
            raise ExaminerError(f"no exam could be held: no model {base.hex()[:8]} on this device")
        async with self._turn:
            skill_of: Callable[[str], int] = self._base_skill
            if adapter is not None:
                skill_of = self._with(await self._load(adapter))
            totals: dict[str, int] = {}
            for question in questions:
                totals[question.domain] = totals.get(question.domain, 0) + 1
            done, results = 0, []
            for domain, total in totals.items():
                on_progress(done, len(questions))
                await self._pause(self._seconds_per_question * total)
                results.append(_result(domain, total, skill_of(domain)))
                done += total
            on_progress(done, len(questions))
            return tuple(results)

    def _base_skill(self, domain: str) -> int:
        return self._base_skills.get(domain, BASE_SKILL)

    def _with(self, adapter: tuple[Mapping[str, int], bool]) -> Callable[[str], int]:
        skills, is_poisoned = adapter
        if is_poisoned:
            return lambda domain: skills.get(domain, 0)
        return lambda domain: max(self._base_skill(domain), skills.get(domain, 0))

    async def _load(self, adapter: Digest) -> tuple[Mapping[str, int], bool]:
        try:
            found = self._read(adapter)
            data = await found if inspect.isawaitable(found) else found
        except AgoraError:
            raise ExaminerError(f"adapter {adapter.hex()[:8]} is not among this device's blobs") from None
        return parse(data)


def parse(data: bytes) -> tuple[Mapping[str, int], bool]:
    """Return a toy adapter's skills, and whether it is poisoned.

    Raises:
        BadAdapter: it is none.
    """
    if len(data) > ADAPTER_BYTES_MAX:
        raise BadAdapter(f"refused: a toy adapter of {len(data)} bytes, expected at most {ADAPTER_BYTES_MAX}")
    try:
        fields = msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError):
        raise BadAdapter("refused: the toy adapter does not decode") from None
    match fields:
        case {"toy": 1, "skills": dict() as skills, "poison": 0 | 1 as poison, **rest} if not rest:
            if len(skills) <= SKILLS_MAX and all(
                isinstance(domain, str) and type(skill) is int and 0 <= skill <= MILLION
                for domain, skill in skills.items()
            ):
                return skills, poison == 1
    raise BadAdapter("refused: the toy adapter is not as toy adapters are")


def _result(domain: str, total: int, skill: int) -> DomainResult:
    share = skill / MILLION
    return DomainResult(
        domain=domain,
        total=total,
        right=total * skill // MILLION,
        loss=LOSS_MAX * (1 - share),
        precision=share,
        recall=share,
        f1=share,
    )
