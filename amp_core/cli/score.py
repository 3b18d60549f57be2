"""`ampref score`: the main job without a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from amp_core.cli.batch import process_files, score_run
from amp_core.cli.options import Fps, JsonOut, Mode, MotionFiles, Physics, QuatOrder, Quiet, RobotName, Seed, Threads
from amp_core.cli.output import Output
from amp_core.cli.reading import reading_options
from amp_core.cli.recipes import build_recipe, parse_physics
from amp_core.cli.results import print_results
from amp_core.cli.targets import made_folder, refuse_unwritable
from amp_core.cpus import usable_cpus
from amp_core.files import replace_file
from amp_core.robot import Robot
from amp_core.tiers import Tier


def score(
    motions: MotionFiles,
    robot: RobotName = "wildrobot",
    mode: Mode = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A recipe as JSON, as a result's provenance has it.")
    ] = None,
    seed: Seed = None,
    physics: Physics = None,
    json_out: JsonOut = None,
    export: Annotated[Path | None, typer.Option(metavar="DIR", help="Write NAME.npz per motion into this folder.")] = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Roll motions out in MuJoCo and say which tier each reaches.

    Without --physics that is in the robot's own physics; with several, each motion is scored in each of them.

    Exits with 0 when every file was scored, whatever its tier, with 1 when a file was refused (the others are still
    scored), with 2 for wrong usage.
    """
    scales = parse_physics(physics or ())
    base_recipe = build_recipe(recipe, mode, seed, scales)
    recipes = [replace(base_recipe, physics=scale) for scale in scales] or [base_recipe]
    out = Output(json_out, quiet=quiet)
    loaded_robot, nthread = Robot.load(robot), threads or usable_cpus()
    rows: list[_Row] = []
    with made_folder(export), out.progress("scoring", total=len(motions) * len(recipes)) as progress:
        options = reading_options(motions, fps, quat_order, out)
        runs = [score_run(loaded_robot, each, nthread) for each in recipes]
        files = process_files(motions, options, loaded_robot, base_recipe, nthread, runs, progress)
        for name, file in zip(export_names(motions), files, strict=True):
            if file.refusal is not None:
                # A motion that cannot be scored cannot be in any physics, and is reported once.
                out.refuse(file.refusal)
            for scale, result in zip((each.physics for each in recipes), file.results, strict=True):
                if result is None:
                    continue
                target = export / f"{name}{f'@{scale.name}' if len(recipes) > 1 else ''}.npz" if export else None
                if target:
                    with refuse_unwritable(target), replace_file(target) as partial:
                        result.export(partial)
                label = result.name if len(recipes) == 1 and scale.is_identity else f"{result.name} [{scale.name}]"
                rows.append(_Row(file.path, result.to_dict(), label, target, name != file.path.stem))
    out.print_json([row.document for row in rows])
    if rows:
        print_results(out, [row.document | {"clip_name": row.label} for row in rows])
    out.print_values(f"{row.document['name']}\t{row.document['tier']}" for row in rows)
    counts = Counter(row.document["tier"] for row in rows)
    tiers = ", ".join(f"{counts[tier]} {tier.label}" for tier in Tier)
    out.print(f"\n{len(rows)} scored: {tiers}; {len(out.refused)} refused")
    if out.file:
        out.print(f"results: {out.file}")
    if export and rows:
        out.print(f"exports: {export}/")
        for row in rows:
            if row.is_renamed:
                out.note(f"note: {row.path} was written as {row.export}, because another motion has the name {row.path.stem}")
    out.exit()


class _Row(NamedTuple):
    """A score: its file, its JSON object, its label in the table, and where it was exported to."""

    path: Path
    document: dict[str, Any]
    label: str
    export: Path | None
    is_renamed: bool


def export_names(paths: Sequence[Path]) -> list[str]:
    """A file name for each motion: its stem, and a number behind it where several have the same.

    Names that differ only in case count as the same, because some file systems cannot hold both.
    """
    used: set[str] = set()
    stems = {path.stem.casefold() for path in paths}
    names = []
    for path in paths:
        name, count = path.stem, 1
        while name.casefold() in used or (count > 1 and name.casefold() in stems):
            count += 1
            name = f"{path.stem}-{count}"
        used.add(name.casefold())
        names.append(name)
    return names
