"""A verification as one page: inline styles and drawings, nothing from a network, readable on a telephone and in the dark.

    page(verification, waivers=[…], locked={…}) -> str

Figures are drawn by their shape, not by their name, so that a test may add what evidence it likes: a list of numbers is a line,
lists of one length side by side are lines in one drawing, lists that end in `_share` between `low` and `high` are a histogram,
a matrix is a table, and what holds others is a heading over them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from amp_core.tiers import Tier
from amp_core.verify.checklist import LOCKED_GROUP, as_dict, checklist, number, quoted, ready
from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Verification

__all__ = ["page"]

Json = Mapping[str, Any]

_ROWS_SHOWN = 400
"""Rows of a test that the page shows, the worst first; a version of many clips has thousands, and the JSON has them all."""
_DRAWINGS = 48
"""Drawings of a test that the page shows."""
_POINTS = 400
_DEPTH = 4
_WIDTH, _HEIGHT = 600.0, 120.0
_TOGETHER = 4.0
"""Lines are drawn together while the largest values of any two are within this factor: else the smaller ones would be flat."""
_ORDER = {FAIL: 0, WARN: 1, "WAIVED": 1, SKIP: 2}
_MARKS = {"PASS": "✓", WARN: "!", FAIL: "✗", SKIP: "–", "WAIVED": "~"}


def page(
    verification: Verification | Json,
    *more: Verification | Json,
    waivers: Iterable[Json] = (),
    locked: Mapping[str, str] | None = None,
    groups: Sequence[Json] | None = None,
) -> str:
    """The whole HTML document.

    Args:
      verification, *more: what was found, or its `to_dict()`; several follow one another on the page.
      waivers, locked: of the checklist, where there is one verification.
      groups: that checklist, where it was made before.
    """
    reports = [as_dict(one) for one in (verification, *more)]
    borne = tuple(waivers)
    parts = []
    for report in reports:
        lines = groups if groups is not None and not more else checklist(report, borne, locked if not more else None)
        parts.append(_report(report, lines))
    title = "Verification: " + ", ".join(_name(report["subject"]) for report in reports)[:200]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _name(subject: Json) -> str:
    if subject.get("dataset") and subject.get("version"):
        return f"{subject['dataset']}=={subject['version']}"
    clips = [clip for clip in subject.get("clips") or () if isinstance(clip, Mapping)]
    names = [str(clip.get("name")) for clip in clips]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return shown or str(subject.get("robot", "a subject"))


def _report(report: Json, groups: Sequence[Json]) -> str:
    failed = [test for test in report["tests"] if test["status"] == FAIL]
    open_ = sum(one["status"] == SKIP for group in groups for one in group["criteria"])
    unlocked = sum(one["status"] == SKIP for group in groups if group["name"] == LOCKED_GROUP for one in group["criteria"])
    unfit = [one["name"] for group in groups for one in group["criteria"] if one["status"] == FAIL]
    if ready(groups):
        waived = "1 failure is waived" if len(failed) == 1 else f"{len(failed)} failures are waived"
        verdict = f"ready for training; {waived}" if failed else "ready for training"
    elif open_ == unlocked and not failed and not unfit:
        verdict = "ready to be locked: a locked version alone is ready for training"
    else:
        said = f"{len(failed)} of {len(report['tests'])} tests failed" if failed else ""
        left = f"{open_} criteria are open" if open_ > 1 else "1 criterion is open" if open_ else ""
        if not failed and unfit:
            said = f"not met: {', '.join(unfit)}"
        verdict = "not ready for training: " + "; ".join(part for part in (said, left) if part)
    return "\n".join(
        (
            f"<header><h1>{escape(_name(report['subject']))}</h1>",
            f"<p class='verdict'>{_badge(report['status'])} {escape(verdict)}</p></header>",
            _subject(report["subject"]),
            _checklist(groups),
            _summary(report["tests"]),
            *(_test(test) for test in report["tests"]),
        )
    )


def _badge(status: str) -> str:
    mark = _MARKS.get(status, "?")
    return f"<span class='badge {escape(status.lower(), quote=True)}'>{mark} {escape(status)}</span>"


def _subject(subject: Json) -> str:
    facts, clips = [], []
    for key, value in subject.items():
        if key == "clips" and isinstance(value, Sequence) and all(isinstance(clip, Mapping) for clip in value):
            clips = list(value)
        elif not isinstance(value, Mapping | list | tuple):
            facts.append((key.replace("_", " "), _text(value)))
        else:
            items = [f"{name} {item}" for name, item in value.items()] if isinstance(value, Mapping) else map(str, value)
            facts.append((key.replace("_", " "), ", ".join(items)))
    lines = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f"<section><h2>What was tested</h2><dl class='facts'>{lines}</dl>{_clips(clips)}</section>"


def _clips(clips: Sequence[Json]) -> str:
    if not clips:
        return ""
    keys = list(dict.fromkeys(key for clip in clips for key in clip if key != "ranges"))
    rows = [[_cell(key, clip.get(key)) for key in keys] for clip in clips[:_ROWS_SHOWN]]
    more = f"<p class='quiet'>and {len(clips) - _ROWS_SHOWN} more clips</p>" if len(clips) > _ROWS_SHOWN else ""
    opened = " open" if len(clips) <= 12 else ""
    return f"<details{opened}><summary>{len(clips)} clips</summary>{_table(keys, rows)}{more}</details>"


def _checklist(groups: Sequence[Json]) -> str:
    parts = []
    for group in groups:
        items = []
        for one in group["criteria"]:
            waiver = f"<br><em>waived: {escape(str(one['waiver']))}</em>" if one.get("waiver") else ""
            items.append(
                f"<li>{_badge(one['status'])}<div><strong>{escape(one['name'])}</strong>"
                f"<br><span class='quiet'>{escape(one['evidence'])}</span>{waiver}</div></li>"
            )
        parts.append(f"<h3>{escape(group['name'])}</h3><ul class='criteria'>{''.join(items)}</ul>")
    return f"<section><h2>Training readiness</h2>{''.join(parts)}</section>"


def _summary(tests: Sequence[Json]) -> str:
    items = []
    for test in tests:
        said = test["reason"] or quoted(test["rows"]) or test["measured"]
        items.append(
            f"<li>{_badge(test['status'])}<div><a href='#{_anchor(test)}'><strong>{escape(test['name'])}</strong></a>"
            f" <span class='quiet'>{test['wall_sec']:.1f} s</span><br><span class='quiet'>{escape(said)}</span></div></li>"
        )
    return f"<section><h2>The tests</h2><ul class='criteria'>{''.join(items)}</ul></section>"


def _anchor(test: Json) -> str:
    return "test-" + "".join(char for char in str(test["id"]) if char.isalnum())


def _test(test: Json) -> str:
    reason = f"<p class='reason'>{escape(test['reason'])}</p>" if test["reason"] else ""
    measured = f"<p class='quiet'>Measured: {_code(test['measured'])}</p>" if test["measured"] else ""
    budget = [_DRAWINGS]
    drawings = "".join(_figure(str(name), value, budget, 0) for name, value in test["figures"].items())
    if budget[0] <= 0:
        drawings += "<p class='quiet'>More figures are in the JSON report.</p>"
    figures = f"<details><summary>Figures</summary><div class='figures'>{drawings}</div></details>" if drawings else ""
    return (
        f"<section class='test' id='{_anchor(test)}'><h2>{_badge(test['status'])} {escape(test['name'])}</h2>"
        f"{reason}{measured}{_rows(test)}{figures}</section>"
    )


def _code(text: str) -> str:
    """Text with what stands in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _rows(test: Json) -> str:
    rows = sorted(test["rows"], key=lambda row: _ORDER.get(row["status"], 3))
    if not rows:
        return ""
    cells = []
    for row in rows[:_ROWS_SHOWN]:
        asked = "" if row["threshold"] is None else f"{row['op']} {number(row['threshold'])}"
        where = " · ".join(str(part) for part in (row["where"], row["note"]) if part)
        # A unit in words, such as `0 or 1`, would read like another value.
        unit = row["unit"] if " " not in row["unit"] else ""
        value = f"{number(row['value'])} {unit}".strip()
        # What nothing is asked of is told, not passed.
        told = row["threshold"] is None and row["status"] == PASS
        mark = "<span class='quiet'>told</span>" if told else _badge(row["status"])
        cells.append(
            f"<tr><td>{mark}</td><td>{escape(row['name'])}</td><td class='n'>{escape(value)}</td>"
            f"<td class='n'>{escape(asked)}</td><td class='quiet'>{escape(where)}</td></tr>"
        )
    more = len(rows) - _ROWS_SHOWN
    rest = f"<p class='quiet'>and {more} more rows, none worse; the JSON report has them.</p>" if more > 0 else ""
    opened = " open" if len(rows) <= 12 or test["status"] in (FAIL, WARN) else ""
    head = (
        "<thead><tr><th>Status</th><th>Figure</th><th class='n'>Value</th><th class='n'>Asked</th><th>Where</th></tr></thead>"
    )
    table = f"<div class='wide'><table class='rows'>{head}<tbody>{''.join(cells)}</tbody></table></div>"
    return f"<details{opened}><summary>{len(rows)} figures beside their thresholds</summary>{table}{rest}</details>"


