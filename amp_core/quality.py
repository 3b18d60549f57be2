"""Quality metrics of a rollout, or of one window of it.

`FrameSeries` holds the inputs of the metrics, one value a frame; `measure` turns any window of it into the metrics that
`metrics.METRICS` lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.metrics import CHANNEL_RATE, FALLEN_TILT_DEG, LOADED_ABOVE, METRICS, SLIP_SPEED, UNLOADED_BELOW
from amp_core.robot import Robot
from amp_core.rollout import Rollout
from amp_core.rotations import pitch_roll_tilt
from amp_core.tiers import Tier, gate_profile

Array = npt.NDArray[np.float64]
Metrics = Mapping[str, float | int | None]


@dataclass(frozen=True, eq=False)
class FrameSeries:
    """The inputs of the metrics: N simulated rows, F feet.

    Args:
      load: (N,) normal force on all channels, mean over the frame's substeps, over the weight.
      stab: (N,) magnitude of the harness force, over the weight.
      height: (N,) m, of the root.
      pitch, roll: (N,) deg, absolute.
      tilt: (N,) deg.
      feet: (N, F) bool, foot on the ground at the end of the frame.
      nonfoot: (N,) bool, anything else touched the ground during the frame.
      standing: (N,) number of feet under load.
      slipping: (N,) number of the standing feet that slide.
      saturation: (N,) share of actuators at their limit.
      joint_error: (N,) rad², mean over the joints.
      drift: (N,) m, horizontal distance of the root from the clip's root.
      left, right: indices of the left and the right feet, as `sides` gives them.
      height_range: (low, high) m, the robot's.
      clip_frames: more than N when the simulation failed.
      contact_middle: the middle of the gate profile's range of a foot's contact rate.
      agreeing: (N,) number of feet that touch the ground exactly when they stand in the clip; None unless in mode `tracked`.
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

    def falling(self, margin: int) -> npt.NDArray[np.bool_]:
        """(N,) the frames of a fall: those past a threshold, and the `margin` frames before them.

        A window that ends where the robot passes 60° would hold the whole beginning of the fall, and could still pass gates
        that allow a share of its frames to fail. The end of a simulation that stopped early counts as a fall.
        """
        starts = [start for start, _ in find_runs(self.fallen)]
        if self.clip_frames > len(self):
            starts.append(len(self))
        falling = self.fallen.copy()
        for start in starts:
            falling[max(0, start - margin) : start] = True
        return falling

    @classmethod
    def of(cls, rollout: Rollout, robot: Robot) -> FrameSeries:
        """The series of a rollout.

        Raises:
          RecipeRefused: an unknown gate profile.
        """
        mg = robot.mg_for(rollout.recipe.physics)
        pitch, roll, tilt = pitch_roll_tilt(robot.root_rotation(rollout.qpos))
        feet = np.stack([(rollout.foot_contacts[:, foot.channels] > 0).any(axis=1) for foot in robot.feet], axis=1)
        standing = foot_loads(rollout, robot) > LOADED_ABOVE * mg
        slipping = standing & (rollout.foot_speed > SLIP_SPEED)
        left, right = sides(robot)
        reference = rollout.reference_contacts
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
            agreeing=None if reference is None else (feet == reference).sum(axis=1),
        )


def find_runs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open (start, stop) of the runs of True in (N,), in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def foot_loads(rollout: Rollout, robot: Robot) -> Array:
    """(N, F) N, the normal force on each foot, mean over the frame's substeps."""
    return np.stack([rollout.channel_loads[:, foot.channels].sum(axis=1) for foot in robot.feet], axis=1)


def sides(robot: Robot) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The indices of the feet whose channels are all called `left…` (or `l_…`), and of those called `right…` (or `r_…`).

    Both are empty for a robot whose names do not sort every foot to one side, or all of them to the same.
    """
    left, right = (
        tuple(
            i
            for i, foot in enumerate(robot.feet)
            if all(robot.channels[channel].lower().startswith((side, side[0] + "_")) for channel in foot.channels)
        )
        for side in ("left", "right")
    )
    return (left, right) if left and right and len(left) + len(right) == len(robot.feet) else ((), ())


def measure(series: FrameSeries, start: int = 0, stop: int | None = None) -> dict[str, float | int | None]:
    """The metrics of the rows `start … stop`, in the order of `METRICS`.

    A window is measured by its own frames alone: a failure later in the clip counts against the clip, not against a window
    before it. `root_drift_m` is the distance as recorded, from the clip's root, also for a window. Percentiles are linear.

    Args:
      stop: None measures the whole clip.
    """
    is_clip = start == 0 and stop is None
    rows = slice(start, len(series) if stop is None else stop)
    height = series.height[rows]
    n = len(height)
    if n == 0:
        empty: dict[str, float | int | None] = {metric.name: None for metric in METRICS}
        return empty | {"finite_frame_rate": 0.0, "solver_warnings": float(series.solver_warnings)}
    load, tilt, feet = series.load[rows], series.tilt[rows], series.feet[rows]
    rates = [count / n for count in feet.sum(axis=0).tolist()]
    standing = int(series.standing[rows].sum())
    fallen = np.flatnonzero(series.fallen[rows])
    return {
        "mean_sum_fn_over_mg": float(load.mean()),
        "p10_sum_fn_over_mg": percentile(load, 10),
        "p90_stab_force_over_mg": percentile(series.stab[rows], 90),
        "unloaded_frame_rate": int((load < UNLOADED_BELOW).sum()) / n,
        # One rate for all feet: it is in the gate's range if and only if every foot's is.
        "contact_rate": max(rates, key=lambda rate: abs(rate - series.contact_middle), default=None),
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
        "contact_agreement": None if series.agreeing is None else int(series.agreeing[rows].sum()) / feet.size,
        "finite_frame_rate": n / series.clip_frames if is_clip else 1.0,
        "solver_warnings": float(series.solver_warnings) if is_clip else 0.0,
        "fell_at_frame": start + int(fallen[0]) if len(fallen) else None,
    }


def percentile(values: Array, q: float) -> float:
    """The q-th percentile, linear between the two order statistics around it (numpy's default)."""
    return float(np.percentile(values, q))


def contact_warnings(contacts: npt.NDArray[Any], robot: Robot) -> list[dict[str, Any]]:
    """The specification's contact-sanity warnings: they mark suspicious patterns and change no tier.

    Args:
      contacts: (N, C) 0/1.

    Returns:
      One dict a warning: `kind` (`always_on`, `always_off`, `all_feet_grounded`), `channel` (null for the last), `rate`,
      `threshold`, `message`.
    """
    if len(contacts) == 0:
        return []
    touching = contacts > 0
    rows: list[tuple[Any, ...]] = []
    low, high = CHANNEL_RATE
    for channel, name in enumerate(robot.channels):
        rate = int(touching[:, channel].sum()) / len(touching)
        if rate > high:
            rows.append(("always_on", name, rate, high, f"{name} touches in {rate:.1%} of the frames"))
        if rate < low:
            rows.append(("always_off", name, rate, low, f"{name} touches in {rate:.1%} of the frames only"))
    is_grounded = np.all([touching[:, foot.channels].any(axis=1) for foot in robot.feet], axis=0)
    rate = int(is_grounded.sum()) / len(touching)
    if rate > 0.8:
        rows.append(("all_feet_grounded", None, rate, 0.8, f"all feet are on the ground in {rate:.1%} of the frames"))
    return [dict(zip(("kind", "channel", "rate", "threshold", "message"), row, strict=True)) for row in rows]
