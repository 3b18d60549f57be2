"""Variants of a clip, for coverage: its mirror image, another tempo, another heading, a loop.

`augment(motion, robot, augmentation)` takes a motion and returns a motion, which is written, uploaded and scored like any
other: nothing here is trusted to be physical, the rollout says whether it is. `docs/augmentation.md` has the formulae.

Lineage goes with the variant: the digest of the clip that it was made from, that of the clip at the root of the family, and
the augmentation's text. It is written into the variant's own bytes, so it is a part of what its digest stands for.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.errors import InputRefused, MotionRefused
from amp_core.formats.clip import Lineage, Motion
from amp_core.formats.values import LINEAGE_KEYS
from amp_core.kinematics import foot_centres, iterate_poses, sole_heights
from amp_core.motion import find_first_frame_glitch, interpolate, interpolate_rotations
from amp_core.npz import write_npz
from amp_core.robot import Robot

__all__ = ["Augmentation", "Augmented", "Seam", "Symmetry", "augment", "augmented", "motion_bytes", "symmetry_of"]

Array = NDArray[np.float64]

WARP_RANGE = (0.9, 1.1)
MAX_LOOPS = 50
BLEND_RANGE = (0.05, 1.0)
DEFAULT_BLEND = 0.2

SYMMETRY_REACH = 0.02
"""How far a mirrored foot or joint axis may lie from its partner, as a share of the reach from root to foot."""
SYMMETRY_ANGLE = math.radians(3.0)

MIN_CYCLE_SEC = 0.5
MAX_SEAM_FRAMES = 1200
"""Frames that are compared with each other; a longer clip is thinned first and its seam then refined at full rate."""

SEAM_LIMITS: dict[str, tuple[float, str]] = {
    "joint angles": (0.1, "rad RMS"),
    "joint velocities": (1.0, "rad/s RMS"),
    "root height": (0.01, "m"),
    "root tilt": (0.05, "rad"),
    "root velocity": (0.15, "m/s"),
    "turn rate": (0.6, "rad/s"),
    "foot heights": (0.015, "m"),
}
"""What each part of two frames may differ by at a seam. A residual is the largest difference in units of these."""

_MAX_NAME = 120
_MIRROR = np.array([1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Augmentation:
    """What to do to a clip, in this order: mirror, warp the time, loop, turn. At least one must change something.

    Args:
      mirror: left and right change places.
      time_warp: speed factor, 0.9 to 1.1; 0.9 is slower (the clip lasts 1/0.9 as long), 1 leaves it.
      heading: deg about the world's z axis through the first root position, counter-clockwise from above; kept in (-180, 180].
      loop: how often the clip's best cycle is played in all; 1 leaves it.
      blend: s over which a seam is blended.

    Raises:
      InputRefused: a value out of its range, or nothing to do.
    """

    mirror: bool = False
    time_warp: float = 1.0
    heading: float = 0.0
    loop: int = 1
    blend: float = DEFAULT_BLEND

    def __post_init__(self) -> None:
        low, high = WARP_RANGE
        warp = _number("warp", self.time_warp, f"a speed factor from {low} (slower) to {high} (faster)", low, high)
        heading = _number("heading", self.heading, "degrees from -360 to 360", -360.0, 360.0)
        blend = _number("blend", self.blend, f"{BLEND_RANGE[0]} to {BLEND_RANGE[1]} s", *BLEND_RANGE)
        if isinstance(self.loop, bool) or not isinstance(self.loop, int) or not 1 <= self.loop <= MAX_LOOPS:
            raise _refused(f"the loop is {str(self.loop)[:20]!r}", "loop", f"a whole number from 2 to {MAX_LOOPS}")
        turned = round(-((180.0 - heading) % 360.0 - 180.0), 6)
        object.__setattr__(self, "mirror", bool(self.mirror))
        object.__setattr__(self, "time_warp", round(warp, 6))
        # Adding zero makes -0.0 a plain 0.
        object.__setattr__(self, "heading", turned + 0.0)
        object.__setattr__(self, "blend", round(blend, 6) if self.loop > 1 else DEFAULT_BLEND)
        if not (self.mirror or self.time_warp != 1.0 or self.heading != 0.0 or self.loop > 1):
            raise _refused("the augmentation changes nothing", "augmentation", _FORMS)

    @property
    def text(self) -> str:
        """The canonical text, such as `mirror+warp=0.9`; `parse` reads it back."""
        parts = []
        if self.mirror:
            parts.append("mirror")
        if self.time_warp != 1.0:
            parts.append(f"warp={_plain(self.time_warp)}")
        if self.loop > 1:
            parts.append(f"loop={self.loop}" + ("" if self.blend == DEFAULT_BLEND else f":{_plain(self.blend)}"))
        if self.heading != 0.0:
            parts.append(f"heading={_plain(self.heading)}")
        return "+".join(parts)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """From its text; the parts may come in any order, each once.

        Raises:
          InputRefused: unknown or repeated parts, numbers out of range.
        """
        given: dict[str, Any] = {}
        for part in text.split("+") if len(text) <= 120 else [text[:120]]:
            match = _PART.fullmatch(part.strip())
            if match is None:
                raise _refused(f"{part[:40]!r} is no augmentation", "augmentation", _FORMS)
            found: dict[str, Any] = {}
            if match["mirror"]:
                found["mirror"] = True
            elif match["loop"]:
                found["loop"] = int(match["loop"])
                if match["blend"]:
                    found["blend"] = float(match["blend"])
                if found["loop"] < 2:
                    raise _refused(f"the loop is {found['loop']}", "loop", f"a whole number from 2 to {MAX_LOOPS}")
            else:
                found["time_warp" if match["key"] == "warp" else "heading"] = float(match["value"])
            if found.keys() & given.keys():
                raise _refused(f"{part[:40]!r} comes after another of its kind", "augmentation", "each kind once")
            given |= found
        return cls(**given)


_FORMS = "mirror, warp=0.9, heading=90, loop=3 or loop=3:0.3 (seconds of blend), or several joined by +"
_PART = re.compile(
    r"(?P<mirror>mirror)|loop=(?P<loop>\d{1,4})(:(?P<blend>\d{1,4}(\.\d{1,9})?))?"
    r"|(?P<key>warp|heading)=(?P<value>[+-]?\d{1,4}(\.\d{1,9})?)"
)


def _refused(what: str, key: str, expected: str) -> InputRefused:
    return InputRefused(what, key=key, expected=expected, remedy="See docs/augmentation.md")


def _number(key: str, value: Any, expected: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= float(value) <= high:
        raise _refused(f"{key} is {str(value)[:20]}", key, expected)
    return float(value)


def _plain(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Seam:
    """Where a loop closes: frame `end` of the source is followed by frame `start`.

    Args:
      start, end: source frames (after a glitched first frame was dropped) at the clip's own rate; of a warped clip at the
        warped one's.
      cycle_sec: s, of one repetition.
      residual: the largest difference of the two frames in units of `SEAM_LIMITS`; at most 1.
      worst: which difference that is.
      blend_sec: s over which the two are blended.
    """

    start: int
    end: int
    cycle_sec: float
    residual: float
    worst: str
    blend_sec: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "end": self.end,
            "cycle_sec": round(self.cycle_sec, 6),
            "residual": round(self.residual, 6),
            "worst": self.worst,
            "blend_sec": self.blend_sec,
        }


@dataclass(frozen=True, eq=False)
class Augmented:
    """A variant, its file's bytes (an npz that `read_motion` reads back as `motion`), and the loop's seam if there is one."""

    motion: Motion
    data: bytes
    augmentation: Augmentation
    seam: Seam | None


def augment(motion: Motion, robot: Robot, augmentation: Augmentation) -> Motion:
    """The variant of a motion. The same input gives the same bytes.

    Args:
      motion: N frames, root in the world, joints in the robot's order; itself maybe a variant.
      robot: the robot that it was retargeted to.

    Raises:
      InputRefused: the robot has no left-right symmetry (names the joint or foot that fails).
      MotionRefused: the clip has other joints than the robot, or no seam good enough to loop.
    """
    return augmented(motion, robot, augmentation).motion


def augmented(motion: Motion, robot: Robot, augmentation: Augmentation) -> Augmented:
    """As `augment`, with the bytes and the seam."""
    if motion.dof_pos.shape[1] != len(robot.joint_names):
        raise MotionRefused(
            f"the clip has {motion.dof_pos.shape[1]} joints, the robot {robot.name!r} has {len(robot.joint_names)}",
            file=motion.name,
            key="dof_pos",
            remedy="Choose the robot that the clip was retargeted to",
        )
    position, joints = np.array(motion.root_pos), np.array(motion.dof_pos)
    rotation = rotations.normalize(motion.root_rot)
    seam = None
    if augmentation.time_warp != 1.0 or augmentation.loop > 1:
        # Interpolation would spread a glitched first frame over its neighbours, where conditioning no longer sees it.
        rotation = rotations.align_signs(rotation)[0]
        if len(position) > 2 and find_first_frame_glitch(motion, rotation).glitch:
            position, rotation, joints = position[1:], rotation[1:], joints[1:]
    if augmentation.mirror:
        position, rotation, joints = _mirrored(position, rotation, joints, robot, motion.name)
    if augmentation.time_warp != 1.0:
        position, rotation, joints = _warped(position, rotation, joints, augmentation.time_warp, motion.name)
    if augmentation.loop > 1:
        position, rotation, joints, seam = _looped(position, rotation, joints, motion, robot, augmentation)
    if augmentation.heading != 0.0:
        angle = math.radians(augmentation.heading)
        position, rotation = (
            rotations.rotate_about_vertical(position, angle, position[0]),
            rotations.rotate_yaw(rotation, angle),
        )
    lineage = Lineage(motion.source_digest, motion.ancestor, augmentation.text)
    data = motion_bytes(motion.fps, position, rotation, joints, lineage, seam)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    name = variant_name(motion.name, augmentation)
    variant = Motion(name, motion.fps, position, rotation, joints, source_digest=digest, source_format="npz", lineage=lineage)
    return Augmented(variant, data, augmentation, seam)


def variant_name(name: str, augmentation: Augmentation) -> str:
    """`walk` and `mirror` give `walk+mirror`; a long name is cut so that the whole has at most 120 bytes."""
    tail = f"+{augmentation.text}"
    return name.encode()[: _MAX_NAME - len(tail)].decode(errors="ignore").rstrip() + tail


def motion_bytes(
    fps: float, root_pos: Array, root_rot: Array, dof_pos: Array, lineage: Lineage | None = None, seam: Seam | None = None
) -> bytes:
    """A clip as an npz that `read_motion` reads. The same arrays give the same bytes."""
    members: dict[str, Any] = {"fps": np.float64(fps), "root_pos": root_pos, "root_rot": root_rot, "dof_pos": dof_pos}
    if lineage is not None:
        members |= {key: np.array(getattr(lineage, field)) for field, key in LINEAGE_KEYS.items()}
    if seam is not None:
        members["ampref_seam_frames"] = np.array([seam.start, seam.end], np.int64)
        members["ampref_seam_residual"] = np.float64(seam.residual)
    stream = io.BytesIO()
    write_npz(stream, members)
    return stream.getvalue()


# --- Mirror ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Symmetry:
    """A robot's left-right symmetry about its root's xz plane: `mirrored[partner] = offset[partner] + sign · (q - offset)`.

    Args:
      partner: (n,) for each joint the one that takes its place; itself for a joint in the plane.
      sign: (n,) of the angle there: +1 or -1.
      offset: (n,) rad, the angles of the reference pose.
      feet: for each foot the one that takes its place.
      reach: m, from the root to the farthest foot in the reference pose; the measure of what counts as near.
    """

    partner: NDArray[np.int64]
    sign: Array
    offset: Array
    feet: tuple[int, ...]
    reach: float

    def joints(self, dof_pos: Array) -> Array:
        """(N, n) rad mirrored."""
        out = np.empty_like(dof_pos)
        out[:, self.partner] = self.offset[self.partner] + self.sign * (dof_pos - self.offset)
        return out


def symmetry_of(robot: Robot) -> Symmetry:
    """The robot's left-right symmetry, read off its model and checked by forward kinematics.

    A reflection M = diag(1, -1, 1) turns a rotation about an axis `a` into one about `-M a` by the same angle. So a joint's
    partner is the one whose axis lies on the mirrored line, at the same place in the tree, and its sign says whether the
    partner's axis points along `-M a` or against it. A hinge may be anchored anywhere on its axis: lines are compared, not
    anchors.

    Raises:
      InputRefused: a joint or foot without a partner; names it and how far off the nearest one is.
    """
    model = robot.model
    offset = np.array(model.qpos0[robot.qpos_adr], dtype=np.float64)
    data = next(iterate_poses(model, _upright_poses(robot, offset[None])))
    ids = [int(model.joint(name).id) for name in robot.joint_names]
    anchors, axes = np.array(data.xanchor[ids]), np.array(data.xaxis[ids])
    reach = max(float(np.linalg.norm(data.geom_xpos[geom])) for foot in robot.feet for geom in foot.geoms)
    parents = _parents(model, ids)
    limit = SYMMETRY_REACH * reach
    count = len(ids)
    partner, sign = np.full(count, -1, np.int64), np.ones(count)
    # Bodies are numbered parents first, so a joint's parent has its partner before the joint is looked at.
    for j in sorted(range(count), key=lambda joint: ids[joint]):
        image, axis = _MIRROR * anchors[j], -_MIRROR * axes[j]
        above = -1 if parents[j] < 0 else int(partner[parents[j]])
        best = (math.inf, math.inf, -1)
        for k in (k for k in range(count) if parents[k] == above and k not in partner):
            away = image - anchors[k]
            distance = float(np.linalg.norm(away - (away @ axes[k]) * axes[k]))
            angle = float(math.acos(min(1.0, abs(float(axis @ axes[k])))))
            best = min(best, (distance / limit + angle / SYMMETRY_ANGLE, max(distance / limit, angle / SYMMETRY_ANGLE), k))
        _, off, k = best
        if k < 0 or off > 1.0:
            name = robot.joint_names[j]
            near = "" if k < 0 else f": the nearest is {robot.joint_names[k]!r}, {off:.1f} times too far"
            raise _asymmetric(robot, f"the joint {name!r} has no mirror image{near}")
        partner[j], sign[j] = k, math.copysign(1.0, float(axis @ axes[k]))
    odd = [robot.joint_names[j] for j in range(count) if partner[partner[j]] != j]
    if odd:
        raise _asymmetric(robot, f"the joints {', '.join(odd)} do not come in pairs")
    feet = _paired_feet(robot, foot_centres(robot, _upright_poses(robot, offset[None]))[0], limit)
    found = Symmetry(partner, sign, offset, feet, reach)
    # Sixteen poses inside the limits, the same ones every time, so that signs and order are shown to be right.
    low = np.maximum(robot.joint_range[:, 0], offset - 0.5)
    high = np.minimum(robot.joint_range[:, 1], offset + 0.5)
    poses = low + (high - low) * np.random.default_rng(0).random((16, count))
    _check_feet(robot, found, poses)
    return found


def _upright_poses(robot: Robot, joints: Array) -> Array:
    """(M, nq) the poses with these joint angles (M, n) and the root upright at the origin."""
    return robot.poses(np.zeros((len(joints), 3)), np.tile([0.0, 0.0, 0.0, 1.0], (len(joints), 1)), joints)


def _parents(model: Any, ids: list[int]) -> list[int]:
    """For each joint the index of the listed joint above it, -1 where there is none."""
    place = {joint: index for index, joint in enumerate(ids)}
    found = []
    for joint in ids:
        body = int(model.jnt_bodyid[joint])
        above, before = -1, joint
        while body > 0 and above < 0:
            first = int(model.body_jntadr[body])
            inside = range(first, first + int(model.body_jntnum[body])) if first >= 0 else range(0)
            above = next((place[k] for k in reversed(inside) if k < before and k in place), -1)
            body = int(model.body_parentid[body])
        found.append(above)
    return found


def _paired_feet(robot: Robot, centres: Array, limit: float) -> tuple[int, ...]:
    pairs = []
    for index, foot in enumerate(robot.feet):
        distance = np.linalg.norm(centres - _MIRROR * centres[index], axis=1)
        nearest = int(np.argmin(distance))
        if distance[nearest] > limit:
            raise _asymmetric(
                robot, f"the foot {foot.name!r} has no mirror image: the nearest is {distance[nearest] * 1e3:.0f} mm off it"
            )
        pairs.append(nearest)
    if sorted(pairs) != list(range(len(pairs))):
        raise _asymmetric(robot, "its feet do not come in pairs")
    return tuple(pairs)


def _check_feet(robot: Robot, symmetry: Symmetry, joints: Array) -> None:
    """That mirrored joints (M, n) put the feet where the mirror images of these joints' feet are, in the root's frame."""
    limit = SYMMETRY_REACH * symmetry.reach
    expected = _MIRROR * foot_centres(robot, _upright_poses(robot, joints))
    mirrored = foot_centres(robot, _upright_poses(robot, symmetry.joints(joints)))[:, list(symmetry.feet)]
    for off in np.linalg.norm(mirrored - expected, axis=2):
        if off.max() > limit:
            foot = robot.feet[int(np.argmax(off))].name
            raise _asymmetric(
                robot,
                f"in a mirrored pose the foot {foot!r} is {off.max() * 1e3:.0f} mm off its image (limit {limit * 1e3:.0f})",
            )


def _asymmetric(robot: Robot, what: str) -> InputRefused:
    return InputRefused(
        f"the robot {robot.name!r} has no left-right symmetry: {what}",
        key="mirror",
        expected="joints and feet in pairs about the root's xz plane (x forward, z up)",
        remedy="Leave out the mirror for this robot, or mend its model",
    )


def _mirrored(position: Array, rotation: Array, joints: Array, robot: Robot, name: str) -> tuple[Array, Array, Array]:
    """The mirror image about the world's xz plane."""
    symmetry = symmetry_of(robot)
    picked = np.unique(np.linspace(0, len(position) - 1, 32).astype(np.int64))
    _check_feet(robot, symmetry, joints[picked])
    return position * _MIRROR, rotations.mirror_y(rotation), symmetry.joints(joints)


