"""Other readings of a clip, tried on the clip: which of them would make an implausible clip plausible?

A file does not say whether its quaternions are xyzw, its lengths metres, its angles radians, or its columns in the robot's
order. Each way of reading it otherwise is tried by the robot's kinematics (`plausibility`). One is offered only where it mends
the clip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.motion.findings import Finding, rounded
from amp_core.motion.plausibility import FootMeasure, PathTurn, Plausibility, Poses

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = NDArray[np.float64]

SUSPECT_SCORE, FIT_SCORE = 1.5, 0.6
"""No other reading is tried on a clip that is more plausible than the first and heads where its feet take it; none is added to
one that is as plausible as the second."""

STEADIER = 0.7
"""Of the slide: where the path of the feet already says that the heading is off, so much less is enough."""

MENDING_RATIO, JOINT_RATIO = 0.62, 0.55
"""A reading mends a clip whose score it brings below this share, the second for single joints. The best other
reading of a good clip brings it to 0.85."""

MENDED_SCORE, MENDED_ROTATION_SCORE = 4.5, 2.5
"""The most that a mended clip may have: runs and jumps have up to 4. A clip that lies is upright in some other rotation: it
must make sense in every other respect as well."""

BEYOND_RAD = 0.2
"""Joints that are less far beyond their limits are no reason to read them otherwise, unless the feet are better off."""

WORSE = 2.0
"""Of the slide: joints that are read otherwise put themselves inside their limits, and level soles, in many ways."""

LEAST_SEC = 0.5
"""A shorter clip has no step in it, by which its feet could tell a reading from another."""

LEAST_EVIDENCE_SEC = 4.0
"""Score times duration that it takes to doubt a joint: a second of a good walk has a score of up to 3."""

LYING_DEG, UPRIGHT_DEG = 45.0, 30.0
CLEAR_RATIO = 0.45
IMPROVEMENT = 0.8
SCREENED, MOST_MEASURED = 4, 12
CLEARLY = 1.1
"""Of two readings that come this close to each other the one that is met more often counts."""

RIVAL_RATIO, MOST_RIVALS = 1.3, 3
"""A reading that comes as close as this to the best one fits about as well."""

DISTINCT_RAD, DISTINCT_M, DISTINCT_DEG = 0.05, 0.01, 5.0
"""Two readings that differ by less than these are the same one."""

LEAST_SHIFT_RAD = 0.3
"""A zero that is off by less is within what a joint differs by from its counterpart in motions of one side."""

ROUNDS = 3
SLACK_RAD = 0.35
DEGREES_LEAST = 2.0 * math.pi
"""Joints that stay below this would hardly move if they were in degrees."""

UNITS = (
    ("centimetres", 0.01),
    ("millimetres", 0.001),
    ("inches", 0.0254),
    ("feet", 0.3048),
    ("decimetres", 0.1),
    ("hundreds of metres", 100.0),
)
UNROTATED = np.array([0.0, 0.0, 0.0, 1.0])
IDENTITY_DEG = 5.0
"""Rotations that are as close to none are not inverted, and in another order only if the clip faces backwards."""

TURNS = (180.0, 90.0, -90.0, 30.0, -30.0, 60.0, -60.0, 120.0, -120.0, 150.0, -150.0)
REFINEMENTS = 2
SAME_AXIS_DEG = 3.0
"""The vertical axes of the body and of the world are the same one for a root that leans by less."""

QUARTER_SLACK = 10.0
"""deg; files are off by quarter turns, and the feet of good clips by up to 9 degrees."""

PATH_AGREEMENT, PATH_FACTOR = 0.7, 1.25


@dataclass(frozen=True)
class Reading:
    """One way to read a clip otherwise.

    Args:
      kind: `quaternion_order`, `inverse_rotation`, `heading`, `mirrored`, `y_up`, `unit`, `path`, `degrees`, `joint_order`,
        `sides`, `joint_sign` or `joint_zero`.
      words: what the clip would be, as a clause.
      remedy: how the file is mended.
      key: the array that is read otherwise.
      apply: the poses as they are meant.
      joint: the first joint that is read otherwise, if it is not all of them.
    """

    kind: str
    words: str
    remedy: str
    key: str
    apply: Callable[[Poses], Poses]
    joint: str | None = None


@dataclass(frozen=True)
class Mended:
    """The readings that together make a clip plausible, and its figures before and after."""

    readings: tuple[Reading, ...]
    before: Plausibility
    after: Plausibility

    @property
    def is_path(self) -> bool:
        """Whether only the length of the root's path is another: the steps are right, and the feet slide."""
        return [reading.kind for reading in self.readings] == ["path"]

    @property
    def words(self) -> str:
        return " and ".join(reading.words for reading in self.readings)

    @property
    def remedy(self) -> str:
        return "; ".join(dict.fromkeys(reading.remedy for reading in self.readings))

    def apply(self, poses: Poses) -> Poses:
        return _apply(poses, self.readings)

    def to_finding(self, frames: int, rivals: Sequence[Mended] = (), remaining: Sequence[str] = ()) -> Finding:
        """The refusal of a clip of so many frames.

        Args:
          rivals: other readings that fit about as well.
          remaining: the codes of what would still be wrong with the clip if it were read so.
        """
        first, old, new = self.readings[0], self.before, self.after
        changes = [
            f"{name} {value:.3g} {unit} instead of {value_as_read:.3g}"
            for name, value_as_read, value, unit in (
                ("the feet slide at", old.slide, new.slide, "m/s"),
                ("the lowest foot point varies by", old.spread, new.spread, "m"),
                ("the sole leans by", old.sole, new.sole, "deg"),
                ("joints are beyond their limits by", old.excess, new.excess, "rad"),
                ("the root leans by", old.tilt, new.tilt, "deg"),
                ("it is above the feet by", old.height, new.height, "m"),
            )
            if abs(value_as_read - value) > 0.05 * max(abs(value_as_read), abs(value), 0.01)
        ]
        alternatives = "".join(f"; or {rival.words}, which fits about as well" for rival in rivals)
        rest = f"; so read, it would still be refused or excluded: {', '.join(remaining)}" if remaining else ""
        remedy = self.remedy
        if rivals:
            choices = "; ".join(f"({i}) {candidate.remedy}" for i, candidate in enumerate([self, *rivals], 1))
            remedy = f"One of these, which the feet cannot tell from one another: {choices}"
        elif remaining:
            remedy = f"Not certain, as it does not mend all: {remedy}"
        return Finding(
            first.kind,
            "refuses",
            f"{self.words}: so read, {', '.join(changes) or 'the root goes where the feet take it'}{alternatives}{rest}",
            key=first.key,
            joint=first.joint,
            frames=(0, frames - 1),
            value=rounded(old.score),
            limit=rounded(new.score),
            unit="implausibility, as it is and as it would be",
            expected="quaternions xyzw from body to world, metres with z up, radians in the robot's joint order",
            remedy=remedy,
        )


