"""Faults that clips come with, made from any good clip: each is a function of motion and robot, with the codes that name it.

A fault that cannot be told on some clip (the heading of a march in place) returns None there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.formats import Motion
from amp_core.robot import Robot

Array = NDArray[np.float64]
HALF = np.sqrt(0.5)


@dataclass(frozen=True)
class Fault:
    """One way to spoil a clip.

    Args:
      codes: the findings of which one must name it.
      spoil: makes it.
    """

    name: str
    codes: tuple[str, ...]
    spoil: Callable[[Motion, Robot], Motion | None]


def speed(motion: Motion) -> float:
    return float(np.linalg.norm(np.diff(motion.root_pos[:, :2], axis=0), axis=1).mean() * motion.fps)


def swing(motion: Motion) -> float:
    """rad/s, root mean square."""
    return float(np.sqrt((np.diff(motion.dof_pos, axis=0) ** 2).mean()) * motion.fps)


def inside(motion: Motion, share: float = 0.5) -> int:
    """The frame at about this share of the clip in which it moves the most."""
    rate = np.abs(np.diff(motion.dof_pos, axis=0)).max(axis=1)
    low, high = int((share - 0.15) * len(rate)), int((share + 0.15) * len(rate)) + 1
    return low + int(rate[low:high].argmax())


def turned(motion: Motion, degrees: float) -> Motion:
    """The same motion in another direction of the world: no fault."""
    angle = np.radians(degrees)
    return replace(
        motion,
        root_pos=rotations.rotate_about_vertical(motion.root_pos, angle),
        root_rot=rotations.rotate_yaw(motion.root_rot, angle),
    )


def heading(degrees: float) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        quat = np.array([0.0, 0.0, np.sin(np.radians(degrees) / 2), np.cos(np.radians(degrees) / 2)])
        return replace(motion, root_rot=rotations.multiply(motion.root_rot, quat)) if speed(motion) > 0.15 else None

    return spoil


def inverted(degrees: float) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        other = turned(motion, degrees)
        return replace(other, root_rot=other.root_rot * [-1, -1, -1, 1]) if speed(motion) > 0.15 else None

    return spoil


def scaled(factor: float) -> Callable[[Motion, Robot], Motion | None]:
    return lambda motion, robot: replace(motion, root_pos=motion.root_pos * factor)


def path(factor: float) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        return replace(motion, root_pos=motion.root_pos * [factor, factor, 1.0]) if speed(motion) > 0.06 else None

    return spoil


def reorder(order: Callable[[list[str]], list[int]]) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        columns = order(list(robot.joint_names))
        return None if columns == sorted(columns) else replace(motion, dof_pos=motion.dof_pos[:, columns], joint_names=None)

    return spoil


def partner(name: str) -> str:
    """The joint of the other side, by name; a joint of the middle is its own."""
    for left, right in (("left", "right"), ("right", "left")):
        if name.startswith(left):
            return name.replace(left, right)
    return {"_l": name[:-1] + "r", "_r": name[:-1] + "l"}.get(name[-2:], name)


def find(names: list[str], words: str) -> list[int]:
    return [i for i, name in enumerate(names) if words in name]


def signed(words: str, *, both: bool) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        columns = find(list(robot.joint_names), words)[: 2 if both else 1]
        if not columns or np.ptp(motion.dof_pos[:, columns]) < 0.2:
            return None
        joints = np.array(motion.dof_pos)
        joints[:, columns] *= -1
        return replace(motion, dof_pos=joints)

    return spoil


def exchanged(*words: str) -> Callable[[Motion, Robot], Motion | None]:
    """The sides of one joint, or of each of several."""

    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        pairs = [find(list(robot.joint_names), word)[:2] for word in words]
        if any(len(pair) < 2 or np.ptp(motion.dof_pos[:, pair]) < 0.2 for pair in pairs):
            return None
        joints = np.array(motion.dof_pos)
        for pair in pairs:
            joints[:, pair] = joints[:, pair[::-1]]
        return replace(motion, dof_pos=joints)

    return spoil


def in_place_of(first: str, second: str) -> Callable[[Motion, Robot], Motion | None]:
    """Two joints of a leg in one another's columns, in both legs."""

    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        columns, places = (find(list(robot.joint_names), word)[:2] for word in (first, second))
        if len(columns) < 2 or len(places) < 2:
            return None
        joints = np.array(motion.dof_pos)
        joints[:, [*columns, *places]] = joints[:, [*places, *columns]]
        return replace(motion, dof_pos=joints)

    return spoil


