"""`ampref check`: what is wrong with motions, before anything is simulated."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from amp_core.cli.options import Fps, JsonOut, MaxDuration, MotionFiles, Profile, QuatOrder, Quiet, RobotName
from amp_core.cli.output import Cell, Output
from amp_core.cli.reading import limits_of, read_motions, reading_options
from amp_core.cli.text import number
from amp_core.commands import fill_command
from amp_core.errors import AmprefError
from amp_core.motion.findings import SEVERITIES, ClipCheck, Finding
from amp_core.recipe import GATE_PROFILE

VERDICTS = {"refuses": "refused", "excludes": "no Tier 0", "warns": "look at it", "notes": "ok"}
"""What a clip is called by its gravest finding."""


def check(
    motions: MotionFiles,
    robot: RobotName = "wildrobot",
    profile: Profile = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    max_duration: MaxDuration = None,
    json_out: JsonOut = None,
    quiet: Quiet = False,
) -> None:
    """Say what is wrong with motions, and what would mend them, without simulating.

    It takes milliseconds a clip. Score, submit and the workers run the same checks first. Exits with 0 when no clip is
    refused, with 1 when one is (the others are still checked), with 2 for wrong usage.
    """
    out = Output(json_out, quiet=quiet)
    from amp_core.motion.checks import check_clip  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.robot import Robot  # noqa: PLC0415 - --help needs no MuJoCo

    loaded_robot, limits = Robot.load(robot), limits_of(max_duration)
    documents: list[dict[str, Any]] = []
    options = reading_options(motions, fps, quat_order, out, limits)
    with out.progress("checking", total=len(motions)) as progress:
        start = time.perf_counter()
        # The generator reads a file when it is asked for it, so that its time counts.
        for path, motion in zip(motions, read_motions(motions, options, lambda _: None), strict=True):
            facts: dict[str, Any] = {}
            if isinstance(motion, AmprefError):
                result = ClipCheck((Finding.of_error(motion, "unreadable"),), {})
            else:
                result = check_clip(motion, loaded_robot, limits, profile or GATE_PROFILE)
                facts = {
                    "source_digest": motion.source_digest,
                    "frames": motion.num_frames,
                    "fps": motion.fps,
                    "duration_sec": motion.duration_sec,
                }
                findings = (replace(finding, remedy=fill_command(finding.remedy, path)) for finding in result.findings)
                result = replace(result, findings=tuple(findings))
            verdict = _verdict([finding.severity for finding in result.findings])
            milliseconds = round(1e3 * (time.perf_counter() - start), 1)
            name = path.stem if isinstance(motion, AmprefError) else motion.name
            documents.append(
                {"file": str(path), "name": name, "verdict": verdict, **facts, **result.to_dict(), "ms": milliseconds}
            )
            progress.update(len(documents))
            start = time.perf_counter()
    out.print_result(documents, (f"{document['file']}\t{document['verdict']}" for document in documents))
    _print_documents(out, documents)
    out.exit(failed=any(document["verdict"] == VERDICTS["refuses"] for document in documents))


def _verdict(severities: Sequence[str]) -> str:
    return VERDICTS[next((severity for severity in SEVERITIES if severity in severities), "notes")]


def _print_documents(out: Output, documents: Sequence[dict[str, Any]]) -> None:
    def figure(name: str, digits: int = 2) -> Cell:
        return lambda document: number(document["figures"].get(name), digits)

    columns: dict[str, Cell] = {
        "Motion": "name",
        "Verdict": "verdict",
        ">s": lambda document: number(document.get("duration_sec")),
        ">fps": lambda document: None if "fps" not in document else f"{document['fps']:.4g}",
        ">m/s": figure("speed"),
        ">steps/s": figure("step_rate"),
        ">slide m/s": figure("clip_foot_slide", 3),
        ">flight %": lambda document: number(
            None if (rate := document["figures"].get("clip_flight_rate")) is None else 100.0 * rate, 0
        ),
        ">tilt °": figure("clip_max_tilt_deg", 0),
        ">ms": lambda document: f"{document['ms']:.0f}",
    }
    out.print_table(columns, documents)
    for document in documents:
        for finding in document["findings"]:
            first, last = finding.get("frames", (None, None))
            frames = None if first is None else f"frame {first}" if first == last else f"frames {first}–{last}"
            place = ", ".join(filter(None, (finding.get("key"), finding.get("joint"), frames)))
            out.print(f"\n{document['name']} {finding['severity']} {finding['code']}{f' ({place})' if place else ''}:")
            out.print(f"  {finding['message']}")
            for label, text in (("expected", finding.get("expected")), ("what to do", finding.get("remedy"))):
                if text:
                    out.print(f"  {label}: {text}")
    counts = Counter(document["verdict"] for document in documents)
    out.print(f"\n{len(documents)} checked: {', '.join(f'{counts[word]} {word}' for word in VERDICTS.values())}")
