"""The daemon: the first main. It puts the real backends under a node and opens its two doors to users.

Started by `agora up`, in the foreground. It prints nothing on stdout but one JSON line when it is ready, and logs to
stderr. SIGINT and SIGTERM stop it cleanly; SIGKILL loses nothing that was acknowledged.
"""

import argparse
import ipaddress
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import SystemRandom

import psutil
import trio

from node.api_keys import ApiKeys
from node.blob_directory import DirectoryBlobs
from node.clock import SystemClock
from node.config import Config
from node.data_directory import DataDirectory
from node.device import as_device
from node.gateway.app import admin_app, gateway_app
from node.gateway.server import loopback_address, serve_admin, serve_tcp
from node.gguf_adapters import GgufAdapters
from node.home import Home
from node.host import Host, HostSettings
from node.host.address import parse
from node.journal import Journal
from node.keys import load_device_key
from node.node import Node, Ports
from node.port import check_free, listen_address
from node.store import SqliteStore
from node.tolerances import Tolerances
from protocol.errors import AgoraError
from protocol.identity import Identity
from runtime.capacity import measure
from runtime.engine import (
    ChatMessage,
    Digest,
    EngineBusy,
    EngineError,
    Generation,
    ModelCard,
    ModelLoading,
)
from runtime.llama.backend import LlamaEngine
from runtime.llama.examiner import LlamaExaminer
from runtime.model_store import ModelStore
from runtime.training.backend import TorchTrainer

EXIT_REFUSED = 1
WARM_UP_PROMPT = "Say something nice about the place where people meet, trade and decide together."
WARM_UP_TOKENS = 24


def main(arguments: Sequence[str]) -> int:
    """Run the daemon until it is told to stop; return the exit status."""
    options = _parser().parse_args(arguments)
    status = 0
    try:
        trio.run(partial(run, options))
    except* AgoraError as group:
        print(f"agora: {_first(group)}", file=sys.stderr)  # noqa: T201  # the one line a refused start owes its user
        status = EXIT_REFUSED
    return status


async def run(options: argparse.Namespace) -> None:
    """Run the daemon of one home.

    Raises:
        StartError: refused, before anything was opened to the network; or in a group, as nurseries raise.
    """
    home = Home.open(Home.locate(options.home, os.environ).path)
    with ExitStack() as held:
        held.enter_context(home.lock())
        config = _configured(Config.load(home.config), options)
        identity = load_device_key(home, os.environ.get("AGORA_PASSPHRASE"))
        check_addresses(config, options.bootstrap or ())
        journal = Journal(home.journal, stderr=None if config.log_level == "quiet" else sys.stderr)
        held.callback(journal.close)
        admin_path = held.enter_context(home.bind_admin(os.environ))
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as outer:
                store = SqliteStore(
                    home.database,
                    on_full=lambda is_full: journal.write("disk_full" if is_full else "disk_usable"),
                )
                await outer.start(store.run)
                async with trio.open_nursery() as inner:
                    node = await _open(
                        inner,
                        home,
                        config,
                        identity,
                        store,
                        journal,
                        admin_path,
                        is_log_trusted=options.trust_own_log,
                    )
                    inner.start_soon(_stop_on_signal, signals, node.stop_asked)
                    await node.stop_asked.wait()
                    journal.write("stopping")
                    inner.cancel_scope.cancel()
                outer.cancel_scope.cancel()  # last: what the services still wrote is on disk
        journal.write("stopped")


def check_addresses(config: Config, bootstrap: Sequence[str]) -> None:
    """Refuse what cannot be listened on or dialled, before anything is written.

    Args:
        config: as the command line and the file make it.
        bootstrap: of the command line. One in the file, which a later version may have written, is only tried.

    Raises:
        AgoraError: a port is in use, or an address is none.
    """
    for address in config.listen:
        check_free(*listen_address(address), what="listen")
    check_free(*loopback_address(config.gateway), what="gateway")
    for address in (*bootstrap, *config.relays):
        parse(address)


async def _open(
    nursery: trio.Nursery,
    home: Home,
    config: Config,
    identity: Identity,
    store: SqliteStore,
    journal: Journal,
    admin_path: Path,
    *,
    is_log_trusted: bool,
) -> Node:
    """Start everything in the order in which each needs the one before, and say that it is ready."""
    models = ModelStore(home.models)
    engine = LlamaEngine(
        models,
        adapters_directory=home.blobs,
        slots=config.slots,
        context_tokens=config.context_tokens,
        threads=config.threads or None,
        memory_bytes_max=psutil.virtual_memory().total * config.memory_percent // 100,
    )
    host = Host(
        identity,
        HostSettings(
            listen=config.listen,
            announce=config.announce,
            mdns=config.mdns,
            relay=config.relay,
            relays=_relays(config),
            connections_max=config.connections_max,
        ),
        journal,
    )
    clock = SystemClock()
    trainer = TorchTrainer(models, home.data, home.blobs)
    examiner = LlamaExaminer(models, home.blobs)
    ports = Ports(
        mesh=host,
        store=store,
        engine=engine,
        clock=clock,
        journal=journal,
        rng=SystemRandom(),
        device=lambda: as_device(measure(engine.gpu), _sandbox(engine)),
        library=_Library(models, lambda digest: nursery.start_soon(_warm_up, engine, digest, journal)),
        blobs=DirectoryBlobs(home.blobs),
        data=DataDirectory(home.data, clock),
        trainer=trainer,
        examiner=examiner,
        adapters=GgufAdapters(models),
        compute=trio.to_thread.run_sync,
        tolerance=Tolerances(home.tolerances).of,
    )
    node = Node(ports, identity, config, await store.load())
    host.allow_relaying(node.logbook.assembly.is_member)
    if is_log_trusted:
        node.logbook.confirm()
    nursery.start_soon(engine.run)  # its child may still be loading a model while the mesh already asks
    nursery.start_soon(_warm_up_all, engine, journal)
    await nursery.start(examiner.run)
    await nursery.start(node.run)
    await nursery.start(host.run)
    keys = ApiKeys(home.api_keys)
    node.gateway = await nursery.start(serve_tcp, gateway_app(node, keys), config.gateway, journal)
    await nursery.start(serve_admin, admin_app(node), admin_path, journal)
    ready = {
        "peer_id": identity.peer_id,
        "listen": list(host.addresses),
        "gateway": node.gateway,
        "admin": str(admin_path),
    }
    journal.write("ready", peer=identity.peer_id, gateway=node.gateway)
    print(json.dumps(ready), flush=True)  # noqa: T201  # the one line of stdout: whoever started us waits for it
    return node


