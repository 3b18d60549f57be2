"""Making a variant of a clip: its motion, its file's bytes and its lineage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from amp_core import rotations
from amp_core.augment.augmentation import Augmentation
from amp_core.augment.cutting import cut_motion
from amp_core.augment.encoding import MAX_NAME_BYTES, motion_bytes
from amp_core.augment.level import level
from amp_core.augment.loop import Seam, loop
from amp_core.augment.poses import Poses
from amp_core.augment.recordings import augment_recording
from amp_core.augment.symmetry import mirror
from amp_core.digests import digest_of
from amp_core.errors import MotionRefused
from amp_core.formats.clip import Motion
from amp_core.lineage import Lineage
from amp_core.motion.joint_order import reorder_joints
from amp_core.motion.report import FirstFrame
from amp_core.motion.resampling import interpolate, interpolate_rotations, resampled_count
from amp_core.robot import Robot


@dataclass(frozen=True, eq=False)
class Variant:
    """A variant, its file's bytes (an npz that `read_motion` reads back as `motion`), and the loop's seam if there is one."""

    motion: Motion
    data: bytes
    augmentation: Augmentation
    seam: Seam | None


def augment(motion: Motion, robot: Robot, augmentation: Augmentation) -> Motion:
    """The motion of a variant; `make_variant` also gives its bytes and its seam. The same input gives the same bytes.

    Raises:
      InputRefused: the robot has no left-right symmetry (names the joint or foot that fails).
      MotionRefused: the clip has other joints than the robot, or no seam good enough to loop.
    """
    return make_variant(motion, robot, augmentation).motion


def make_variant(motion: Motion, robot: Robot, augmentation: Augmentation) -> Variant:
    """A variant of a motion, as `augment`, with its bytes and its seam."""
    if augmentation.cut is not None:
        start, stop = augmentation.cut
        if stop > motion.num_frames:
            raise MotionRefused(
                f"it has {motion.num_frames} frames, which {augmentation.text} does not fit",
                file=motion.name,
                key="augmentation",
                expected=f"cut=A:B with B at most {motion.num_frames}",
            )
        part = cut_motion(motion, start, stop)
        return Variant(part.motion, part.data, augmentation, None)
    motion, _ = reorder_joints(motion, robot)
    poses = Poses(np.array(motion.root_pos), rotations.normalize(motion.root_rot), np.array(motion.dof_pos))
    seam = None
    if augmentation.level or augmentation.time_warp != 1.0 or augmentation.loop > 1:
        # Interpolation would spread a glitched first frame over its neighbours, where conditioning no longer sees it.
        poses = poses._replace(root_rot=rotations.align_signs(poses.root_rot)[0])
        if poses.num_frames > (leading := FirstFrame.of(motion, poses.root_rot).frames) + 1:
            poses = poses.frames(leading)
    if augmentation.level:
        poses = level(poses, motion.fps, robot, motion.name)
    if augmentation.mirror:
        poses = mirror(poses, robot)
    if augmentation.time_warp != 1.0:
        poses = warp_time(poses, augmentation.time_warp, motion.name)
    if augmentation.loop > 1:
        poses, seam = loop(poses, augmentation.loop, augmentation.blend, motion.fps, robot, motion.name)
    if augmentation.heading != 0.0:
        angle = math.radians(augmentation.heading)
        poses = Poses(
            rotations.rotate_about_vertical(poses.root_pos, angle, poses.root_pos[0]),
            rotations.rotate_yaw(poses.root_rot, angle),
            poses.dof_pos,
        )
    lineage = Lineage(motion.source_digest, motion.ancestor, augmentation.text)
    recording = augment_recording(motion, robot, augmentation)
    data = motion_bytes(motion.fps, *poses, lineage=lineage, seam=seam, joint_names=motion.joint_names, recording=recording)
    digest = digest_of(data)
    name = variant_name(motion.name, augmentation)
    variant = Motion(
        name,
        motion.fps,
        *poses,
        source_digest=digest,
        source_format="npz",
        lineage=lineage,
        joint_names=motion.joint_names,
        recording=recording,
    )
    return Variant(variant, data, augmentation, seam)


def warp_time(poses: Poses, factor: float, name: str) -> Poses:
    """The poses at `factor` times their speed and at their own rate: frame k is the source at frame k · factor.

    Raises:
      MotionRefused: fewer than two frames would be left; names the clip.
    """
    count = resampled_count(poses.num_frames, factor, 1.0)
    if count < 2:
        raise MotionRefused("too short to be played faster", file=name, key="root_pos", expected="at least 3 frames")
    times = np.minimum(np.arange(count) * factor, poses.num_frames - 1)
    return Poses(
        interpolate(poses.root_pos, times), interpolate_rotations(poses.root_rot, times), interpolate(poses.dof_pos, times)
    )


def variant_name(name: str, augmentation: Augmentation) -> str:
    """`walk` and `mirror` give `walk+mirror`; a long name is cut so that the result has at most 120 bytes."""
    tail = f"+{augmentation.text}"
    return name.encode()[: MAX_NAME_BYTES - len(tail)].decode(errors="ignore").rstrip() + tail
