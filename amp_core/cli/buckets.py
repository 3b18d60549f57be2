"""`ampref buckets`: how clips fare in other physics than the robot's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp_core.cli.output import Output, Progress, Quiet, dumps, number, tier_name
from amp_core.cli.reading import reading_options
from amp_core.cli.score import BATCH_PER_THREAD, PLANNED_PER_THREAD, _batches, _check_targets, _read, _recipe, _write
from amp_core.cpus import usable_cpus
from amp_core.errors import AmprefError, RecipeRefused
from amp_core.tiers import Tier

if TYPE_CHECKING:
    from amp_core.formats import Motion
    from amp_core.randomization import BucketSum, Comparison, Outcome
    from amp_core.recipe import PhysicsScale, Recipe
    from amp_core.robot import Robot


def buckets(
    motions: Annotated[list[Path], typer.Argument(metavar="MOTION", help="Motion files: .pkl, .npz, .json or .csv.")],
    friction: Annotated[str | None, typer.Option(metavar="FACTORS", help="Of the friction, such as 0.7,1.0,1.3.")] = None,
    mass: Annotated[str | None, typer.Option(metavar="FACTORS", help="Of masses and inertias, such as 0.9,1.0,1.1.")] = None,
    damping: Annotated[str | None, typer.Option(metavar="FACTORS", help="Of the joints' damping, such as 0.7,1.0,1.3.")] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="Every combination of the factors; else one quantity at a time is changed.")
    ] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also drive the other buckets with the controls of the canonical rollout.")
    ] = False,
    robot: Annotated[
        str, typer.Option(help="A bundled robot's name (see: ampref robots), or a path to a robot.yaml.")
    ] = "wildrobot",
    mode: Annotated[str | None, typer.Option(help="auto, rollout, tracked or teacher_forced; the default is auto.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A recipe as JSON; each bucket differs from it in its physics alone.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The recipe's seed.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the comparison here; - is stdout.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second, for .csv files and others that do not hold it.")] = None,
    quat_order: Annotated[str | None, typer.Option(help="Quaternion order, wxyz or xyzw; must be given for .csv.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Simulation threads; the results do not depend on it.")] = None,
    quiet: Quiet = False,
) -> None:
    """Score motions in several physics side by side: what share of each stays Tier 0 when the friction is 0.7?

    Without factors: friction 0.7 and 1.3, mass 0.9 and 1.1, damping 0.7 and 1.3, one at a time, beside the robot's own
    physics. Exits with 0 when every file was scored, with 1 when a file was refused, with 2 for wrong usage.
    """
    if quat_order not in (None, "wxyz", "xyzw"):
        raise typer.BadParameter("choose wxyz or xyzw", param_hint="--quat-order")
    to_stdout = str(json_out) == "-"
    out = Output(as_json=to_stdout, quiet=quiet)

    from amp_core.robot import Robot

    scales = _scales(friction, mass, damping, grid)
    the_recipe = _recipe(recipe, mode, seed)
    the_robot = Robot.load(robot)
    _check_targets(json_out, None)
    nthread = threads or usable_cpus()
    refused = 0
    found: Comparison | None = None
    with out.progress("comparing", total=len(motions)) as progress:
        readable = _read(motions, reading_options(motions, fps, quat_order, out), the_robot, the_recipe)
        per_thread = BATCH_PER_THREAD if the_recipe.planner is None else PLANNED_PER_THREAD
        for batch in _batches(readable, per_thread * nthread):
            for _, motion in batch:
                if isinstance(motion, AmprefError):
                    refused += 1
                    out.error(motion)
            good = [(motions[i], motion) for i, motion in batch if not isinstance(motion, AmprefError)]
            for part in _compare(good, the_robot, the_recipe, scales, replay, nthread, progress):
                if isinstance(part, AmprefError):
                    refused += 1
                    out.error(part)
                else:
                    found = part if found is None else replace(found, clips=found.clips + part.clips)
            progress.update(batch[-1][0] + 1)

    document = None if found is None else found.to_dict()
    if json_out and not to_stdout and document is not None:
        _write(json_out, dumps(document).encode())
    out.document(document)
    if found is not None:
        _print(out, found, replay)
        if json_out and not to_stdout:
            out.say(f"\ncomparison: {json_out}")
    if refused:
        raise typer.Exit(1)


def _scales(friction: str | None, mass: str | None, damping: str | None, grid: bool) -> tuple[PhysicsScale, ...]:
    from amp_core import randomization

    given = {"friction": friction, "mass": mass, "damping": damping}
    factors: dict[str, list[float]] = {}
    for name, text in given.items():
        try:
            factors[name] = [] if text is None else [float(part) for part in text.split(",")]
        except ValueError:
            raise typer.BadParameter(f"{text!r} is no list of factors, such as 0.7,1.0,1.3", param_hint=f"--{name}") from None
    try:
        return randomization.buckets(**factors, grid=grid)
    except RecipeRefused as error:
        raise typer.BadParameter(str(error), param_hint=f"--{str(error.key).removeprefix('physics.')}") from error


def _compare(
    motions: Sequence[tuple[Path, Motion]],
    robot: Robot,
    recipe: Recipe,
    scales: Sequence[PhysicsScale],
    replay: bool,
    nthread: int,
    progress: Progress,
) -> Iterator[Comparison | AmprefError]:
    """Compare a batch; if that fails, its motions one by one, so that one bad motion costs only itself."""
    from amp_core import randomization

    if not motions:
        return
    started = progress.done

    def report(share: float, message: str) -> None:
        progress.update(started + share * len(motions), description=message)

    try:
        yield randomization.compare(
            [motion for _, motion in motions], robot, recipe, scales, replay=replay, nthread=nthread, progress=report
        )
        return
    except AmprefError as error:
        if len(motions) == 1:
            error.file = error.file or str(motions[0][0])
            yield error
            return
    for one in motions:
        yield from _compare([one], robot, recipe, scales, replay, nthread, progress)


def _print(out: Output, found: Comparison, replayed: bool) -> None:
    names = [scale.name for scale in found.buckets]
    heads = ["Motion", "Bucket", "Mode", "Tier", ">Tier 0 s", ">share %", ">stays %"]
    rows: list[tuple[Any, ...]] = []
    for clip in found.clips:
        for i, name in enumerate(names):
            here, replay = clip.outcomes[i], _shares(clip.replayed[i]) if replayed else ()
            rows.append((clip.name, name, here.mode, tier_name(here.tier), *_shares(here), *replay))
    extra = [f">replayed {head.removeprefix('>')}" for head in heads[4:]] if replayed else []
    out.table((*heads, *extra), rows)
    out.say()
    sums, again = found.sums(), found.sums(replayed=True) if replayed else ()
    totals: list[tuple[Any, ...]] = []
    for i, name in enumerate(names):
        counts = tuple(sums[i].clips_by_tier[tier] for tier in Tier)
        totals.append((name, *counts, *_shares(sums[i]), *(_shares(again[i]) if replayed else ())))
    out.table(("Bucket", *(f">{tier.label}" for tier in Tier), *heads[4:], *extra), totals)
    out.values(f"{clip.name}\t{name}\t{clip.outcomes[i].share:.4f}" for clip in found.clips for i, name in enumerate(names))
    out.say("\nshare: of the clip, what is Tier 0; stays: of what is Tier 0 in the canonical bucket, what is Tier 0 here")


def _shares(found: Outcome | BucketSum) -> tuple[str, str, str]:
    stays = "-" if found.stays is None else number(100.0 * found.stays, 1)
    return number(found.tier_0_sec), number(100.0 * found.share, 1), stays