class _Library:
    """The model store, which has each new model loaded and measured at once."""

    def __init__(self, models: ModelStore, on_added: Callable[[Digest], None]) -> None:
        self._models = models
        self._on_added = on_added

    async def add(
        self,
        source: Path,
        name: str | None = None,
        on_progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> ModelCard:
        """See `node.own_models.Library`."""
        card = await self._models.add(source, name, on_progress)
        self._on_added(card.digest)
        return card


async def _warm_up_all(engine: LlamaEngine, journal: Journal) -> None:
    """Load the newest model, then those for which there is room beside it: the others are loaded when they are asked for."""
    newest_first = list(engine.models)[::-1]
    for model in newest_first:
        await _warm_up(engine, model, journal, is_modest=model != newest_first[0])
    if len(newest_first) > 1:  # the newest one stays longest, should one that is asked for need the room
        with suppress(EngineError):
            await engine.load(newest_first[0], is_modest=True)


async def _warm_up(engine: LlamaEngine, model: Digest, journal: Journal, *, is_modest: bool = False) -> None:
    """Load a model and let it say a few words: the first client does not wait, and bids know the speed."""
    request = Generation(model, (ChatMessage("user", WARM_UP_PROMPT),), tokens_max=WARM_UP_TOKENS)
    if dimensions := engine.models[model].dimensions:
        request = Generation(model, (), dimensions, task="embedding", inputs=(WARM_UP_PROMPT,))
    try:
        await engine.load(model, is_modest=is_modest)
        async with aclosing(engine.generate(request)) as frames:
            async for _frame in frames:
                pass
    except (EngineBusy, ModelLoading):
        return  # it has no place beside the others, or they are asked for already: it is measured when its turn comes
    except EngineError as error:
        journal.write("model_unusable", digest=model, reason=str(error))
        return
    status = engine.status(model)
    journal.write(
        "model_measured",
        digest=model,
        tokens_per_s=round(status.tokens_per_s, 1),
        prompt_tokens_per_s=round(status.prompt_tokens_per_s, 1),
        cache_tokens=engine.cells(model),
    )


def _sandbox(engine: LlamaEngine) -> str:
    return next((engine.status(digest).sandbox for digest in engine.models), "")


def _relays(config: Config) -> tuple[str, ...]:
    """Where to keep a place for those who cannot dial us: as configured, else at the members we joined through.

    Whether a router lets strangers in is hard to know from behind it, and a place that nobody uses costs nothing.
    """
    is_on_loopback = all(
        ipaddress.ip_address(listen_address(address)[0]).is_loopback for address in config.listen
    )
    if config.relays or is_on_loopback:
        return config.relays
    return tuple(
        address for address in config.bootstrap if "/p2p/" in address and "/p2p-circuit" not in address
    )


async def _stop_on_signal(signals: AsyncIterator[int], stop: trio.Event) -> None:
    async for _signal in signals:
        stop.set()
        return


def _configured(config: Config, options: argparse.Namespace) -> Config:
    """The command line goes before the file."""
    given = {
        "listen": tuple(options.listen) if options.listen else None,
        "bootstrap": (*config.bootstrap, *options.bootstrap) if options.bootstrap else None,
        "gateway": options.gateway,
        "mdns": False if options.no_mdns else None,
    }
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agora up",
        description="Run this device's daemon in the foreground. It prints one JSON line when it is ready.",
        epilog="example: agora up --listen /ip4/0.0.0.0/tcp/4420",
    )
    parser.add_argument(
        "--home", metavar="DIR", help="the home directory (default: AGORA_HOME, else ~/.agora)"
    )
    parser.add_argument(
        "--listen",
        metavar="MULTIADDR",
        action="append",
        help="where other devices connect to; may be repeated",
    )
    parser.add_argument(
        "--bootstrap",
        metavar="MULTIADDR",
        nargs="+",
        help="members to ask first, besides those of the config",
    )
    parser.add_argument("--gateway", metavar="HOST:PORT", help="the OpenAI-compatible API; port 0 takes any")
    parser.add_argument(
        "--trust-own-log",
        action="store_true",
        help="write to the own log before any member has confirmed how far it goes, for when all others are away; "
        "never with a restored or copied home",
    )
    parser.add_argument("--no-mdns", action="store_true", help="do not look for members in the local network")
    return parser


def _first(group: BaseExceptionGroup[AgoraError]) -> AgoraError:
    """The error to show: nurseries wrap what went wrong, and what came of it, in groups of groups."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
