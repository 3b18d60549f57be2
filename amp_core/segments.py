"""Segments: the windows of a rollout that pass every Tier 0 gate on their own, also inside clips that fail as a whole.

The longest such window is taken (the earliest of equals), then the longest ones on its left and on its right, down to 0.5 s.
The segments are disjoint, and none could be longer without meeting a failed gate, a fall or a neighbour. The 0.5 s before a
fall belong to the fall and to no segment.

There are N²/2 windows. Each gate is first tested in a form that prefix sums evaluate for many windows at once and that no
passing window fails; the few remaining windows are measured in full, by the same code that measures a clip.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.metrics import UNLOADED_BELOW
from amp_core.quality import FrameSeries, measure, percentile
from amp_core.runs import find_runs
from amp_core.tiers import FORCED_MODES, MODE_GATE, GateProfile, GateSpec, Tier, classify, holds

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Bound = Callable[[int, int, int], Bools]
"""(start, stop, length) → which windows of this length in the range, by their first frame, may pass a gate: perhaps too many,
never too few."""

Cap = Callable[[int, int], float]
"""(start, stop) → no window of the range that is longer than this many frames can pass a gate."""

MIN_DURATION = 0.5
"""s; a shorter window is no reference motion."""

FALL_MARGIN = 0.5
"""s before a fall that no segment contains: the robot is already falling, though it is not past a threshold yet."""

_ORDER = (
    "clip_ground_range_m", "clip_foot_slide", "clip_path_ratio", "clip_flight_rate", "speed_ratio", "contact_rate",
    "unloaded_frame_rate", "mean_sum_fn_over_mg", "height_std",
)  # fmt: skip
"""The gates that rule out most windows are tested first; the order changes no result."""

_FRAME_GATES = {
    ("max_tilt_deg", "<="): "tilt",
    ("height_min", ">="): "height",
    ("height_max", "<="): "height",
    ("root_drift_m", "<="): "drift",
    ("height_error_m", "<="): "height_error",
    ("tilt_excess_deg", "<="): "tilt_excess",
    ("clip_max_tilt_deg", "<="): "clip_tilt",
}
"""Gates that a window passes if and only if each of its frames does: the series that they bound."""

_NO_FRAME_GATES = {"nonfoot_contact_rate": "nonfoot", "nonfoot_excess": "nonfoot_excess"}
"""Rates of frames that a gate allows none of: the series."""

_PERCENTILES = {
    "p95_pitch_deg": ("pitch", 95),
    "p95_roll_deg": ("roll", 95),
    "p90_stab_force_over_mg": ("stab", 90),
    "heading_error_deg": ("heading_error", 95),
    "tilt_error_deg": ("tilt_error", 95),
}
"""Metrics that are a percentile of one series: the series and the percentile."""

_EXCESSES = {"pitch_excess_deg": "pitch", "roll_excess_deg": "roll"}
"""Metrics that are the 95th percentile of one series less that of the clip's."""

_SLACK = 1e-9  # relative; prefix sums round differently from a window's own sum


@dataclass(frozen=True)
class Segment:
    """A window `start … stop` (stop excluded) that passes every Tier 0 gate.

    Args:
      score: the mean margin over its gates, in [0, 1]: a gate has 0 at its threshold and 1 at its ideal.
    """

    start: int
    stop: int
    tier: Tier
    score: float
    quality_metrics: dict[str, float | int | None]

    def to_dict(self) -> dict[str, Any]:
        """The fields, with the excluded `stop` as `end`."""
        return {"end" if name == "stop" else name: value for name, value in asdict(self).items()}


def find_segments(series: FrameSeries, profile: GateProfile, mode: str, dt: float) -> list[Segment]:
    """The segments of a rollout, in the order of time.

    Args:
      dt: s, a frame.
    """
    shortest = max(2, round(MIN_DURATION / dt))
    if len(series) < shortest:
        return []
    gates = _WindowGates(series, profile, mode, round(FALL_MARGIN / dt))
    if not gates.possible:
        return []
    segments: list[Segment] = []
    # Ranges without a single frame that rules a window out; a window lies in one of them.
    pending = [(start, stop, stop - start) for start, stop in find_runs(gates.usable) if stop - start >= shortest]
    while pending:
        start, stop, longest = pending.pop()
        # The longest window that passes, and the earliest of equals.
        most = min(longest, stop - start, gates.cap(start, stop))
        windows = (
            gates.measure(begin, begin + length)
            for length in range(most, shortest - 1, -1)
            for begin in gates.candidates(start, stop, length)
        )
        segment = next(filter(None, windows), None)
        if segment is None:
            continue
        segments.append(segment)
        # Nothing longer is left on either side, as it would have come first.
        length = segment.stop - segment.start
        sides = ((start, segment.start, length), (segment.stop, stop, length))
        pending.extend(side for side in sides if side[1] - side[0] >= shortest)
    return sorted(segments, key=lambda segment: segment.start)


