"""A test's further evidence as markup, drawn by its shape instead of its name, so that a test may add any evidence.

A list of numbers is a line; lists of one length side by side are lines in one drawing; lists that end in `_share` between `low`
and `high` are a histogram; a matrix is a table; and a mapping or list of such is a heading over them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from amp_core.verify.checklist import format_number

__all__ = ["FigureWriter", "render_table", "short_text"]

Json = Mapping[str, Any]
Line = Sequence[float | None]

_DRAWINGS = 48
"""Drawings of a test on the page."""

_ROWS = 400
_POINTS = 400
_DEPTH = 4
_WIDTH, _HEIGHT = 600.0, 120.0
_TOGETHER = 4.0
"""Lines share a drawing while the largest values of any two are within this factor: else the smaller ones would be flat."""


class FigureWriter:
    """Renders one test's figures; after `_DRAWINGS` drawings it leaves out the rest."""

    def __init__(self) -> None:
        self._drawings_left = _DRAWINGS

    def render(self, figures: Json) -> str:
        """The markup of a test's figures by name."""
        html = "".join(self._render(str(name), value, 0) for name, value in figures.items())
        if self._drawings_left <= 0:
            html += "<p class='quiet'>More figures are in the JSON report.</p>"
        return html

    def _render(self, name: str, value: Any, depth: int) -> str:
        if self._drawings_left <= 0:
            return ""
        if isinstance(value, Mapping):
            return self._render_mapping(name, value, depth)
        if isinstance(value, list | tuple) and not _is_line(value):
            return self._render_sequence(name, value, depth)
        if _is_line(value) and len(value) >= 3:
            return self._draw(name, {name: value})
        return _fact(name, ", ".join(short_text(item) for item in (value if _is_line(value) else (value,))))

    def _render_mapping(self, name: str, value: Json, depth: int) -> str:
        lines = {str(key): item for key, item in value.items() if _is_line(item) and len(item) >= 3}
        facts = {key: item for key, item in value.items() if not isinstance(item, Mapping | list | tuple)}
        shares = {key: item for key, item in lines.items() if key.endswith("_share")}
        if shares and {"low", "high"} <= value.keys():
            note = ", ".join(f"{key} {short_text(item)}" for key, item in facts.items() if key not in ("low", "high"))
            ends = (short_text(value["low"]), short_text(value["high"]))
            return self._draw(f"{name} · {note}" if note else name, shares, ends=ends, steps=True)
        inner = []
        for group in _group_lines(lines):
            inner.append(self._draw(f"{name}: {next(iter(group))}" if len(group) == 1 else name, group))
        if depth < _DEPTH:
            inner_values = {key: item for key, item in value.items() if key not in facts and str(key) not in lines}
            inner += [self._render(str(key), item, depth + 1) for key, item in inner_values.items()]
        text = ", ".join(f"{key} {short_text(item)}" for key, item in facts.items())
        return _nest(f"{escape(name)}{' <small>' + escape(text) + '</small>' if text else ''}", "".join(inner))

    def _render_sequence(self, name: str, value: Sequence[Any], depth: int) -> str:
        if not value:
            return ""
        if all(_is_line(item) for item in value):
            if len(value) <= 8 and all(len(item) == len(value[0]) >= 24 for item in value):
                return self._draw(name, {f"{name} {i}": item for i, item in enumerate(value)})
            return _nest(escape(name), render_table((), [[short_text(cell) for cell in item[:40]] for item in value[:40]]))
        if depth >= _DEPTH:
            return ""
        flat = [isinstance(item, Mapping) and not any(_is_nested(cell) for cell in item.values()) for item in value]
        if len(value) > 1 and all(flat):
            keys = list(dict.fromkeys(key for item in value for key in item))
            rows = [[short_text(item.get(key)) for key in keys] for item in value[:_ROWS]]
            return _nest(escape(name), render_table(keys, rows))
        if not any(_is_nested(item) for item in value):
            return _fact(name, ", ".join(short_text(item) for item in value[:200]))
        inner = ""
        for i, item in enumerate(value):
            # An entry is called by its own name where it has one.
            names = [item[key] for key in ("name", "clip", "title") if key in item] if isinstance(item, Mapping) else []
            label = next((text for text in names if isinstance(text, str)), f"#{i}")
            inner += self._render(label, item, depth + 1)
        return _nest(escape(name), inner)

    def _draw(self, title: str, lines: Mapping[str, Line], *, ends: tuple[str, str] | None = None, steps: bool = False) -> str:
        """Lines over their indices, or over `ends`, with the least and the greatest value beside them."""
        if self._drawings_left <= 0:
            return ""
        self._drawings_left -= 1
        finite = [float(v) for values in lines.values() for v in values if v is not None and math.isfinite(v)]
        if not finite:
            return _fact(title, "no finite value")
        low, high = min(finite), max(finite)
        if steps:
            low = min(low, 0.0)
        span = (high - low) or max(abs(high), 1.0)
        paths, keys = "", ""
        for i, (name, values) in enumerate(lines.items()):
            paths += f"<path class='l{i % 6}' d='{_svg_path(values, low, span, steps)}'/>"
            keys += f"<span class='k{i % 6}'>{escape(name)}</span>"
        legend = f"<p class='keys'>{keys}</p>" if len(lines) > 1 else ""
        first, last = ends or ("0", str(max(len(values) for values in lines.values()) - 1))
        label = escape(f"{title}: {format_number(low)} to {format_number(high)}", quote=True)
        axis = f"<span>{escape(format_number(high))}</span><span>{escape(format_number(low))}</span>"
        return (
            f"<figure><figcaption>{escape(title)}</figcaption>"
            f"<div class='plot'><div class='axis'>{axis}</div>"
            f"<svg viewBox='0 0 {_WIDTH:g} {_HEIGHT:g}' preserveAspectRatio='none' role='img' "
            f"aria-label='{label}'>{paths}</svg></div>"
            f"<p class='ends'><span>{escape(first)}</span><span>{escape(last)}</span></p>{legend}</figure>"
        )