# --- figures ---------------------------------------------------------------------------------------------------------------


def _figure(name: str, value: Any, budget: list[int], depth: int) -> str:
    """Whatever evidence a test gave, as markup; `budget` is how many drawings may still be made."""
    if budget[0] <= 0:
        return ""
    if _is_numbers(value):
        if len(value) < 3:
            return _fact(name, ", ".join(_text(item) for item in value))
        return _drawing(name, {name: value}, budget)
    if isinstance(value, Mapping):
        return _mapping(name, value, budget, depth)
    if isinstance(value, list | tuple):
        return _sequence(name, value, budget, depth)
    return _fact(name, _text(value))


def _mapping(name: str, value: Json, budget: list[int], depth: int) -> str:
    lists = {str(key): item for key, item in value.items() if _is_numbers(item) and len(item) >= 3}
    shares = {key: item for key, item in lists.items() if key.endswith("_share")}
    if shares and {"low", "high"} <= value.keys():
        rest = {key: item for key, item in value.items() if key not in shares and key not in ("low", "high")}
        note = ", ".join(f"{key} {_text(item)}" for key, item in rest.items() if not isinstance(item, Mapping | list | tuple))
        return _drawing(f"{name} · {note}" if note else name, shares, budget, ends=(value["low"], value["high"]), steps=True)
    facts = {key: item for key, item in value.items() if not isinstance(item, Mapping | list | tuple)}
    inner = [_drawing(_of(name, group), group, budget) for group in _alike(lists)]
    if depth < _DEPTH:
        others = {key: item for key, item in value.items() if key not in facts and str(key) not in lists}
        inner += [_figure(str(key), item, budget, depth + 1) for key, item in others.items()]
    said = ", ".join(f"{key} {_text(item)}" for key, item in facts.items())
    heading = f"{escape(name)}{' <small>' + escape(said) + '</small>' if said else ''}"
    return f"<div class='nest'><h4>{heading}</h4>{''.join(inner)}</div>"