Measure: TypeAlias = Callable[[tuple[Reading, ...], int], tuple[Mended, Poses]]
"""What the readings make of the clip, by every step or by each so many."""

TurnMeasure: TypeAlias = Callable[[Callable[[Poses], Poses]], PathTurn]
"""The turn of the path of the whole clip, read in another way."""


def try_readings(
    start: Poses, end: Poses, fps: float, feet: FootMeasure, as_read: Plausibility, turn: PathTurn, measure_turn: TurnMeasure
) -> tuple[Mended, ...]:
    """The readings that mend an implausible clip, the likeliest first, and those that fit about as well; none for a clip that
    is plausible or that nothing mends.

    Args:
      start, end: the poses at both ends of some steps of the clip.
      as_read, turn: the plausibility of these steps, and the turn of the whole clip.
    """
    is_plausible = as_read.score < SUSPECT_SCORE
    if is_plausible and not turn.is_doubtful:
        return ()
    count = len(start.root_pos)
    both = Poses(*(np.concatenate(pair) for pair in zip(start, end, strict=True)))

    def measure(readings: tuple[Reading, ...], stride: int) -> tuple[Mended, Poses]:
        outcome = _apply(poses, readings)
        begin, stop = Poses(*(v[:count:stride] for v in outcome)), Poses(*(v[count::stride] for v in outcome))
        return Mended((*steps, *readings), as_read, feet.measure(begin, stop, fps)), outcome

    steps: tuple[Reading, ...] = ()
    best, poses = as_read, both
    candidates: tuple[Mended, ...] = ()
    for _ in range(ROUNDS):
        readings: list[tuple[Reading, ...]] = [
            (reading,) for reading in (*_whole_readings(poses, best, feet), *_joint_readings(poses, best, feet.robot))
        ]
        # Of a clip that faces backwards wxyz looks like no rotation: rarer than what else turns a clip around, so tried last.
        readings += [(WXYZ,)] if _is_unrotated(poses) else []
        if steps:
            readings = [reading for reading in readings if _go_together([*steps, *reading])]
        else:
            headings: list[tuple[Reading, ...]] = [
                (heading,)
                for about_body in ((True, False) if as_read.tilt > SAME_AXIS_DEG else (True,))
                for heading in _headings(_coarse_turn(measure, as_read, turn, about_body), about_body, measure_turn)
            ]
            is_heading_alone = is_plausible and not turn.is_off
            readings = headings if is_heading_alone else [*headings, *_with_headings(readings, measure_turn)]
        if not readings:
            break
        # A few steps tell most readings off; the best are measured with all of them.
        rough = [measure(reading, SCREENED)[0].after.score for reading in readings]
        bound = sorted(rough)[:MOST_MEASURED][-1]
        trials = [measure(reading, 1) for reading, score in zip(readings, rough, strict=True) if score <= bound]
        lowest = min(candidate.after.score for candidate, _ in trials)
        candidate, outcome = next(trial for trial in trials if trial[0].after.score <= CLEARLY * lowest + 0.02)
        is_heading = candidate.readings[-1].kind == "heading"
        if candidate.after.score > IMPROVEMENT * best.score and not (turn.is_doubtful and is_heading):
            break
        if _is_mended(candidate, turn):
            close = [
                trial for trial in trials if trial[0].after.score <= RIVAL_RATIO * lowest + 0.05 and _is_mended(trial[0], turn)
            ]
            candidates = _take_distinct([(candidate, outcome), *sorted(close, key=lambda trial: trial[0].after.score)])
        steps, best, poses = candidate.readings, candidate.after, outcome
        if best.score < FIT_SCORE:
            break
    return candidates


