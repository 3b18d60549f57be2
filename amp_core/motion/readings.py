"""Other readings of a clip, tried on the clip: which of them would make an implausible clip plausible?

A file does not say whether its quaternions are xyzw, its lengths metres, its angles radians, or its columns in the robot's
order. Each way of reading it otherwise is tried by the robot's kinematics (`plausibility`). One is offered only where it mends
the clip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.motion.findings import Finding, rounded
from amp_core.motion.plausibility import FootMeasure, Plausibility, Poses

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = NDArray[np.float64]

SUSPECT_SCORE, FIT_SCORE = 1.5, 0.6
"""No other reading is tried on a clip that is more plausible than the first; none is added to one that is as plausible as the
second."""

MENDING_RATIO, JOINT_RATIO = 0.62, 0.55
"""A reading mends a clip whose score it brings below this share, the second for single joints. The best other
reading of a good clip brings it to 0.85."""

MENDED_SCORE, MENDED_ROTATION_SCORE = 4.5, 2.5
"""The most that a mended clip may have: runs and jumps have up to 4. A clip that lies is upright in some other rotation: it
must make sense in every other respect as well."""

LEAST_SEC = 0.5
"""A shorter clip has no step in it, by which its feet could tell a reading from another."""

LEAST_EVIDENCE_SEC = 4.0
"""Score times duration that it takes to doubt a joint or the heading: a second of a good walk has a score of up to 3."""

LYING_DEG, UPRIGHT_DEG = 45.0, 30.0
CLEAR_RATIO = 0.45
IMPROVEMENT = 0.8
MOST_ALTERNATIVES = 2
SCREENED, MOST_MEASURED = 4, 10
CLEARLY = 1.1
"""Of two readings that come this close to each other the one that is met more often counts."""

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
QUARTER_TURNS = (180.0, 90.0, -90.0)
LEAST_TURN = 20.0  # deg
LEAST_AGREEMENT = 0.2
PATH_AGREEMENT, PATH_FACTOR = 0.7, 1.25


@dataclass(frozen=True)
class Reading:
    """One way to read a clip otherwise.

    Args:
      kind: `quaternion_order`, `inverse_rotation`, `heading`, `y_up`, `unit`, `path`, `degrees`, `joint_order`, `sides` or
        `joint_sign`.
      words: what the clip would be, as a clause.
      remedy: how the file is mended.
      key: the array that is read otherwise.
      apply: the poses as they are meant.
      joint: the joint that is read otherwise, if it is one.
      turn: deg, of another heading.
    """

    kind: str
    words: str
    remedy: str
    key: str
    apply: Callable[[Poses], Poses]
    joint: str | None = None
    turn: float = 0.0


@dataclass(frozen=True)
class Mended:
    """The readings that together make a clip plausible, its figures before and after, and readings that would do as well."""

    readings: tuple[Reading, ...]
    before: Plausibility
    after: Plausibility
    alternatives: tuple[Reading, ...] = ()

    @property
    def is_path(self) -> bool:
        """Whether only the length of the root's path is another: the steps are right, and the feet slide."""
        return [reading.kind for reading in self.readings] == ["path"]

    def to_finding(self, frames: int) -> Finding:
        """The refusal of a clip of so many frames."""
        first, old, new = self.readings[0], self.before, self.after
        changes = [
            f"{name} {value:.3g} {unit} instead of {value_as_read:.3g}"
            for name, value_as_read, value, unit in (
                ("the feet slide at", old.slide, new.slide, "m/s"),
                ("the lowest foot point varies by", old.spread, new.spread, "m"),
                ("joints are beyond their limits by", old.excess, new.excess, "rad"),
                ("the root leans by", old.tilt, new.tilt, "deg"),
                ("it is above the feet by", old.height, new.height, "m"),
            )
            if abs(value_as_read - value) > 0.05 * max(abs(value_as_read), abs(value), 0.01)
        ]
        alternatives = "".join(f"; or {reading.words}, which fits as well" for reading in self.alternatives)
        return Finding(
            first.kind,
            "refuses",
            f"{' and '.join(reading.words for reading in self.readings)}: so read, {', '.join(changes)}{alternatives}",
            key=first.key,
            joint=first.joint,
            frames=(0, frames - 1),
            value=rounded(old.score),
            limit=rounded(new.score),
            unit="implausibility, as it is and as it would be",
            expected="quaternions xyzw from body to world, metres with z up, radians in the robot's joint order",
            remedy="; ".join(dict.fromkeys(reading.remedy for reading in self.readings)),
        )