def _sequence(name: str, value: Sequence[Any], budget: list[int], depth: int) -> str:
    if not value:
        return ""
    if all(_is_numbers(item) and item for item in value):
        if len(value) <= 8 and all(len(item) == len(value[0]) >= 24 for item in value):
            return _drawing(name, {f"{name} {i}": item for i, item in enumerate(value)}, budget)
        rows = [[_text(cell) for cell in item[:40]] for item in value[:40]]
        return f"<div class='nest'><h4>{escape(name)}</h4>{_table((), rows)}</div>"
    if depth >= _DEPTH:
        return ""
    if len(value) > 1 and all(isinstance(item, Mapping) and _is_flat(item) for item in value):
        keys = list(dict.fromkeys(key for item in value for key in item))
        rows = [[_text(item.get(key)) for key in keys] for item in value[:_ROWS_SHOWN]]
        return f"<div class='nest'><h4>{escape(name)}</h4>{_table(keys, rows)}</div>"
    if any(isinstance(item, Mapping | list | tuple) for item in value):
        inner = "".join(_figure(_label(item, i), item, budget, depth + 1) for i, item in enumerate(value))
        return f"<div class='nest'><h4>{escape(name)}</h4>{inner}</div>"
    return _fact(name, ", ".join(_text(item) for item in value[:200]))


def _is_flat(item: Json) -> bool:
    return not any(isinstance(value, Mapping | list | tuple) for value in item.values())


def _label(item: Any, place: int) -> str:
    """What an entry of a list is called: by its own name where it has one."""
    if isinstance(item, Mapping):
        for key in ("name", "clip", "title"):
            if isinstance(item.get(key), str):
                return str(item[key])
    return f"#{place}"


def _of(name: str, group: Json) -> str:
    return f"{name}: {next(iter(group))}" if len(group) == 1 else name


def _is_numbers(value: Any) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    # A gap is None; a number that is none came through JSON as a text.
    return all(item is None or (isinstance(item, int | float) and not isinstance(item, bool)) for item in value)


