"""What the user chose, from `config.toml`: flat, typed, and strict.

A misspelt key is an error that names the nearest known one, never silently the default. Every message says the file
and, where it can, the line.
"""

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

from node.errors import StartError
from node.private_file import check_not_world_writable, write_atomic
from protocol import limits

CONFIG_BYTES_MAX = 64 * 1024
LOG_LEVELS = ("quiet", "info")
MICRO_MAX = 10**15  # a billion credits: sums of prices stay far from 2**63


@dataclass(frozen=True)
class Config:
    """One setting a field; `DEFAULT_TOML` says what each means. Prices and caps are in micro-credits.

    Raises:
        StartError: a value is out of its range.
    """

    owner: str = "me"
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4420",)
    bootstrap: tuple[str, ...] = ()
    gateway: str = "127.0.0.1:8420"
    announce: tuple[str, ...] = ()
    mdns: bool = True
    relay: bool = True
    relays: tuple[str, ...] = ()
    connections_max: int = 128
    slots: int = 4
    threads: int = 0
    context_tokens: int = 4_096
    memory_percent: int = 80
    price_prompt_micro: int = 10
    price_completion_micro: int = 40
    owner_percent: int = 100
    pay_prompt_micro_max: int = 100
    pay_completion_micro_max: int = 400
    budget_job_micro: int = 0
    budget_day_micro: int = 0
    buy_checks: bool = True
    exposure_peer_micro: int = 1_000_000
    battery_percent_min: int = 30
    canary_interval_s: int = 3_600
    train: bool = True
    price_step_micro: int = 1_000
    pay_step_micro_max: int = 10_000
    cohort_min: int = limits.COHORT_MIN_DEFAULT
    privacy_run_percent: int = 25
    log_level: str = "info"

    def __post_init__(self) -> None:
        """Check every range, whoever set the value: the file or the command line."""
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise StartError(f"{name} is {value}, expected {low} to {high}")
        if not (self.owner.isprintable() and 0 < len(self.owner) <= limits.OWNER_CHARS_MAX):
            raise StartError(
                f"owner is {self.owner!r}, expected 1 to {limits.OWNER_CHARS_MAX} printable characters"
            )
        for name, addresses in (
            ("listen", self.listen),
            ("bootstrap", self.bootstrap),
            ("announce", self.announce),
            ("relays", self.relays),
        ):
            _check_addresses(name, addresses)
        self.gateway_address()
        if self.log_level not in LOG_LEVELS:
            raise StartError(f"log_level is {self.log_level!r}, expected one of {', '.join(LOG_LEVELS)}")

    def gateway_address(self) -> tuple[str, int]:
        """Return the host (an IPv6 one without its brackets) and the port; port 0 means any free one."""
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s/]+):(\d{1,5})", self.gateway)
        if found is None or int(found[2]) > 65_535:
            raise StartError(f"gateway is {self.gateway!r}, expected HOST:PORT such as '127.0.0.1:8420'")
        return found[1].strip("[]"), int(found[2])

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file; a missing one means the defaults.

        Raises:
            StartError: one line: the file, the line if known, what was found and what was expected.
        """
        try:
            with path.open("rb") as file:
                check_not_world_writable(path, path.stat())
                data = file.read(CONFIG_BYTES_MAX + 1)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise StartError(f"cannot read {path} ({error.strerror}), expected a text file") from error
        if len(data) > CONFIG_BYTES_MAX:
            raise StartError(f"{path} is over {CONFIG_BYTES_MAX} bytes, expected a short text file")
        try:
            text = data.decode()
            table = tomllib.loads(text)
        except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError: the latter says the line
            raise StartError(f"{path} is not TOML: {error}") from error
        return cls._from_table(table, path, text)

    @classmethod
    def _from_table(cls, table: dict[str, Any], path: Path, text: str) -> Self:
        kinds = get_type_hints(cls)
        values: dict[str, Any] = {}
        for name, value in table.items():
            where = f"{path}:{_line_of(name, text)}"
            if name not in kinds:
                raise StartError(f"{where}: unknown key {name!r}; {_nearest(name, list(kinds))}")
            values[name] = _typed(name, value, kinds[name], where)
            try:
                cls(**{name: values[name]})
            except StartError as error:
                raise StartError(f"{where}: {error}") from None
        return cls(**values)


_RANGES = {
    "connections_max": (8, 4_096),
    "slots": (1, 64),
    "threads": (0, 256),
    "context_tokens": (256, 1_048_576),
    "memory_percent": (5, 95),
    "price_prompt_micro": (0, MICRO_MAX),
    "price_completion_micro": (0, MICRO_MAX),
    "owner_percent": (0, 100),
    "pay_prompt_micro_max": (0, MICRO_MAX),
    "pay_completion_micro_max": (0, MICRO_MAX),
    "budget_job_micro": (0, MICRO_MAX),
    "budget_day_micro": (0, MICRO_MAX),
    "exposure_peer_micro": (0, MICRO_MAX),
    "battery_percent_min": (0, 100),
    "canary_interval_s": (10, 86_400),
    "price_step_micro": (0, MICRO_MAX),
    "pay_step_micro_max": (0, MICRO_MAX),
    "cohort_min": (1, limits.COHORT_MAX),
    "privacy_run_percent": (1, 100),
}

DEFAULT_TOML = """\
# What this device does in the mesh. Lines that start with # show the defaults.
# Options of the command line come before what stands here.

