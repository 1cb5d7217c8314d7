"""Planted bugs of the mesh: logs and disks, who may decide, and the bytes of peers."""

from typing import Final

from tests.node.simulation import bug_stories as stories
from tests.node.simulation import hostile_stories as hostile
from tests.node.simulation.faulty_parts import append_behind, open_foreign, open_unsigned
from tests.node.simulation.planted_bugs import PlantedBug, fault

APPENDED: Final = (
    "self._store.append([Record(ENTRY, entry.id, entry.raw) for entry in (*witnessed, *sealed)])",
    "append(self._store, witnessed, sealed)",
)

MESH_BUGS: Final = (
    # --- logs -------------------------------------------------------------------------------------------------------
    PlantedBug(
        "award-sent-before-it-is-on-disk",
        "an award is acknowledged, and written within the second",
        "award and accept durable before they are sent",
        stories.parted_by_a_crash,
        ("one_entry_stands_in_each_place", "nobody_honest_is_accused"),
        fault("node.logbook:Logbook._write_batch", APPENDED, append=append_behind("award")),
    ),
    PlantedBug(
        "receipt-sent-before-it-is-on-disk",
        "a receipt is acknowledged, and written within the second",
        "what was acknowledged survives SIGKILL and power loss",
        stories.crash_after_payment,
        ("nobody_honest_is_accused", "what_was_countersigned_survives", "chats_work_again"),
        fault("node.logbook:Logbook._write_batch", APPENDED, append=append_behind("receipt")),
    ),
    PlantedBug(
        "log-written-unconfirmed",
        "after a start the own log goes on before any member has said how far it went",
        "a restored backup does not fork its log",
        stories.restored_backup,
        ("one_entry_stands_in_each_place", "nobody_honest_is_accused"),
        fault("node.logbook:Logbook.is_confirmed", ("return self._confirmed.is_set()", "return True")),
    ),
    PlantedBug(
        "entries-of-others-not-kept",
        "what is heard of others is known, and not written down",
        "a restart brings the same state back",
        stories.trade,
        ("what_is_known_is_on_disk",),
        fault("node.logbook:Logbook.take", ("if fresh:", "if False:")),
    ),
    PlantedBug(
        "gap-in-a-log-accepted",
        "an entry is taken although one before it is missing",
        "an author's log is dense, each entry naming the one before it",
        stories.lost_gossip,
        ("known_logs_have_no_gaps", "nobody_honest_is_accused"),
        fault(
            "protocol.log:AuthorLog.check",
            ("if message.index > self.next_index:", "if False:"),
            ("if message.prev != self.next_prev:", "if False:"),
        ),
    ),
    PlantedBug(
        "differing-assembly-never-mended",
        "who reads in an advert that it lacks an entry asks nobody for it",
        "every honest node converges within 120 s",
        stories.last_gossip_lost,
        ("all_agree_on_the_assembly",),
        fault("node.services.meeting:Meeting._suspect", ("if not self._is_mending", "if False")),
    ),
    # --- authority --------------------------------------------------------------------------------------------------
    PlantedBug(
        "signature-not-checked",
        "an entry of the assembly is taken whoever signed it",
        "nothing takes effect that was unsigned",
        stories.lies,
        ("entries_are_genuine",),
        fault(
            "node.services.sync:open_entry",
            ("open_sealed(raw, mesh=mesh,", "open_unsigned(raw, mesh=mesh,"),
            open_unsigned=open_unsigned,
        ),
    ),
    PlantedBug(
        "foreign-mesh-accepted",
        "an entry of the assembly is taken whatever mesh it is of",
        "nothing takes effect that was foreign",
        stories.lies,
        ("entries_are_genuine",),
        fault(
            "node.services.sync:open_entry",
            ("open_sealed(raw, mesh=mesh,", "open_foreign(raw, mesh=mesh,"),
            open_foreign=open_foreign,
        ),
    ),
    PlantedBug(
        "any-member-decides",
        "a name, an admission or a revocation counts whoever of the members signed it",
        "schema and authority are checked before any state changes",
        stories.lies,
        ("only_the_roll_decides",),
        fault(
            "marketplace.assembly.assembly:check_right",
            ("or (was_admitted and isinstance(message, _OF_MEMBERS))", "or was_admitted"),
        ),
    ),
    PlantedBug(
        "evidence-that-proves-nothing",
        "any two entries of a key are evidence against it",
        "evidence proves itself; nobody honest is barred",
        stories.lies,
        ("nobody_honest_is_accused", "nobody_honest_is_barred", "chats_work_again"),
        fault(
            "marketplace.assembly.assembly:contradiction",
            ("if word is None or word != _word(other) or _said_alike(one, other):", "if False:"),
        ),
    ),
    PlantedBug(
        "contradictions-kept-quiet",
        "who sees a key contradict itself tells nobody",
        "two contradicting entries of one key are evidence: the key is barred",
        hostile.double_awarder,
        ("nobody_contradicts_itself_unpunished",),
        fault(
            "node.logbook:Logbook._note_contradiction",
            ("if author == self.me:", "return\n    if author == self.me:"),
        ),
    ),
    PlantedBug(
        "barred-members-served",
        "who was barred counts as a member all the same",
        "agora revoke acts within 60 s; a convicted key is barred",
        hostile.double_awarder,
        ("nobody_barred_is_served",),
        fault("marketplace.assembly.assembly:Assembly.is_member", (" and not self.is_barred(peer_id)", "")),
    ),
    # --- bytes of peers ---------------------------------------------------------------------------------------------
    PlantedBug(
        "decoder-lets-its-errors-out",
        "bytes that are no MessagePack raise what the library raises",
        "no byte from any peer raises an uncaught exception",
        hostile.garbage_sender,
        ("no_handler_fails",),
        fault(
            "protocol.envelope:_unpack",
            (
                "except (ValueError, TypeError, RecursionError, msgpack.UnpackException)",
                "except RecursionError",
            ),
        ),
    ),
    PlantedBug(
        "replays-not-noticed",
        "neither the window of sequence numbers nor the table of envelopes seen is asked",
        "nothing takes effect that was replayed",
        hostile.request_again,
        ("no_request_is_bid_on_twice",),
        fault(
            "protocol.envelope:Gate.admit",
            ("if digest in self._seen and (live or not may_repeat):", "if False:"),
            ("if live and not self._window_allows(sender, header.seq):", "if False:"),
        ),
    ),
    PlantedBug(
        "index-of-a-peer-trusted",
        "a claim may name an attempt that there never was",
        "no byte from any peer raises an uncaught exception",
        hostile.impossible_claim,
        ("no_handler_fails",),
        fault(
            "node.services.settlement:Settlement._answer",
            ("if job and wanted.attempt <= len(job.attempts) else None", "if job else None"),
        ),
    ),
    PlantedBug(
        "addresses-kept-to-oneself",
        "the mesh is not told where those can be dialled that others have told of",
        "after the faults stop every honest node converges: whoever asks is answered",
        stories.far_seller,
        ("chats_work_again",),
        fault(
            "node.node:Node.__init__",
            ("Directory(identity.peer_id, ports.mesh.learn)", "Directory(identity.peer_id)"),
        ),
    ),
    PlantedBug(
        "strangers-never-forgotten",
        "whoever once dialled is kept in memory",
        "every table stays under its bound",
        hostile.strangers,
        ("what_is_kept_of_peers_is_about_members",),
        fault("node.services.meeting:Meeting._on_peer", ("self._greeted.pop(event.peer_id, None)", "pass")),
    ),
    PlantedBug(
        "expired-adverts-handed-on-and-charged",
        "an advert is handed on to its last second, and its expiry charged to whoever did",
        "nobody honest is accused",
        hostile.advert_from_hand_to_hand,
        ("nobody_honest_is_accused",),
        (
            *fault(
                "node.services.advertiser:Advertiser.hear",
                ("except (Replayed, Expired):", "except Replayed:"),
            ),
            *fault("node.directory:Directory.sample_of_holders", ("now + limits.ADVERT_HANDED_ON_S", "now")),
        ),
    ),
)