def _alike(lists: Mapping[str, Sequence[Any]]) -> list[dict[str, Sequence[Any]]]:
    """Lists that may share a drawing: of one length, and of sizes that leave none of them flat."""
    groups: list[dict[str, Sequence[Any]]] = []
    for name, values in lists.items():
        for group in groups:
            sizes = [_size(other) for other in group.values()] + [_size(values)]
            same = len(next(iter(group.values()))) == len(values)
            if same and len(group) < 6 and max(sizes) <= _TOGETHER * min(sizes):
                group[name] = values
                break
        else:
            groups.append({name: values})
    return groups


def _size(values: Sequence[Any]) -> float:
    return max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)


def _drawing(
    title: str,
    lines: Mapping[str, Sequence[Any]],
    budget: list[int],
    *,
    ends: tuple[Any, Any] | None = None,
    steps: bool = False,
) -> str:
    """Lines over their place in the list, or over `ends`, with the least and the greatest value beside them."""
    if budget[0] <= 0:
        return ""
    budget[0] -= 1
    known = [float(v) for values in lines.values() for v in values if v is not None and math.isfinite(v)]
    if not known:
        return _fact(title, "no finite value")
    low, high = min(known), max(known)
    if steps:
        low = min(low, 0.0)
    span = (high - low) or max(abs(high), 1.0)
    paths = "".join(
        f"<path class='l{i % 6}' d='{_path(values, low, span, steps)}'/>" for i, values in enumerate(lines.values())
    )
    keys = (
        "<p class='keys'>" + "".join(f"<span class='k{i % 6}'>{escape(key)}</span>" for i, key in enumerate(lines)) + "</p>"
        if len(lines) > 1
        else ""
    )
    count = max(len(values) for values in lines.values())
    first, last = (_text(end) for end in ends) if ends is not None else ("0", str(count - 1))
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f"<div class='plot'><div class='axis'><span>{escape(number(high))}</span><span>{escape(number(low))}</span></div>"
        f"<svg viewBox='0 0 {_WIDTH:g} {_HEIGHT:g}' preserveAspectRatio='none' role='img' "
        f"aria-label='{escape(f'{title}: {number(low)} to {number(high)}', quote=True)}'>{paths}</svg></div>"
        f"<p class='ends'><span>{escape(first)}</span><span>{escape(last)}</span></p>{keys}</figure>"
    )


def _path(values: Sequence[Any], low: float, span: float, steps: bool) -> str:
    points = _thinned(values)
    count = len(points)
    parts, drawn = [], False
    for i, value in enumerate(points):
        if value is None or not math.isfinite(value):
            drawn = False
            continue
        y = _HEIGHT - 2.0 - (float(value) - low) / span * (_HEIGHT - 4.0)
        if steps:
            left, right = _WIDTH * i / count, _WIDTH * (i + 1) / count
            parts.append(f"{'L' if drawn else 'M'}{left:.1f} {y:.1f}L{right:.1f} {y:.1f}")
        else:
            parts.append(f"{'L' if drawn else 'M'}{_WIDTH * i / max(count - 1, 1):.1f} {y:.1f}")
        drawn = True
    return "".join(parts)


def _thinned(values: Sequence[Any]) -> Sequence[Any]:
    """At most about `_POINTS` values that keep every bucket's least and greatest, so that no peak is lost."""
    if len(values) <= _POINTS:
        return values
    kept: list[Any] = []
    buckets = _POINTS // 2
    for i in range(buckets):
        part = values[i * len(values) // buckets : (i + 1) * len(values) // buckets]
        there = [value for value in part if value is not None and math.isfinite(value)]
        kept += [min(there), max(there)] if there else [None, None]
    return kept


def _fact(name: str, value: str) -> str:
    return f"<p class='fact'><span>{escape(name)}</span> {escape(value[:2000])}</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = (
        "<thead><tr>" + "".join(f"<th>{escape(cell.replace('_', ' '))}</th>" for cell in head) + "</tr></thead>" if head else ""
    )
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='wide'><table>{top}<tbody>{body}</tbody></table></div>"


def _cell(key: str, value: Any) -> str:
    return Tier(value).label if key == "tier" and isinstance(value, int) else _text(value)


def _text(value: Any) -> str:
    """A fact for people; a digest by its beginning."""
    text = number(value)
    return text[:19] + "…" if text.startswith("sha256:") and len(text) == 71 else text