# whose device this is, as other members see it
# owner = "me"

# where other devices connect to; and members to ask first
# listen = ["/ip4/0.0.0.0/tcp/4420"]
# bootstrap = []

# further addresses that reach this device (a router forwards a port)
# announce = []

# find members in the local network; carry circuits for members that cannot be dialled; and the members that carry
# circuits to this device (none named: those of bootstrap)
# mdns = true
# relay = true
# relays = []
# connections_max = 128

# the OpenAI-compatible API and the control centre
# gateway = "127.0.0.1:8420"

# requests answered at once, each slower than alone, all together faster; CPU threads (0: the cores but one); tokens of
# context for each request; and of this machine's memory the share that models may take: they stay there until another
# one needs the room, the one used least recently going first
# slots = 4
# threads = 0
# context_tokens = 4096
# memory_percent = 80

# what this device asks for a token read and a token written, in micro-credits (a credit is 1000000 of them), when it is
# idle and on mains power (a busy one asks up to twice that); and what your own other devices pay of it, in percent,
# whatever the load
# price_prompt_micro = 10
# price_completion_micro = 40
# owner_percent = 100

# what it pays others at most: for a token read and written, for one chat, and in a day (0: no limit)
# pay_prompt_micro_max = 100
# pay_completion_micro_max = 400
# budget_job_micro = 0
# budget_day_micro = 0

# whether it pays for a second look at answers that it bought, cannot check itself, and any member may read: all of a new
# seller's first 20, and 7 in 100 later
# buy_checks = true

# unpaid work it does at most for one buyer
# exposure_peer_micro = 1000000

# on battery: no work for others below this charge
# battery_percent_min = 30

# a patch that is served here is asked a few questions of its line's public set each so many seconds; where it answers
# worse than its voters were told, this device serves it no more
# canary_interval_s = 3600

# whether this device's private data (agora data) may train adapters, what it asks for a training step, what its own runs
# pay for one at most, and how many must train together at least: the fewer, the more an update tells of its owner
# train = true
# price_step_micro = 1000
# pay_step_micro_max = 10000
# cohort_min = 3

# of a data set's privacy budget, the share that one run may spend at most, in percent: the more, the more a run learns and
# the fewer there can be
# privacy_run_percent = 25

# "info" shows every event on stderr, "quiet" only what stops the daemon
# log_level = "info"
"""


def write_default(path: Path, *, owner: str, bootstrap: tuple[str, ...] = ()) -> None:
    """Write a config file in which every setting is shown and only the owner and the first peers are set.

    Raises:
        StartError: there is one already, or this is no name for an owner.
    """
    Config(owner=owner, bootstrap=bootstrap)
    if path.exists():
        raise StartError(f"there is a config {path} already, expected none; move it away first")
    text = DEFAULT_TOML.replace('# owner = "me"', f"owner = {_quoted(owner)}")
    if bootstrap:
        listed = ", ".join(_quoted(address) for address in bootstrap)
        text = text.replace("# bootstrap = []", f"bootstrap = [{listed}]")
    write_atomic(path, text.encode())


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _typed(name: str, value: object, kind: Any, where: str) -> object:
    if get_origin(kind) is tuple:
        if isinstance(value, list) and all(isinstance(item, get_args(kind)[0]) for item in value):
            return tuple(value)
    elif type(value) is kind:  # exactly: True is no number
        return value
    expected = {str: "a text in quotes", int: "a whole number", bool: "true or false"}.get(
        kind, "a list of texts"
    )
    raise StartError(f"{where}: {name} is {str(value)[:64]!r}, expected {expected}")


def _check_addresses(name: str, addresses: tuple[str, ...]) -> None:
    if len(addresses) > limits.ADDRESSES_MAX:
        raise StartError(f"{name} has {len(addresses)} addresses, expected {limits.ADDRESSES_MAX} at most")
    for address in addresses:
        if not (
            address.startswith("/") and address.isprintable() and len(address) <= limits.ADDRESS_CHARS_MAX
        ):
            raise StartError(
                f"{name} has {address[:64]!r}, expected a multiaddr such as '/ip4/192.168.1.5/tcp/4420'"
            )


def _line_of(name: str, text: str) -> int:
    """Return the line on which a key or a table is; 1 if it is written in a way this does not find."""
    pattern = re.compile(rf"""^\s*\[?\s*["']?{re.escape(name)}["']?\s*[\].=]""")
    for number, line in enumerate(text.splitlines(), start=1):
        if pattern.match(line):
            return number
    return 1


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