class _WindowGates:
    """The gates of Tier 0 for windows: in a cheap form for many windows, exactly for one.

    Attributes:
      usable: (N,) the frames that do not rule out a window alone.
      possible: whether the mode lets any window pass.
    """

    def __init__(self, series: FrameSeries, profile: GateProfile, mode: str, margin: int) -> None:
        self._series, self._profile, self._mode = series, profile, mode
        self.usable: Bools = ~series.falling(margin)
        self.possible = True
        self._caps: list[Cap] = []
        self._percentiles: list[tuple[str, int, float]] = []
        bounds: list[tuple[int, Bound]] = []
        for gate in profile.for_mode(mode):
            if gate.tier == Tier.TIER_1:
                continue
            threshold: Any = gate.resolve(series.height_range)
            if gate.name == MODE_GATE:
                # A window has the mode of its clip.
                self.possible &= holds(float(FORCED_MODES.get(mode, 0)), gate.op, threshold)
                continue
            if series_name := _FRAME_GATES.get((gate.name, gate.op)):
                values = getattr(series, series_name)
                self.usable &= values <= threshold if gate.op == "<=" else values >= threshold
            elif gate.name in _NO_FRAME_GATES and (gate.op, threshold) == ("==", 0.0):
                self.usable &= ~getattr(series, _NO_FRAME_GATES[gate.name])
            else:
                if gate.name in _PERCENTILES and gate.op == "<=":
                    self._percentiles.append((*_PERCENTILES[gate.name], threshold))
                order = _ORDER.index(gate.name) if gate.name in _ORDER else len(_ORDER)
                gate_bounds, caps = _cheap_forms(series, gate, threshold)
                bounds.extend((order, bound) for bound in gate_bounds)
                self._caps.extend(caps)
        self._bounds = [bound for _, bound in sorted(bounds, key=lambda entry: entry[0])]

    def cap(self, start: int, stop: int) -> int:
        """No window of `start … stop` with more frames than this can pass."""
        return int(min((cap(start, stop) for cap in self._caps), default=stop - start))

    def candidates(self, start: int, stop: int, length: int) -> list[int]:
        """The first frames of the windows of this length that no cheap form of a gate rules out."""
        candidates = np.ones(stop - start - length + 1, dtype=bool)
        for bound in self._bounds:
            candidates &= bound(start, stop, length)
            if not candidates.any():
                return []
        return (start + np.flatnonzero(candidates)).tolist()

    def measure(self, start: int, stop: int) -> Segment | None:
        """The window measured in full, if it passes."""
        # The gates whose cheap form is looser than the gate go first: most windows that get here and fail, fail one of them.
        for field, q, threshold in self._percentiles:
            if not percentile(getattr(self._series, field)[start:stop], q) <= threshold:
                return None
        metrics = measure(self._series, start, stop)
        result = classify(metrics, self._profile, self._mode, height_range=self._series.height_range)
        return Segment(start, stop, result.tier, result.score, metrics) if result.tier == Tier.TIER_0 else None


