"""The quality metrics by name, and the definitions that they rest on.

Gates, segments, the catalog's columns, the API's filters and the docs all come from this one table. Only the standard library
is needed here, so that the API lists metrics without loading the physics; `amp_core.quality` measures them.
"""

from __future__ import annotations

from typing import NamedTuple

UNLOADED_BELOW = 0.6
"""A frame counts as unloaded when the feet carry less than this share of the weight (the specification's figure)."""

LOADED_ABOVE = 0.1
"""A foot counts as standing, for `slip_rate`, when it carries more than this share of the weight."""

SLIP_SPEED = 0.1
"""m/s; a standing foot slips when every corner of it moves horizontally faster than this."""

SATURATED_FROM = 0.99
"""An actuator counts as saturated from this share of its force range."""

FALLEN_TILT_DEG = 60.0
"""A root that leans further than this has fallen."""

FALLEN_EXCESS_DEG = 30.0
"""By a profile that is relative to the clip: … than this beyond the clip's own tilt in the same frame."""

FALLEN_DEPTH = 0.25
"""By a profile that is relative to the clip: a root lower than the clip's by this share of the robot's height has fallen."""

REACH_SEC = 2.0
"""s; before and after a window, in which its clip's ground and path count as the window's."""

GRAVITY = 9.81
"""m/s²; speeds of a clip are compared with √(g·h), its steps with √(h/g): the same for every size of robot."""

CHORD_SEC = 1.0
"""s; `speed_ratio` and `clip_path_ratio` compare chords between places this far apart: a cycle of steps, so that sway is no
travel."""

TRAVELLING_SPEED = 0.05
"""m/s; a clip that travels more slowly has no `speed_ratio`."""

TRAVELLED_SHARE = 0.5
"""Of the robot's height; a clip or window that travels less far has no `speed_ratio`: a step says little of a pace."""

SLIP_RATE_GOAL = 0.10
"""The greatest `slip_rate` of a good clip: a plan's goal and the bound of a sampling weight. amp-0.11 has no gate for it."""

CHANNEL_RATE = (0.05, 0.95)
"""From the specification: outside this range of its contact rate, a channel is suspect, in a clip and in a whole reference."""


class Metric(NamedTuple):
    """One quality metric.

    Args:
      name: the key in `quality_metrics`, the catalog's column and the API's filter.
      unit: "1" for a ratio or a share.
      meaning: one sentence for the docs.
      type: every metric may be null where it has no value.
    """

    name: str
    unit: str
    meaning: str
    type: type[float] | type[int] = float


