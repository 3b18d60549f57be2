"""`ampref score`: the main job without a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from amp_core.cli.options import (
    Fps,
    JsonOut,
    MaxDuration,
    Mode,
    MotionFiles,
    Physics,
    Profile,
    QuatOrder,
    Quiet,
    RobotName,
    Seed,
    Threads,
)
from amp_core.cli.output import Output
from amp_core.cli.reading import limits_of, reading_options
from amp_core.cli.recipes import build_recipe
from amp_core.cli.results import print_results
from amp_core.cli.targets import made_folder, refuse_unwritable
from amp_core.cpus import usable_cpus
from amp_core.files import replace_file
from amp_core.formats import name_clip
from amp_core.tiers import Tier


def score(
    motions: MotionFiles,
    robot: RobotName = "wildrobot",
    mode: Mode = None,
    recipe: Annotated[Path | None, Option(metavar="FILE", help="A recipe as JSON, as a result's provenance has it.")] = None,
    seed: Seed = None,
    physics: Physics = None,
    profile: Profile = None,
    json_out: JsonOut = None,
    export: Annotated[Path | None, Option(metavar="DIR", help="Write NAME.npz per motion into this folder.")] = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    max_duration: MaxDuration = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Roll motions out in MuJoCo and say which tier each reaches.

    Without --physics that is in the robot's own physics; with several, each motion is scored in each of them.

    Exits with 0 when every file was scored, whatever its tier, with 1 when a file was refused (the others are still
    scored), with 2 for wrong usage.
    """
    scales = list(dict.fromkeys(physics or ()))
    base_recipe = build_recipe(recipe, mode, seed, scales, profile)
    recipes = [replace(base_recipe, physics=scale) for scale in scales] or [base_recipe]
    out = Output(json_out, quiet=quiet)
    from amp_core.cli.batch import process_files, score_run  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.robot import Robot  # noqa: PLC0415 - --help needs no MuJoCo

    loaded_robot, nthread = Robot.load(robot), threads or usable_cpus()
    documents: list[dict[str, Any]] = []
    labels, renamings = [], []
    with made_folder(export), out.progress("scoring", total=len(motions) * len(recipes)) as progress:
        limits = limits_of(max_duration)
        options = reading_options(motions, fps, quat_order, out, limits)
        runs = [score_run(loaded_robot, variant, nthread, limits) for variant in recipes]
        files = process_files(motions, options, loaded_robot, base_recipe, nthread, runs, out, progress, limits)
        for path, name, (_, results) in zip(motions, export_names(motions), files, strict=True):
            for scale, result in zip((variant.physics for variant in recipes), results, strict=True):
                if result is None:
                    continue
                if export:
                    target = export / f"{name}{f'@{scale.name}' if len(recipes) > 1 else ''}.npz"
                    # Another clip's export may be small enough for a disk that is nearly full.
                    with out.refusing(target), refuse_unwritable(target), replace_file(target) as partial:
                        result.export(partial)
                    if name != name_clip(path.name):
                        renamings.append(
                            f"{path} was written as {target}, because another motion has the name {name_clip(path.name)}"
                        )
                documents.append(result.to_dict())
                labels.append(result.name if len(recipes) == 1 and scale.is_identity else f"{result.name} [{scale.name}]")
    out.print_result(documents, (f"{document['name']}\t{document['tier']}" for document in documents))
    if documents:
        print_results(out, [document | {"clip_name": label} for document, label in zip(documents, labels, strict=True)])
    counts = Counter(document["tier"] for document in documents)
    tiers = ", ".join(f"{counts[tier]} {tier.label}" for tier in Tier)
    out.print(f"\n{len(documents)} scored: {tiers}; {len(out.refusals)} refused")
    if out.file:
        out.print(f"results: {out.file}")
    if export and documents:
        out.print(f"exports: {export}/")
    for renaming in renamings:
        out.note(f"note: {renaming}")
    out.exit()


def export_names(paths: Sequence[Path]) -> list[str]:
    """A file name for each motion: the clip's name, and a number behind it where several have the same.

    Names that differ only in case count as the same, because some file systems cannot hold both.
    """
    names: dict[str, str] = {}  # By what they are on a file system that knows no case.
    stems = [name_clip(path.name) for path in paths]
    clip_names = {stem.casefold() for stem in stems}
    for stem in stems:
        name, count = stem, 1
        while name.casefold() in names or (count > 1 and name.casefold() in clip_names):
            count += 1
            name = f"{stem}-{count}"
        names[name.casefold()] = name
    return list(names.values())
