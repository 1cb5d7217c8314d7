"""Write the golden bytes of every message and frame: `python tests/vectors/make_vectors.py`.

Everything follows from fixed seeds, so a run changes nothing unless the protocol has changed; then it shows what changed
in review, and CHANGELOG.md tells users. An implementation in another language reads the files alone.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from marketplace.prompt import Prompt  # noqa: E402
from marketplace.receipt import output_digest, sampling_digest  # noqa: E402
from protocol.envelope import Sealed, encode, seal  # noqa: E402  (found through the line above)
from protocol.identity import Identity  # noqa: E402
from protocol.messages import (  # noqa: E402
    NO_HASH,
    Accept,
    Accepted,
    Admitted,
    Advert,
    Adverts,
    AdvertsWanted,
    Approval,
    Award,
    Bid,
    BlobComing,
    BlobWanted,
    Cancel,
    Card,
    Charter,
    CharterConsent,
    Contribution,
    Countersignature,
    Decline,
    Device,
    Enlistment,
    Entries,
    EntriesWanted,
    Evidence,
    FailedFrame,
    FinishedFrame,
    Head,
    Hello,
    Income,
    Invitation,
    JoinRequest,
    Line,
    LoraShape,
    Manifest,
    Message,
    ModelOffer,
    Part,
    ProgressFrame,
    Receipt,
    Recipe,
    Refusal,
    Request,
    Revocation,
    RollEntry,
    RoundTask,
    RoundUpdate,
    RunAnnouncement,
    RunOpening,
    SamplingTerms,
    Score,
    SettlementWanted,
    Spend,
    TokensFrame,
    Turn,
    Veto,
    Vote,
    Withdrawal,
    Work,
)

TIME_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC
BOOT = 0x0123_4567_89AB_CDEF


def _bytes(name: str, size: int = 32) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:size]


FOUNDER, SELLER, ONE_USE, HUMAN = (
    Identity(_bytes(name)) for name in ("founder", "seller", "one-use", "human")
)
MODEL, JOB, RUN = _bytes("model"), _bytes("job", 16), _bytes("run", 16)
SHAPE = LoraShape(rank=8, alpha=16, targets=("attn_q", "attn_v"))


class _Vectors:
    """Collects vectors, and counts the sequence numbers of their senders."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.mesh = NO_HASH
        self._counter = 0

    def add(self, description: str, message: Message, identity: Identity, ttl_ms: int = 0) -> Sealed[Any]:
        self._counter += 1
        seq = (BOOT, self._counter)
        sealed = seal(message, identity, mesh=self.mesh, seq=seq, time_ms=TIME_MS, ttl_ms=ttl_ms)
        self.files[message.kind] = {
            "description": description,
            "seed": identity.seed.hex(),
            "sender": sealed.sender,
            "mesh": self.mesh.hex(),
            "boot": str(sealed.boot),  # over 2**53, where JSON readers round numbers
            "counter": sealed.counter,
            "time_ms": TIME_MS,
            "ttl_ms": ttl_ms,
            "id": sealed.id.hex(),
            "hex": sealed.raw.hex(),
            "json": plain(message),
        }
        return sealed

    def add_frame(self, description: str, frame: Part) -> None:
        tag = frame.__struct_config__.tag
        self.files[f"frame_{tag}"] = {
            "description": description,
            "hex": encode(frame).hex(),
            "json": plain(frame),
        }


def plain(value: Any) -> Any:
    """Return a message as JSON shows it: byte strings as lower-case hex."""
    match value:
        case msgspec.Struct():
            return plain(msgspec.to_builtins(value, builtin_types=(bytes,)))
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case bytes():
            return value.hex()
        case _:
            return value


def make() -> dict[str, dict[str, Any]]:
    """Return the content of every vector file, by its name without `.json`."""
    vectors = _Vectors()
    charter = vectors.add(
        "the founding charter: sealed under the mesh id of 32 zero bytes; its id is the mesh id of all others here",
        Charter(
            index=0,
            prev=NO_HASH,
            version=1,
            name="home",
            roll=(RollEntry(key=FOUNDER.public_key, owner="ann", weight=1),),
            approvers=(HUMAN.public_key,),
            recovery=(),
            pass_percent=67,
            machine_vote_ms=1_800_000,
            human_approval_ms=86_400_000,
            veto_ms=3_600_000,
            approvals_min=1,
        ),
        FOUNDER,
    )
    vectors.mesh = charter.id
    _assembly(vectors, charter)
    advert = _meeting(vectors, charter)
    vectors.add(
        "adverts that a peer knows, for a buyer that knows too few", Adverts(adverts=(advert.raw,)), SELLER
    )
    _market(vectors)
    _frames(vectors)
    _patch(vectors)
    _run(vectors)
    return vectors.files


