"""`ampref buckets`: how clips fare in other physics than the robot's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import BadParameter, Option

from amp_core.cli.options import Fps, JsonOut, Mode, MotionFiles, Profile, QuatOrder, Quiet, RobotName, Seed, Threads
from amp_core.cli.output import Output
from amp_core.cli.reading import reading_options
from amp_core.cli.recipes import build_recipe
from amp_core.cli.text import number, tier_name
from amp_core.cpus import usable_cpus
from amp_core.errors import RecipeRefused
from amp_core.recipe import PhysicsScale
from amp_core.tiers import Tier

if TYPE_CHECKING:
    from amp_core.formats import Motion
    from amp_core.progress import Progress
    from amp_core.randomization import BucketSum, ClipBuckets, Comparison, Outcome


def buckets(
    motions: MotionFiles,
    friction: Annotated[str | None, Option(metavar="FACTORS", help="Of the friction, such as 0.7,1.0,1.3.")] = None,
    mass: Annotated[str | None, Option(metavar="FACTORS", help="Of masses and inertias, such as 0.9,1.0,1.1.")] = None,
    damping: Annotated[str | None, Option(metavar="FACTORS", help="Of the joints' damping, such as 0.7,1.0,1.3.")] = None,
    grid: Annotated[
        bool, Option("--grid", help="Every combination of the factors; else one quantity at a time is changed.")
    ] = False,
    replay: Annotated[
        bool, Option("--replay", help="Also drive the other buckets with the controls of the canonical rollout.")
    ] = False,
    robot: RobotName = "wildrobot",
    mode: Mode = None,
    recipe: Annotated[
        Path | None, Option(metavar="FILE", help="A recipe as JSON; each bucket differs from it in its physics alone.")
    ] = None,
    seed: Seed = None,
    profile: Profile = None,
    json_out: JsonOut = None,
    fps: Fps = None,
    quat_order: QuatOrder = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Score motions in several physics side by side: what share of each stays Tier 0 when the friction is 0.7?

    Without factors: friction 0.7 and 1.3, mass 0.9 and 1.1, damping 0.7 and 1.3, one at a time, beside the robot's own
    physics. Exits with 0 when every file was scored, with 1 when a file was refused, with 2 for wrong usage.
    """
    factors: dict[str, list[float]] = {}
    for name, text in {"friction": friction, "mass": mass, "damping": damping}.items():
        try:
            factors[name] = [float(factor) for factor in text.split(",")] if text is not None else []
        except ValueError:
            raise BadParameter(f"{text!r} is no list of factors, such as 0.7,1.0,1.3", param_hint=f"--{name}") from None
    from amp_core import randomization  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.cli.batch import process_files  # noqa: PLC0415 - --help needs no MuJoCo
    from amp_core.robot import Robot  # noqa: PLC0415 - --help needs no MuJoCo

    try:
        scales = randomization.buckets(**factors, grid=grid)
    except RecipeRefused as error:
        raise BadParameter(str(error), param_hint=f"--{str(error.key).removeprefix('physics.')}") from error
    base_recipe = build_recipe(recipe, mode, seed, profile=profile)
    out = Output(json_out, quiet=quiet)
    loaded_robot, nthread = Robot.load(robot), threads or usable_cpus()

    def run(batch: list[Motion], report: Progress) -> tuple[ClipBuckets, ...]:
        comparison = randomization.compare(
            batch, loaded_robot, base_recipe, scales, replay=replay, nthread=nthread, progress=report
        )
        return comparison.clips

    with out.progress("comparing", total=len(motions)) as progress:
        options = reading_options(motions, fps, quat_order, out)
        files = process_files(motions, options, loaded_robot, base_recipe, nthread, [run], out, progress)
        clips = tuple(clip for _, (clip,) in files if clip is not None)
    canonical = replace(base_recipe, physics=PhysicsScale())
    comparison = randomization.Comparison(loaded_robot.name, loaded_robot.digest, canonical, scales, clips)
    names = [scale.name for scale in scales]
    outcomes = [(clip.name, *row) for clip in clips for row in zip(names, clip.outcomes, strict=True)]
    out.print_result(comparison.to_dict(), (f"{clip}\t{name}\t{outcome.share:.4f}" for clip, name, outcome in outcomes))
    if clips:
        _print_comparison(out, comparison, replay)
    out.exit()


def _print_comparison(out: Output, comparison: Comparison, is_replayed: bool) -> None:
    names = [scale.name for scale in comparison.buckets]
    shares: tuple[str, ...] = (">Tier 0 s", ">share %", ">stays %")
    shares += tuple(f">replayed {head.removeprefix('>')}" for head in shares) if is_replayed else ()
    rows: list[tuple[Any, ...]] = []
    for clip in comparison.clips:
        for i, name in enumerate(names):
            outcome, replay_cells = clip.outcomes[i], _format_shares(clip.replayed[i]) if is_replayed else ()
            rows.append((clip.name, name, outcome.mode, tier_name(outcome.tier), *_format_shares(outcome), *replay_cells))
    out.print_table(("Motion", "Bucket", "Mode", "Tier", *shares), rows)
    out.print()
    columns = [comparison.sums(), *([comparison.sums(replayed=True)] if is_replayed else [])]
    totals = [
        (name, *(sums[0].clips_by_tier[tier] for tier in Tier), *(cell for total in sums for cell in _format_shares(total)))
        for name, *sums in zip(names, *columns, strict=True)
    ]
    out.print_table(("Bucket", *(f">{tier.label}" for tier in Tier), *shares), totals)
    out.print("\nshare: of the clip, what is Tier 0; stays: of what is Tier 0 in the canonical bucket, what is Tier 0 here")
    if out.file:
        out.print(f"\ncomparison: {out.file}")


def _format_shares(outcome: Outcome | BucketSum) -> tuple[str, str, str]:
    stays = "-" if outcome.stays is None else number(100.0 * outcome.stays, 1)
    return number(outcome.tier_0_sec), number(100.0 * outcome.share, 1), stays