def render_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts; without a head where it is empty."""
    titles = "".join(f"<th>{escape(cell.replace('_', ' '))}</th>" for cell in head)
    top = f"<thead><tr>{titles}</tr></thead>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='wide'><table>{top}<tbody>{body}</tbody></table></div>"


def short_text(value: Any) -> str:
    """A fact for people; a digest by its beginning."""
    text = format_number(value)
    return text[:19] + "…" if text.startswith("sha256:") and len(text) == 71 else text


def _nest(heading: str, html: str) -> str:
    return f"<div class='nest'><h4>{heading}</h4>{html}</div>"


def _fact(name: str, value: str) -> str:
    return f"<p class='fact'><span>{escape(name)}</span> {escape(value[:2000])}</p>"


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _is_line(value: Any) -> bool:
    """Whether it is a list of numbers, with None for gaps; a number that is none came through JSON as a text."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(item is None or (isinstance(item, int | float) and not isinstance(item, bool)) for item in value)


def _group_lines(lines: Mapping[str, Line]) -> list[dict[str, Line]]:
    """Lines that may share a drawing: of one length, and of sizes that leave none of them flat."""

    def size(values: Line) -> float:
        return max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)

    groups: list[dict[str, Line]] = []
    for name, values in lines.items():
        for group in groups:
            sizes = [size(line) for line in (*group.values(), values)]
            same_length = len(next(iter(group.values()))) == len(values)
            if same_length and len(group) < 6 and max(sizes) <= _TOGETHER * min(sizes):
                group[name] = values
                break
        else:
            groups.append({name: values})
    return groups


def _svg_path(values: Line, low: float, span: float, steps: bool) -> str:
    """The path of one line. Of a long one each bucket keeps its least and its greatest value, so that no peak is lost."""
    points: list[float | None] = list(values)
    if len(values) > _POINTS:
        points, buckets = [], _POINTS // 2
        for i in range(buckets):
            part = values[i * len(values) // buckets : (i + 1) * len(values) // buckets]
            finite = [value for value in part if value is not None and math.isfinite(value)]
            points += [min(finite), max(finite)] if finite else [None, None]
    path, command = "", "M"
    for i, value in enumerate(points):
        if value is None or not math.isfinite(value):
            command = "M"
            continue
        y = _HEIGHT - 2.0 - (float(value) - low) / span * (_HEIGHT - 4.0)
        if steps:
            left, right = _WIDTH * i / len(points), _WIDTH * (i + 1) / len(points)
            path += f"{command}{left:.1f} {y:.1f}L{right:.1f} {y:.1f}"
        else:
            path += f"{command}{_WIDTH * i / max(len(points) - 1, 1):.1f} {y:.1f}"
        command = "L"
    return path
