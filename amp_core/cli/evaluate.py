"""`ampref evaluate`: what an existing reference proves, without generating it anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from amp_core.cli.options import Fps, JsonOut, Profile, QuatOrder, Quiet
from amp_core.cli.output import Output
from amp_core.cli.reading import find_sources, reading_options
from amp_core.cli.results import RESULT_COLUMNS
from amp_core.cli.text import tier_name
from amp_core.errors import AmprefError
from amp_core.formats import WIDE_LIMITS, read_motion


def evaluate(
    references: Annotated[list[Path], Argument(metavar="REF", help="Exports, or .npz files by the specification's schema.")],
    robot: Annotated[str | None, Option(help="A bundled robot's name, or a path to a robot.yaml. Default: the file's.")] = None,
    profile: Profile = None,
    motions: Annotated[
        list[Path] | None,
        Option(metavar="PATH", help="The references' motions, files or folders, to generate them again; repeatable."),
    ] = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    json_out: JsonOut = None,
    quiet: Quiet = False,
) -> None:
    """Measure existing references, replay their controls, and say what could not be verified.

    That a reference is its clip's motion is proven with the clip alone: --motions.

    Exits with 0 when every file was evaluated, whatever its tier; with 1 when one was refused or is not what it says of
    itself; with 2 for wrong usage.
    """
    out = Output(json_out, quiet=quiet)
    from amp_core import evaluation  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.robot import Robot  # noqa: PLC0415 - --help needs no MuJoCo

    loaded_robot = Robot.load(robot) if robot else None
    documents: list[dict[str, Any]] = []
    digests = {path: digest for path in references if (digest := evaluation.source_digest(path))}
    sources = find_sources(motions or (), set(digests.values()))
    options = reading_options(list(sources.values()), fps, quat_order, out, WIDE_LIMITS)
    for path in references:
        try:
            source = sources.get(digests.get(path, ""))
            motion = None if source is None else read_motion(source, **options(source))
            documents.append(evaluation.evaluate(path, loaded_robot, profile, motion).to_dict())
        except AmprefError as error:
            error.file = error.file or str(path)
            out.refuse(error)
    out.print_result(documents, (f"{row['name']}\t{'' if row['tier'] is None else row['tier']}" for row in documents))
    tier = {"Tier": lambda row: tier_name(row["tier"]) if row["tier"] is not None else f"≤ {tier_name(row['best_tier'])}"}
    if documents:
        out.print_table({"Reference": "name", "Mode": "mode", **RESULT_COLUMNS, **tier}, documents)
    has_failed = False
    for document in documents:
        out.print(f"\n{document['name']}: {document['tier_reason']}")
        if document["declared_tier"] is not None and document["declared_tier"] != document["best_tier"]:
            out.print(f"  says of itself: tier {document['declared_tier']}")
        for check in document["checks"]:
            has_failed |= not check["passed"]
            out.print(f"  {'ok' if check['passed'] else 'WRONG'}  {check['name']}: {check['detail']}")
        for entry in document["unverified"]:
            out.print(f"  not verified  {entry['what']}: {entry['reason']}")
        for warning in document["contact_warnings"]:
            out.print(f"  contacts: {warning['message']}")
    out.exit(failed=has_failed)