METRICS: tuple[Metric, ...] = (
    Metric("mean_sum_fn_over_mg", "1", "Mean over frames of the normal force on all contact channels, over the weight."),
    Metric("p10_sum_fn_over_mg", "1", "10th percentile of the same: how light the robot gets."),
    Metric("p90_stab_force_over_mg", "1", "90th percentile of the harness force's magnitude, over the weight."),
    Metric("unloaded_frame_rate", "1", f"Share of frames whose normal force is below {UNLOADED_BELOW:g} of the weight."),
    Metric("contact_rate", "1", "Contact rate of the foot whose rate is furthest from the middle of the gate's range."),
    Metric("left_foot_contact_rate", "1", "Share of frames in which a channel of the left foot touches the ground."),
    Metric("right_foot_contact_rate", "1", "Share of frames in which a channel of the right foot touches the ground."),
    Metric("both_feet_contact_rate", "1", "Share of frames in which every foot touches the ground."),
    Metric("no_feet_contact_rate", "1", "Share of frames in which no foot touches the ground."),
    Metric("height_mean", "m", "Mean height of the root."),
    Metric("height_std", "m", "Standard deviation of the root's height."),
    Metric("height_min", "m", "Least height of the root."),
    Metric("height_max", "m", "Greatest height of the root."),
    Metric("height_variance", "m²", "Variance of the root's height."),
    Metric("p95_pitch_deg", "deg", "95th percentile of the root's absolute pitch."),
    Metric("p95_roll_deg", "deg", "95th percentile of the root's absolute roll."),
    Metric("max_tilt_deg", "deg", "Greatest angle between the root's z axis and the vertical."),
    Metric("nonfoot_contact_rate", "1", "Share of frames with a substep in which anything but a foot touches the ground."),
    Metric(
        "slip_rate", "1", f"Share of loaded (foot, frame) pairs in which the whole foot slides faster than {SLIP_SPEED:g} m/s."
    ),
    Metric(
        "actuator_saturation_rate",
        "1",
        f"Share of (actuator, frame) pairs at {100 * SATURATED_FROM:g} % or more of the force range.",
    ),
    Metric("joint_rmse_rad", "rad", "Root mean square difference from the clip's joint angles, over joints and frames."),
    Metric("joint_rmse_raw_rad", "rad", "The same from the clip's joint angles before they were clipped to their limits."),
    Metric("mpjpe_m", "m", "Mean distance of the bodies' origins from the unclipped clip's, each in its own root's frame."),
    Metric("mpjpe_global_m", "m", "The same in the world's frame."),
    Metric("worst_second_mpjpe_m", "m", "`mpjpe_m` of the second in which it is greatest."),
    Metric("heading_error_deg", "deg", "95th percentile of the absolute difference from the clip's heading."),
    Metric("tilt_error_deg", "deg", "95th percentile of the angle between the two roots' up axes, seen from the body."),
    Metric("height_error_m", "m", "Greatest absolute difference from the height of the clip's root."),
    Metric("root_drift_m", "m", "Greatest horizontal distance of the root from the clip's root."),
    Metric(
        "speed_ratio",
        "1",
        f"Travelled path along the clip's over the clip's, in chords of {CHORD_SEC:g} s; null where the clip travels under "
        f"{100 * TRAVELLING_SPEED:g} cm/s, or under {TRAVELLED_SHARE:g} of the robot's height in all.",
    ),
    Metric(
        "contact_agreement",
        "1",
        "Share of (foot, frame) pairs in which the foot touches the ground exactly when the clip means it to.",
    ),
    Metric("contact_rate_error", "1", "Greatest difference of a foot's contact rate from the rate that the clip means."),
    Metric("unloaded_excess", "1", "`unloaded_frame_rate` less `clip_flight_rate`."),
    Metric("pitch_excess_deg", "deg", "`p95_pitch_deg` less the clip's own."),
    Metric("roll_excess_deg", "deg", "`p95_roll_deg` less the clip's own."),
    Metric(
        "tilt_excess_deg", "deg", "Greatest tilt of the root beyond the clip's in the same frame; negative if it leans less."
    ),
    Metric("nonfoot_excess", "1", "Share of frames with a contact of anything but a foot where the clip has none."),
    Metric(
        "clip_foot_slide",
        "m/s",
        "Of the clip: median horizontal speed of its slowest low foot over 0.1 s, while a foot is on the ground.",
    ),
    Metric(
        "clip_path_ratio",
        "1",
        f"Of the clip: travelled path over that which its standing feet make, in chords of {CHORD_SEC:g} s; null as "
        "`speed_ratio`, where neither travels.",
    ),
    Metric("clip_flight_rate", "1", "Of the clip: share of the frames with no foot on the ground."),
    Metric(
        "clip_still_rate", "1", "Of the clip: share of the frames in which a pose is held, for half a second on either side."
    ),
    Metric("clip_max_tilt_deg", "deg", "Of the clip: greatest tilt of the root."),
    Metric("clip_ground_range_m", "m", "Of the clip: how far the ground under its standing feet rises or falls."),
    Metric("finite_frame_rate", "1", "Share of the clip's frames that were simulated, finite and without a warning."),
    Metric("solver_warnings", "1", "Number of warnings that the physics engine raised."),
    Metric(
        "fell_at_frame",
        "frame",
        f"First frame with a tilt over {FALLEN_TILT_DEG:g}° or the root below its height range; null if none.",
        int,
    ),
)
"""Every metric, in the order in which they are shown."""
