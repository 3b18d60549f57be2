"""Tests 6 and 7: can a policy look like the reference, and did the robot produce it without the harness?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.dataset.statistics import STD_FLOOR
from amp_core.errors import IntegrityError
from amp_core.metrics import CHANNEL_RATE, UNLOADED_BELOW
from amp_core.motion import find_refusal
from amp_core.quality import FrameSeries, contact_warnings, measure
from amp_core.recipe import GATE_PROFILE
from amp_core.rotations import pitch_roll_tilt
from amp_core.tiers import Tier, classify, gate_profile, holds
from amp_core.verify.context import Context
from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Findings, Row, TestReport

if TYPE_CHECKING:
    from amp_core.recipe import PhysicsScale
    from amp_core.robot import Robot
    from amp_core.tiers import GateSpec
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

FRAMES = 10_000
"""From the specification: frames of the reference, and of the random policy."""

HEIGHT_STD = 0.001
"""m; the root's height is near-constant below this std, which in walking is 2 to 27 mm (docs/errata.md, E3).

Every other dimension is near-constant where its std is not above the specification's `STD_FLOOR`.
"""

SPEEDS = {"root_lin_vel": 2.0, "root_ang_vel": 5.0}
"""From the specification: m/s and rad/s, the least magnitude of the vector that is implausible.

The first is that of a robot of WildRobot's height. Robots of other heights walk alike at speeds that go with the square root of
the height; how fast they turn does not.
"""

LIMIT_SLACK = 0.02
"""rad; the most that a joint may be beyond its limit: MuJoCo's limits are soft."""

PRESSED = 0.2
"""rad; servos and impacts press a joint this far into a soft limit, by up to 0.16 rad in a Unitree G1's dances."""

PERCENTILE = 99.0
"""A gate on all frames FAILs by this percentile, and WARNs of single frames beyond it."""

OVERLAP = 0.05
"""The least overlap of two histograms for a dimension to be within a random policy's reach."""

BINS = 40

_MAX_POINTS = 600
"""Values that a figure's series over the frames has at most."""


# --- 6 --------------------------------------------------------------------------------------------------------------------


