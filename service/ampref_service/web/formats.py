"""Numbers, times and digests as people read them: the filters of the templates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from amp_core.metrics import METRICS
from amp_core.tiers import Tier
from ampref_service.keys import format_minute, format_time

__all__ = ["FILTERS"]

_UNITS = {metric.name: metric.unit for metric in METRICS}
_MEANINGS = {metric.name: metric.meaning for metric in METRICS}
_NONE = "–"


def format_value(value: Any, digits: int = 3) -> str:
    """A figure with so many significant digits; an integer as it is, with a thin space between thousands."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _NONE
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{round(value):,}".replace(",", "\u202f")
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    if decimals > 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(decimals, 0)}f}"


def format_threshold(gate: Mapping[str, Any]) -> str:
    """What a gate asks for: `≥ 0.85`, or `0.3 to 0.95`."""
    threshold = gate["threshold"]
    if isinstance(threshold, list | tuple):
        return " to ".join(f"{end:g}" for end in threshold)
    sign = {">=": "≥", "<=": "≤", "==": "="}.get(gate["op"], gate["op"])
    return f"{sign} {threshold:.4g}"


def format_seconds(value: float | None) -> str:
    """A duration: `8.4 s`, `3 min 20 s`, `2 h 5 min`."""
    if value is None:
        return _NONE
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def format_bytes(value: int | None) -> str:
    """A size: `812 B`, `4.1 MB`."""
    if value is None:
        return _NONE
    size = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def shorten_digest(digest: str | None) -> str:
    """The beginning of a digest."""
    return _NONE if not digest else digest.removeprefix("sha256:")[:12]


def tier_label(tier: int) -> str:
    """`Tier 0`, `Tier 1` or `Rejected`."""
    return Tier(tier).label


def tier_class(tier: int) -> str:
    """The style of a tier."""
    return {Tier.TIER_0: "tier-0", Tier.TIER_1: "tier-1", Tier.REJECTED: "rejected"}[Tier(tier)]


def format_pretty(value: Any) -> str:
    """JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def format_json_data(value: Any) -> Markup:
    """JSON within a `<script type="application/json">`, which no text in it can end."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


FILTERS: Mapping[str, Callable[..., str]] = {
    "value": format_value,
    "threshold": format_threshold,
    "seconds": format_seconds,
    "bytes": format_bytes,
    "time": lambda at: _NONE if at is None else format_minute(at),
    "machine_time": lambda at: format_time(at) or "",
    "digest": shorten_digest,
    "tier_label": tier_label,
    "tier_class": tier_class,
    "pretty": format_pretty,
    "json_data": format_json_data,
    "unit": lambda name: "" if _UNITS.get(name, "1") == "1" else _UNITS[name],
    "meaning": lambda name: _MEANINGS.get(name, ""),
}
"""By the names that templates use."""