def _apply(poses: Poses, readings: Sequence[Reading]) -> Poses:
    for reading in readings:
        poses = reading.apply(poses)
    return poses


def _take_distinct(trials: Sequence[tuple[Mended, Poses]]) -> tuple[Mended, ...]:
    """The first of the readings, and the next few that make other motions of the clip."""
    choices: list[tuple[Mended, Poses]] = []
    for candidate, poses in trials:
        if len(choices) <= MOST_RIVALS and all(_differ(poses, motion) for _, motion in choices):
            choices.append((candidate, poses))
    return tuple(candidate for candidate, _ in choices)


def _coarse_turn(measure: Measure, as_read: Plausibility, turn: PathTurn, about_body: bool) -> float:
    """deg, about which the heading is off: feet that are far from where they should be tell it too small."""
    lowest, degrees = min((measure((_heading_reading(d, about_body),), SCREENED)[0].after.score, d) for d in TURNS)
    return degrees if lowest < as_read.score or not turn.is_off else turn.degrees


def _differ(poses: Poses, reference: Poses) -> bool:
    """Whether two readings of the same frames are different motions."""
    joints = float(np.abs(poses.dof_pos - reference.dof_pos).mean(axis=0).max())
    place = float(np.abs(poses.root_pos - reference.root_pos).mean(axis=0).max())
    turn = _mean_turn(reference.root_rot, poses.root_rot)
    return joints > DISTINCT_RAD or place > DISTINCT_M or turn > DISTINCT_DEG


