"""Tests 6 and 7: is the reference something that a policy can look like, and did the robot do it by itself?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.quality import UNLOADED_BELOW
from amp_core.rotations import pitch_roll_tilt
from amp_core.tiers import Tier, gate_profile, holds
from amp_core.verify.context import Context, Findings
from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Row, TestReport, check

if TYPE_CHECKING:
    from amp_core.recipe import PhysicsScale
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

FRAMES = 10_000
"""The seed's: frames of the reference, and of the random policy."""

STD = 0.01
"""The seed's: a dimension whose std is not above this is near-constant."""

HEIGHT_STD = 0.001
"""m; the same for the root's height, whose honest std in walking is 2 to 27 mm (docs/errata.md, E3)."""

CONTACT_RATE = (0.05, 0.95)
"""The seed's: a channel's contact rate outside is degenerate."""

SPEEDS = {"root_lin_vel": 2.0, "root_ang_vel": 5.0}
"""The seed's: m/s and rad/s, magnitude of the vector that is not plausible any more."""

LIMIT_SLACK = 0.02
"""rad; how far a joint may be beyond its limit: MuJoCo's limits are soft."""

PERCENTILE = 99.0
"""Where a gate is about all frames, it FAILs by this percentile, and by single frames beyond it WARNs."""

OVERLAP = 0.05
"""Share of two histograms that must lie on each other for a dimension to be within a random policy's reach."""

BINS = 40

_LOAD_GATES = ("mean_sum_fn_over_mg", "p90_stab_force_over_mg", "unloaded_frame_rate")
_SHOWN = 600  # values of a series a frame that a figure holds, at most


# --- 6 --------------------------------------------------------------------------------------------------------------------


def distribution_sanity(context: Context) -> TestReport:
    """6: the reference's frames by the seed's sanity gates, and beside a random policy's in the same physics."""
    found = Findings("6", "distribution sanity")
    robot, clips = context.subject.robot, [clip for clip in usable(context) if len(clip.taken)]
    if not clips:
        return found.skipped("there is no Tier 0 clip: training would have no frame")
    rows = np.concatenate([clip.taken for clip in clips])
    picked = _pick(len(rows), FRAMES, context.seed)
    reference = rows[picked].astype(np.float64)
    layout = robot.layout
    if not np.isfinite(rows).all():
        found.add(Row("nonfinite", int((~np.isfinite(rows)).any(axis=1).sum()), FAIL, "==", 0.0))
        found.because("the reference holds frames that are not finite")
        return found.report(f"{len(rows):,} frames of {len(clips)} Tier 0 clips")
    # Extremes and rates are of every frame; the picked ones are for the comparison with as many of the policy.
    everything = rows.astype(np.float64)
    _spread(found, robot, everything)
    _contact_rates(found, robot, everything)
    _height(found, robot, everything)
    _speeds(found, robot, everything, clips)
    _limits(found, robot, everything)
    context.progress(0.2, "a random policy")
    try:
        policy = _policy_frames(context, clips, picked)
    except ImportError as error:
        found.add(Row("policy", None, SKIP, note=f"no random policy: {error}"))
        found.because(f"the reference was looked at alone, without a random policy's rollout: {error}")
        policy = None
    if policy is not None:
        _beside(found, robot, reference, policy)
    drawn = "each of them" if len(rows) == FRAMES else f"{FRAMES:,} of them drawn with seed {context.seed}"
    del layout
    beside = (
        ""
        if policy is None
        else f", beside {len(policy):,} frames of a random policy that starts from the reference's states in the same physics"
    )
    return found.report(f"{len(rows):,} frames of {len(clips)} Tier 0 clips, {drawn}{beside}")


def usable(context: Context) -> list[Clip]:
    """The clips whose taken frames training uses as Tier 0: those judged so, and those of which only windows are taken that are
    Tier 0 on their own."""
    return [clip for clip in context.subject.clips if _tier(clip) == Tier.TIER_0]


def _tier(clip: Clip) -> Tier:
    """The tier of what is taken of a clip: a Rejected clip takes part by its Tier 0 windows, or not at all."""
    return Tier.TIER_0 if clip.tier == Tier.REJECTED and clip.ranges else Tier(clip.tier)


