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

from amp_core.errors import IntegrityError
from amp_core.footing import (
    Footing,
    chord_lengths,
    least_chords,
    path_ratio,
    robot_bodies,
    standing_height,
    still_frames,
    touches_ground,
    travel_along,
)
from amp_core.kinematics import body_poses
from amp_core.metrics import (
    CHANNEL_RATE,
    CHORD_SEC,
    FALLEN_DEPTH,
    FALLEN_EXCESS_DEG,
    FALLEN_TILT_DEG,
    LOADED_ABOVE,
    METRICS,
    REACH_SEC,
    SLIP_SPEED,
    TRAVELLED_SHARE,
    TRAVELLING_SPEED,
    UNLOADED_BELOW,
)
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.rollout import Rollout, saturated_actuators
from amp_core.rotations import pitch_roll_tilt, up_in_body, world_to_body, yaw
from amp_core.runs import find_runs
from amp_core.tiers import Tier, gate_profile

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Metrics = Mapping[str, float | int | None]

EXPORT_ARRAYS = (
    "foot_contacts", "dof_pos", "root_pos", "qpos", "stab_force", "sum_fn_per_frame", "channel_loads", "reference_root_pos",
    "reference_root_rot", "reference_dof_pos", "reference_dof_pos_raw", "reference_contacts", "nonfoot_contact",
    "actuator_force", "foot_speed", "clip_frames", "solver_warnings",
)  # fmt: skip
"""The members of an export from which the metrics are measured."""


