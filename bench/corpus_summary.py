"""What `bench.corpus` says of its results: tables by class and by clip, and how long the rest will take."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from amp_core.tiers import Tier
from bench.corpus_results import Results

LAFAN1 = re.compile(r"([A-Za-z]+)\d+_subject\d+")
LEAST_FOR_ESTIMATE = 5  # windows; of fewer the spread is not known.
MOST_REASONS = 3
MAX_CELL = 156  # characters; docs/ allows 160 with the blanks
_HEADS_BY_CLASS = (
    "class", ">windows", ">Tier 0", ">Tier 1", ">Rejected", ">not scored", ">length", ">of it Tier 0", ">CPU-s a s: median",
    ">mean", ">core-hours", "most frequent reasons",
)  # fmt: skip
_HEADS_BY_CLIP = (
    "clip", "robot", ">length", "mode", "tier", ">MPJPE", ">joint RMSE", ">drift", ">slip", ">unloaded", ">agreement",
    ">CPU-s a s", "why it is not Tier 0",
)  # fmt: skip


def class_of(file: str, pattern: re.Pattern[str] | None = None) -> str:
    """The class of a motion file.

    Args:
      file: its path below the folder, with `/`.
      pattern: the class is its first group, or what it matches; by default the letters before a LAFAN1 name's number.

    Returns:
      The stem of the file's name where nothing matches.
    """
    stem = PurePosixPath(file).stem
    match = pattern.search(file) if pattern is not None else LAFAN1.fullmatch(stem)
    if match is None:
        return stem
    return (match[1] if match.re.groups and match[1] is not None else match[0]) or stem


@dataclass(frozen=True)
class Estimate:
    """How long the rest takes.

    Args:
      left_sec: s.
      margin_sec: s; two standard errors.
    """

    left_sec: float
    margin_sec: float

    @classmethod
    def of(cls, samples: Sequence[tuple[float, float]], remaining: Sequence[float], jobs: int) -> Estimate | None:
        """By the windows that have been scored, which are a random sample because the order of all windows is random.

        Args:
          samples: clip seconds and wall seconds of each.
          remaining: clip seconds of each remaining window.

        Returns:
          None where too few have been scored.
        """
        clip_sec = sum(seconds for seconds, _ in samples)
        if len(samples) < LEAST_FOR_ESTIMATE or clip_sec <= 0.0:
            return None
        rate = sum(wall for _, wall in samples) / clip_sec
        variance = sum((wall - rate * seconds) ** 2 for seconds, wall in samples) / (len(samples) - 1)
        left = sum(remaining)
        # The rate is not known exactly, and the remaining windows scatter about it.
        error = math.sqrt(variance * (len(samples) * (left / clip_sec) ** 2 + len(remaining)))
        return cls(rate * left / jobs, 2.0 * error / jobs)

    def __str__(self) -> str:
        unit, name = (3600.0, "h") if self.left_sec >= 5400 else (60.0, "min") if self.left_sec >= 90 else (1.0, "s")
        digits = 1 if unit == 3600.0 else 0
        return f"{self.left_sec / unit:.{digits}f} ± {self.margin_sec / unit:.{digits}f} {name} left"


@dataclass(frozen=True)
class ClassSummary:
    """The numbers of one class, or of all windows.

    Args:
      tiers: scored windows of each tier.
      refused, failed: windows or files that cannot be used; windows that were given up because their process ended.
      clip_sec, tier_0_sec: s, of the scored windows.
      cpu_rates: CPU seconds a second of clip, of each scored window.
      cpu_sec, scored_cpu_sec: CPU seconds of all windows and of the scored ones.
      reasons: how many windows that are not Tier 0 have which finding first.
    """

    name: str
    tiers: Counter[int]
    refused: int
    failed: int
    clip_sec: float
    tier_0_sec: float
    cpu_rates: tuple[float, ...]
    cpu_sec: float
    scored_cpu_sec: float
    reasons: Counter[str]

    @classmethod
    def of(cls, name: str, lines: Sequence[Mapping[str, Any]]) -> ClassSummary:
        scores = [line for line in lines if line["status"] == "scored"]
        statuses = Counter(line["status"] for line in lines)
        return cls(
            name=name,
            tiers=Counter(line["tier"] for line in scores),
            refused=statuses["refused"],
            failed=statuses["failed"],
            clip_sec=sum(line["clip_sec"] for line in scores),
            tier_0_sec=sum(line["clip_sec"] for line in scores if line["tier"] == Tier.TIER_0),
            cpu_rates=tuple(line["cpu_sec_per_clip_sec"] for line in scores),
            cpu_sec=sum(line["cpu_sec"] for line in lines),
            scored_cpu_sec=sum(line["cpu_sec"] for line in scores),
            reasons=Counter(first_code(line) for line in scores if line["tier"] != Tier.TIER_0),
        )

    def cells(self) -> list[str]:
        """The row of the table; shares are of the scored windows."""
        count = self.tiers.total()
        return [
            self.name,
            str(count),
            *(f"{100 * self.tiers[tier] / count:.0f}%" if count else "–" for tier in Tier),
            str(self.refused + self.failed),
            f"{self.clip_sec:.0f} s",
            f"{self.tier_0_sec:.0f} s",
            format_rate(statistics.median(self.cpu_rates)) if count else "–",
            format_rate(self.scored_cpu_sec / self.clip_sec) if count else "–",
            f"{self.cpu_sec / 3600:.2f}",
            ", ".join(f"`{code}` {number}" for code, number in self.reasons.most_common(MOST_REASONS)),
        ]


def first_code(line: Mapping[str, Any]) -> str:
    """The most severe finding of a window that is not Tier 0."""
    return line["findings"][0]["code"] if line["findings"] else "unexplained"


def summarize_classes(lines: Iterable[Mapping[str, Any]], pattern: re.Pattern[str] | None = None) -> list[ClassSummary]:
    """The classes by name, and all of them together as the last where there are several."""
    classes: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        classes.setdefault(class_of(line["file"], pattern), []).append(line)
    summaries = [ClassSummary.of(name, classes[name]) for name in sorted(classes)]
    all_lines = [line for name in sorted(classes) for line in classes[name]]
    return summaries if len(summaries) < 2 else [*summaries, ClassSummary.of("**all**", all_lines)]


def describe_clip(line: Mapping[str, Any], robot: str) -> list[str]:
    """The row of a window in the table by clip."""
    name = line["name"]
    if line["status"] != "scored":
        return [name, robot, "", "", line["status"], *[""] * 7, line["reason"]]
    metrics = line["metrics"]
    return [
        name,
        robot,
        f"{line['clip_sec']:.1f} s",
        line["mode"],
        Tier(line["tier"]).label,
        format_metric(metrics["mpjpe_m"], 1000, ".0f", " mm"),
        format_metric(metrics["joint_rmse_rad"], 1, ".3f", " rad"),
        format_metric(metrics["root_drift_m"], 1, ".2f", " m"),
        format_metric(metrics["slip_rate"], 100, ".1f", "%"),
        format_metric(metrics["unloaded_frame_rate"], 100, ".1f", "%"),
        format_metric(metrics["contact_agreement"], 1, ".2f"),
        format_rate(line["cpu_sec_per_clip_sec"]),
        "" if line["tier"] == Tier.TIER_0 else explain_tier(line),
    ]


def explain_tier(line: Mapping[str, Any]) -> str:
    """Why a window is not Tier 0: what no rollout can mend, or else what failed; without the second half of each sentence."""
    findings = [entry for entry in line["findings"] if entry["severity"] == line["findings"][0]["severity"]]
    return "; ".join(entry["message"].partition("; ")[0] for entry in findings) or line["reason"]


def format_rate(rate: float) -> str:
    return format(rate, ".1f" if rate >= 1.0 else ".2f")


def format_metric(value: float | None, factor: float, form: str, unit: str = "") -> str:
    return "–" if value is None else format(factor * value, form) + unit


def format_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, pad: bool = True) -> str:
    """A markdown table; a head with `>` in front stands over a column of numbers.

    Args:
      pad: align the columns, for a terminal.
    """
    cells = [[_clean_cell(cell) for cell in row] for row in ([head.removeprefix(">") for head in heads], *rows)]
    widths = [max(map(len, column)) if pad else 0 for column in zip(*cells, strict=True)]
    marks = [">" if head.startswith(">") else "<" for head in heads]
    lines = [" | ".join(f"{cell:{mark}{width}}" for cell, mark, width in zip(row, marks, widths, strict=True)) for row in cells]
    rule = "|".join("-" * max(width + 1, 2) + "-:"[mark == ">"] for mark, width in zip(marks, widths, strict=True))
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def _clean_cell(text: str) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1].rstrip() + "…"


def describe_run(results: Results) -> list[str]:
    """Under which settings the results came about, and how many of how many windows they are."""
    settings, recipe = results.settings, results.settings["recipe"]
    last, lines = results.sessions[-1], results.windows.values()
    count = sum(line["status"] != "failed" for line in lines)
    machines = dict.fromkeys(f"{session['processor']}, {session['jobs']} at once" for session in results.sessions)
    texts = [
        f"Robot {settings['robot']}, mode {recipe['mode']}, seed {recipe['seed']}, gate profile {recipe['gate_profile']}, "
        f"generator {recipe['generator_version']}, MuJoCo {settings['mujoco_version']}; {describe_cut(settings['cut'])}.",
        f"{count:,} of {last['windows']:,} windows; {'; '.join(machines)}.",
    ]
    samples = [(line["clip_sec"], line["cpu_sec"]) for line in lines if line["status"] == "scored"]
    missing = last["windows"] - count
    left_sec = max(0.0, last["clip_sec"] - sum(seconds for seconds, _ in samples))
    estimate = Estimate.of(samples, [left_sec / missing] * missing, jobs=1) if missing > 0 else None
    if estimate is not None and estimate.left_sec >= 60.0:
        hours = [seconds / 3600 for seconds in (estimate.left_sec, estimate.margin_sec)]
        texts.append(f"The other {missing:,} windows would take {hours[0]:.2f} ± {hours[1]:.2f} core-hours.")
    if len({session["code"] for session in results.sessions}) > 1:
        texts.append("The code has changed between the sessions of this file, so that its windows may not be comparable.")
    return texts


def describe_cut(cut: Mapping[str, Any] | None) -> str:
    if cut is None:
        return "whole clips"
    if "seconds" in cut:
        return f"windows of {cut['seconds']:g} s"
    return "frames " + ", ".join(f"{start}:{'' if stop is None else stop}" for start, stop in cut["frames"])


def build_table(results: Results, by: str, pattern: re.Pattern[str] | None = None, *, pad: bool = True) -> str:
    """The table by `class` or by `clip`."""
    lines = sorted(results.windows.values(), key=lambda line: (line["file"], line["frames"] or [0]))
    if by == "class":
        return format_table(_HEADS_BY_CLASS, (summary.cells() for summary in summarize_classes(lines, pattern)), pad=pad)
    return format_table(_HEADS_BY_CLIP, (describe_clip(line, results.settings["robot"]) for line in lines), pad=pad)