def _assembly(vectors: _Vectors, charter: Sealed[Any]) -> None:
    invitation = vectors.add(
        "an invitation; durable, with a ttl of 24 hours",
        Invitation(
            invitation_id=_bytes("invitation", 16),
            key=ONE_USE.public_key,
            uses=1,
            owner="bob",
            credit_line_micro=10_000_000,
            expires_at=TIME_MS + 86_400_000,
            addresses=(f"/ip4/192.0.2.1/tcp/4420/p2p/{FOUNDER.peer_id}",),
        ),
        FOUNDER,
        ttl_ms=86_400_000,
    )
    vectors.add(
        "the one-use key signs 'agora/join_proof/1', a zero byte, the mesh id and the joiner's raw public key",
        JoinRequest(
            invitation=invitation.raw,
            proof=ONE_USE.sign(b"agora/join_proof/1\0" + vectors.mesh + SELLER.public_key),
        ),
        SELLER,
    )
    vectors.add("no, and why", Refusal(reason="expired", detail="invitation expired 60 s ago"), FOUNDER)
    admitted = vectors.add(
        "entry 1 of the founder's assembly log: its prev is the founding charter's id",
        Admitted(
            index=1,
            prev=charter.id,
            peer=SELLER.peer_id,
            owner="bob",
            credit_line_micro=10_000_000,
            invitation_id=_bytes("invitation", 16),
        ),
        FOUNDER,
    )
    card = vectors.add(
        "entry 2: a name for a model",
        Card(index=2, prev=admitted.id, name="tiny-llama", model=MODEL),
        FOUNDER,
    )
    revocation = vectors.add(
        "entry 3: a device is barred",
        Revocation(index=3, prev=card.id, peer=SELLER.peer_id, reason="phone was stolen"),
        FOUNDER,
    )
    awards = [
        seal(_award(seller=identity), SELLER, mesh=vectors.mesh, seq=(BOOT, 1_000 + number), time_ms=TIME_MS)
        for number, identity in enumerate((FOUNDER, HUMAN))
    ]
    vectors.add(
        "entry 4: two awards for one attempt, by one key",
        Evidence(index=4, prev=revocation.id, first=awards[0].raw, second=awards[1].raw),
        FOUNDER,
    )
    vectors.add(
        "asks for an author's log from entry 1 on",
        EntriesWanted(author=FOUNDER.peer_id, log="assembly", start=1),
        SELLER,
    )
    vectors.add("entries of one log, in order", Entries(entries=(admitted.raw, card.raw)), FOUNDER)


def _meeting(vectors: _Vectors, charter: Sealed[Any]) -> Sealed[Any]:
    head = Head(author=FOUNDER.peer_id, log="assembly", index=0, entry=charter.id)
    address = f"/ip4/192.0.2.2/tcp/4420/p2p/{SELLER.peer_id}"
    advert = vectors.add(
        "an advert; it may be handed on, so it is not live and has a ttl of 180 s",
        Advert(
            models=(
                ModelOffer(
                    digest=MODEL,
                    architecture="llama",
                    quantisation="Q8_0",
                    context_tokens=2_048,
                    tokens_per_ks=35_000,
                    prompt_tokens_per_ks=350_000,
                ),
            ),
            slots=2,
            slots_free=1,
            prompt_micro=10,
            completion_micro=40,
            device=Device(
                cores=8,
                memory_mib=16_384,
                memory_free_mib=9_000,
                load_percent=12,
                battery_percent=-1,
                is_charging=False,
                gpu="",
                sandbox="S3",
            ),
            heads=(),
            assembly=charter.id,
            addresses=(address,),
        ),
        SELLER,
        ttl_ms=180_000,
    )
    vectors.add(
        "the first frame on each connection, in both directions",
        Hello(
            boot=_bytes("boot", 16),
            heads=(head,),
            yours=(head,),
            advert=advert.raw,
            adverts=(),
            addresses=(address,),
        ),
        SELLER,
    )
    vectors.add("who offers this model?", AdvertsWanted(model=MODEL), FOUNDER)
    return advert


