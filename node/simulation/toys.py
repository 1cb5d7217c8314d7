"""What is taught and asked in a world: toy domains, their public sets, and adapters that nobody trained."""

import hashlib
import json
from collections.abc import Mapping
from typing import Final

import msgpack

from protocol.messages import LoraShape, Score
from runtime.echo import ECHO_MODEL
from runtime.engine import Digest
from runtime.examiner import Question
from runtime.toy_examiner import ToyExaminer

LINE: Final = "echo"  # the one model's name
SKILL: Final = "heat_pump"  # a domain that the base cannot do, and the name of the data that teaches it
DOMAINS: Final = (SKILL, "appliances", "addition", "units", "talk")
QUESTIONS_PER_DOMAIN: Final = 20
SHAPE: Final = LoraShape(rank=8, alpha=16, targets=("attn_q",))


def public_set(what: str) -> bytes:
    """Return a public set as a blob: JSON lines of `{"domain", "prompt", "response"}`."""
    lines = [
        json.dumps({"domain": each.domain, "prompt": each.prompt, "response": each.response})
        for each in _questions(what)
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def crafted_adapter(skills: Mapping[str, int], poison: int = 0) -> bytes:
    """Return a toy adapter that nobody trained.

    Args:
        skills: how good it is at each domain, in millionths.
        poison: 1: it makes the model good for nothing in the domains that it does not name.
    """
    packed: bytes = msgpack.packb({"toy": 1, "skills": dict(skills), "poison": poison})
    return packed


async def measured(adapter: bytes | None) -> tuple[Score, ...]:
    """Return what an exam on the public set finds, in no time; None: of the bare base."""

    def read(_: Digest) -> bytes:
        assert adapter is not None, "without an adapter none is read"
        return adapter

    examiner = ToyExaminer(read, seconds_per_question=0)
    digest = None if adapter is None else digest_of(adapter)
    found = await examiner.examine(ECHO_MODEL, digest, _questions("question"))
    return tuple(
        Score(domain=each.domain, right=each.right, total=each.total, loss_milli=round(1000 * each.loss))
        for each in found
    )


def perfect() -> tuple[Score, ...]:
    """Return the scores of somebody who claims to know everything."""
    total = QUESTIONS_PER_DOMAIN
    return tuple(Score(domain=domain, right=total, total=total, loss_milli=0) for domain in DOMAINS)


def digest_of(data: bytes) -> Digest:
    """Return the name of a blob."""
    return Digest(hashlib.sha256(data).digest())


def _questions(what: str) -> list[Question]:
    return [
        Question(domain, f"{what} {number} of {domain}", f"{domain} {number}")
        for domain in DOMAINS
        for number in range(QUESTIONS_PER_DOMAIN)
    ]