def _mean_turn(start: Array, end: Array) -> float:
    """deg, of rotations of any norm."""
    return math.degrees(float(rotations.angle_between(rotations.normalize(start), rotations.normalize(end)).mean()))


def _is_mended(candidate: Mended, turn: PathTurn) -> bool:
    """Whether the readings mend the clip beyond doubt."""
    readings, old, new = candidate.readings, candidate.before, candidate.after
    kinds = {reading.kind for reading in readings}
    if kinds == {"heading"}:
        is_steadier = turn.is_off or (turn.is_doubtful and new.slide < STEADIER * old.slide)
        return new.score < old.score * (1.0 if is_steadier else MENDING_RATIO)
    if turn.seconds < LEAST_SEC and not kinds <= {"quaternion_order", "y_up", "unit", "degrees"}:
        return False
    is_of_joints = readings[0].joint is not None
    if is_of_joints and (
        old.score * turn.seconds < LEAST_EVIDENCE_SEC
        or (new.slide > WORSE * old.slide and new.score > SUSPECT_SCORE)
        or (old.excess < BEYOND_RAD and new.feet > old.feet)
    ):
        return False
    # Each further reading has to be earned: of many combinations some one fits any motion.
    ratio = JOINT_RATIO if is_of_joints else MENDING_RATIO
    most = min(ratio ** len(readings) * old.score, MENDED_SCORE if len(readings) == 1 else SUSPECT_SCORE)
    stands_up = readings[0].kind == "quaternion_order" and old.tilt > LYING_DEG and new.tilt < UPRIGHT_DEG
    keys = set() if stands_up else {reading.key for reading in readings}
    # A root or a sole that only leans is no evidence: some other one always leans less. The feet must say so.
    if keys & {"root_rot", "dof_pos"} and (old.footing <= FIT_SCORE or new.footing >= MENDING_RATIO * old.footing):
        return False
    if "root_rot" in keys and (new.tilt >= UPRIGHT_DEG or new.footing >= CLEAR_RATIO * old.footing):
        most = min(most, MENDED_ROTATION_SCORE)
    return new.score <= most


def _go_together(readings: list[Reading]) -> bool:
    """Whether one file is likely to need all of these readings: several conventions of another tool, or several joints."""
    kinds = [reading.kind for reading in readings]
    conventions = {"quaternion_order", "y_up", "unit", "degrees", "joint_order"}
    return set(kinds) <= {"sides", "joint_sign"} or (set(kinds) <= conventions and len(set(kinds)) == len(kinds))


def _headings(start: float, about_body: bool, measure_turn: TurnMeasure, before: Reading | None = None) -> list[Reading]:
    """The root turned to where its feet take it, if they say it clearly.

    Args:
      start: deg, about that turn.
      before: another reading that comes first.
    """
    degrees, turn = start, PathTurn(0.0, 0.0, 0.0, 0.0)
    for _ in range(REFINEMENTS):
        readings = [*([before] if before else []), _heading_reading(degrees, about_body)]
        turn = measure_turn(partial(_apply, readings=readings))
        degrees += turn.degrees
    quarter = 90.0 * round(degrees / 90.0)
    degrees = quarter if abs(degrees - quarter) <= QUARTER_SLACK else round(degrees)
    if not turn.is_clear or abs(turn.degrees) > QUARTER_SLACK or not degrees % 360.0:
        return []
    return [_heading_reading(180.0 - (180.0 - degrees) % 360.0, about_body)]


