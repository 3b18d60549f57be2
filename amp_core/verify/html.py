"""A verification as one page: inline styles and drawings, nothing from a network, readable on a telephone and in the dark.

page(document, …) -> str

The service's page of a version shows the same parts: `describe_verdict`, `render_checklist`, `render_outcomes`, `render_tests`.
Their markup has classes of `page.css`, and no style of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from amp_core.tiers import Tier
from amp_core.verify.checklist import LOCKED_GROUP, WAIVED, format_number, quote_decisive_row
from amp_core.verify.html_figures import FigureWriter, render_table, short_text
from amp_core.verify.report import FAIL, PASS, SKIP, WARN

__all__ = ["describe_verdict", "page", "render_checklist", "render_outcomes", "render_tests"]

Json = Mapping[str, Any]

_ROWS_SHOWN = 400
"""Rows of a test on the page, the worst first; a version of many clips has thousands, and the JSON has them all."""

_ORDER = {FAIL: 0, WARN: 1, WAIVED: 1, SKIP: 2}
_MARKS = {PASS: "✓", WARN: "!", FAIL: "✗", SKIP: "–", WAIVED: "~"}


def page(*documents: Json) -> str:
    """One page of reports as `checklist.document` gives them, one after the other."""
    title = "Verification: " + ", ".join(_subject_name(document["subject"]) for document in documents)[:200]
    style = files("amp_core").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(map(_render_report, documents))
        + "\n</main>\n</body>\n</html>\n"
    )


def _subject_name(subject: Json) -> str:
    if subject.get("dataset") and subject.get("version"):
        return f"{subject['dataset']}=={subject['version']}"
    names = [str(clip.get("name")) for clip in subject.get("clips") or () if isinstance(clip, Mapping)]
    text = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return text or str(subject.get("robot", "a subject"))


def render_checklist(groups: Sequence[Json]) -> str:
    """The criteria of the training-readiness checklist, each with its evidence and its waiver."""
    checks = []
    for group in groups:
        items = []
        for criterion in group["criteria"]:
            waiver = f"<br><em>waived: {escape(str(criterion['waiver']))}</em>" if criterion.get("waiver") else ""
            evidence = f"<br><span class='quiet'>{escape(criterion['evidence'])}</span>{waiver}"
            items.append(_item(criterion["status"], f"<strong>{escape(criterion['name'])}</strong>{evidence}"))
        checks.append(f"<h3>{escape(group['name'])}</h3><ul class='criteria'>{''.join(items)}</ul>")
    return "".join(checks)


def render_outcomes(tests: Sequence[Json]) -> str:
    """A line for each test: its status and the reason; where the test's rows are there, it leads to `render_tests`."""
    items = []
    for test in tests:
        text, title = test["reason"], f"<strong>{escape(test['name'])}</strong>"
        if "rows" in test:
            text = text or quote_decisive_row(test["rows"]) or test["measured"]
            title = f"<a href='#{_anchor(test)}'>{title}</a> <span class='quiet'>{test['wall_sec']:.1f} s</span>"
        items.append(_item(test["status"], f"{title}<br><span class='quiet'>{escape(text)}</span>"))
    return f"<ul class='criteria'>{''.join(items)}</ul>"


def render_tests(tests: Sequence[Json]) -> str:
    """Every test with its rows and its figures, each a section."""
    return "\n".join(map(_render_test, tests))


def _render_report(report: Json) -> str:
    return "\n".join(
        (
            f"<header><h1>{escape(_subject_name(report['subject']))}</h1>",
            f"<p class='verdict'>{_badge(report['status'])} {escape(describe_verdict(report))}</p></header>",
            _render_subject(report["subject"]),
            f"<section><h2>Training readiness</h2>{render_checklist(report['groups'])}</section>",
            f"<section><h2>The tests</h2>{render_outcomes(report['tests'])}</section>",
            render_tests(report["tests"]),
        )
    )


def describe_verdict(report: Json) -> str:
    """Whether it is ready for training, and what stands in the way; of a report, or of a version's `readiness`."""
    groups = report["groups"]
    failures = sum(test["status"] == FAIL for test in report["tests"])
    open_ = sum(criterion["status"] == SKIP for group in groups for criterion in group["criteria"])
    skips = sum(c["status"] == SKIP for group in groups if group["name"] == LOCKED_GROUP for c in group["criteria"])
    unmet = [criterion["name"] for group in groups for criterion in group["criteria"] if criterion["status"] == FAIL]
    if report["ready"]:
        waiver_text = "1 failure is waived" if failures == 1 else f"{failures} failures are waived"
        return f"ready for training; {waiver_text}" if failures else "ready for training"
    if open_ == skips and not failures and not unmet:
        return "ready to be locked: a locked version alone is ready for training"
    reasons = []
    if failures:
        reasons.append(f"{failures} of {len(report['tests'])} tests failed")
    elif unmet:
        reasons.append(f"not met: {', '.join(unmet)}")
    if open_:
        reasons.append(f"{open_} criteria are open" if open_ > 1 else "1 criterion is open")
    return "not ready for training: " + "; ".join(reasons)