def _market(vectors: _Vectors) -> None:
    request = vectors.add(
        "a request for a chat, without its prompt",
        Request(
            job_id=JOB,
            attempt=1,
            model=MODEL,
            adapter=NO_HASH,
            prompt_tokens=12,
            completion_tokens_max=1_024,
            total_micro_max=100_000,
            privacy="owner",
            session=NO_HASH,
            head=None,
        ),
        FOUNDER,
    )
    bid = vectors.add(
        "a bid: prices per token",
        Bid(request=request.id, prompt_micro=10, completion_micro=40, ttft_ms=80, tokens_per_ks=35_000),
        SELLER,
    )
    vectors.add(
        "a decline", Decline(request=request.id, reason="busy", detail="2 of 2 slots are taken"), SELLER
    )
    award = vectors.add(
        "the award: entry 0 of the buyer's bilateral log",
        _award(SELLER, request=request.id, bid=bid.id),
        FOUNDER,
    )
    accept = vectors.add(
        "the accept: entry 0 of the seller's bilateral log",
        Accept(index=0, prev=NO_HASH, award=award.id, buyer=FOUNDER.peer_id, job_id=JOB, attempt=1),
        SELLER,
    )
    turns = (Turn(role="user", content="What is an agora?"),)
    sampling = SamplingTerms(seed=7)
    vectors.add(
        "the prompt, to the winner only",
        Work(
            award=award.id,
            job_id=JOB,
            attempt=1,
            turns=turns,
            completion_tokens_max=1_024,
            sampling=sampling,
            stop=("\n\n",),
            received=(),
        ),
        FOUNDER,
    )
    vectors.add("the client has left", Cancel(job_id=JOB, attempt=1), FOUNDER)
    receipt = vectors.add(
        "the receipt: entry 1 of the seller's bilateral log",
        Receipt(
            index=1,
            prev=accept.id,
            award=award.id,
            job_id=JOB,
            attempt=1,
            payer=FOUNDER.peer_id,
            payee=SELLER.peer_id,
            model=MODEL,
            adapter=NO_HASH,
            sampling=sampling_digest(sampling),
            seed=7,
            prompt=Prompt(turns).digest(),
            output=output_digest((5, 6, 7)),
            prompt_tokens=12,
            completion_tokens=3,
            ttft_ms=75,
            duration_ms=160,
            amount_micro=240,
        ),
        SELLER,
    )
    countersignature = vectors.add(
        "the payer agrees: entry 1 of the buyer's bilateral log, with the receipt inside",
        Countersignature(index=1, prev=award.id, receipt=receipt.raw),
        FOUNDER,
    )
    vectors.add(
        "the payee keeps the proof: entry 2 of the seller's bilateral log",
        Income(index=2, prev=receipt.id, award=award.raw, countersignature=countersignature.raw),
        SELLER,
    )
    vectors.add("how much of it arrived?", SettlementWanted(award=award.id, job_id=JOB, attempt=1), SELLER)
    vectors.add(
        "three tokens did",
        Accepted(
            job_id=JOB,
            attempt=1,
            completion_tokens=3,
            output=output_digest((5, 6, 7)),
        ),
        FOUNDER,
    )


def _award(seller: Identity, request: bytes = NO_HASH, bid: bytes = NO_HASH) -> Award:
    return Award(
        index=0,
        prev=NO_HASH,
        request=request,
        bid=bid,
        job_id=JOB,
        attempt=1,
        seller=seller.peer_id,
        model=MODEL,
        adapter=NO_HASH,
        hold_micro=41_080,
        prompt_micro=10,
        completion_micro=40,
        lease_ms=600_000,
        session=NO_HASH,
    )


def _patch(vectors: _Vectors) -> None:
    consent = vectors.add(
        "entry 5: agrees to the next charter",
        CharterConsent(
            index=5,
            prev=bytes.fromhex(vectors.files["evidence"]["id"]),
            charter=_bytes("next charter"),
            version=2,
        ),
        FOUNDER,
    )
    line = vectors.add(
        "entry 6: what the patches of a model are judged by",
        Line(
            index=6,
            prev=consent.id,
            name="tiny-llama",
            base=MODEL,
            evaluation=_bytes("evaluation"),
            evaluation_bytes=48_000,
            replay=_bytes("replay"),
            replay_bytes=96_000,
        ),
        FOUNDER,
    )
    manifest = vectors.add(
        "entry 0 of the coordinator's assembly log: the outcome of a run shall be version 1 of the line",
        Manifest(
            index=0,
            prev=NO_HASH,
            line="tiny-llama",
            version=1,
            parent=NO_HASH,
            base=MODEL,
            adapter=_bytes("adapter"),
            adapter_bytes=84_416,
            shape=SHAPE,
            rolls_back_to=0,
            run=RUN,
            rounds=16,
            cohort=(
                Contribution(peer=SELLER.peer_id, samples=512, rounds=16, epsilon_milli=-1),
                Contribution(peer=FOUNDER.peer_id, samples=2_048, rounds=15, epsilon_milli=4_800),
            ),
            evaluation=_bytes("evaluation"),
            before=(Score(domain="heat-pump", right=0, total=40, loss_milli=5_120),),
            after=(Score(domain="heat-pump", right=40, total=40, loss_milli=12),),
            expires_at=TIME_MS + 7 * 86_400_000,
            reason="knows the error codes",
        ),
        SELLER,
    )
    vectors.add(
        "entry 7 of the founder's: its vote, with the scores that it measured itself",
        Vote(
            index=7,
            prev=line.id,
            manifest=manifest.id,
            line="tiny-llama",
            version=1,
            is_yes=True,
            scores=(Score(domain="heat-pump", right=40, total=40, loss_milli=12),),
            private="passed",
            reason="",
        ),
        FOUNDER,
    )
    approval = vectors.add(
        "entry 0 of the human's assembly log", Approval(index=0, prev=NO_HASH, manifest=manifest.id), HUMAN
    )
    veto = vectors.add(
        "entry 1: the human's no",
        Veto(index=1, prev=approval.id, manifest=manifest.id, reason="answers rudely"),
        HUMAN,
    )
    vectors.add(
        "entry 2: the human bars an adapter for ever",
        Withdrawal(index=2, prev=veto.id, adapter=_bytes("adapter"), reason="trained on the wrong logs"),
        HUMAN,
    )