_STYLE = """
:root { color-scheme: light dark;
  --back: #fbfbfa; --card: #fff; --ink: #1d1d1f; --quiet: #5f6368; --line: #dcdcd8;
  --pass: #1a7f37; --warn: #8a5a00; --fail: #c0262d; --skip: #5f6368; --waived: #6b3fa0;
  --c0: #2f6fdb; --c1: #d1541b; --c2: #1a7f37; --c3: #8b3fb5; --c4: #a06a00; --c5: #0e8a8a; }
@media (prefers-color-scheme: dark) { :root {
  --back: #16171a; --card: #1f2125; --ink: #e9e9ea; --quiet: #a3a7ad; --line: #3a3d43;
  --pass: #4cc26a; --warn: #e0aa3e; --fail: #ff7b72; --skip: #a3a7ad; --waived: #c297ff;
  --c0: #6ea8ff; --c1: #ff9a5c; --c2: #4cc26a; --c3: #d08cf2; --c4: #e0aa3e; --c5: #4fd0d0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
h3 { font-size: .95rem; margin: 1rem 0 .25rem; }
h4 { font-size: .85rem; margin: .75rem 0 .25rem; }
h4 small { font-weight: normal; color: var(--quiet); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
.quiet, figcaption, .ends, .axis { color: var(--quiet); font-size: .85rem; }
.verdict { font-size: 1.05rem; margin: 0; }
.reason { border-left: 3px solid var(--quiet); padding-left: .6rem; margin: .5rem 0; }
.badge { display: inline-block; min-width: 4.6em; padding: 0 .5em; border: 1px solid currentColor; border-radius: 1em;
  text-align: center; font-size: .75rem; font-weight: 600; white-space: nowrap; vertical-align: middle; }
.pass { color: var(--pass); } .warn { color: var(--warn); } .fail { color: var(--fail); }
.skip { color: var(--skip); } .waived { color: var(--waived); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .5rem 1rem; margin: 0 0 .5rem; }
dt { color: var(--quiet); font-size: .8rem; } dd { margin: 0; }
.criteria { list-style: none; margin: 0; padding: 0; }
.criteria li { display: flex; gap: .75rem; padding: .4rem 0; border-top: 1px solid var(--line); align-items: baseline; }
.criteria li:first-child { border-top: 0; } .criteria .badge { flex: none; width: 6.4em; } .criteria div { min-width: 0; }
a { color: inherit; } summary { cursor: pointer; font-size: .9rem; padding: .25rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .85rem; overflow-wrap: normal; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--quiet); font-weight: 500; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
@media (max-width: 40rem) { .rows thead { display: none; } .rows tr { display: flex; flex-wrap: wrap; gap: 0 .6rem;
    padding: .35rem 0; border-bottom: 1px solid var(--line); } .rows td { border: 0; padding: 0; }
  .rows td:last-child { flex-basis: 100%; } .rows .n { white-space: normal; } }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .25rem 1.25rem; }
.nest { grid-column: 1 / -1; display: grid; grid-template-columns: subgrid; gap: inherit; }
.nest > h4, .nest > .fact, .nest > .wide { grid-column: 1 / -1; }
figure { margin: .25rem 0; min-width: 0; } figcaption { margin-bottom: .15rem; }
.plot { display: flex; gap: .4rem; } .plot svg { flex: 1; min-width: 0; height: 5rem; border-bottom: 1px solid var(--line);
  border-left: 1px solid var(--line); }
.axis { display: flex; flex-direction: column; justify-content: space-between; text-align: right; width: 4.2em; flex: none;
  font-size: .72rem; }
.ends { display: flex; justify-content: space-between; margin: 0 0 0 4.6em; font-size: .72rem; }
path { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.l0 { stroke: var(--c0); } .l1 { stroke: var(--c1); } .l2 { stroke: var(--c2); }
.l3 { stroke: var(--c3); } .l4 { stroke: var(--c4); } .l5 { stroke: var(--c5); }
.keys { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0 0 0 3.3em; font-size: .75rem; }
.keys span::before { content: ""; display: inline-block; width: .9em; height: 3px; margin-right: .4em; vertical-align: middle;
  background: currentColor; }
.k0 { color: var(--c0); } .k1 { color: var(--c1); } .k2 { color: var(--c2); }
.k3 { color: var(--c3); } .k4 { color: var(--c4); } .k5 { color: var(--c5); }
.fact { margin: .15rem 0; font-size: .85rem; } .fact span { color: var(--quiet); }
"""
