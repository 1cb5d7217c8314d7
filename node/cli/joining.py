"""Who belongs: `init`, `invite`, `join`, `revoke`, `leave`."""

import getpass
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from node.cli.options import HomeOption, JsonOption, YesOption, home_of
from node.cli.show import cell, clock, out, pairs, print_json, waiting
from node.cli.time_text import seconds
from node.errors import StartError

CREDIT_LINE_DEFAULT = 10.0  # credits: 10 million tokens at one micro-credit each

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Read the human key's passphrase from a file; else AGORA_PASSPHRASE, else asked for.",
        show_default=False,
    ),
]

DevicePassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--device-passphrase-file",
        metavar="FILE",
        help="Put the device's key under this passphrase, too; 'agora up' then needs it in AGORA_PASSPHRASE.",
        show_default=False,
    ),
]


def init(
    name: Annotated[str, typer.Option("--name", metavar="N", help="What the mesh is called.")] = "home",
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="WHO", help="Whose device this is; else your user name.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    device_passphrase_file: DevicePassphraseFile = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Found a mesh of your own, with this device as its first member.

    Makes the device's key, your own key under a passphrase (it approves what the mesh installs), the charter, and a
    recovery code that is shown once.

    Example: `agora init --name home --owner ann`
    """
    from node.cli.secret import passphrase
    from node.founding import found

    phrase = passphrase(passphrase_file, prompt="a passphrase for your own key", is_new=True)
    device_phrase = _device_passphrase(device_passphrase_file)
    path = home_of(home).path
    with waiting("making keys"):
        founded = found(
            path,
            mesh_name=name,
            owner=owner or getpass.getuser(),
            device_passphrase=device_phrase,
            human_passphrase=phrase,
        )
    if as_json:
        print_json(asdict(founded))
        return
    out.print(
        pairs(
            {
                "mesh": name,
                "mesh id": founded.mesh_id,
                "peer": founded.peer_id,
                "home": str(path),
                "API key": founded.api_key,
                "recovery code": founded.recovery_code,
            }
        )
    )
    suffix = f" --home {home}" if home else ""
    out.print(
        "\nWrite the recovery code down: it is shown this once, as the API key is. With the file\n"
        f"{path / 'recovery.agora'}, kept elsewhere, it brings the mesh back when this device is lost.\n\n"
        f"next  agora up{suffix}\n"
        f"      agora model add FILE.gguf --publish{suffix}\n"
        f"      agora invite{suffix}",
        markup=False,
        soft_wrap=True,
    )


def invite(
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="How long it holds: 30m, 24h, 7d.")
    ] = "24h",
    uses: Annotated[int, typer.Option("--uses", min=1, max=1000, help="How many devices it admits.")] = 1,
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="WHO", help="Whose device it admits; else yours.")
    ] = None,
    credit_line: Annotated[
        float, typer.Option("--credit-line", min=0, help="Credits the device may be in debt.")
    ] = CREDIT_LINE_DEFAULT,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an invitation that admits another device; give it to nobody else.

    Example: `agora invite --expires 24h --uses 1 --owner bob`
    """
    from node.cli.daemon import ask

    expires_s = seconds("--expires", expires)
    made = ask(
        home,
        lambda admin: admin.invite(
            expires_s=expires_s, uses=uses, owner=owner, credit_line_micro=round(credit_line * 1_000_000)
        ),
    )
    if as_json:
        print_json(made)
        return
    devices = "one device" if made["uses"] == 1 else f"{made['uses']} devices"
    out.print(f"It admits {devices} until {clock(made['expires_at'])}. On the other machine:\n")
    # one unbroken line, so that it can be pasted
    out.print(f"agora join {made['invitation']} && agora up", soft_wrap=True, markup=False)


def join(
    invitation: Annotated[
        str, typer.Argument(metavar="INVITE", help="The text that 'agora invite' printed.")
    ],
    device_passphrase_file: DevicePassphraseFile = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Join a mesh with an invitation; whoever made it must be up.

    Example: `agora join agora1… && agora up`
    """
    from node.joining import join as join_mesh

    path = home_of(home).path
    device_phrase = _device_passphrase(device_passphrase_file)
    with waiting("joining"):
        joined = join_mesh(path, invitation, device_passphrase=device_phrase)
    if as_json:
        print_json(asdict(joined))
        return
    out.print(
        pairs(
            {
                "mesh id": joined.mesh_id,
                "peer": joined.peer_id,
                "owner": joined.owner,
                "home": str(path),
                "API key": joined.api_key,
            }
        )
    )
    out.print(f"\nnext  agora up{f' --home {home}' if home else ''}", markup=False)


def revoke(
    peer: Annotated[str, typer.Argument(metavar="PEER", help="The peer id of the device, or the end of it.")],
    reason: Annotated[str, typer.Option("--reason", metavar="WHY", help="Told to every member.")] = "",
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bar a device from the mesh, for a stolen phone or a bad neighbour; it is final for its key.

    Example: `agora revoke 12D3KooW… --reason stolen`
    """
    from node.cli.daemon import ask

    known = ask(home, lambda admin: admin.peers())
    peer_id = one_peer(peer, [entry["peer_id"] for entry in known])
    if not yes:
        typer.confirm(f"bar {peer_id} for ever", abort=True, err=True)
    barred = ask(home, lambda admin: admin.revoke(peer_id, reason))
    if as_json:
        print_json(barred)
        return
    out.print("revoked", cell(peer_id))


def leave(yes: YesOption = False, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Leave the mesh with this device; its daemon stops, its home stays for you to delete.

    Example: `agora leave --yes`
    """
    from node.cli.daemon import ask

    if not yes:
        typer.confirm("leave the mesh for good with this device", abort=True, err=True)
    left = ask(home, lambda admin: admin.leave())
    if as_json:
        print_json(left)
        return
    out.print("left; coming back takes a new invitation and a new home")


def _device_passphrase(file: Path | None) -> str | None:
    from node.cli.secret import passphrase

    return None if file is None else passphrase(file, prompt="", is_new=True)


def one_peer(text: str, known: list[str]) -> str:
    """Return the peer id that a user means by it, or by its last characters.

    Raises:
        StartError: none of the known ones, or several.
    """
    found = [peer_id for peer_id in known if peer_id == text or (len(text) >= 6 and peer_id.endswith(text))]
    if len(found) == 1:
        return found[0]
    if len(text) == 52:  # a whole id of a device that was never met can still be barred
        return text
    expected = "a peer id, or the last 6 characters or more of one"
    raise StartError(f"{text!r} names {len(found)} peers, expected {expected}; run 'agora peers'")