def _with_headings(readings: list[tuple[Reading, ...]], measure_turn: TurnMeasure) -> Iterator[tuple[Reading, ...]]:
    """The readings; one with y up together with the heading that it leaves, too."""
    for reading in readings:
        yield reading
        if reading[0].kind == "y_up":
            turn = measure_turn(reading[0].apply)
            if turn.is_off:
                yield from ((*reading, heading) for heading in _headings(turn.degrees, True, measure_turn, reading[0]))


def _heading_reading(turn: float, about_body: bool) -> Reading:
    quat = np.array([0.0, 0.0, math.sin(math.radians(turn) / 2), math.cos(math.radians(turn) / 2)])
    remedy = (
        f"Turn root_rot by {turn:+.0f} degrees about the body's vertical axis: its x axis must point forward"
        if about_body
        else f"Turn root_rot by {turn:+.0f} degrees about the world's vertical axis, or root_pos by as much the other way"
    )

    def apply(poses: Poses) -> Poses:
        rotation = rotations.multiply(poses.root_rot, quat) if about_body else rotations.multiply(quat, poses.root_rot)
        return poses._replace(root_rot=rotation)

    return Reading("heading", f"the heading looks off by {abs(turn):.0f} degrees", remedy, "root_rot", apply)


def _whole_readings(poses: Poses, as_read: Plausibility, feet: FootMeasure) -> Iterator[Reading]:
    """The readings of the whole clip, those that are met most often first."""
    if not _is_unrotated(poses):
        yield Reading(
            "inverse_rotation", "the rotations look inverted, from world to body",
            "Invert the rotations: root_rot[:, :3] *= -1", "root_rot",
            lambda p: p._replace(root_rot=rotations.conjugate(p.root_rot)),
        )  # fmt: skip
        yield WXYZ
        yield Reading(
            "quaternion_order", "the quaternions look like xyzw",
            "Read it with --quat-order xyzw (quat_order=xyzw), or export xyzw: root_rot = root_rot[:, [3, 0, 1, 2]]",
            "root_rot", lambda p: p._replace(root_rot=rotations.to_wxyz(p.root_rot)),
        )  # fmt: skip
    yield Reading(
        "mirrored", "y of root_pos looks mirrored, as from left-handed coordinates",
        "Negate root_pos[:, 1], or mirror root_rot and the joints as well", "root_pos",
        lambda p: p._replace(root_pos=p.root_pos * np.array([1.0, -1.0, 1.0])),
    )  # fmt: skip
    z, h = float(poses.root_pos[:, 2].mean()), feet.height
    if _is_high_along_y(poses, h):
        yield from _y_up_readings(float(poses.root_pos[:, 1].mean()))
    if as_read.agreement > PATH_AGREEMENT and abs(math.log(as_read.scale)) > math.log(PATH_FACTOR):
        factor = 1.0 / as_read.scale
        yield Reading(
            "path", f"the path looks {as_read.scale:.2g} times as long", f"Multiply root_pos's x and y by {factor:.2g}",
            "root_pos", lambda p: p._replace(root_pos=p.root_pos * np.array([factor, factor, 1.0])),
        )  # fmt: skip
    yield from _unit_readings(z, feet)


WXYZ = Reading(
    "quaternion_order", "the quaternions look like wxyz",
    "Read it with --quat-order wxyz (quat_order=wxyz), or export xyzw: root_rot = root_rot[:, [1, 2, 3, 0]]",
    "root_rot", lambda p: p._replace(root_rot=rotations.to_xyzw(p.root_rot)),
)  # fmt: skip


def _is_unrotated(poses: Poses) -> bool:
    return _mean_turn(UNROTATED, poses.root_rot) <= IDENTITY_DEG


