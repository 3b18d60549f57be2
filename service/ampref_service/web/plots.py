"""Drawings of a version: bars, a map and shares as SVG within the page, without a style or a script of their own.

Each is an image with a label that says what it shows. The figures behind it are in its titles; what matters is also in text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from ampref_service.web.formats import format_seconds, format_value

_WIDTH, _HEIGHT = 320.0, 64.0
_MAP_CELL = 10.0
_SHADES = 10


def draw_bars(edges: Sequence[float], amounts: Sequence[float], label: str, *, unit: str = "", what: str = "frames") -> Markup:
    """A bar for each bin between `edges`, whose height is the share of the highest."""
    top = max(amounts, default=0) or 1
    width = _WIDTH / max(len(amounts), 1)
    bars = []
    for number, (begin, end, amount) in enumerate(zip(edges[:-1], edges[1:], amounts, strict=True)):
        height = _HEIGHT * amount / top
        amount_text = format_seconds(amount) if what == "s" else f"{format_value(amount)} {what}"
        title = f"{format_value(begin)} to {format_value(end)} {unit}: {amount_text}"
        bars.append(
            f'<rect class="bar" x="{number * width + 0.4:.2f}" y="{_HEIGHT - height:.2f}" width="{max(width - 0.8, 0.4):.2f}" '
            f'height="{height:.2f}"><title>{escape(title)}</title></rect>'
        )
    ends = f"<span>{escape(format_value(edges[0]))}</span><span>{escape(format_value(edges[-1]))} {escape(unit)}</span>"
    return Markup(
        f'<svg class="bars" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(bars)}</svg><p class="range-ends">{ends}</p>'
    )


def draw_seconds(histogram: Mapping[str, Any], label: str) -> Markup:
    """A histogram of the manifest's coverage: seconds in bins of one width."""
    seconds = histogram["seconds"]
    edges = [histogram["from"] + number * histogram["bin"] for number in range(len(seconds) + 1)]
    busiest = max(range(len(seconds)), key=seconds.__getitem__)
    text = (
        f"{label}, {format_value(edges[0])} to {format_value(edges[-1])} {histogram['unit']}, "
        f"most around {format_value(edges[busiest] + histogram['bin'] / 2)}"
    )
    return draw_bars(edges, seconds, text, unit=histogram["unit"], what="s")


def draw_map(turning: Mapping[str, Any], control_dt: float) -> Markup:
    """Seconds by forward speed (to the right) and turning rate (left turns above), darker where there are more."""
    rows = turning["frames"]
    if not rows:
        return Markup("")
    speed, turn = turning["speed"], turning["turn"]
    top = max(max(row) for row in rows)
    columns, lines = len(rows), len(rows[0])
    width, height = columns * _MAP_CELL, lines * _MAP_CELL
    cells = []
    for x, row in enumerate(rows):
        for y, frames in enumerate(row):
            # The root, so that what is rare is seen beside what is common.
            shade = 0 if not frames else max(1, round(_SHADES * (frames / top) ** 0.5))
            begin, end = speed["from"] + x * speed["bin"], speed["from"] + (x + 1) * speed["bin"]
            low, high = turn["from"] + y * turn["bin"], turn["from"] + (y + 1) * turn["bin"]
            title = (
                f"{format_value(begin)} to {format_value(end)} m/s, {format_value(low)} to {format_value(high)} rad/s: "
                f"{format_seconds(frames * control_dt)}"
            )
            cells.append(
                f'<rect class="heat" fill-opacity="{shade / _SHADES:g}" x="{x * _MAP_CELL:g}" '
                f'y="{(lines - 1 - y) * _MAP_CELL:g}" width="{_MAP_CELL - 0.5:g}" height="{_MAP_CELL - 0.5:g}">'
                f"<title>{escape(title)}</title></rect>"
            )
    used = sum(frames > 0 for row in rows for frames in row)
    label = f"seconds by forward speed and turning rate: {used} of {columns * lines} cells are used"
    low_turn, high_turn = format_value(turn["from"]), format_value(turn["from"] + lines * turn["bin"])
    low_speed, high_speed = format_value(speed["from"]), format_value(speed["from"] + columns * speed["bin"])
    return Markup(
        f'<div class="plot"><div class="axis"><span>{high_turn}</span><span>rad/s</span><span>{low_turn}</span></div>'
        f'<svg class="map" viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(cells)}</svg></div>'
        f'<p class="ends"><span>{low_speed}</span><span>the darkest cell: {format_seconds(top * control_dt)}</span>'
        f"<span>{high_speed} m/s</span></p>"
    )


def draw_share(share: float, second: float | None = None) -> Markup:
    """A bar of a share of 1, and below it a thinner one of another; the figures stand beside it in the table."""
    height = 8 if second is None else 5
    rects = f'<rect class="bar" x="0" y="0" width="{100 * share:.2f}" height="{height}"/>'
    if second is not None:
        rects += f'<rect class="bar second" x="0" y="6" width="{100 * second:.2f}" height="2"/>'
    return Markup(f'<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">{rects}</svg>')