def y_up(*, both: bool) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        quat = np.array([-HALF, 0.0, 0.0, HALF])
        rotation = rotations.multiply(quat, motion.root_rot)
        if both:
            rotation = rotations.multiply(rotation, quat * [-1, -1, -1, 1])
        return replace(motion, root_pos=motion.root_pos[:, [0, 2, 1]] * [1, 1, -1], root_rot=rotation)

    return spoil


def root_jump(metres: float, share: float = 0.5) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        if motion.num_frames < 40:
            return None
        position = np.array(motion.root_pos)
        position[inside(motion, share) :, 0] += metres
        return replace(motion, root_pos=position)

    return spoil


def root_blip(metres: float, frames: int = 1) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        position = np.array(motion.root_pos)
        position[inside(motion) : inside(motion) + frames, 1] += metres
        return replace(motion, root_pos=position)

    return spoil


def turns_at_once(degrees: float) -> Callable[[Motion, Robot], Motion | None]:
    """From a frame on it goes on in another direction."""

    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        frame, angle = inside(motion, 0.6), np.radians(degrees)
        position, rotation = np.array(motion.root_pos), np.array(motion.root_rot)
        position[frame:] = position[frame] + rotations.rotate_about_vertical(position[frame:] - position[frame], angle)
        rotation[frame:] = rotations.rotate_yaw(rotation[frame:], angle)
        return replace(motion, root_pos=position, root_rot=rotation)

    return spoil


def root_flip(degrees: float) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        angle = np.radians(degrees)
        rotation = np.array(motion.root_rot)
        rotation[inside(motion)] = rotations.multiply(
            rotation[inside(motion)], np.array([np.sin(angle / 2), 0, 0, np.cos(angle / 2)])
        )
        return replace(motion, root_rot=rotation)

    return spoil


def spike(radians: float, frames: int = 1, words: str = "knee", share: float = 0.5) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        columns = find(list(robot.joint_names), words)[:1]
        if not columns or motion.num_frames < 40:
            return None
        joints, first = np.array(motion.dof_pos), inside(motion, share)
        joints[first : first + frames, columns] += radians
        return replace(motion, dof_pos=joints)

    return spoil


def seam(motion: Motion, robot: Robot) -> Motion | None:
    """The second half begins at another phase: all joints change at once, the root goes on."""
    middle = motion.num_frames // 2
    rest = motion.dof_pos[middle:]
    best = max(
        range(2, min(40, len(rest) - 4)), key=lambda k: float(np.abs(rest[k] - motion.dof_pos[middle - 1]).max()), default=0
    )
    if not best or np.abs(rest[best] - motion.dof_pos[middle - 1]).max() < 0.6:
        return None
    joints = np.concatenate([motion.dof_pos[:middle], rest[best:]])
    return replace(motion, dof_pos=joints, root_pos=motion.root_pos[: len(joints)], root_rot=motion.root_rot[: len(joints)])


def jitter(radians: float) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        noise = np.random.default_rng(0).normal(size=motion.dof_pos.shape) * radians
        # What is lost in the movement itself is no jitter.
        return replace(motion, dof_pos=motion.dof_pos + noise) if radians * motion.fps > 1.5 * swing(motion) else None

    return spoil