def _unit_readings(height: float, feet: FootMeasure) -> Iterator[Reading]:
    """The unit, if there is one, in which a root of this mean height is where the robot's can be."""
    low, high = feet.robot.height_range
    for unit, metres in UNITS:
        if low <= height * metres <= high and not low <= height <= high:

            def apply(poses: Poses, metres: float = metres) -> Poses:
                return poses._replace(root_pos=poses.root_pos * metres)

            yield Reading(
                "unit",
                f"root_pos would be right in {unit}",
                f"Multiply root_pos by {metres:g} and export again",
                "root_pos",
                apply,
            )


def _is_high_along_y(poses: Poses, height: float) -> bool:
    """Whether the root's y is where the robot's height should be, and its z is not."""
    y, z = abs(float(poses.root_pos[:, 1].mean())), float(poses.root_pos[:, 2].mean())
    return abs(y - height) < 0.5 * height and abs(y - height) < abs(z - height)


def _y_up_readings(height: float) -> Iterator[Reading]:
    """With y, or with −y where the root is below zero along y, as the vertical."""
    sign = math.copysign(1.0, height)
    quat = np.array([sign * math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)])
    axes, text = np.array([1.0, -sign, sign]), "(x, -z, y)" if sign > 0 else "(x, z, -y)"
    turn = f"turned by {90 * sign:+.0f} degrees about x"
    for left, right, words in (
        (quat, UNROTATED, turn),
        (quat, rotations.conjugate(quat), f"{turn} on both sides"),
        (UNROTATED, UNROTATED, "as it is"),
    ):

        def apply(poses: Poses, axes: Array = axes, left: Array = left, right: Array = right) -> Poses:
            rotation = rotations.multiply(rotations.multiply(left, poses.root_rot), right)
            return Poses(poses.root_pos[:, [0, 2, 1]] * axes, rotation, poses.dof_pos)

        remedy = f"Convert to z up: root_pos = {text}, and root_rot {words}"
        yield Reading("y_up", f"{'y' if sign > 0 else '−y'} looks like the vertical", remedy, "root_pos", apply)
    if sign > 0:
        yield Reading(
            "y_up", "root_pos looks like (y, z, x)", "Convert to z up: root_pos = (z, x, y), and root_rot as it is", "root_pos",
            lambda p: p._replace(root_pos=p.root_pos[:, [2, 0, 1]]),
        )  # fmt: skip


def place_elsewhere(start: Poses, end: Poses, fps: float, feet: FootMeasure, as_read: Plausibility) -> Reading | None:
    """The reading, y up or in another unit, that puts the root where this robot's is, and is at least as plausible.

    A straight walk has the same feet with y up, and a clip in place has them in any unit.
    """
    low, high = feet.robot.height_range
    y, z = start.root_pos[:, 1], start.root_pos[:, 2]
    readings: list[Reading] = []
    if ((np.abs(y) >= low) & (np.abs(y) <= high)).all() and ((z < low) | (z > high)).all():
        readings += _y_up_readings(float(y.mean()))
    readings += _unit_readings(float(z.mean()), feet)
    scores = [(feet.measure(r.apply(start), r.apply(end), fps).score, r) for r in readings]
    return next((r for score, r in sorted(scores, key=lambda entry: entry[0]) if score <= as_read.score), None)


