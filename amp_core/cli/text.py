"""Numbers, tiers and times as people read them."""

from __future__ import annotations

import math
from typing import Any

from amp_core.tiers import Tier


def tier_name(tier: int | None) -> str:
    """`Tier 0`, `Tier 1`, `Rejected`, or `-` where there is none yet."""
    return "-" if tier is None else Tier(tier).label


def number(value: Any, digits: int = 2) -> str:
    """A value for a table: `-` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def counted(count: int, noun: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(n_bytes: int) -> str:
    """A size in decimal units: `12.3 MB`."""
    amount = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def time_left(seconds: float | None) -> str:
    """The time that the rest takes, as `40 s left`; empty where it is unknown."""
    if seconds is None or math.isinf(seconds):
        return ""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s left"
    return f"{round(seconds / 60)} min left" if seconds < 5970 else f"{seconds / 3600:.1f} h left"


def printable(text: str) -> str:
    """The text without control characters: a file's name or a server's answer must not drive the terminal.

    The joiners of scripts and emoji stay: names may hold them, and terminals show none.
    """
    return "".join(c if c.isprintable() or c in " \u200c\u200d" else repr(c)[1:-1] for c in text)