def jitter_in_part(radians: float) -> Callable[[Motion, Robot], Motion | None]:
    """From 30 to 60 % of the clip."""

    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        first, last = (round(share * motion.num_frames) for share in (0.3, 0.6))
        joints = np.array(motion.dof_pos)
        joints[first:last] += np.random.default_rng(1).normal(size=joints[first:last].shape) * radians
        return replace(motion, dof_pos=joints) if last - first > 0.7 * motion.fps else None

    return spoil


def root_jitter(metres: float, radians: float) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        rng = np.random.default_rng(2)
        position = motion.root_pos + rng.normal(size=motion.root_pos.shape) * metres
        turns = np.concatenate([rng.normal(size=position.shape) * radians / 2, np.ones((len(position), 1))], axis=1)
        return replace(motion, root_pos=position, root_rot=rotations.multiply(motion.root_rot, rotations.normalize(turns)))

    return spoil


def calm_freeze(noise: float) -> Callable[[Motion, Robot], Motion | None]:
    """The last third is the frame before it, entered where the joints move the least."""

    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        rate = np.abs(np.diff(motion.dof_pos, axis=0)).max(axis=1) * motion.fps
        second = np.sort(np.abs(np.diff(motion.dof_pos, axis=0)), axis=1)[:, -2] * motion.fps
        choice = [i for i in range(len(rate) // 3, len(rate) // 2) if rate[i] > 0.6 and second[i] > 0.3]
        if not choice:
            return None
        frame = min(choice, key=lambda i: rate[i]) + 1
        rng = np.random.default_rng(4)

        def hold(values: Array) -> Array:
            held = np.repeat(values[frame : frame + 1], len(values) - frame, axis=0)
            return np.concatenate([values[:frame], held + rng.normal(size=held.shape) * noise])

        return replace(motion, root_pos=hold(motion.root_pos), root_rot=hold(motion.root_rot), dof_pos=hold(motion.dof_pos))

    return spoil


def fixed_root(motion: Motion, robot: Robot) -> Motion | None:
    """The root stops halfway, and the joints go on."""
    half = inside(motion)
    if np.linalg.norm(motion.root_pos[half + 1] - motion.root_pos[half]) * motion.fps < 0.1:
        return None
    position, rotation = np.array(motion.root_pos), np.array(motion.root_rot)
    position[half:], rotation[half:] = position[half], rotation[half]
    return replace(motion, root_pos=position, root_rot=rotation)


def frozen(*, tail: bool, seconds: float = 0.8) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        first, count = inside(motion), max(3, round(seconds * motion.fps))
        rate = np.sort(np.abs(motion.dof_pos[first + 1] - motion.dof_pos[first]))[::-1] * motion.fps
        if rate[0] < 2.0 or rate[1] < 0.5:
            return None

        def hold(values: Array) -> Array:
            rest = values[first + 1 :] if not tail else values[:0]
            return np.concatenate([values[: first + 1], np.repeat(values[first : first + 1], count, axis=0), rest])

        return replace(motion, root_pos=hold(motion.root_pos), root_rot=hold(motion.root_rot), dof_pos=hold(motion.dof_pos))

    return spoil


def repeated(factor: int) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        arrays = {key: np.repeat(getattr(motion, key), factor, axis=0) for key in ("root_pos", "root_rot", "dof_pos")}
        return replace(motion, fps=motion.fps * factor, **arrays)

    return spoil


def resampled_by_repetition(motion: Motion, robot: Robot) -> Motion | None:
    rows = np.floor(np.arange(int(motion.num_frames * 5 / 3)) * 3 / 5).astype(int)
    arrays = {key: getattr(motion, key)[rows] for key in ("root_pos", "root_rot", "dof_pos")}
    return replace(motion, fps=motion.fps * 5 / 3, **arrays)


def unsolved(frames: int) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        position, joints = np.array(motion.root_pos), np.array(motion.dof_pos)
        position[:frames, 0] += np.linspace(3.0, 1.5, frames)
        joints[:frames] = 0.0
        return replace(motion, root_pos=position, dof_pos=joints)

    return spoil


def norms(factor: float) -> Callable[[Motion, Robot], Motion | None]:
    return lambda motion, robot: replace(motion, root_rot=motion.root_rot * factor)


def rising(metres: float) -> Callable[[Motion, Robot], Motion | None]:
    """A drift of the recording by a share of the robot's height."""

    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        total = metres * 0.5 * sum(robot.height_range)
        return replace(motion, root_pos=motion.root_pos + np.linspace(0.0, total, motion.num_frames)[:, None] * [0, 0, 1])

    return spoil


def lies(motion: Motion, robot: Robot) -> Motion | None:
    """The robot lies on its front throughout."""
    return replace(motion, root_rot=rotations.multiply(motion.root_rot, np.array([0.0, HALF, 0.0, HALF])))


def backflip(motion: Motion, robot: Robot) -> Motion | None:
    count = round(0.6 * motion.fps)
    if motion.num_frames < 3 * count:
        return None
    start = motion.num_frames // 2 - count // 2
    seconds = np.arange(count) / motion.fps
    angle = -2.0 * np.pi * np.arange(count) / count
    quat = np.stack([np.zeros(count), np.sin(angle / 2), np.zeros(count), np.cos(angle / 2)], axis=1)
    rotation, position = np.array(motion.root_rot), np.array(motion.root_pos)
    rotation[start : start + count] = rotations.multiply(rotation[start : start + count], quat)
    position[start : start + count, 2] += 4.905 * seconds * (seconds[-1] - seconds)
    return replace(motion, root_pos=position, root_rot=rotation)


def hops(motion: Motion, robot: Robot) -> Motion | None:
    """Flights of half a second, a second apart."""
    phase = np.mod(np.arange(motion.num_frames) / motion.fps, 1.0)
    rise = np.where(phase < 0.5, 4.905 * phase * (0.5 - phase), 0.0)
    return replace(motion, root_pos=motion.root_pos + rise[:, None] * [0, 0, 1])


def drops_in(motion: Motion, robot: Robot) -> Motion | None:
    count = round(0.3 * motion.fps)
    position = np.array(motion.root_pos)
    position[:count, 2] += 0.5 * 0.5 * sum(robot.height_range) * (1.0 - np.linspace(0.0, 1.0, count) ** 2)
    return replace(motion, root_pos=position)


def shifted_zero(words: str, radians: float) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        columns = find(list(robot.joint_names), words)[:1]
        if not columns:
            return None
        joints = np.array(motion.dof_pos)
        joints[:, columns] += radians
        return replace(motion, dof_pos=joints)

    return spoil


def still_joint(words: str) -> Callable[[Motion, Robot], Motion | None]:
    def spoil(motion: Motion, robot: Robot) -> Motion | None:
        """A joint that the retargeter did not map."""
        columns = find(list(robot.joint_names), words)
        if not columns or np.ptp(motion.dof_pos[:, columns[0]]) < 0.2:
            return None
        joints, column = np.array(motion.dof_pos), columns[0]
        joints[:, column] = np.median(joints[:, column])
        return replace(motion, dof_pos=joints)

    return spoil


def far_joint(motion: Motion, robot: Robot) -> Motion | None:
    """An ankle that is measured from another zero, beyond its limits throughout."""
    columns = find(list(robot.joint_names), "ankle")[:1]
    if not columns or not np.isfinite(robot.joint_range[columns]).all():
        return None
    joints = np.array(motion.dof_pos)
    joints[:, columns] += robot.joint_range[columns[0], 1] - joints[:, columns].min() + 0.4
    return replace(motion, dof_pos=joints)


READINGS = {
    "wxyz": Fault("wxyz", ("quaternion_order",), lambda m, r: replace(m, root_rot=rotations.to_wxyz(m.root_rot))),
    "inverse of a clip along y": Fault("", ("inverse_rotation", "heading"), inverted(90)),
    "inverse of a clip along -x": Fault("", ("inverse_rotation", "heading"), inverted(200)),
    "heading 90": Fault("", ("heading", "inverse_rotation"), heading(90)),
    "heading -90": Fault("", ("heading", "inverse_rotation"), heading(-90)),
    "heading 180": Fault("", ("heading", "inverse_rotation", "quaternion_order"), heading(180)),
    "heading 60": Fault("", ("heading",), heading(60)),
    "heading 135": Fault("", ("heading",), heading(135)),
    "heading -120": Fault("", ("heading",), heading(-120)),
    "heading 30": Fault("", ("heading",), heading(30)),
    "y up, body z": Fault("", ("y_up",), y_up(both=False)),
    "y up": Fault("", ("y_up",), y_up(both=True)),
    "y up as (y, z, x)": Fault("", ("y_up",), lambda m, r: replace(m, root_pos=m.root_pos[:, [1, 2, 0]])),
    "centimetres": Fault("", ("unit",), scaled(100.0)),
    "millimetres": Fault("", ("unit",), scaled(1000.0)),
    "inches": Fault("", ("unit",), scaled(1 / 0.0254)),
    "feet": Fault("", ("unit",), scaled(1 / 0.3048)),
    "decimetres": Fault("", ("unit",), scaled(10.0)),
    "degrees": Fault("", ("degrees",), lambda m, r: replace(m, dof_pos=np.degrees(m.dof_pos))),
    "right side first": Fault("", ("joint_order", "sides"), reorder(lambda n: [n.index(partner(name)) for name in n])),
    "alphabetical": Fault("", ("joint_order",), reorder(lambda n: sorted(range(len(n)), key=lambda i: n[i]))),
    "reversed": Fault("", ("joint_order",), reorder(lambda n: list(range(len(n)))[::-1])),
    "breadth first": Fault("", ("joint_order",), reorder(lambda n: breadth_first(n))),
    "rolled by one": Fault("", ("joint_order",), reorder(lambda n: [len(n) - 1, *range(len(n) - 1)])),
    "one knee's sign": Fault("", ("joint_sign",), signed("knee", both=False)),
    "both knees' sign": Fault("", ("joint_sign",), signed("knee", both=True)),
    "one hip pitch's sign": Fault("", ("joint_sign",), signed("hip_pitch", both=False)),
    "both hip pitches' sign": Fault("", ("joint_sign", "joint_order"), signed("hip_pitch", both=True)),
    "one ankle's sign": Fault("", ("joint_sign",), signed("ankle_pitch", both=False)),
    "knees exchanged": Fault("", ("sides", "joint_order"), exchanged("knee")),
    "knees and ankles exchanged": Fault("", ("sides",), exchanged("knee", "ankle")),
    "knees for ankles": Fault("", ("joint_order",), in_place_of("knee", "ankle")),
    "hip pitches exchanged": Fault("", ("sides", "joint_order"), exchanged("hip_pitch")),
}


def breadth_first(names: list[str]) -> list[int]:
    """Left and right of each joint beside one another, as far as names tell."""
    order: list[int] = []
    for i, name in enumerate(names):
        for k in (i, names.index(partner(name)) if partner(name) in names else i):
            if k not in order:
                order.append(k)
    return order


NUMBERS = {
    "root jump 25 cm": Fault("", ("root_jump",), root_jump(0.25)),
    "root jump 12 cm, early": Fault("", ("root_jump",), root_jump(0.12, 0.25)),
    "root blip 8 cm": Fault("", ("root_jump",), root_blip(0.08)),
    "root out by 15 cm for 8 frames": Fault("", ("root_jump",), root_blip(0.15, 8)),
    "root flip 40 degrees": Fault("", ("root_flip",), root_flip(40)),
    "root flip 170 degrees": Fault("", ("root_flip",), root_flip(170)),
    "heading turns by 60 degrees": Fault("", ("root_flip", "heading"), turns_at_once(60)),
    "knee spike 1 rad": Fault("", ("joint_spike",), spike(1.0)),
    "knee spike 0.5 rad": Fault("", ("joint_spike",), spike(0.5)),
    "knee spike 0.8 rad, 3 frames": Fault("", ("joint_spike",), spike(0.8, 3)),
    "knee out by 1 rad for 10 frames": Fault("", ("joint_spike",), spike(1.0, 10)),
    "hip spike 0.35 rad, 2 frames": Fault("", ("joint_spike",), spike(0.35, 2, "hip_pitch")),
    "ankle spike 0.6 rad, late": Fault("", ("joint_spike",), spike(0.6, 1, "ankle", 0.8)),
    "seam": Fault("", ("joint_spike",), seam),
    "jitter 0.1 rad": Fault("", ("jitter",), jitter(0.1)),
    "jitter 0.05 rad": Fault("", ("jitter",), jitter(0.05)),
    "jitter 0.05 rad in part": Fault("", ("jitter",), jitter_in_part(0.05)),
    "root trembles by 2 cm": Fault("", ("jitter", "root_jump"), root_jitter(0.02, 0.0)),
    "root trembles by 0.1 rad": Fault("", ("jitter",), root_jitter(0.0, 0.1)),
    "frozen at a calm moment": Fault("", ("frozen_tail",), calm_freeze(0.0)),
    "frozen with noise": Fault("", ("frozen_tail",), calm_freeze(1e-6)),
    "the root stops": Fault("", ("frozen", "clip_feet_slide"), fixed_root),
    "frozen tail": Fault("", ("frozen_tail",), frozen(tail=True)),
    "frozen in the middle": Fault("", ("frozen",), frozen(tail=False)),
    "every frame twice": Fault("", ("duplicate_frames",), repeated(2)),
    "every frame four times": Fault("", ("duplicate_frames",), repeated(4)),
    "three frames for five": Fault("", ("duplicate_frames",), resampled_by_repetition),
    "one unsolved frame": Fault("", ("leading_frames_dropped",), unsolved(1)),
    "three unsolved frames": Fault("", ("leading_frames_dropped",), unsolved(3)),
    "norm 0.983": Fault("", ("quaternions_normalized",), norms(0.983)),
    "an ankle from another zero": Fault("", ("joint_zero", "joints_beyond_limits"), far_joint),
    "a knee from another zero": Fault("", ("joint_zero",), shifted_zero("knee", 0.8)),
    "an ankle's zero off by 0.7 rad": Fault("", ("joint_zero",), shifted_zero("ankle_pitch", 0.7)),
}
KINDS = {
    "path twice as long": Fault("", ("clip_feet_slide",), path(2.0)),
    "path half as long": Fault("", ("clip_feet_slide",), path(0.5)),
    "drifts up": Fault("", ("ground_not_flat",), rising(0.3)),
    "drifts down": Fault("", ("ground_not_flat",), rising(-0.3)),
    "lies": Fault("", ("clip_not_upright", "root_frame"), lies),
    "backflip": Fault("", ("clip_not_upright",), backflip),
    "hops": Fault("", ("flight",), hops),
    "drops in": Fault("", ("starts_in_air",), drops_in),
    "a knee never moves": Fault("", ("joint_still",), still_joint("knee")),
    "a hip pitch never moves": Fault("", ("joint_still",), still_joint("hip_pitch")),
    "an ankle never moves": Fault("", ("joint_still",), still_joint("ankle_pitch")),
}
FAULTS: dict[str, Fault] = {name: replace(fault, name=name) for name, fault in (READINGS | NUMBERS | KINDS).items()}


def spoiled(name: str, motion: Motion, robot: Robot) -> Motion | None:
    motion = replace(motion, root_rot=rotations.normalize(motion.root_rot))
    return FAULTS[name].spoil(motion, robot)


__all__: list[Any] = ["FAULTS", "Fault", "spoiled", "turned"]