@dataclass(frozen=True, eq=False)
class FrameSeries:
    """The inputs of the metrics: N simulated rows, F feet. All of them follow from an export (`from_export`).

    Args:
      load: (N,) normal force on all channels, mean over the frame's substeps, over the weight.
      stab: (N,) magnitude of the harness force, over the weight.
      height: (N,) m, of the root.
      pitch, roll: (N,) deg, absolute.
      tilt: (N,) deg.
      feet: (N, F) bool, foot on the ground at the end of the frame.
      nonfoot: (N,) bool, anything else touched the ground during the frame.
      nonfoot_excess: (N,) bool, … and nothing of the clip's body does.
      standing: (N,) number of feet under load.
      slipping: (N,) number of the standing feet that slide.
      saturation: (N,) share of actuators at their limit.
      joint_error, joint_error_raw: (N,) rad², mean over the joints, from the clip's and from the unclipped clip's.
      body_error, body_error_global: (N,) m, mean over bodies, from the unclipped clip's, in the root's and the world's frame.
      heading_error, tilt_error: (N,) deg, from the clip's.
      height_error: (N,) m, absolute.
      drift: (N,) m, horizontal distance of the root from the clip's root.
      clip_travel: (N,) m, horizontal distance of the clip's root from `chord` frames before; 0 where there are fewer.
      clip_push: (N,) m, the same of a root that the clip's standing feet move.
      travel: (N,) m, how far the robot's root went along the clip's way in the same time; negative against it.
      chord: frames.
      clip_feet: (N, F) bool, feet that stand in the clip.
      clip_pitch, clip_roll, clip_tilt: (N,) deg, of the clip's root; the first two absolute.
      clip_height: (N,) m, of the clip's root.
      clip_slide, clip_flight, clip_ground: (N,) of the clip's `Footing`: m/s, bool, m.
      clip_still: (N,) bool, the clip holds a pose: `footing.still_frames`.
      left, right: indices of the left and the right feet, as `sides` gives them.
      height_range: (low, high) m, the robot's.
      dt: s, a frame.
      clip_frames: more than N when the simulation failed.
      contact_middle: the middle of the gate profile's range of a foot's contact rate.
      relative: whether the gate profile judges a fall by the clip's own posture.
    """

    load: Array
    stab: Array
    height: Array
    pitch: Array
    roll: Array
    tilt: Array
    feet: Bools
    nonfoot: Bools
    nonfoot_excess: Bools
    standing: npt.NDArray[np.int64]
    slipping: npt.NDArray[np.int64]
    saturation: Array
    joint_error: Array
    joint_error_raw: Array
    body_error: Array
    body_error_global: Array
    heading_error: Array
    tilt_error: Array
    height_error: Array
    drift: Array
    travel: Array
    clip_travel: Array
    clip_push: Array
    chord: int
    clip_feet: Bools
    clip_pitch: Array
    clip_roll: Array
    clip_tilt: Array
    clip_height: Array
    clip_slide: Array
    clip_flight: Bools
    clip_still: Bools
    clip_ground: Array
    left: tuple[int, ...]
    right: tuple[int, ...]
    height_range: tuple[float, float]
    dt: float
    clip_frames: int
    solver_warnings: int
    contact_middle: float
    relative: bool = False

    def __len__(self) -> int:
        return len(self.height)

    @cached_property
    def fallen(self) -> Bools:
        """(N,) the root leans over 60° or is below the robot's height range; by a profile that is relative to the clip, it
        leans over 30° more than the clip's or is lower by over a quarter of the robot's height."""
        if self.relative:
            depth = FALLEN_DEPTH * standing_height(self.height_range)
            return (self.tilt_excess > FALLEN_EXCESS_DEG) | (self.clip_height - self.height > depth)
        return (self.tilt > FALLEN_TILT_DEG) | (self.height < self.height_range[0])

    @cached_property
    def tilt_excess(self) -> Array:
        """(N,) deg, the tilt beyond the clip's."""
        return self.tilt - self.clip_tilt

    @property
    def reach(self) -> int:
        """Frames on either side of a window whose ground and path are also the window's.

        A second of a slope is nearly level, and a foot that slides makes little of a path in a second.
        """
        return round(REACH_SEC / self.dt)

    @property
    def slowest_chord(self) -> float:
        """m, the chord of a clip that just travels."""
        return TRAVELLING_SPEED * self.chord * self.dt

    @property
    def least_travel(self) -> float:
        """m, how far a clip has travelled that has just travelled far enough for a `speed_ratio`."""
        return TRAVELLED_SHARE * standing_height(self.height_range)

    def least_chords(self, rows: slice) -> float:
        """m, the least sum of the chords of these rows by which a path travels."""
        count = max(0, rows.stop - rows.start)
        return least_chords(self.slowest_chord, self.least_travel, count, self.chord)

    @property
    def second(self) -> int:
        """Frames in a second."""
        return max(1, round(1.0 / self.dt))

    def second_means(self, values: Array) -> Array:
        """The means over every second of (N,) values; over all of them where there are fewer."""
        return np.asarray(np.lib.stride_tricks.sliding_window_view(values, min(self.second, len(values))).mean(axis=1))

    @cached_property
    def agreeing(self) -> npt.NDArray[np.int64]:
        """(N,) number of feet that touch the ground exactly when they stand in the clip."""
        return np.asarray((self.feet == self.clip_feet).sum(axis=1))

    def falling(self, margin: int) -> Bools:
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
        return cls.from_export(rollout.arrays(), rollout.recipe, robot)

    @classmethod
    def from_export(cls, arrays: Mapping[str, npt.NDArray[Any]], recipe: Recipe, robot: Robot) -> FrameSeries:
        """The series of an export, the same to the last bit as those of the rollout that it was written from.

        Args:
          arrays: of `Rollout.arrays`; read once each.
          recipe: of the rollout, for its physics scale and its gate profile.
          robot: of the rollout.

        Raises:
          IntegrityError: an array is missing, as in an export of a release before 0.12.
          RecipeRefused: an unknown gate profile.
        """
        missing = [name for name in EXPORT_ARRAYS if name not in arrays]
        if missing:
            raise IntegrityError(
                f"the export lacks {', '.join(missing)}",
                key=missing[0],
                expected=f"the arrays {', '.join(EXPORT_ARRAYS)}",
                remedy="Score the clip again with this release",
            )
        profile, mg, dt = gate_profile(recipe.gate_profile), robot.mg_for(recipe.physics), robot.control_dt
        contact = profile.for_tier(Tier.TIER_0).get("contact_rate")
        touching, channel_loads = arrays["foot_contacts"], arrays["channel_loads"]
        feet = np.stack([(touching[:, foot.channels] > 0).any(axis=1) for foot in robot.feet], axis=1)
        standing = foot_loads(channel_loads, robot) > LOADED_ABOVE * mg
        slipping = standing & (arrays["foot_speed"] > SLIP_SPEED)
        left, right = sides(robot)
        qpos, root, joints = arrays["qpos"], arrays["root_pos"], arrays["dof_pos"]
        clip_root, clip_rotation = arrays["reference_root_pos"], arrays["reference_root_rot"]
        clip_joints, raw_joints = arrays["reference_dof_pos"], arrays["reference_dof_pos_raw"]
        rotation = robot.root_rotation(qpos)
        pitch, roll, tilt = np.degrees(pitch_roll_tilt(rotation))
        clip_pitch, clip_roll, clip_tilt = np.degrees(pitch_roll_tilt(clip_rotation))
        ids = robot_bodies(robot)
        clip_qpos = robot.poses(clip_root, clip_rotation, clip_joints)
        clip_poses = raw_poses = body_poses(robot, clip_qpos)
        if not np.array_equal(clip_joints, raw_joints):
            raw_poses = body_poses(robot, robot.poses(clip_root, clip_rotation, raw_joints))
        bodies, clip_bodies = body_poses(robot, qpos)[0][:, ids], raw_poses[0][:, ids]
        local, clip_local = (
            world_to_body(quat, places - place[:, None])
            for quat, places, place in ((rotation, bodies, root), (clip_rotation, clip_bodies, clip_root))
        )
        turn = yaw(rotation) - yaw(clip_rotation)
        up = (up_in_body(rotation) * up_in_body(clip_rotation)).sum(axis=1)
        footing = Footing.of(robot, clip_qpos, clip_poses)
        nonfoot = arrays["nonfoot_contact"]
        nonfoot_excess = nonfoot.copy()
        # Only where the robot touches the ground does it matter whether the clip does.
        nonfoot_excess[nonfoot] = ~touches_ground(robot, clip_qpos[nonfoot])
        chord = max(1, round(CHORD_SEC / dt))
        return cls(
            load=arrays["sum_fn_per_frame"] / mg,
            stab=np.abs(arrays["stab_force"]) / mg,
            height=np.ascontiguousarray(root[:, 2]),
            pitch=np.abs(pitch),
            roll=np.abs(roll),
            tilt=tilt,
            feet=feet,
            nonfoot=nonfoot,
            nonfoot_excess=nonfoot_excess,
            standing=standing.sum(axis=1),
            slipping=slipping.sum(axis=1),
            saturation=saturated_actuators(robot.model, arrays["actuator_force"]).mean(axis=1),
            joint_error=((joints - clip_joints) ** 2).mean(axis=1),
            joint_error_raw=((joints - raw_joints) ** 2).mean(axis=1),
            body_error=np.linalg.norm(local - clip_local, axis=2).mean(axis=1),
            body_error_global=np.linalg.norm(bodies - clip_bodies, axis=2).mean(axis=1),
            heading_error=np.degrees(np.abs((turn + np.pi) % (2 * np.pi) - np.pi)),
            tilt_error=np.degrees(np.arccos(np.clip(up, -1.0, 1.0))),
            height_error=np.abs(root[:, 2] - clip_root[:, 2]),
            drift=np.hypot(*(root[:, :2] - clip_root[:, :2]).T),
            travel=travel_along(root, clip_root, chord),
            clip_travel=chord_lengths(clip_root, chord),
            clip_push=chord_lengths(np.cumsum(footing.push, axis=0), chord),
            chord=chord,
            clip_feet=arrays["reference_contacts"],
            clip_pitch=np.abs(clip_pitch),
            clip_roll=np.abs(clip_roll),
            clip_tilt=clip_tilt,
            clip_height=np.ascontiguousarray(clip_root[:, 2]),
            clip_slide=footing.slide,
            clip_flight=footing.in_flight,
            clip_still=still_frames(clip_root, clip_rotation, raw_joints, dt, standing_height(robot.height_range)),
            clip_ground=footing.ground,
            left=left,
            right=right,
            height_range=robot.height_range,
            dt=dt,
            clip_frames=int(arrays["clip_frames"]),
            solver_warnings=int(arrays["solver_warnings"]),
            contact_middle=sum(contact.threshold) / 2 if contact and isinstance(contact.threshold, tuple) else 0.5,
            relative=profile.is_relative,
        )


