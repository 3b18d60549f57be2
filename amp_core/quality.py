"""Quality metrics: what one rollout, or one window of it, is worth in numbers.

`FrameSeries` holds what the metrics need, one value a frame; `measure` turns any window of it into the metrics that `METRICS`
names. Gates, segments, the catalog's columns, the API's filters and the docs all come from that one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from amp_core.rotations import pitch_roll_tilt
from amp_core.tiers import Tier, gate_profile

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from amp_core.rollout import Rollout

Array = npt.NDArray[np.float64]
Metrics = Mapping[str, float | int | None]

UNLOADED_BELOW = 0.6
"""A frame counts as unloaded when the feet carry less than this share of the weight (the seed's figure)."""

LOADED_ABOVE = 0.1
"""A foot counts as standing, for `slip_rate`, when it carries more than this share of the weight."""

SLIP_SPEED = 0.1
"""m/s; a standing foot slips when every corner of it moves horizontally faster than this."""

FALLEN_TILT_DEG = 60.0
"""A root that leans further than this has fallen."""


class Metric(NamedTuple):
    """One quality metric.

    Args:
      name: the key in `quality_metrics`, the catalog's column and the API's filter.
      unit: its unit; "1" for a ratio or a share.
      type: `float` or `int`; every metric may be null where it has no value.
      meaning: one sentence for the docs.
    """

    name: str
    unit: str
    type: type[float] | type[int]
    meaning: str


METRICS: tuple[Metric, ...] = (
    Metric("mean_sum_fn_over_mg", "1", float, "Mean over frames of the normal force on all contact channels, over the weight."),
    Metric("p10_sum_fn_over_mg", "1", float, "10th percentile of the same: how light the robot gets."),
    Metric("p90_stab_force_over_mg", "1", float, "90th percentile of the harness force's magnitude, over the weight."),
    Metric("unloaded_frame_rate", "1", float, "Share of frames whose normal force is below 0.6 of the weight."),
    Metric("contact_rate", "1", float, "Contact rate of the foot whose rate is furthest from the middle of the gate's range."),
    Metric("left_foot_contact_rate", "1", float, "Share of frames in which a channel of the left foot touches the ground."),
    Metric("right_foot_contact_rate", "1", float, "Share of frames in which a channel of the right foot touches the ground."),
    Metric("both_feet_contact_rate", "1", float, "Share of frames in which every foot touches the ground."),
    Metric("no_feet_contact_rate", "1", float, "Share of frames in which no foot touches the ground."),
    Metric("height_mean", "m", float, "Mean height of the root."),
    Metric("height_std", "m", float, "Standard deviation of the root's height."),
    Metric("height_min", "m", float, "Least height of the root."),
    Metric("height_max", "m", float, "Greatest height of the root."),
    Metric("height_variance", "m²", float, "Variance of the root's height."),
    Metric("p95_pitch_deg", "deg", float, "95th percentile of the root's absolute pitch."),
    Metric("p95_roll_deg", "deg", float, "95th percentile of the root's absolute roll."),
    Metric("max_tilt_deg", "deg", float, "Greatest angle between the root's z axis and the vertical."),
    Metric(
        "nonfoot_contact_rate", "1", float, "Share of frames with a substep in which anything but a foot touches the ground."
    ),
    Metric("slip_rate", "1", float, "Share of loaded (foot, frame) pairs in which the whole foot slides faster than 0.1 m/s."),
    Metric("actuator_saturation_rate", "1", float, "Share of (actuator, frame) pairs at 99 % or more of the force range."),
    Metric("joint_rmse_rad", "rad", float, "Root mean square difference from the clip's joint angles, over joints and frames."),
    Metric("root_drift_m", "m", float, "Greatest horizontal distance of the root from the clip's root."),
    Metric(
        "contact_agreement",
        "1",
        float,
        "Share of (foot, frame) pairs in which the foot touches the ground exactly when the clip means it to; `tracked` only.",
    ),
    Metric("finite_frame_rate", "1", float, "Share of the clip's frames that were simulated, finite and without a warning."),
    Metric("solver_warnings", "1", float, "Number of warnings that the physics engine raised."),
    Metric("fell_at_frame", "frame", int, "First frame with a tilt over 60° or the root below its height range; null if none."),
)
"""Every metric, in the order in which they are shown."""


@dataclass(frozen=True, eq=False)
class FrameSeries:
    """What the metrics are made of: N rows that were simulated, F feet.

    Args:
      load: (N,) normal force on all channels, mean over the frame's substeps, over the weight.
      stab: (N,) magnitude of the harness force, over the weight.
      height: (N,) m, of the root.
      pitch, roll: (N,) deg, absolute.
      tilt: (N,) deg.
      feet: (N, F) bool, foot on the ground at the end of the frame.
      nonfoot: (N,) bool, anything else touched the ground during the frame.
      standing: (N,) number of feet under load.
      slipping: (N,) number of those that slide.
      saturation: (N,) share of actuators at their limit.
      joint_error: (N,) rad², mean over the joints.
      drift: (N,) m, horizontal distance of the root from the clip's root.
      left, right: indices of the left and the right feet, empty where the names do not tell.
      height_range: (low, high) m, the robot's.
      clip_frames: frames of the clip; more than N when the simulation failed.
      solver_warnings: warnings of the physics engine.
      contact_middle: the middle of the range that the gate profile asks of a foot's contact rate.
      agreeing: (N,) number of feet that touch exactly where the clip means them to; None where what it means is not known.
    """

    load: Array
    stab: Array
    height: Array
    pitch: Array
    roll: Array
    tilt: Array
    feet: npt.NDArray[np.bool_]
    nonfoot: npt.NDArray[np.bool_]
    standing: npt.NDArray[np.int64]
    slipping: npt.NDArray[np.int64]
    saturation: Array
    joint_error: Array
    drift: Array
    left: tuple[int, ...]
    right: tuple[int, ...]
    height_range: tuple[float, float]
    clip_frames: int
    solver_warnings: int
    contact_middle: float
    agreeing: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.height)

    @cached_property
    def fallen(self) -> npt.NDArray[np.bool_]:
        """(N,) the root leans over 60° or is below the robot's height range."""
        return (self.tilt > FALLEN_TILT_DEG) | (self.height < self.height_range[0])

    @classmethod
    def of(cls, rollout: Rollout, robot: Robot) -> FrameSeries:
        """The series of a rollout.

        Raises:
          RecipeRefused: the recipe names a gate profile that does not exist.
        """
        mg = robot.mg_for(rollout.recipe.physics)
        pitch, roll, tilt = pitch_roll_tilt(robot.root_rotation(rollout.qpos))
        feet = np.stack([(rollout.foot_contacts[:, foot.channels] > 0).any(axis=1) for foot in robot.feet], axis=1)
        standing = foot_loads(rollout, robot) > LOADED_ABOVE * mg
        slipping = standing & (rollout.foot_speed > SLIP_SPEED)
        left, right = sides(robot)
        meant = rollout.reference_contacts
        contact = gate_profile(rollout.recipe.gate_profile).for_tier(Tier.TIER_0).get("contact_rate")
        return cls(
            load=rollout.sum_fn_per_frame / mg,
            stab=np.abs(rollout.stab_force) / mg,
            height=np.ascontiguousarray(rollout.root_pos[:, 2]),
            pitch=np.degrees(np.abs(pitch)),
            roll=np.degrees(np.abs(roll)),
            tilt=np.degrees(tilt),
            feet=feet,
            nonfoot=rollout.nonfoot_contact,
            standing=standing.sum(axis=1),
            slipping=slipping.sum(axis=1),
            saturation=rollout.saturation,
            joint_error=((rollout.dof_pos - rollout.reference_dof_pos) ** 2).mean(axis=1),
            drift=np.hypot(*(rollout.root_pos[:, :2] - rollout.reference_root_pos[:, :2]).T),
            left=left,
            right=right,
            height_range=robot.height_range,
            clip_frames=rollout.clip_frames,
            solver_warnings=rollout.solver_warnings,
            contact_middle=sum(contact.threshold) / 2 if contact and isinstance(contact.threshold, tuple) else 0.5,
            agreeing=None if meant is None else (feet == meant).sum(axis=1),
        )