def _run(vectors: _Vectors) -> None:
    vectors.add(
        "the adapter, from its second chunk on", BlobWanted(blob=_bytes("adapter"), offset=262_144), SELLER
    )
    vectors.add("it is here", BlobComing(size_bytes=300_000), FOUNDER)
    announcement = vectors.add(
        "a run; it may be handed on for ten minutes",
        RunAnnouncement(
            run=RUN,
            line="tiny-llama",
            base=MODEL,
            data="heat-pump",
            replay=_bytes("replay"),
            replay_bytes=96_000,
            start=NO_HASH,
            start_bytes=0,
            parent=bytes(16),
            recipe=Recipe(
                shape=SHAPE,
                seed=7,
                is_a_frozen=True,
                rounds=16,
                steps=30,
                batch=16,
                learning_rate_ppm=5_000,
                replay_percent=50,
                strategy="multi-krum",
                parameters=(("num-malicious-nodes", 1_000_000),),
            ),
            cohort_min=3,
            cohort_max=8,
            round_ms=900_000,
            step_micro_max=1_000,
            window_ms=10_000,
        ),
        FOUNDER,
        ttl_ms=600_000,
    )
    enlistment = vectors.add(
        "a sealed bid to take part",
        Enlistment(
            announcement=announcement.id,
            samples=512,
            step_micro=100,
            steps_per_ks=20_000,
            epsilon_milli=4_800,
        ),
        SELLER,
    )
    vectors.add(
        "the run is opened to a member, who counts the others",
        RunOpening(run=RUN, announcement=announcement.raw, enlistments=(enlistment.raw,)),
        FOUNDER,
    )
    task = vectors.add(
        "train the first round, from the seed's state",
        RoundTask(
            run=RUN,
            round=1,
            award=_bytes("award"),
            since=NO_HASH,
            state=_bytes("state"),
            payload=_bytes("change"),
            payload_bytes=38_912,
            left_ms=900_000,
        ),
        FOUNDER,
    )
    vectors.add(
        "the privacy of that round, spent before its first step: entry 3 of the member's bilateral log",
        Spend(
            index=3,
            prev=bytes.fromhex(vectors.files["income"]["id"]),
            source=_bytes("data set"),
            run=RUN,
            round=1,
            noise_milli=800,
            rate_ppm=31_250,
            steps=30,
        ),
        SELLER,
    )
    vectors.add(
        "what came of it",
        RoundUpdate(
            run=RUN,
            round=1,
            task=task.id,
            payload=_bytes("update"),
            payload_bytes=38_400,
            samples=512,
            steps=30,
            epsilon_milli=900,
        ),
        SELLER,
    )


def _frames(vectors: _Vectors) -> None:
    vectors.add_frame(
        "three tokens, the first of the completion",
        TokensFrame(first=0, ids=(5, 6, 7), text="An a", contrasts=(11_250, -310, 4_096)),
    )
    vectors.add_frame("still reading the prompt", ProgressFrame(phase="prefill", done=8, total=12))
    vectors.add_frame(
        "the last of the tokens has been sent",
        FinishedFrame(reason="stop", text="gora.", prompt_tokens=12, completion_tokens=3),
    )
    vectors.add_frame(
        "the seller cannot go on", FailedFrame(reason="engine", detail="the engine's process ended")
    )


def main() -> None:
    """Write the files."""
    for name, vector in make().items():
        text = json.dumps(vector, indent=2, ensure_ascii=False) + "\n"
        (HERE / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