# --- Time and heading -----------------------------------------------------------------------------------------------------


def _warped(position: Array, rotation: Array, joints: Array, factor: float, name: str) -> tuple[Array, Array, Array]:
    """The clip at `factor` times its speed and at its own rate: frame k is the source at frame k · factor."""
    count = math.floor((len(position) - 1) / factor + 1e-6) + 1
    if count < 2:
        raise MotionRefused("too short to be played faster", file=name, key="root_pos", expected="at least 3 frames")
    when = np.minimum(np.arange(count) * factor, len(position) - 1)
    return interpolate(position, when), interpolate_rotations(rotation, when), interpolate(joints, when)


# --- Loop -----------------------------------------------------------------------------------------------------------------


def _looped(
    position: Array, rotation: Array, joints: Array, motion: Motion, robot: Robot, wanted: Augmentation
) -> tuple[Array, Array, Array, Seam]:
    """The lead-in, the cycle `loop` times, the rest; every seam blended, every repetition set down where the last one ended."""
    rotation = rotations.align_signs(rotation)[0]
    blend = max(1, round(wanted.blend * motion.fps))
    seam = _find_seam(position, rotation, joints, motion, robot, blend)
    start, end = seam.start, seam.end
    yaw = np.unwrap(rotations.yaw(rotation))
    turn = float(yaw[end] - yaw[start])

    def onward(place: Array, facing: Array) -> tuple[Array, Array]:
        """By one repetition: what takes the root of `start` to that of `end`, over the floor."""
        moved = rotations.rotate_about_vertical(place, turn, place_start)
        moved[:, :2] += place_end[:2] - place_start[:2]
        return moved, rotations.rotate_yaw(facing, turn)

    place_start, place_end = position[start], position[end]
    parts: list[tuple[Array, Array, Array]] = [(position[:end], rotation[:end], joints[:end])]
    before = (position, rotation)
    for repetition in range(1, wanted.loop):
        after = onward(*before)
        last = len(position) if repetition == wanted.loop - 1 else end
        weight = _ease(np.arange(blend) / blend)[:, None]
        out, come = slice(end, end + blend), slice(start, start + blend)
        parts.append(
            (
                (1.0 - weight) * before[0][out] + weight * after[0][come],
                rotations.nlerp(before[1][out], after[1][come], weight),
                (1.0 - weight) * joints[out] + weight * joints[come],
            )
        )
        rest = slice(start + blend, last)
        parts.append((after[0][rest], after[1][rest], joints[rest]))
        before = after
    place, facing, angles = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return place, rotations.align_signs(facing)[0], angles, seam