def try_readings(
    start: Poses, end: Poses, fps: float, feet: FootMeasure, as_read: Plausibility, duration_sec: float
) -> Mended | None:
    """The readings that mend an implausible clip; None for one that is plausible or that nothing mends.

    Args:
      start, end: the poses at both ends of some steps of the clip.
      as_read: the plausibility of these steps.
      duration_sec: s, of the whole clip.
    """
    if as_read.score < SUSPECT_SCORE:
        return None
    robot, count = feet.robot, len(start.root_pos)
    both = Poses(*(np.concatenate(pair) for pair in zip(start, end, strict=True)))
    legs = _leg_joints(robot)

    def measure(reading: Reading, stride: int = 1) -> tuple[Reading, Plausibility, Poses]:
        changed = reading.apply(poses)
        begin, stop = Poses(*(v[:count:stride] for v in changed)), Poses(*(v[count::stride] for v in changed))
        return reading, feet.measure(begin, stop, fps), changed

    steps: list[Reading] = []
    alternatives: list[Reading] = []
    best, poses = as_read, both
    for _ in range(ROUNDS):
        readings = [*_whole_readings(poses, best, feet), *_joint_readings(poses, best, robot, legs)]
        if steps:
            readings = [reading for reading in readings if _go_together([*steps, reading])]
        if not readings:
            break
        # A few steps tell most readings off; the best are measured with all of them.
        rough = [measure(reading, SCREENED) for reading in readings]
        bound = sorted(plausibility.score for _, plausibility, _ in rough)[:MOST_MEASURED][-1]
        candidates = [measure(reading) for reading, plausibility, _ in rough if plausibility.score <= bound]
        if not steps:
            # The coarse turns say about where the heading is, the feet then say exactly.
            coarse = min((c for c in rough if c[0].kind == "heading"), key=lambda c: c[1].score)
            candidates.append(measure(_heading_reading(round(coarse[0].turn + coarse[1].heading), about_body=True)))
        lowest = min(plausibility.score for _, plausibility, _ in candidates)
        reading, plausibility, changed = next(c for c in candidates if c[1].score <= CLEARLY * lowest + 0.02)
        if plausibility.score > IMPROVEMENT * best.score:
            break
        kinds = {reading.kind}
        for candidate, score in ((c[0], c[1].score) for c in candidates if not steps):
            if score <= CLEARLY * lowest + 0.02 and candidate.kind not in kinds and len(kinds) <= MOST_ALTERNATIVES:
                kinds.add(candidate.kind)
                alternatives.append(candidate)
        steps.append(reading)
        best, poses = plausibility, changed
        if best.score < FIT_SCORE:
            break
    if not steps or not _is_mended(steps, as_read, best, duration_sec):
        return None
    return Mended(tuple(steps), as_read, best, tuple(alternatives) if len(steps) == 1 else ())


def _is_mended(readings: list[Reading], as_read: Plausibility, mended: Plausibility, duration_sec: float) -> bool:
    """Whether the readings mend the clip beyond doubt."""
    kinds = {reading.kind for reading in readings}
    if duration_sec < LEAST_SEC and not kinds <= {"quaternion_order", "y_up", "unit", "degrees"}:
        return False
    if readings[0].kind in ("sides", "joint_sign", "heading") and as_read.score * duration_sec < LEAST_EVIDENCE_SEC:
        return False
    # Each further reading has to be earned: of many combinations some one fits any motion.
    ratio = JOINT_RATIO if readings[0].kind in ("sides", "joint_sign") else MENDING_RATIO
    most = min(ratio ** len(readings) * as_read.score, MENDED_SCORE if len(readings) == 1 else SUSPECT_SCORE)
    stands_up = readings[0].kind == "quaternion_order" and as_read.tilt > LYING_DEG and mended.tilt < UPRIGHT_DEG
    if any(reading.key == "root_rot" for reading in readings) and not stands_up:
        # A rotation that only leans is no evidence: some other one always leans less. The feet must say so.
        if as_read.footing <= FIT_SCORE or mended.footing >= MENDING_RATIO * as_read.footing:
            return False
        if mended.tilt >= UPRIGHT_DEG or mended.footing >= CLEAR_RATIO * as_read.footing:
            most = min(most, MENDED_ROTATION_SCORE)
    return mended.score <= most


def _go_together(readings: list[Reading]) -> bool:
    """Whether one file is likely to need all of these readings: several conventions of another tool, or several joints."""
    kinds = [reading.kind for reading in readings]
    conventions = {"quaternion_order", "y_up", "unit", "degrees", "joint_order"}
    return set(kinds) <= {"sides", "joint_sign"} or (set(kinds) <= conventions and len(set(kinds)) == len(kinds))


def _heading_reading(turn: float, *, about_body: bool) -> Reading:
    quat = np.array([0.0, 0.0, math.sin(math.radians(turn) / 2), math.cos(math.radians(turn) / 2)])
    remedy = (
        f"Turn root_rot by {turn:+.0f} degrees about the body's vertical axis: its x axis must point forward"
        if about_body
        else f"Turn root_rot by {turn:+.0f} degrees about the world's vertical axis, or root_pos by as much the other way"
    )

    def apply(poses: Poses) -> Poses:
        rotation = rotations.multiply(poses.root_rot, quat) if about_body else rotations.multiply(quat, poses.root_rot)
        return poses._replace(root_rot=rotation)

    return Reading("heading", f"the heading looks off by {abs(turn):.0f} degrees", remedy, "root_rot", apply, turn=turn)