def _cheap_forms(series: FrameSeries, gate: GateSpec, threshold: Any) -> tuple[list[Bound], list[Cap]]:
    """Cheap necessary forms of a gate; none where only the full measure decides.

    A gate on a rate also has a longest window: where a share r of the frames must count, k such frames allow k / r in all.
    """
    match gate.name, gate.op:
        case name, "<=" if name in _PERCENTILES:
            field, q = _PERCENTILES[name]
            return [partial(_percentile_bound, _prefix(getattr(series, field) <= threshold), q / 100)], []
        case "mean_sum_fn_over_mg", ">=":
            return [partial(_mean_bound, _prefix(series.load), threshold)], []
        case "unloaded_frame_rate", "<=":
            light = series.load < UNLOADED_BELOW
            return [partial(_rate_bound, _prefix(light), -np.inf, threshold)], [partial(_cap, _prefix(~light), 1 - threshold)]
        case "contact_rate", "in":
            low, high = threshold
            shares = [(frames, share) for foot in series.feet.T for frames, share in ((foot, low), (~foot, 1 - high))]
            return (
                [partial(_rate_bound, _prefix(foot), low, high) for foot in series.feet.T],
                [partial(_cap, _prefix(frames), share) for frames, share in shares],
            )
        case "height_std", ">":
            deviation = series.height - series.height.mean()
            return [partial(_std_bound, _prefix(deviation), _prefix(deviation**2), threshold)], []
        case "joint_rmse_rad", "<=":
            return [partial(_mean_bound, _prefix(-series.joint_error), -(threshold**2))], []
        case "joint_rmse_raw_rad", "<=":
            return [partial(_mean_bound, _prefix(-series.joint_error_raw), -(threshold**2))], []
        case "mpjpe_m", "<=":
            return [partial(_mean_bound, _prefix(-series.body_error), -threshold)], []
        case "worst_second_mpjpe_m", "<=":
            too_far = _prefix(series.second_means(series.body_error) > threshold * (1 + _SLACK))
            return [partial(_seconds_bound, _prefix(-series.body_error), too_far, series.second, -threshold)], []
        case "clip_path_ratio", "in" if gate.optional:
            sums = _prefix(series.clip_travel), _prefix(series.clip_push)
            least = series.slowest_chord, series.least_travel
            return [partial(_path_bound, sums, series.chord, series.reach, least, threshold)], []
        case "speed_ratio", "in" if gate.optional:
            sums, least = (_prefix(series.travel), _prefix(series.clip_travel)), (series.slowest_chord, series.least_travel)
            return [partial(_speed_bound, sums, series.chord, least, threshold)], []
        case "contact_agreement", ">=":
            return [partial(_rate_bound, _prefix(series.agreeing), threshold * series.feet.shape[1] * (1 - _SLACK), np.inf)], []
        case "contact_rate_error", "<=":
            extra = series.feet.astype(np.int64) - series.clip_feet
            return [partial(_rate_bound, _prefix(foot), -threshold, threshold) for foot in extra.T], []
        case "unloaded_excess", "<=":
            excess = (series.load < UNLOADED_BELOW).astype(np.int64) - series.clip_flight
            return [partial(_rate_bound, _prefix(excess), -np.inf, threshold)], []
        case name, "<=" if name in _EXCESSES:
            field = _EXCESSES[name]
            most = threshold + float(getattr(series, f"clip_{field}").max())
            return [partial(_percentile_bound, _prefix(getattr(series, field) <= most), 0.95)], []
        case "clip_foot_slide", "<=" if gate.optional:
            grounded = _prefix(~np.isnan(series.clip_slide))
            return [partial(_median_bound, _prefix(series.clip_slide <= threshold), grounded)], []  # NaN is not slow
        case "clip_flight_rate", "<=":
            return (
                [partial(_rate_bound, _prefix(series.clip_flight), -np.inf, threshold)],
                [partial(_cap, _prefix(~series.clip_flight), 1 - threshold)],
            )
        case "clip_still_rate", "<=":
            return [partial(_rate_bound, _prefix(series.clip_still), -np.inf, threshold)], []
        case "clip_ground_range_m", "<=" if gate.optional:
            ends = _range_ends(series.clip_ground, threshold)[np.maximum(np.arange(len(series)) - series.reach, 0)]
            ends = np.where(ends < len(series), ends - series.reach, ends)
            return [partial(_range_bound, ends)], [partial(_range_cap, ends)]
    return [], []


def _range_ends(values: Array, threshold: float) -> npt.NDArray[np.int64]:
    """(N,) for each start the last stop of a window whose values, NaN left out, differ by at most `threshold`."""
    ends = np.empty(len(values), dtype=np.int64)
    greatest: deque[int] = deque()
    least: deque[int] = deque()
    stop = 0
    for start in range(len(values)):
        for queue in (greatest, least):
            while queue and queue[0] < start:
                queue.popleft()
        while stop < len(values):
            value = values[stop]
            if not np.isnan(value):
                high = max(value, values[greatest[0]]) if greatest else value
                low = min(value, values[least[0]]) if least else value
                if high - low > threshold:
                    break
                while greatest and values[greatest[-1]] <= value:
                    greatest.pop()
                while least and values[least[-1]] >= value:
                    least.pop()
                greatest.append(stop)
                least.append(stop)
            stop += 1
        ends[start] = stop
    return ends


def _range_bound(ends: npt.NDArray[np.int64], start: int, stop: int, length: int) -> Bools:
    starts = np.arange(start, stop - length + 1)
    return np.asarray(ends[starts] >= starts + length)