def _joint_readings(poses: Poses, as_read: Plausibility, robot: Robot) -> Iterator[Reading]:
    """The readings of the joint columns, those that are met most often first."""
    names = list(robot.joint_names)
    low, high = robot.joint_range[:, 0], robot.joint_range[:, 1]
    if float(np.abs(poses.dof_pos).max()) > DEGREES_LEAST:
        as_degrees = np.radians(poses.dof_pos)
        is_inside = (as_degrees >= low - SLACK_RAD) & (as_degrees <= high + SLACK_RAD)
        if is_inside.mean() > 0.95:
            yield Reading(
                "degrees", "the joint angles look like degrees", "Convert with np.radians(dof_pos) and export again", "dof_pos",
                lambda p: p._replace(dof_pos=np.radians(p.dof_pos)),
            )  # fmt: skip
    for words, order in _joint_orders(robot):
        yield Reading(
            "joint_order", f"the joint columns look to be in {words} order",
            f"Write the names into the file (joint_names), or reorder: dof_pos = dof_pos[:, {order}]", "dof_pos",
            partial(_take_columns, columns=order),
        )  # fmt: skip
    # An arm changes no foot: only its limits can tell, so that it need not be tried where all joints are inside them.
    legs, depths, all_pairs = _leg_joints(robot), _depths(robot), find_pairs(names)
    pairs = [(i, j) for i, j in all_pairs if as_read.excess > 0.0 or i in legs]
    leg_pairs = sorted(((i, j) for i, j in all_pairs if i in legs), key=lambda pair: depths[pair[0]])
    for group in _runs_of(pairs, leg_pairs):
        yield _exchange("sides", group, names)
    for k, (i, j) in enumerate(leg_pairs):
        # Two joints of the same leg, in both legs.
        yield from (_exchange("joint_order", [(i, m), (j, n)], names) for m, n in leg_pairs[k + 1 :])
    columns_to_try = range(len(names)) if as_read.excess > 0.0 else sorted(legs)
    flips = [*pairs, *((i,) for i in columns_to_try)]
    flips += [first + second for k, first in enumerate(leg_pairs) for second in leg_pairs[k + 1 :]]
    flips += [tuple(range(len(names))), *zip(*leg_pairs, strict=True)]
    flips += [side for side in zip(*all_pairs, strict=True) if set(side) - legs]
    for columns in flips:
        signs = np.ones(len(names))
        signs[list(columns)] = -1.0
        text = " and ".join(names[i] for i in columns) if len(columns) < len(names) else "all joints"
        yield Reading(
            "joint_sign", f"{text} {'look' if len(columns) > 1 else 'looks'} to have the other sign",
            f"Negate {'the columns' if len(columns) > 1 else 'the column'} {', '.join(map(str, columns))} of dof_pos ({text})",
            "dof_pos", partial(_flip_columns, signs=signs), names[columns[0]],
        )  # fmt: skip
    yield from _zero_readings(poses, pairs, names)


def _zero_readings(poses: Poses, pairs: list[tuple[int, int]], names: list[str]) -> Iterator[Reading]:
    """A joint measured from another zero than its counterpart on the other side, whose axis may point either way."""
    middle = np.median(poses.dof_pos, axis=0)
    for i, j in (*pairs, *((j, i) for i, j in pairs)):
        for shift in (float(middle[j] - middle[i]), float(-middle[j] - middle[i])):
            if abs(shift) > LEAST_SHIFT_RAD:
                shifts = np.zeros(len(names))
                shifts[i] = shift
                yield Reading(
                    "joint_zero", f"{names[i]} looks to be measured from another zero",
                    f"Add {shift:+.2f} rad to the column {i} of dof_pos ({names[i]}), or what its zero is really off by",
                    "dof_pos", partial(_shift_columns, shifts=shifts), names[i],
                )  # fmt: skip