def _pick(count: int, wanted: int, seed: int) -> npt.NDArray[np.int64]:
    """Which of `count` rows to look at: each at most once where there are enough, else all about equally often."""
    generator = np.random.default_rng(seed)
    whole = np.concatenate([generator.permutation(count) for _ in range(-(-wanted // count))])
    return np.sort(whole[:wanted])


def _spread(found: Findings, robot: Robot, rows: Array) -> None:
    std = rows.std(axis=0)
    for i, name in enumerate(robot.layout.names):
        limit = HEIGHT_STD if name.startswith("root_height") else STD
        if not found.add(check(f"std.{name}", float(std[i]), ">", limit)):
            found.because(
                f"{name} is near-constant (std {std[i]:.2g}): a discriminator tells by it alone who is who, and normalizing "
                "divides by next to nothing; take in clips in which it moves, or drop it"
            )


def _contact_rates(found: Findings, robot: Robot, rows: Array) -> None:
    low, high = CONTACT_RATE
    block = robot.layout.block("foot_contacts")
    for channel, rate in zip(robot.channels, rows[:, block.slice].mean(axis=0), strict=True):
        bound, op = (low, ">=") if rate < 0.5 else (high, "<=")
        if not found.add(check(f"contact_rate.{channel}", float(rate), op, bound)):
            always = "hardly ever" if rate < 0.5 else "nearly always"
            found.because(f"{channel} {always} touches the ground ({rate:.1%} of the frames): a degenerate contact channel")


def _height(found: Findings, robot: Robot, rows: Array) -> None:
    height = rows[:, robot.layout.block("root_height").start]
    low, high = robot.height_range
    below, above = np.percentile(height, [100.0 - PERCENTILE, PERCENTILE])
    fine = found.add(
        check("height.p1", float(below), ">=", low, unit="m"),
        check("height.p99", float(above), "<=", high, unit="m"),
        check("height.min", float(height.min()), ">=", low, unit="m", warn=True, note="single frames"),
        check("height.max", float(height.max()), "<=", high, unit="m", warn=True, note="single frames"),
    )
    if not fine:
        found.because(
            f"the root is at {below:.3f} … {above:.3f} m (p1 … p99), outside the robot's {low:g} … {high:g} m: a fallen robot, "
            "or a height that is measured from elsewhere"
        )


def _speeds(found: Findings, robot: Robot, rows: Array, clips: Sequence[Clip]) -> None:
    for name, limit in SPEEDS.items():
        block = robot.layout.block(name)
        speed = np.linalg.norm(rows[:, block.slice], axis=1)
        p99, most = float(np.percentile(speed, PERCENTILE)), float(speed.max())
        where, first = "", 0
        for clip in clips:
            end = first + len(clip.taken)
            if speed[first:end].max() == most:
                where = f"clip {clip.name}"
                break
            first = end
        note = f"single frames: {float((speed > limit).mean()):.2%} are faster"
        fine = found.add(
            check(f"speed.{name}.p99", p99, "<", limit, unit=block.unit, note="magnitude"),
            check(f"speed.{name}.max", most, "<", limit, unit=block.unit, where=where, note=note, warn=True),
        )
        if not fine:
            found.because(
                f"{name} is implausible: its magnitude exceeds {limit:g} {block.unit} in over 1 % of the frames (p99 "
                f"{p99:.3g}), worst in {where}; a fall, a teleport, or degrees for radians"
            )


def _limits(found: Findings, robot: Robot, rows: Array) -> None:
    angles = rows[:, robot.layout.block("joint_pos").slice]
    low, high = robot.joint_range.T
    beyond = np.maximum(np.maximum(low - angles, angles - high), 0.0)
    p99, most = np.percentile(beyond, PERCENTILE, axis=0), beyond.max(axis=0)
    for i, joint in enumerate(robot.joint_names):
        note = f"beyond [{low[i]:.3g}, {high[i]:.3g}]; MuJoCo's limits are soft"
        fine = found.add(
            check(f"limit.{joint}.p99", float(p99[i]), "<=", LIMIT_SLACK, unit="rad", note=note),
            check(f"limit.{joint}.max", float(most[i]), "<=", LIMIT_SLACK, unit="rad", note=note, warn=True),
        )
        if not fine:
            found.because(f"{joint} is up to {most[i]:.3g} rad beyond its limits: other units, joint order, or robot")


def _policy_frames(context: Context, clips: Sequence[Clip], picked: npt.NDArray[np.int64]) -> Floats:
    """(M, F) a random policy's frames, from the reference's states and in its physics: in each in proportion."""
    robot = context.subject.robot
    buckets: dict[tuple[PhysicsScale, float], list[Clip]] = {}
    for clip in clips:
        buckets.setdefault((clip.recipe.physics, clip.recipe.force_threshold), []).append(clip)
    total = sum(len(clip.taken) for clip in clips)
    found = []
    for number, ((scale, threshold), members) in enumerate(buckets.items()):
        share = sum(len(clip.taken) for clip in members) / total
        frames = max(1, round(len(picked) * share))
        starts = tuple(np.concatenate([_taken(clip, key) for clip in members]) for key in ("qpos", "qvel"))
        rollout = context.random_policy_rollout(
            robot,
            *starts,
            frames=frames,
            seed=context.seed,
            scale=scale,
            nthread=context.nthread,
            force_threshold=threshold,
        )
        found.append(np.asarray(rollout["features"], dtype=np.float32))
        context.progress(0.2 + 0.7 * (number + 1) / len(buckets), "a random policy")
    return np.concatenate(found)


def _taken(clip: Clip, key: str) -> Array:
    """The rows of an array that go into the version."""
    array = np.asarray(clip.arrays[key])
    return np.concatenate([array[start:end] for start, end in clip.ranges]) if clip.ranges else array


def _beside(found: Findings, robot: Robot, reference: Array, policy: Floats) -> None:
    """The two distributions, a row a dimension."""
    layout = robot.layout
    other = policy.astype(np.float64)
    if not np.isfinite(other).all():
        found.add(Row("policy.nonfinite", int((~np.isfinite(other)).any(axis=1).sum()), FAIL, "==", 0.0))
        found.because("the random policy's rollout left the finite numbers: its physics is unstable")
        other = other[np.isfinite(other).all(axis=1)]
        if not len(other):
            return
    distances = np.array([wasserstein(reference[:, i], other[:, i]) for i in range(layout.dim)])
    histograms = []
    for i, name in enumerate(layout.names):
        histogram = _histogram(reference[:, i], other[:, i])
        overlap = histogram["overlap"]
        histograms.append(
            {
                "name": name,
                "reference": {"mean": _short(reference[:, i].mean()), "std": _short(reference[:, i].std())},
                "policy": {"mean": _short(other[:, i].mean()), "std": _short(other[:, i].std())},
                "wasserstein": _short(distances[i]),
                **histogram,
            }
        )
        where = f"reference {_spread_of(reference[:, i])}, policy {_spread_of(other[:, i])}"
        note = (
            "share of the two histograms that lies on each other; below, a random policy never looks like the reference there"
        )
        found.add(check(f"overlap.{name}", overlap, ">=", OVERLAP, warn=True, where=where, note=note))
    for block in layout.blocks:
        note = "1-D Wasserstein-1 distance, mean over the block's dimensions"
        found.add(Row(f"wasserstein.{block.name}", float(distances[block.slice].mean()), PASS, unit=block.unit, note=note))
    contacts = layout.block("foot_contacts")
    touching, touched = reference[:, contacts.slice] > 0, other[:, contacts.slice] > 0
    for foot in robot.feet:
        columns = list(foot.channels)
        rates = float(touching[:, columns].any(axis=1).mean()), float(touched[:, columns].any(axis=1).mean())
        note = f"reference {rates[0]:.1%}, policy {rates[1]:.1%}"
        found.add(Row(f"contact_rate_difference.{foot.name}", rates[0] - rates[1], PASS, note=note))
    found.figures["dimensions"] = histograms


def _spread_of(values: Array) -> str:
    return f"{values.mean():.3g} ± {values.std():.2g}"


def wasserstein(one: Array, other: Array) -> float:
    """The 1-D Wasserstein-1 distance of two samples: the area between their distribution functions."""
    a, b = np.sort(one), np.sort(other)
    both = np.concatenate([a, b])
    both.sort()
    at = both[:-1]
    gap = np.abs(np.searchsorted(a, at, side="right") / len(a) - np.searchsorted(b, at, side="right") / len(b))
    return float((gap * np.diff(both)).sum())


def _histogram(one: Array, other: Array) -> dict[str, Any]:
    """Shares of both samples in common bins, and what share lies on each other."""
    low, high = float(min(one.min(), other.min())), float(max(one.max(), other.max()))
    if not high > low:
        high = low + 1e-9
    a, edges = np.histogram(one, bins=BINS, range=(low, high))
    b, _ = np.histogram(other, bins=BINS, range=(low, high))
    first, second = a / len(one), b / len(other)
    return {
        "low": _short(edges[0]),
        "high": _short(edges[-1]),
        "reference_share": [_short(value) for value in first],
        "policy_share": [_short(value) for value in second],
        "overlap": float(np.minimum(first, second).sum()),
    }


def _short(value: float) -> float:
    """Rounded for a figure: four digits."""
    return float(f"{value:.4g}")


# --- 7 --------------------------------------------------------------------------------------------------------------------


def harness_contribution(context: Context) -> TestReport:
    """7: the seed's load gates from the recorded arrays, clip by clip, window by window."""
    found = Findings("7", "harness contribution")
    robot = context.subject.robot
    evidence, told = [], 0
    for clip in context.subject.clips:
        tier, where = _tier(clip), f"clip {clip.name}"
        if tier == Tier.REJECTED:
            found.add(Row("tier", clip.tier, FAIL, ">=", 0.0, where=where, note="Rejected clips do not go into a version"))
            found.because(f"{where} is Rejected and yet taken: take it out of the version, or take its Tier 0 windows alone")
            continue
        mg = robot.mg_for(clip.recipe.physics)
        load = np.asarray(clip.arrays["sum_fn_per_frame"], dtype=np.float64) / mg
        stab = np.abs(np.asarray(clip.arrays["stab_force"], dtype=np.float64)) / mg
        tilt = np.degrees(pitch_roll_tilt(robot.root_rotation(np.asarray(clip.arrays["qpos"])))[2])
        windows = clip.ranges or ((0, clip.frames),)
        series = {"sum_fn_over_mg": _thinned(load), "stab_force_over_mg": _thinned(stab), "tilt_deg": _thinned(tilt)}
        evidence.append({"clip": clip.name, "tier": tier, "windows": [list(window) for window in windows], **series})
        if tier == Tier.TIER_1:
            told += 1
            note = "Tier 1: for the curriculum only, not for the final reference"
            found.add(Row("tier", clip.tier, WARN, "<=", 0.0, where=where, note=note))
            found.because(f"{where} is Tier 1: curriculum only")
        for start, stop in windows:
            rows = slice(start, stop)
            if start >= min(stop, clip.frames):
                continue  # Test 4 says so.
            span = where if not clip.ranges else f"{where}, frames {start} … {stop}"
            _ask_load_gates(found, clip, tier, span, load[rows], stab[rows])
            if tier == Tier.TIER_0:
                worst = float(tilt[rows].max())
                upright = gate_profile(clip.recipe.gate_profile).for_tier(tier)["max_tilt_deg"].threshold
                assert isinstance(upright, float)
                row = check("max_tilt_deg", worst, "<=", upright, unit="deg", where=span)
                if not found.add(row):
                    frame = start + int(np.argmax(tilt[rows] > upright))
                    found.because(
                        f"{span}: the robot has fallen (tilt {worst:.0f}°, over {upright:g}° from frame {frame} on) "
                        "and is taken as Tier 0: a policy would learn to lie down"
                    )
    found.figures["clips"] = evidence
    counted = f"{len(context.subject.clips)} clips" + (f", {told} of them Tier 1" if told else "")
    return found.report(
        f"mean ΣF_n/mg, p90 |F_stab|/mg and the share of unloaded frames (below {UNLOADED_BELOW:g} mg), from "
        f"`sum_fn_per_frame` and `stab_force` of {counted}, by the thresholds of each clip's gate profile"
    )


def _ask_load_gates(found: Findings, clip: Clip, tier: Tier, where: str, load: Array, stab: Array) -> None:
    values = {
        "mean_sum_fn_over_mg": float(load.mean()),
        "p90_stab_force_over_mg": float(np.percentile(stab, 90)),
        "unloaded_frame_rate": float((load < UNLOADED_BELOW).mean()),
    }
    specs = gate_profile(clip.recipe.gate_profile).for_tier(tier)
    for name in _LOAD_GATES:
        spec = specs[name]
        assert isinstance(spec.threshold, float)
        value = values[name]
        passed = holds(value, spec.op, spec.threshold) and math.isfinite(value)
        status = PASS if passed else FAIL
        found.add(Row(name, value, status, spec.op, spec.threshold, where=where, note=f"{tier.label} gate"))
        if not passed:
            found.because(f"{where}: {_why(name, value, spec.threshold, tier, clip)}")


def _why(name: str, value: float, threshold: float, tier: Tier, clip: Clip) -> str:
    asked = f"{tier.label} allows {threshold:g}"
    if name == "p90_stab_force_over_mg":
        harness = clip.recipe.harness
        cap = "no cap" if harness.force_cap is None else f"a cap of {harness.force_cap:g} N"
        return (
            f"the harness carries up to {value:.2f} mg in nine of ten frames ({asked}): it holds the robot up (kp "
            f"{harness.height_kp:g} N/m, {cap}); weaken it, or use mode tracked, which has none"
        )
    if name == "mean_sum_fn_over_mg":
        return f"the feet carry {value:.2f} mg on average ({tier.label} asks {threshold:g}): something else carries the rest"
    return f"{value:.1%} of the frames are unloaded ({asked}): the robot hangs or flies"


def _thinned(values: Array) -> list[float]:
    """A series for a figure, rounded, and with every k-th value alone where it is long."""
    step = -(-len(values) // _SHOWN) if len(values) else 1
    return [_short(float(value)) for value in values[::step]]