def _badge(status: str) -> str:
    return f"<span class='badge {escape(status.lower(), quote=True)}'>{_MARKS.get(status, '?')} {escape(status)}</span>"


def _item(status: str, html: str) -> str:
    return f"<li>{_badge(status)}<div>{html}</div></li>"


def _anchor(test: Json) -> str:
    return "test-" + "".join(char for char in str(test["id"]) if char.isalnum())


def _render_subject(subject: Json) -> str:
    facts, clips = [], []
    for key, value in subject.items():
        if key == "clips" and isinstance(value, Sequence) and all(isinstance(clip, Mapping) for clip in value):
            clips = list(value)
            continue
        if isinstance(value, Mapping):
            text = ", ".join(f"{name} {item}" for name, item in value.items())
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else short_text(value)
        facts.append(f"<div><dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(text)}</dd></div>")
    table = ""
    if clips:
        keys = list(dict.fromkeys(key for clip in clips for key in clip if key != "ranges"))
        rows = []
        for clip in clips[:_ROWS_SHOWN]:
            labels = {"tier": Tier(clip["tier"]).label} if isinstance(clip.get("tier"), int) else {}
            rows.append([labels.get(key) or short_text(clip.get(key)) for key in keys])
        more = f"<p class='quiet'>and {len(clips) - _ROWS_SHOWN} more clips</p>" if len(clips) > _ROWS_SHOWN else ""
        table = _details(len(clips) <= 12, f"{len(clips)} clips", render_table(keys, rows) + more)
    return f"<section><h2>What was tested</h2><dl class='facts'>{''.join(facts)}</dl>{table}</section>"


def _details(is_open: bool, summary: str, html: str) -> str:
    return f"<details{' open' if is_open else ''}><summary>{summary}</summary>{html}</details>"


def _render_test(test: Json) -> str:
    reason = f"<p class='reason'>{escape(test['reason'])}</p>" if test["reason"] else ""
    # Text in backticks is code.
    measured_html = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(test["measured"]))
    measured_html = f"<p class='quiet'>Measured: {measured_html}</p>" if measured_html else ""
    figures_html = FigureWriter().render(test["figures"])
    figures_html = _details(False, "Figures", f"<div class='figures'>{figures_html}</div>") if figures_html else ""
    return (
        f"<section class='test' id='{_anchor(test)}'><h2>{_badge(test['status'])} {escape(test['name'])}</h2>"
        f"{reason}{measured_html}{_render_rows(test)}{figures_html}</section>"
    )


def _render_rows(test: Json) -> str:
    rows = sorted(test["rows"], key=lambda row: _ORDER.get(row["status"], 3))
    if not rows:
        return ""
    cells = []
    for row in rows[:_ROWS_SHOWN]:
        requirement = "" if row["threshold"] is None else f"{row['op']} {format_number(row['threshold'])}"
        place = " · ".join(str(part) for part in (row["where"], row["note"]) if part)
        # A unit in words, such as `0 or 1`, would read like another value.
        unit = row["unit"] if " " not in row["unit"] else ""
        value = f"{format_number(row['value'])} {unit}".strip()
        # A figure without a requirement has not passed anything.
        is_information = row["threshold"] is None and row["status"] == PASS
        mark = "<span class='quiet'>told</span>" if is_information else _badge(row["status"])
        cells.append(
            f"<tr><td>{mark}</td><td>{escape(row['name'])}</td><td class='n'>{escape(value)}</td>"
            f"<td class='n'>{escape(requirement)}</td><td class='quiet'>{escape(place)}</td></tr>"
        )
    more = len(rows) - _ROWS_SHOWN
    rest = f"<p class='quiet'>and {more} more rows, none worse; the JSON report has them.</p>" if more > 0 else ""
    head = (
        "<thead><tr><th>Status</th><th>Figure</th><th class='n'>Value</th><th class='n'>Asked</th><th>Where</th></tr></thead>"
    )
    table = f"<div class='wide'><table class='rows'>{head}<tbody>{''.join(cells)}</tbody></table></div>"
    is_open = len(rows) <= 12 or test["status"] in (FAIL, WARN)
    return _details(is_open, f"{len(rows)} figures beside their thresholds", table + rest)