def _whole_readings(poses: Poses, as_read: Plausibility, feet: FootMeasure) -> Iterator[Reading]:
    """The readings of the whole clip, those that are met most often first."""
    yield Reading(
        "inverse_rotation", "the rotations look inverted, from world to body",
        "Invert the rotations: root_rot[:, :3] *= -1", "root_rot",
        lambda p: p._replace(root_rot=rotations.conjugate(p.root_rot)),
    )  # fmt: skip
    yield Reading(
        "quaternion_order", "the quaternions look like wxyz",
        "Read it with --quat-order wxyz (quat_order=wxyz), or export xyzw: root_rot = root_rot[:, [1, 2, 3, 0]]",
        "root_rot", lambda p: p._replace(root_rot=rotations.to_xyzw(p.root_rot)),
    )  # fmt: skip
    for turn in QUARTER_TURNS:
        yield _heading_reading(turn, about_body=True)
        yield _heading_reading(turn, about_body=False)
    yield Reading(
        "quaternion_order", "the quaternions look like xyzw",
        "Read it with --quat-order xyzw (quat_order=xyzw), or export xyzw: root_rot = root_rot[:, [3, 0, 1, 2]]",
        "root_rot", lambda p: p._replace(root_rot=rotations.to_wxyz(p.root_rot)),
    )  # fmt: skip
    if abs(as_read.heading) > LEAST_TURN and as_read.agreement > LEAST_AGREEMENT:
        yield _heading_reading(round(as_read.heading), about_body=True)
    for turn in (30.0, -30.0, 60.0, -60.0, 120.0, -120.0, 150.0, -150.0):
        yield _heading_reading(turn, about_body=True)
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
    for on_both_sides in (False, True):

        def apply(poses: Poses, quat: Array = quat, axes: Array = axes, on_both_sides: bool = on_both_sides) -> Poses:
            rotation = rotations.multiply(quat, poses.root_rot)
            if on_both_sides:
                rotation = rotations.multiply(rotation, rotations.conjugate(quat))
            return Poses(poses.root_pos[:, [0, 2, 1]] * axes, rotation, poses.dof_pos)

        turn = f"turned by {90 * sign:+.0f} degrees about x{' on both sides' if on_both_sides else ''}"
        remedy = f"Convert to z up: root_pos = {text}, and root_rot {turn}"
        yield Reading("y_up", f"{'y' if sign > 0 else '−y'} looks like the vertical", remedy, "root_pos", apply)


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


def _joint_readings(poses: Poses, as_read: Plausibility, robot: Robot, legs: set[int]) -> Iterator[Reading]:
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
    columns_to_try = set(range(len(names))) if as_read.excess > 0.0 else legs
    pairs = [(i, j) for i, j in find_pairs(names) if i in columns_to_try]
    for i, j in pairs:
        order = list(range(len(names)))
        order[i], order[j] = j, i
        yield Reading(
            "sides", f"{names[i]} and {names[j]} look exchanged",
            f"Exchange the columns {i} and {j} of dof_pos, or write joint_names into the file", "dof_pos",
            partial(_take_columns, columns=order), names[i],
        )  # fmt: skip
    flips = [(i, j) for i, j in pairs] + [(i,) for i in sorted(columns_to_try)]
    for columns in flips:
        signs = np.ones(len(names))
        signs[list(columns)] = -1.0
        text = " and ".join(names[i] for i in columns)
        yield Reading(
            "joint_sign", f"{text} {'look' if len(columns) > 1 else 'looks'} to have the other sign",
            f"Negate {'the columns' if len(columns) > 1 else 'the column'} {', '.join(map(str, columns))} of dof_pos ({text})",
            "dof_pos", partial(_flip_columns, signs=signs), names[columns[0]],
        )  # fmt: skip


def _take_columns(poses: Poses, columns: list[int]) -> Poses:
    return poses._replace(dof_pos=poses.dof_pos[:, columns])


def _flip_columns(poses: Poses, signs: Array) -> Poses:
    return poses._replace(dof_pos=poses.dof_pos * signs)


def _joint_orders(robot: Robot) -> Iterator[tuple[str, list[int]]]:
    """Orders that joint columns come in, as the columns that put them into the robot's order; each once."""
    names, model = list(robot.joint_names), robot.model
    n = len(names)
    depth = []
    for name in names:
        body, levels = int(model.joint(name).bodyid[0]), 0
        while body:
            body, levels = int(model.body_parentid[body]), levels + 1
        depth.append(levels)
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


def _leg_joints(robot: Robot) -> set[int]:
    """The indices of the joints between the root and a foot."""
    model, bodies = robot.model, set()
    for foot in robot.feet:
        body = int(foot.body)
        while body:
            bodies.add(body)
            body = int(model.body_parentid[body])
    return {i for i, name in enumerate(robot.joint_names) if int(model.joint(name).bodyid[0]) in bodies}