def distribution_sanity(context: Context) -> TestReport:
    """6: the reference's frames by the specification's sanity gates, and beside a random policy's in the same physics."""
    findings = Findings("6")
    robot, clips = context.subject.robot, [clip for clip in context.subject.tier_0_clips if len(clip.version_features)]
    if not clips:
        return findings.skip("there is no Tier 0 clip: training would have no frame")
    rows = np.concatenate([clip.version_features for clip in clips])
    extent = f"{len(rows):,} frames of {len(clips)} Tier 0 clips"
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        findings.add(Row("nonfinite", int((~finite).sum()), FAIL, "==", 0.0))
        findings.add_reason("the reference holds frames that are not finite")
        return findings.report(extent)
    reference = rows.astype(np.float64)
    check_values(findings, robot, reference)
    check_contact_patterns(findings, robot, clips)
    check_speeds(findings, robot, reference, clips)
    check_limits(findings, robot, reference)
    context.progress(0.2, "a random policy")
    policy = random_policy_features(context, clips)
    # As many rows as of the policy: each at most once where there are enough, else all about equally often.
    generator = np.random.default_rng(context.seed)
    permutations = np.concatenate([generator.permutation(len(rows)) for _ in range(-(-FRAMES // len(rows)))])
    compare_distributions(findings, robot, reference[np.sort(permutations[:FRAMES])], policy)
    selection = "each of them" if len(rows) == FRAMES else f"{FRAMES:,} of them drawn with seed {context.seed}"
    return findings.report(
        f"{extent}, {selection}, beside {len(policy):,} frames of a random policy that starts from the reference's states in "
        "the same physics"
    )


def check_values(findings: Findings, robot: Robot, rows: Array) -> None:
    """Spread of every dimension, contact rates, and the root's height, of all frames (N, F)."""
    for name, std in zip(robot.layout.names, rows.std(axis=0), strict=True):
        limit = HEIGHT_STD if name.startswith("root_height") else STD_FLOOR
        reason = (
            f"{name} is near-constant (std {std:.2g}): a discriminator tells by it alone who is who, and normalizing divides "
            "by next to nothing; take in clips in which it moves, or drop it"
        )
        findings.check(f"std.{name}", float(std), ">", limit, reason=reason)

    low, high = CHANNEL_RATE
    rates = rows[:, robot.layout.block("foot_contacts").slice].mean(axis=0)
    for channel, rate in zip(robot.channels, rates, strict=True):
        bound, op, often = (low, ">=", "hardly ever") if rate < 0.5 else (high, "<=", "nearly always")
        reason = f"{channel} {often} touches the ground ({rate:.1%} of the frames): a degenerate contact channel"
        findings.check(f"contact_rate.{channel}", float(rate), op, bound, reason=reason)

    height = rows[:, robot.layout.block("root_height").start]
    low, high = robot.height_range
    p1, p99 = np.percentile(height, [100.0 - PERCENTILE, PERCENTILE])
    reason = (
        f"the root is at {p1:.3f} … {p99:.3f} m (p1 … p99), outside the robot's {low:g} … {high:g} m: a fallen robot, or a "
        "height that is measured from elsewhere"
    )
    findings.check("height.p1", float(p1), ">=", low, unit="m", reason=reason)
    findings.check("height.p99", float(p99), "<=", high, unit="m", reason=reason)
    findings.check("height.min", float(height.min()), ">=", low, unit="m", warn=True, note="single frames")
    findings.check("height.max", float(height.max()), "<=", high, unit="m", warn=True, note="single frames")


def check_contact_patterns(findings: Findings, robot: Robot, clips: Sequence[Clip]) -> None:
    """The specification's contact-sanity warnings, clip by clip."""
    for clip in clips:
        for warning in contact_warnings(clip.version_rows("foot_contacts"), robot):
            name, place = f"contact_sanity.{warning['kind']}", f"clip {clip.name}"
            op = "<=" if warning["rate"] > warning["threshold"] else ">="
            findings.check(name, warning["rate"], op, warning["threshold"], warn=True, where=place, note=warning["message"])
            findings.add_reason(f"{place}: {warning['message']}")


def check_speeds(findings: Findings, robot: Robot, rows: Array, clips: Sequence[Clip]) -> None:
    """The magnitude of the root's velocities in all frames (N, F), and the clip with the fastest."""
    ends = np.cumsum([len(clip.version_features) for clip in clips])
    limits = SPEEDS | {"root_lin_vel": SPEEDS["root_lin_vel"] * math.sqrt(robot.height_factor)}
    for name, limit in limits.items():
        block = robot.layout.block(name)
        speed = np.linalg.norm(rows[:, block.slice], axis=1)
        p99, largest = float(np.percentile(speed, PERCENTILE)), float(speed.max())
        place = f"clip {clips[int(np.searchsorted(ends, np.argmax(speed), side='right'))].name}"
        reason = (
            f"{name} is implausible: its magnitude exceeds {limit:.3g} {block.unit} in over 1 % of the frames (p99 {p99:.3g}), "
            f"worst in {place}; a fall, a teleport, or degrees for radians"
        )
        findings.check(f"speed.{name}.p99", p99, "<", limit, unit=block.unit, note="magnitude", reason=reason)
        note = f"single frames: {float((speed > limit).mean()):.2%} are faster"
        findings.check(f"speed.{name}.max", largest, "<", limit, warn=True, unit=block.unit, where=place, note=note)


def check_limits(findings: Findings, robot: Robot, rows: Array) -> None:
    """How far the joints' angles in all frames (N, F) lie beyond their limits."""
    angles = rows[:, robot.layout.block("joint_pos").slice]
    low, high = robot.joint_range.T
    excess = np.maximum(np.maximum(low - angles, angles - high), 0.0)
    p99, largest = np.percentile(excess, PERCENTILE, axis=0), excess.max(axis=0)
    for i, joint in enumerate(robot.joint_names):
        note = f"beyond [{low[i]:.3g}, {high[i]:.3g}]; MuJoCo's limits are soft"
        cause = (
            "other units, joint order, or robot"
            if largest[i] > PRESSED
            else "pressed into the model's soft limit, which the real joint would not give; keep the clip further inside the "
            "limits, or stiffen solreflimit of the MJCF"
        )
        reason = f"{joint} is up to {largest[i]:.3g} rad beyond its limits: {cause}"
        findings.check(f"limit.{joint}.p99", float(p99[i]), "<=", LIMIT_SLACK, unit="rad", note=note, reason=reason)
        findings.check(f"limit.{joint}.max", float(largest[i]), "<=", LIMIT_SLACK, warn=True, unit="rad", note=note)


def random_policy_features(context: Context, clips: Sequence[Clip]) -> Floats:
    """(M, F) a random policy's frames from the reference's states, in each physics in proportion; M is about `FRAMES`."""
    buckets: dict[tuple[PhysicsScale, float], list[Clip]] = {}
    for clip in clips:
        buckets.setdefault((clip.recipe.physics, clip.recipe.force_threshold), []).append(clip)
    total = sum(len(clip.version_features) for clip in clips)
    features = []
    for number, ((scale, threshold), members) in enumerate(buckets.items()):
        share = sum(len(clip.version_features) for clip in members) / total
        rollout = context.random_policy_rollout(
            context.subject.robot,
            *(np.concatenate([clip.version_rows(key) for clip in members]) for key in ("qpos", "qvel")),
            frames=max(1, round(FRAMES * share)),
            seed=context.seed,
            scale=scale,
            nthread=context.nthread,
            force_threshold=threshold,
        )
        features.append(np.asarray(rollout["features"], dtype=np.float32))
        context.progress(0.2 + 0.7 * (number + 1) / len(buckets), "a random policy")
    return np.concatenate(features)


def compare_distributions(findings: Findings, robot: Robot, reference: Array, policy: Floats) -> None:
    """The two distributions, a row a dimension."""
    layout = robot.layout
    finite = np.isfinite(policy).all(axis=1)
    if not finite.all():
        findings.add(Row("policy.nonfinite", int((~finite).sum()), FAIL, "==", 0.0))
        findings.add_reason("the random policy's rollout left the finite numbers: its physics is unstable")
        if not finite.any():
            return
    random = policy[finite].astype(np.float64)
    distances = np.array([wasserstein(reference[:, i], random[:, i]) for i in range(layout.dim)])
    dimensions = []
    for i, name in enumerate(layout.names):
        sides = {"reference": reference[:, i], "policy": random[:, i]}
        statistics = {side: (values.mean(), values.std()) for side, values in sides.items()}
        histogram = _histogram(*sides.values())
        dimensions.append(
            {
                "name": name,
                **{side: {"mean": _round(mean), "std": _round(std)} for side, (mean, std) in statistics.items()},
                "wasserstein": _round(distances[i]),
                **histogram,
            }
        )
        place = ", ".join(f"{side} {mean:.3g} ± {std:.2g}" for side, (mean, std) in statistics.items())
        note = (
            "share of the two histograms that lies on each other; below, a random policy never looks like the reference there"
        )
        findings.check(f"overlap.{name}", histogram["overlap"], ">=", OVERLAP, warn=True, where=place, note=note)
    for block in layout.blocks:
        note = "1-D Wasserstein-1 distance, mean over the block's dimensions"
        findings.add(Row(f"wasserstein.{block.name}", float(distances[block.slice].mean()), PASS, unit=block.unit, note=note))
    contacts = layout.block("foot_contacts").slice
    for foot in robot.feet:
        rate, random_rate = (
            float((rows[:, contacts] > 0)[:, list(foot.channels)].any(axis=1).mean()) for rows in (reference, random)
        )
        note = f"reference {rate:.1%}, policy {random_rate:.1%}"
        findings.add(Row(f"contact_rate_difference.{foot.name}", rate - random_rate, PASS, note=note))
    findings.figures["dimensions"] = dimensions


def wasserstein(values: Array, reference: Array) -> float:
    """The 1-D Wasserstein-1 distance of two samples: the area between their distribution functions."""
    a, b = np.sort(values), np.sort(reference)
    union = np.concatenate([a, b])
    union.sort()
    at = union[:-1]
    gap = np.abs(np.searchsorted(a, at, side="right") / len(a) - np.searchsorted(b, at, side="right") / len(b))
    return float((gap * np.diff(union)).sum())


def _histogram(reference: Array, policy: Array) -> dict[str, Any]:
    """Shares of both samples in common bins, and their overlap."""
    low, high = float(min(reference.min(), policy.min())), float(max(reference.max(), policy.max()))
    if not high > low:
        high = low + 1e-9
    counts, edges = np.histogram(reference, bins=BINS, range=(low, high))
    policy_counts, _ = np.histogram(policy, bins=BINS, range=(low, high))
    shares, policy_shares = counts / len(reference), policy_counts / len(policy)
    return {
        "low": _round(edges[0]),
        "high": _round(edges[-1]),
        "reference_share": [_round(value) for value in shares],
        "policy_share": [_round(value) for value in policy_shares],
        "overlap": float(np.minimum(shares, policy_shares).sum()),
    }


def _round(value: float) -> float:
    """To four digits, for a figure."""
    return float(f"{value:.4g}")


# --- 7 --------------------------------------------------------------------------------------------------------------------


def harness_contribution(context: Context) -> TestReport:
    """7: the specification's load gates from the recorded arrays, clip by clip, window by window."""
    findings = Findings("7")
    robot = context.subject.robot
    evidence, tier_1_count = [], 0
    for clip in context.subject.clips:
        tier, place = clip.version_tier, f"clip {clip.name}"
        if tier is Tier.REJECTED:
            findings.add(Row("tier", clip.tier, FAIL, ">=", 0.0, where=place, note="Rejected clips do not go into a version"))
            findings.add_reason(
                f"{place} is Rejected and yet taken: take it out of the version, or take its Tier 0 windows alone"
            )
            continue
        mg = robot.mg_for(clip.recipe.physics)
        load = np.asarray(clip.arrays["sum_fn_per_frame"], dtype=np.float64) / mg
        stab = np.abs(np.asarray(clip.arrays["stab_force"], dtype=np.float64)) / mg
        tilt = np.degrees(pitch_roll_tilt(robot.root_rotation(np.asarray(clip.arrays["qpos"])))[2])
        gates = gate_profile(clip.recipe.gate_profile).for_tier(tier)
        series = {"sum_fn_over_mg": _thin(load), "stab_force_over_mg": _thin(stab), "tilt_deg": _thin(tilt)}
        windows = [list(window) for window in clip.windows]
        evidence.append({"clip": clip.name, "tier": tier, "windows": windows, **series})
        if tier is Tier.TIER_1:
            tier_1_count += 1
            note = "Tier 1: for the curriculum only, not for the final reference"
            findings.add(Row("tier", clip.tier, WARN, "<=", 0.0, where=place, note=note))
            findings.add_reason(f"{place} is Tier 1: curriculum only")
        for start, stop in clip.windows:
            rows = slice(start, stop)
            if start >= min(stop, clip.frames):
                continue  # Test 4 reports it.
            span = f"{place}, frames {start} … {stop}" if clip.ranges else place
            check_load_gates(findings, clip, gates, span, load[rows], stab[rows], mg)
            # By a profile that is relative to the clip, a robot may lie where the clip does.
            if tier is Tier.TIER_0 and "max_tilt_deg" in gates:
                worst, limit = float(tilt[rows].max()), gates["max_tilt_deg"].threshold
                assert isinstance(limit, float)
                frame = start + int(np.argmax(tilt[rows] > limit))
                reason = (
                    f"{span}: the robot has fallen (tilt {worst:.0f}°, over {limit:g}° from frame {frame} on) and is taken as "
                    "Tier 0: a policy would learn to lie down"
                )
                findings.check("max_tilt_deg", worst, "<=", limit, unit="deg", where=span, reason=reason)
        if tier is Tier.TIER_0:
            check_profile(findings, robot, clip)
    findings.figures["clips"] = evidence
    clips = f"{len(context.subject.clips)} clips" + (f", {tier_1_count} of them Tier 1" if tier_1_count else "")
    return findings.report(
        f"mean ΣF_n/mg, p90 |F_stab|/mg and the share of unloaded frames (below {UNLOADED_BELOW:g} mg), from "
        f"`sum_fn_per_frame` and `stab_force` of {clips}, by the thresholds of each clip's gate profile"
    )


def check_profile(findings: Findings, robot: Robot, clip: Clip) -> None:
    """Every gate of this release's profile and every check of the clip, on what the version takes of a Tier 0 clip.

    An older profile did not ask whether the clip is upright and on flat ground, and whether the robot does what it shows. A
    profile that is relative to the clip keeps its own gates. A clip that `check_clip` refuses teaches its fault even where the
    robot follows it: a frozen tail, a spike.
    """
    place, profile = f"clip {clip.name}", gate_profile(clip.recipe.gate_profile)
    profile = profile if profile.is_relative else gate_profile(GATE_PROFILE)
    try:
        series = FrameSeries.from_export(clip.arrays, replace(clip.recipe, gate_profile=profile.name), robot)
    except IntegrityError as error:
        note = f"not measured: {error.what}; the export is of an older release"
        findings.add(Row("gates.failed", None, SKIP, where=place, note=note))
        return
    refusal = find_refusal(clip.name, clip.arrays, robot)  # Test 4 reports a clip without frames.
    if refusal is not None:
        findings.add(Row(f"clip.{refusal.code}", refusal.value, FAIL, where=place, note=refusal.message))
        findings.add_reason(f"{place} is taken as Tier 0, but ampref check refuses it: {refusal.message}")
    num_failures = 0
    for start, stop in clip.windows:
        if start >= min(stop, clip.frames):
            continue  # Test 4 reports it.
        span = f"{place}, frames {start} … {stop}" if clip.ranges else place
        metrics = measure(series, start, stop) if clip.ranges else measure(series)
        gates = classify(metrics, profile, clip.recipe.mode, height_range=robot.height_range).gates
        for gate in gates:
            if gate.passed or gate.tier == Tier.TIER_1:
                continue
            num_failures += 1
            threshold = gate.threshold if isinstance(gate.threshold, float) else None
            note = f"gate of {profile.name}"
            op = gate.op if threshold is not None else None
            findings.add(Row(f"gates.{gate.name}", gate.value, FAIL, op, threshold, where=span, note=note))
            findings.add_reason(f"{span} is taken as Tier 0, but by {profile.name} {gate.explain()}")
    findings.check(
        "gates.failed", num_failures, "==", 0, where=place, note=f"gates of {profile.name}, measured from the arrays"
    )


def check_load_gates(
    findings: Findings, clip: Clip, gates: Mapping[str, GateSpec], where: str, load: Array, stab: Array, mg: float
) -> None:
    """The load gates on some rows of a clip.

    Args:
      load, stab: (N,) over the weight, of the feet and of the harness.
      mg: N, the robot's weight in the clip's physics.
    """
    values = {
        "mean_sum_fn_over_mg": float(load.mean()),
        "p90_stab_force_over_mg": float(np.percentile(stab, 90)),
        "unloaded_frame_rate": float((load < UNLOADED_BELOW).mean()),
    }
    harness, tier = clip.recipe.harness_of(clip.attempt, mg), clip.version_tier.label
    cap = "no cap" if harness.force_cap is None else f"a cap of {harness.force_cap:.4g} N"
    reasons = {
        "mean_sum_fn_over_mg": "the feet carry {value:.2f} mg on average ({limit}): something else carries the rest",
        "p90_stab_force_over_mg": "the harness carries up to {value:.2f} mg in nine of ten frames ({limit}): it holds the "
        f"robot up (kp {harness.height_kp:.4g} N/m, {cap}); weaken it, or use mode tracked, which has none",
        "unloaded_frame_rate": "{value:.1%} of the frames are unloaded ({limit}): the robot hangs or flies",
    }
    for name, value in values.items():
        spec = gates.get(name)
        if spec is None:
            continue  # A profile that is relative to the clip has no gate for it.
        assert isinstance(spec.threshold, float)
        is_pass = holds(value, spec.op, spec.threshold) and math.isfinite(value)
        status = PASS if is_pass else FAIL
        findings.add(Row(name, value, status, spec.op, spec.threshold, where=where, note=f"{tier} gate"))
        if not is_pass:
            limit = f"{tier} {'asks' if spec.op == '>=' else 'allows'} {spec.threshold:g}"
            findings.add_reason(f"{where}: {reasons[name].format(value=value, limit=limit)}")


def _thin(values: Array) -> list[float]:
    """A series for a figure: rounded, and every k-th value of a long one."""
    step = -(-len(values) // _MAX_POINTS) if len(values) else 1
    return [_round(value) for value in values[::step]]