def _runs_of(pairs: list[tuple[int, int]], leg_pairs: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Each pair by itself; then the pairs of the legs from the hip down to some joint, and from some joint down to the foot."""
    yield from ([pair] for pair in pairs)
    for k in range(2, len(leg_pairs)):
        yield leg_pairs[:k]
        yield leg_pairs[-k:]


def _exchange(kind: str, pairs: list[tuple[int, int]], names: list[str]) -> Reading:
    order = list(range(len(names)))
    for i, j in pairs:
        order[i], order[j] = j, i
    words = ", and ".join(f"{names[i]} and {names[j]}" for i, j in pairs)
    remedy = (
        f"Exchange the columns {pairs[0][0]} and {pairs[0][1]} of dof_pos, or write joint_names into the file"
        if len(pairs) == 1
        else f"Write joint_names into the file, or reorder: dof_pos = dof_pos[:, {order}]"
    )
    return Reading(
        kind, f"{words} look exchanged", remedy, "dof_pos", partial(_take_columns, columns=order), names[pairs[0][0]]
    )


def _shift_columns(poses: Poses, shifts: Array) -> Poses:
    return poses._replace(dof_pos=poses.dof_pos + shifts)


def _take_columns(poses: Poses, columns: list[int]) -> Poses:
    return poses._replace(dof_pos=poses.dof_pos[:, columns])


def _flip_columns(poses: Poses, signs: Array) -> Poses:
    return poses._replace(dof_pos=poses.dof_pos * signs)


def _joint_orders(robot: Robot) -> Iterator[tuple[str, list[int]]]:
    """Orders that joint columns come in, as the columns that put them into the robot's order; each once."""
    names, model = list(robot.joint_names), robot.model
    n = len(names)
    depth = _depths(robot)
    pairs = dict(find_pairs(names))
    mirrored = pairs | {j: i for i, j in pairs.items()}
    left, right = list(pairs), list(pairs.values())
    middle = [i for i in range(n) if i not in mirrored]
    addresses = np.array([int(model.joint(name).qposadr[0]) for name in names])
    by_depth = sorted(range(n), key=lambda i: (depth[i], i))
    files = {
        "breadth-first": by_depth,
        "the model's": [int(i) for i in np.argsort(addresses, kind="stable")],
        "right side first": [mirrored.get(i, i) for i in range(n)],
        "breadth-first, right side first,": sorted(range(n), key=lambda i: (depth[i], i not in right, i)),
        "left-right interleaved": [i for pair in zip(left, right, strict=True) for i in pair] + middle,
        "one side after the other": [*left, *right, *middle],
        "the other side after the one": [*right, *left, *middle],
        "alphabetical": sorted(range(n), key=lambda i: names[i]),
        "reversed": list(range(n))[::-1],
        "rolled-by-one": [n - 1, *range(n - 1)],
    }
    orders = {tuple(range(n))}
    for words, columns in files.items():
        # The file's column k holds joint columns[k]; or, the other way round, somebody applied that order twice.
        for text, order in ((words, [int(i) for i in np.argsort(columns)]), (f"{words} (inverse)", list(columns))):
            if tuple(order) not in orders:
                orders.add(tuple(order))
                yield text, order


_SIDES = (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"), ("l", "r"), ("L", "R"))


def find_pairs(names: list[str]) -> list[tuple[int, int]]:
    """The joints that are one another's left and right by their names, as pairs of indices, left first."""
    index = {name: i for i, name in enumerate(names)}
    pairs = []
    for i, name in enumerate(names):
        for left, right in _SIDES:
            # A single letter is a side only as a word of its own.
            pattern = left if len(left) > 1 else rf"(?<![A-Za-z]){left}(?![A-Za-z])"
            partner = re.sub(pattern, right, name, count=1)
            if partner != name and partner in index:
                pairs.append((i, index[partner]))
                break
    return pairs


def _depths(robot: Robot) -> list[int]:
    """How many bodies lie between the world and each joint's body, and that one."""
    depths = []
    for name in robot.joint_names:
        body, levels = int(robot.model.joint(name).bodyid[0]), 0
        while body:
            body, levels = int(robot.model.body_parentid[body]), levels + 1
        depths.append(levels)
    return depths


def _leg_joints(robot: Robot) -> set[int]:
    """The indices of the joints between the root and a foot."""
    model, bodies = robot.model, set()
    for foot in robot.feet:
        body = int(foot.body)
        while body:
            bodies.add(body)
            body = int(model.body_parentid[body])
    return {i for i, name in enumerate(robot.joint_names) if int(model.joint(name).bodyid[0]) in bodies}