def foot_loads(rollout: Rollout, robot: Robot) -> Array:
    """(N, F) N, the normal force on each foot, mean over the frame's substeps."""
    return np.stack([rollout.channel_loads[:, foot.channels].sum(axis=1) for foot in robot.feet], axis=1)


def sides(robot: Robot) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The indices of the feet whose channels are all called `left…` (or `l_…`), and of those called `right…` (or `r_…`).

    A robot whose names do not sort every foot to one side has neither: both tuples are empty.
    """
    found: dict[str, list[int]] = {"left": [], "right": []}
    for i, foot in enumerate(robot.feet):
        names = [robot.channels[channel].lower() for channel in foot.channels]
        for side in found:
            if all(name.startswith((side, side[0] + "_")) for name in names):
                found[side].append(i)
    if len(found["left"]) + len(found["right"]) != len(robot.feet) or not found["left"] or not found["right"]:
        return (), ()
    return tuple(found["left"]), tuple(found["right"])


def measure(series: FrameSeries, start: int = 0, stop: int | None = None) -> dict[str, float | int | None]:
    """The metrics of the rows `start … stop`, in the order of `METRICS`.

    A window is judged by its own frames alone: a failure later in the clip counts against the whole clip, not against a window
    before it. `root_drift_m` is the distance as recorded, from the clip's root, also for a window. Percentiles are linear.
    """
    whole = start == 0 and stop is None
    rows = slice(start, len(series) if stop is None else stop)
    height = series.height[rows]
    n = len(height)
    if n == 0:
        nothing: dict[str, float | int | None] = {metric.name: None for metric in METRICS}
        nothing["finite_frame_rate"] = 0.0
        nothing["solver_warnings"] = float(series.solver_warnings)
        return nothing
    load, tilt, feet = series.load[rows], series.tilt[rows], series.feet[rows]
    standing = int(series.standing[rows].sum())
    fallen = np.flatnonzero(series.fallen[rows])
    return {
        "mean_sum_fn_over_mg": float(load.mean()),
        "p10_sum_fn_over_mg": percentile(load, 10),
        "p90_stab_force_over_mg": percentile(series.stab[rows], 90),
        "unloaded_frame_rate": int((load < UNLOADED_BELOW).sum()) / n,
        "contact_rate": _extreme_rate(feet, series.contact_middle),
        "left_foot_contact_rate": int(feet[:, series.left].any(axis=1).sum()) / n if series.left else None,
        "right_foot_contact_rate": int(feet[:, series.right].any(axis=1).sum()) / n if series.right else None,
        "both_feet_contact_rate": int(feet.all(axis=1).sum()) / n,
        "no_feet_contact_rate": int((~feet.any(axis=1)).sum()) / n,
        "height_mean": float(height.mean()),
        "height_std": float(height.std()),
        "height_min": float(height.min()),
        "height_max": float(height.max()),
        "height_variance": float(height.var()),
        "p95_pitch_deg": percentile(series.pitch[rows], 95),
        "p95_roll_deg": percentile(series.roll[rows], 95),
        "max_tilt_deg": float(tilt.max()),
        "nonfoot_contact_rate": int(series.nonfoot[rows].sum()) / n,
        "slip_rate": int(series.slipping[rows].sum()) / standing if standing else None,
        "actuator_saturation_rate": float(series.saturation[rows].mean()),
        "joint_rmse_rad": float(np.sqrt(series.joint_error[rows].mean())),
        "root_drift_m": float(series.drift[rows].max()),
        "contact_agreement": _agreement(series, rows),
        "finite_frame_rate": n / series.clip_frames if whole else 1.0,
        "solver_warnings": float(series.solver_warnings) if whole else 0.0,
        "fell_at_frame": start + int(fallen[0]) if len(fallen) else None,
    }


def _agreement(series: FrameSeries, rows: slice) -> float | None:
    pairs = series.feet[rows].size
    return None if series.agreeing is None or pairs == 0 else int(series.agreeing[rows].sum()) / pairs


def percentile(values: Array, q: float) -> float:
    """The q-th percentile, linear between the two order statistics around it (numpy's default)."""
    return float(np.percentile(values, q))


def _extreme_rate(feet: npt.NDArray[np.bool_], middle: float) -> float | None:
    """Of the feet's contact rates, the one furthest from the middle of the gate's range.

    One number can then be gated: it lies in the range if and only if every foot's rate does.
    """
    rows, count = feet.shape
    if count == 0:
        return None
    rates: list[float] = [int(total) / rows for total in feet.sum(axis=0)]
    return max(rates, key=lambda rate: abs(rate - middle))


def contact_warnings(contacts: npt.NDArray[Any], robot: Robot) -> list[dict[str, Any]]:
    """The seed's contact-sanity warnings as data: they mark suspicious patterns and change no tier.

    Args:
      contacts: (N, C) 0/1.

    Returns:
      One dict a warning: `kind` (`always_on`, `always_off`, `all_feet_grounded`), `channel` (null for the last), `rate`,
      `threshold`, `message`.
    """
    found: list[dict[str, Any]] = []
    if len(contacts) == 0:
        return found

    def warn(kind: str, channel: str | None, rate: float, threshold: float, message: str) -> None:
        found.append({"kind": kind, "channel": channel, "rate": rate, "threshold": threshold, "message": message})

    touching = contacts > 0
    for channel, name in enumerate(robot.channels):
        rate = int(touching[:, channel].sum()) / len(touching)
        if rate > 0.95:
            warn("always_on", name, rate, 0.95, f"{name} touches in {rate:.1%} of the frames")
        if rate < 0.05:
            warn("always_off", name, rate, 0.05, f"{name} touches in {rate:.1%} of the frames only")
    every = np.all([touching[:, list(foot.channels)].any(axis=1) for foot in robot.feet], axis=0)
    rate = int(every.sum()) / len(touching)
    if rate > 0.8:
        warn("all_feet_grounded", None, rate, 0.8, f"all feet are on the ground in {rate:.1%} of the frames")
    return found