def _range_cap(ends: npt.NDArray[np.int64], start: int, stop: int) -> float:
    return float((np.minimum(ends[start:stop], stop) - np.arange(start, stop)).max())


def _speed_bound(
    sums: tuple[Array, Array],
    chord: int,
    least: tuple[float, float],
    bounds: tuple[float, float],
    start: int,
    stop: int,
    length: int,
) -> Bools:
    """The chords that begin in a window end in it, but for those of its first `chord` frames."""
    count = length - chord
    if count <= 0:
        return np.ones(stop - start - length + 1, dtype=bool)
    robot, clip = (_sums(prefix, start + chord, stop, count) for prefix in sums)
    slack = _SLACK * (1.0 + sums[1][-1] + sums[0][-1])
    stands = clip < max(least[0] * count, least[1] * chord) + slack
    return np.asarray(stands | ((robot >= bounds[0] * clip - slack) & (robot <= bounds[1] * clip + slack)))


def _path_bound(
    sums: tuple[Array, Array],
    chord: int,
    reach: int,
    least: tuple[float, float],
    bounds: tuple[float, float],
    start: int,
    stop: int,
    length: int,
) -> Bools:
    """As `_speed_bound`, but a clip stands only where its feet make no path either, and the frames around a window count."""
    starts = np.arange(start, stop - length + 1)
    last = np.minimum(starts + length + reach, len(sums[0]) - 1)
    first = np.minimum(np.maximum(starts - reach, 0) + chord, last)
    root, feet = (prefix[last] - prefix[first] for prefix in sums)
    slack = _SLACK * (1.0 + sums[1][-1] + sums[0][-1])
    least_sums = np.maximum(least[0] * (last - first), least[1] * np.minimum(last - first, chord))
    stands = np.maximum(root, feet) < least_sums + slack
    return np.asarray(stands | ((root >= bounds[0] * feet - slack) & (root <= bounds[1] * feet + slack)))


def _seconds_bound(sums: Array, too_far: Array, second: int, threshold: float, start: int, stop: int, length: int) -> Bools:
    """No second of a window exceeds the threshold; a window that is shorter does not as a whole."""
    if length < second:
        return _mean_bound(sums, threshold, start, stop, length)
    first = np.arange(start, stop - length + 1)
    return np.asarray(too_far[first + length - second + 1] == too_far[first])


def _median_bound(slow: Array, grounded: Array, start: int, stop: int, length: int) -> Bools:
    """The lower of the two order statistics in the middle of the values there are must be at or under the threshold."""
    counts = _sums(grounded, start, stop, length)
    return np.asarray((_sums(slow, start, stop, length) >= np.floor((counts - 1) / 2) + 1) | (counts == 0))


def _cap(prefix: Array, share: float, start: int, stop: int) -> float:
    if share <= 0:
        return stop - start
    return float((prefix[stop] - prefix[start]) / (share * (1 - _SLACK)))


def _prefix(values: npt.NDArray[Any]) -> Array:
    """(N + 1,) sums of the first 0 … N values; exact for counts."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _sums(prefix: Array, start: int, stop: int, length: int) -> Array:
    """The sums over every window of this length in `start … stop`."""
    return prefix[start + length : stop + 1] - prefix[start : stop + 1 - length]


def _rate_bound(prefix: Array, low: float, high: float, start: int, stop: int, length: int) -> Bools:
    # Counts are exact, and this is the very division that the metric makes.
    rate = _sums(prefix, start, stop, length) / length
    return np.asarray((rate >= low) & (rate <= high))


def _percentile_bound(prefix: Array, q: float, start: int, stop: int, length: int) -> Bools:
    """The percentile lies between two order statistics; for it to be at or under the threshold, the lower one must be.

    `prefix` counts the values at or under the threshold.
    """
    lower = math.floor(q * (length - 1) * (1 - _SLACK))
    return np.asarray(_sums(prefix, start, stop, length) >= lower + 1)


def _mean_bound(prefix: Array, threshold: float, start: int, stop: int, length: int) -> Bools:
    slack = _SLACK * (1.0 + abs(threshold))
    return np.asarray(_sums(prefix, start, stop, length) >= (threshold - slack) * length)


def _std_bound(sums: Array, squares: Array, threshold: float, start: int, stop: int, length: int) -> Bools:
    mean = _sums(sums, start, stop, length) / length
    variance = _sums(squares, start, stop, length) / length - mean * mean
    return np.asarray(variance > threshold**2 - _SLACK)