def foot_loads(channel_loads: Array, robot: Robot) -> Array:
    """(N, F) N, the normal force on each foot, from that on each channel (N, C)."""
    return np.stack([channel_loads[:, foot.channels].sum(axis=1) for foot in robot.feet], axis=1)


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

    A window is measured by its own frames: a failure later in the clip counts against the clip, not against a window before
    it. Only the clip's ground and path are also those of `REACH_SEC` on either side. `root_drift_m` is the distance as
    recorded, from the clip's root, also for a window. Percentiles are linear.

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
    clip_feet, in_flight = series.clip_feet[rows], series.clip_flight[rows]
    counts, clip_counts = feet.sum(axis=0).tolist(), clip_feet.sum(axis=0).tolist()
    rates = [count / n for count in counts]
    standing, light = int(series.standing[rows].sum()), int((load < UNLOADED_BELOW).sum())
    fallen = np.flatnonzero(series.fallen[rows])
    pitch, roll = (percentile(getattr(series, axis)[rows], 95) for axis in ("pitch", "roll"))
    chords = slice(rows.start + series.chord, rows.stop)  # Those that lie in the rows.
    around = slice(max(0, rows.start - series.reach), min(rows.stop + series.reach, len(series)))
    paths = slice(around.start + series.chord, around.stop)
    slide, ground = (values[~np.isnan(values)] for values in (series.clip_slide[rows], series.clip_ground[around]))
    return {
        "mean_sum_fn_over_mg": float(load.mean()),
        "p10_sum_fn_over_mg": percentile(load, 10),
        "p90_stab_force_over_mg": percentile(series.stab[rows], 90),
        "unloaded_frame_rate": light / n,
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
        "p95_pitch_deg": pitch,
        "p95_roll_deg": roll,
        "max_tilt_deg": float(tilt.max()),
        "nonfoot_contact_rate": int(series.nonfoot[rows].sum()) / n,
        "slip_rate": int(series.slipping[rows].sum()) / standing if standing else None,
        "actuator_saturation_rate": float(series.saturation[rows].mean()),
        "joint_rmse_rad": float(np.sqrt(series.joint_error[rows].mean())),
        "joint_rmse_raw_rad": float(np.sqrt(series.joint_error_raw[rows].mean())),
        "mpjpe_m": float(series.body_error[rows].mean()),
        "mpjpe_global_m": float(series.body_error_global[rows].mean()),
        "worst_second_mpjpe_m": float(series.second_means(series.body_error[rows]).max()),
        "heading_error_deg": percentile(series.heading_error[rows], 95),
        "tilt_error_deg": percentile(series.tilt_error[rows], 95),
        "height_error_m": float(series.height_error[rows].max()),
        "root_drift_m": float(series.drift[rows].max()),
        "speed_ratio": _speed_ratio(series, chords),
        "contact_agreement": int(series.agreeing[rows].sum()) / feet.size,
        "contact_rate_error": max(abs(count - clip) for count, clip in zip(counts, clip_counts, strict=True)) / n,
        "unloaded_excess": (light - int(in_flight.sum())) / n,
        "pitch_excess_deg": pitch - percentile(series.clip_pitch[rows], 95),
        "roll_excess_deg": roll - percentile(series.clip_roll[rows], 95),
        "tilt_excess_deg": float(series.tilt_excess[rows].max()),
        "nonfoot_excess": int(series.nonfoot_excess[rows].sum()) / n,
        "clip_foot_slide": percentile(slide, 50) if len(slide) else None,
        "clip_path_ratio": path_ratio(
            float(series.clip_travel[paths].sum()), float(series.clip_push[paths].sum()), series.least_chords(paths)
        ),
        "clip_flight_rate": int(in_flight.sum()) / n,
        "clip_still_rate": int(series.clip_still[rows].sum()) / n,
        "clip_max_tilt_deg": float(series.clip_tilt[rows].max()),
        "clip_ground_range_m": float(ground.max() - ground.min()) if len(ground) else None,
        "finite_frame_rate": n / series.clip_frames if is_clip else 1.0,
        "solver_warnings": float(series.solver_warnings) if is_clip else 0.0,
        "fell_at_frame": start + int(fallen[0]) if len(fallen) else None,
    }


def _speed_ratio(series: FrameSeries, rows: slice) -> float | None:
    """The mean of the chords in the rows, over that of the clip's."""
    clip = float(series.clip_travel[rows].sum())
    # A second or two of a walk, which slips as it starts, says little of its speed.
    if clip == 0.0 or clip < max(series.least_chords(rows), series.least_travel * series.chord):
        return None
    return float(series.travel[rows].sum()) / clip


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
