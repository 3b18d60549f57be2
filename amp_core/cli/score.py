"""`ampref score`: the main job without a server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp_core.cli.output import Output, Progress, Quiet, dumps
from amp_core.cli.reading import reading_options
from amp_core.cli.recipes import Physics, check_physics, parse_physics, read_recipe
from amp_core.cli.remote import show_results
from amp_core.cpus import usable_cpus
from amp_core.errors import AmprefError, InputRefused, RecipeRefused
from amp_core.files import replace_file, write_file
from amp_core.tiers import Tier, check_recipe

if TYPE_CHECKING:
    from amp_core.motion import Motion
    from amp_core.recipe import PhysicsScale, Recipe
    from amp_core.robot import Robot
    from amp_core.score import Score

# Enough to keep every thread busy, few enough that their arrays fit in memory and that results come in while work goes on.
BATCH_PER_THREAD = 16
# Planning takes a thread for seconds a clip: a few of them keep it busy.
PLANNED_PER_THREAD = 4


@dataclass(frozen=True, slots=True)
class _Scored:
    path: Path
    result: Score
    exported: Path | None
    label: str
    renamed: bool


def score(
    motions: Annotated[list[Path], typer.Argument(metavar="MOTION", help="Motion files: .pkl, .npz, .json or .csv.")],
    robot: Annotated[
        str, typer.Option(help="A bundled robot's name (see: ampref robots), or a path to a robot.yaml.")
    ] = "wildrobot",
    mode: Annotated[str | None, typer.Option(help="auto, rollout, tracked or teacher_forced; the default is auto.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A recipe as JSON, as a result's provenance has it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The recipe's seed.")] = None,
    physics: Physics = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the results here, one object a motion; - is stdout.")
    ] = None,
    export: Annotated[Path | None, typer.Option(metavar="DIR", help="Write NAME.npz per motion into this folder.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second, for .csv files and others that do not hold it.")] = None,
    quat_order: Annotated[str | None, typer.Option(help="Quaternion order, wxyz or xyzw; must be given for .csv.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Simulation threads; the results do not depend on it.")] = None,
    quiet: Quiet = False,
) -> None:
    """Roll motions out in MuJoCo and say which tier each reaches.

    Without --physics that is in the robot's own physics; with several, each motion is scored in each of them.

    Exits with 0 when every file was scored, whatever its tier, with 1 when a file was refused (the others are still
    scored), with 2 for wrong usage.
    """
    if quat_order not in (None, "wxyz", "xyzw"):
        raise typer.BadParameter("choose wxyz or xyzw", param_hint="--quat-order")
    to_stdout = str(json_out) == "-"
    out = Output(as_json=to_stdout, quiet=quiet)

    from amp_core.robot import Robot

    scales = parse_physics(physics or ())
    the_recipe = _recipe(recipe, mode, seed, scales)
    recipes = [replace(the_recipe, physics=scale) for scale in scales] or [the_recipe]
    the_robot = Robot.load(robot)
    ours = export is not None and not export.exists()
    _check_targets(json_out, export)
    nthread = threads or usable_cpus()
    names = _export_names(motions)
    several = len(recipes) > 1

    refused = 0
    scored: list[_Scored] = []
    with _removed_if_empty(export if ours else None), out.progress("scoring", total=len(motions) * len(recipes)) as progress:
        readable = _read(motions, reading_options(motions, fps, quat_order, out), the_robot, the_recipe)
        per_thread = BATCH_PER_THREAD if the_recipe.planner is None else PLANNED_PER_THREAD
        for batch in _batches(readable, per_thread * nthread):
            good = [(index, motion) for index, motion in batch if not isinstance(motion, AmprefError)]
            unreadable = {index: motion for index, motion in batch if isinstance(motion, AmprefError)}
            found = [_score_all(good, the_robot, one, nthread, progress, motions) for one in recipes]
            for index, _ in batch:
                outcomes = [unreadable[index]] if index in unreadable else [results[index] for results in found]
                # What cannot be scored cannot be in any physics, and is told of once.
                refusal = next((outcome for outcome in outcomes if isinstance(outcome, AmprefError)), None)
                if refusal is not None:
                    refused += 1
                    out.error(refusal)
                for one, outcome in zip(recipes, outcomes, strict=False):
                    if isinstance(outcome, AmprefError):
                        continue
                    bucket = one.physics.name
                    target = export / f"{names[index]}{f'@{bucket}' if several else ''}.npz" if export else None
                    if target:
                        _export(outcome, target)
                    label = f"{outcome.name} [{bucket}]" if several or not one.physics.is_identity else outcome.name
                    renamed = names[index] != motions[index].stem
                    scored.append(_Scored(motions[index], outcome, target, label, renamed))
            progress.update((batch[-1][0] + 1) * len(recipes))

    documents = [entry.result.to_dict() for entry in scored]
    if json_out and not to_stdout:
        _write(json_out, dumps(documents).encode())
    out.document(documents)
    _print(out, scored, documents, refused, json_out, export)
    if refused:
        raise typer.Exit(1)


def _recipe(path: Path | None, mode: str | None, seed: int | None, scales: Sequence[PhysicsScale] = ()) -> Recipe:
    from amp_core.recipe import DEFAULT_MODE, Recipe

    if path is None:
        try:
            return Recipe.for_mode(mode or DEFAULT_MODE, seed=seed or 0)
        except RecipeRefused as error:
            # Nothing but options could be wrong, so it is wrong usage.
            raise typer.BadParameter(str(error), param_hint=f"--{error.key}") from error
    facts = read_recipe(path)
    check_physics(facts, scales, path)
    if mode is not None and facts.get("mode", mode) != mode:
        raise typer.BadParameter(f"the recipe in {path} has mode {facts['mode']!r}; drop one of the two", param_hint="--mode")
    if mode is not None:
        facts["mode"] = mode
    if seed is not None:
        facts["seed"] = seed
    recipe = Recipe.from_dict(facts)
    check_recipe(recipe)
    return recipe


def _unreadable(path: Path, error: OSError) -> InputRefused:
    return InputRefused(
        f"cannot be read: {error.strerror or error}", file=str(path), expected="a readable file", remedy=f"Check: ls -l {path}"
    )


def _check_targets(json_out: Path | None, export: Path | None) -> None:
    """Find out before the work, not after it, that its results cannot be written."""
    if json_out and str(json_out) != "-" and not json_out.parent.is_dir():
        # Of a folder for exports it is said that it is made; a file in a folder that is not there is a slip of the pen.
        raise InputRefused(
            "cannot be written: there is no such folder",
            file=str(json_out),
            expected="a file in a folder that exists",
            remedy=f"Check the path, or: mkdir -p {json_out.parent}",
        )
    if export:
        try:
            export.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(export, error) from error
    for folder in filter(None, (export, json_out.parent if json_out and str(json_out) != "-" else None)):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _unwritable(folder, PermissionError(13, "Permission denied"))
    if json_out and json_out.is_dir():
        raise _unwritable(json_out, IsADirectoryError(21, "Is a directory"))


@contextlib.contextmanager
def _removed_if_empty(folder: Path | None) -> Iterator[None]:
    """Ctrl-C before the first export leaves nothing, the folder for them neither."""
    try:
        yield
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):  # It is not empty, or somebody else's by now.
                folder.rmdir()


def _unwritable(path: Path, error: OSError) -> InputRefused:
    return InputRefused(
        f"cannot be written: {error.strerror or error}", file=str(path), remedy="Name a folder that you may write to"
    )


def _export_names(paths: list[Path]) -> list[str]:
    """A file name for each motion: its stem, and a number behind it where several have the same.

    Names that differ only in case count as the same, because some file systems cannot hold both.
    """
    taken: set[str] = set()
    stems = {path.stem.casefold() for path in paths}
    names = []
    for path in paths:
        name, count = path.stem, 1
        while name.casefold() in taken or (count > 1 and name.casefold() in stems):
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _read(
    paths: list[Path], options: Callable[[Path], dict[str, Any]], robot: Robot, recipe: Recipe
) -> Iterator[tuple[int, Motion | AmprefError]]:
    from amp_core.formats import read_motion
    from amp_core.score import check_scorable

    for index, path in enumerate(paths):
        try:
            if not path.is_file():
                raise InputRefused(
                    "is a folder" if path.is_dir() else "is not a file" if path.exists() else "there is no such file",
                    file=str(path),
                    expected="a motion file: .pkl, .npz, .json or .csv",
                    remedy=f"Try: ampref score {path}/*.pkl" if path.is_dir() else f"Check: ls -l {path}",
                )
            motion = read_motion(path, name=path.stem, **options(path))
            check_scorable(motion, robot, recipe)
            yield index, motion
        except AmprefError as error:
            error.file = error.file if error.file and "/" in error.file else str(path)
            yield index, error
        except OSError as error:
            yield index, _unreadable(path, error)


def _batches(
    items: Iterable[tuple[int, Motion | AmprefError]], batch_size: int
) -> Iterator[list[tuple[int, Motion | AmprefError]]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _score_all(
    motions: list[tuple[int, Motion]], robot: Robot, recipe: Recipe, nthread: int, progress: Progress, paths: list[Path]
) -> dict[int, Score | AmprefError]:
    """Score a batch; if that fails, score its motions one by one, so that one bad motion costs only itself."""
    from amp_core.score import score as score_motions

    if not motions:
        return {}
    started = progress.done

    def report(share: float, message: str) -> None:
        progress.update(started + share * len(motions), description=f"scoring: {message}")

    try:
        results = score_motions([motion for _, motion in motions], robot, recipe, nthread=nthread, progress=report)
        return {index: result for (index, _), result in zip(motions, results, strict=True)}
    except AmprefError as error:
        if len(motions) == 1:
            index = motions[0][0]
            error.file = error.file or str(paths[index])
            return {index: error}
    one_by_one: dict[int, Score | AmprefError] = {}
    for entry in motions:
        one_by_one.update(_score_all([entry], robot, recipe, 1 if recipe.planner is None else nthread, progress, paths))
    return one_by_one


def _export(result: Score, target: Path) -> None:
    try:
        with replace_file(target) as partial:
            result.export(partial)
    except OSError as error:
        raise _unwritable(target, error) from error


def _write(target: Path, data: bytes) -> None:
    try:
        write_file(target, data, durable=True)
    except OSError as error:
        raise _unwritable(target, error) from error


def _print(
    out: Output,
    scored: list[_Scored],
    documents: list[dict[str, Any]],
    refused: int,
    json_out: Path | None,
    export: Path | None,
) -> None:
    if documents:
        labelled = [document | {"clip_name": entry.label} for entry, document in zip(scored, documents, strict=True)]
        show_results(out, labelled)
    out.values(f"{document['name']}\t{document['tier']}" for document in documents)
    counts = ", ".join(f"{sum(document['tier'] == tier for document in documents)} {tier.label}" for tier in Tier)
    out.say(f"\n{len(scored)} scored: {counts}; {refused} refused")
    if json_out and str(json_out) != "-":
        out.say(f"results: {json_out}")
    if export and scored:
        out.say(f"exports: {export}/")
        for entry in (entry for entry in scored if entry.exported and entry.renamed):
            out.note(
                f"note: {entry.path} was written as {entry.exported}, because another motion has the name {entry.path.stem}"
            )
