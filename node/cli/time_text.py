"""Durations as people write them: 90s, 30m, 24h, 7d."""

from node.errors import StartError

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(what: str, text: str) -> float:
    """Return a duration in seconds.

    Raises:
        StartError: it is none; `what` names the option.
    """
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS_S or not number.isdecimal() or int(number) == 0:
        raise StartError(f"{what} is {text!r}, expected a duration such as 90s, 30m, 24h or 7d")
    return int(number) * UNITS_S[unit]


def duration(milliseconds: int) -> str:
    """Return a duration in the largest unit that leaves no rest: 86,400,000 ms are 1d."""
    whole_s = milliseconds // 1000
    for unit in ("d", "h", "m"):
        if whole_s and whole_s % UNITS_S[unit] == 0:
            return f"{whole_s / UNITS_S[unit]:.0f}{unit}"
    return f"{whole_s}s"
