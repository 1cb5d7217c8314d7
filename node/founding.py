"""Found a mesh: the device's key, its human's key, the charter both stand on, and the way back if they are lost."""

import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from marketplace.assembly.charter import founding_charter
from node import config, database
from node.api_keys import ApiKeys
from node.database import Record
from node.home import Home
from node.keys import Recovery, create_device_key, create_human_key, new_recovery_code, write_recovery
from node.logbook import ENTRY, MESH
from node.new_home import making
from protocol.envelope import Sealed, Sequence, seal
from protocol.identity import Identity, PeerId
from protocol.messages import NO_HASH, Entry


@dataclass(frozen=True)
class Founded:
    """What the user is shown once."""

    mesh_id: str
    peer_id: PeerId
    recovery_code: str
    api_key: str


def found(
    home_path: Path, *, mesh_name: str, owner: str, device_passphrase: str | None, human_passphrase: str
) -> Founded:
    """Write a new home that founds a mesh; a crash before the end leaves none.

    Raises:
        StartError: the home already belongs to a mesh, or cannot be written.
    """
    with making(home_path) as home:
        device = create_device_key(home, device_passphrase)
        human = create_human_key(home, human_passphrase)
        recovery = Identity.generate()
        charter = seal(
            founding_charter(
                mesh_name,
                founder=device.public_key,
                owner=owner,
                approver=human.public_key,
                recovery=(recovery.public_key,),
            ),
            device,
            mesh=NO_HASH,
            seq=Sequence(int.from_bytes(os.urandom(7))).next(),
            time_ms=time.time_ns() // 1_000_000,
        )
        code = new_recovery_code()
        write_recovery(home.recovery, Recovery(recovery.seed, human.seed, charter.raw), code)
        config.write_default(home.config, owner=owner)
        api_key = ApiKeys(home.api_keys).create("first")[1]
        belong(home, (cast("Sealed[Entry]", charter),))
    return Founded(charter.id.hex(), device.peer_id, code, api_key)


def belong(home: Home, entries: tuple[Sealed[Entry], ...]) -> None:
    """Make the home a member's: its mesh and the entries that prove it, on disk when this returns.

    Args:
        home: new.
        entries: of the mesh's assembly, the founding charter first, in an order in which they can be folded.
    """
    records = [Record(MESH, b"id", entries[0].id)]
    records += [Record(ENTRY, entry.id, entry.raw) for entry in entries]
    with closing(database.open_file(home.database)) as connection, connection:
        for statement, rows in database.statements(records):
            connection.executemany(statement, rows)