def _ease(part: Array) -> Array:
    """0 to 1 with no velocity and no acceleration at either end."""
    return np.asarray(part**3 * (10.0 - 15.0 * part + 6.0 * part**2))


def _find_seam(position: Array, rotation: Array, joints: Array, motion: Motion, robot: Robot, blend: int) -> Seam:
    """The pair of frames to loop between.

    All pairs that leave room for the blend and a cycle of half a second are compared, at the seam, in the middle of the blend
    and at its end. Of those within a fifth of the best (or below a quarter of the limit) the longest cycle is taken, since it
    keeps most of the clip's variety; then the better one; then the earlier.

    Raises:
      MotionRefused: the clip is too short, or its best pair differs too much; says in what and by how much.
    """
    count, fps = len(position), motion.fps
    shortest = max(blend, math.ceil(MIN_CYCLE_SEC * fps))
    if count < shortest + blend + 2:
        raise MotionRefused(
            f"the clip of {count} frames is too short to loop",
            file=motion.name,
            key="root_pos",
            expected=f"at least {shortest + blend + 2} frames: a cycle of {MIN_CYCLE_SEC:g} s and the blend behind it",
            remedy="Choose a longer clip, or a shorter blend",
        )
    facts = _seam_facts(position, rotation, joints, fps, robot)
    stride = -(-count // MAX_SEAM_FRAMES)
    every = np.arange(0, count, stride)
    best = _choose(facts, every, every, blend, shortest, count)
    if stride > 1 and best is not None:
        near = [np.arange(max(0, frame - stride), min(count, frame + stride + 1)) for frame in best[2:]]
        best = _choose(facts, near[0], near[1], blend, shortest, count) or best
    assert best is not None
    residual, _, start, end = best
    worst = _worst(facts, start, end, blend)
    if residual > 1.0:
        limit, unit = SEAM_LIMITS[worst]
        raise MotionRefused(
            f"no two frames are alike enough to loop: of the best pair ({start} and {end}) the {worst} differ by "
            f"{residual * limit:.3g} {unit}",
            file=motion.name,
            key="loop",
            frame=start,
            expected=f"at most {limit:g} {unit}; the residual is {residual:.2f} and may be 1",
            remedy="Loop a clip that repeats itself, such as steady walking",
        )
    return Seam(start, end, (end - start) / fps, residual, worst, blend / fps)


def _seam_facts(position: Array, rotation: Array, joints: Array, fps: float, robot: Robot) -> dict[str, Array]:
    """What is compared of each frame, in units of `SEAM_LIMITS`; rows (N, k). Independent of place and heading."""
    yaw = np.unwrap(rotations.yaw(rotation))
    velocity = np.gradient(position, axis=0) * fps
    share = 1.0 / math.sqrt(joints.shape[1])
    values = {
        "joint angles": joints * share,
        "joint velocities": np.gradient(joints, axis=0) * (fps * share),
        "root height": position[:, 2:3],
        "root tilt": rotations.up_in_body(rotation),
        "root velocity": rotations.world_to_heading(yaw, velocity),
        "turn rate": (np.gradient(yaw) * fps)[:, None],
        "foot heights": sole_heights(robot, robot.poses(position, rotation, joints)),
    }
    return {key: np.asarray(value / SEAM_LIMITS[key][0]) for key, value in values.items()}


def _difference(facts: dict[str, Array], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
    """(rows, columns): the largest difference of each pair of frames. Summed coordinate by coordinate: the same everywhere."""
    worst = np.zeros((len(rows), len(columns)))
    for key, values in facts.items():
        a, b = values[rows], values[columns]
        if key == "foot heights":
            for i in range(values.shape[1]):
                np.maximum(worst, np.abs(a[:, i, None] - b[None, :, i]), out=worst)
            continue
        square = np.zeros_like(worst)
        for i in range(values.shape[1]):
            square += (a[:, i, None] - b[None, :, i]) ** 2
        np.maximum(worst, np.sqrt(square), out=worst)
    return worst


def _choose(
    facts: dict[str, Array], starts: NDArray[np.int64], ends: NDArray[np.int64], blend: int, shortest: int, count: int
) -> tuple[float, int, int, int] | None:
    """(residual, -cycle, start, end) of the pair to take, or None where no pair has room."""
    starts, ends = starts[starts < count - blend], ends[ends < count - blend]
    if not len(starts) or not len(ends):
        return None
    cost = _difference(facts, starts, ends)
    for shift in sorted({blend // 2, blend} - {0}):
        np.maximum(cost, _difference(facts, starts + shift, ends + shift), out=cost)
    cost[ends[None, :] - starts[:, None] < shortest] = math.inf
    least = float(cost.min())
    if not math.isfinite(least):
        return None
    good = np.argwhere(cost <= min(max(1.2 * least, 0.25), max(1.0, least)))
    return min(
        ((float(cost[i, j]), -int(ends[j] - starts[i]), int(starts[i]), int(ends[j])) for i, j in good),
        key=lambda found: (found[1], found[0], found[2]),
    )


def _worst(facts: dict[str, Array], start: int, end: int, blend: int) -> str:
    """Which part of the two frames differs most, at the seam or within its blend."""
    found = []
    for key, values in facts.items():
        for shift in (0, blend // 2, blend):
            one = _difference({key: values}, np.array([start + shift]), np.array([end + shift]))
            found.append((float(one[0, 0]), key))
    return max(found)[1]


def parse_all(texts: Iterable[str]) -> tuple[Augmentation, ...]:
    """Augmentations from their texts, each once, in the order given."""
    return tuple(dict.fromkeys(Augmentation.parse(text) for text in texts))
