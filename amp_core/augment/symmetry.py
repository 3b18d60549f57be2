"""The mirror image of a clip, by the robot's left-right symmetry.

A reflection M = diag(1, -1, 1) turns a rotation about an axis `a` into one about `-M a` by the same angle. So a joint's
partner is the joint whose axis lies on the mirrored line, at the same place in the tree, and its sign says whether the
partner's axis points along `-M a` or against it. A hinge may be anchored anywhere on its axis: lines are compared, not anchors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.augment.poses import Array, Poses
from amp_core.errors import InputRefused
from amp_core.kinematics import foot_centres, iterate_poses
from amp_core.robot import Robot

SYMMETRY_REACH = 0.02
"""How far a mirrored foot or joint axis may lie from its partner, as a share of the reach from root to foot."""
SYMMETRY_ANGLE = math.radians(3.0)

_REFLECTION = np.array([1.0, -1.0, 1.0])
_TIE = 0.1  # of the two limits together
_CHECKED_POSES = 16
_CHECKED_FRAMES = 32


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

    def mirror_joints(self, dof_pos: Array) -> Array:
        """(N, n) rad mirrored."""
        result = np.empty_like(dof_pos)
        result[:, self.partner] = self.offset[self.partner] + self.sign * (dof_pos - self.offset)
        return result


def mirror(poses: Poses, robot: Robot) -> Poses:
    """The mirror image about the world's xz plane.

    Raises:
      InputRefused: the robot has no left-right symmetry; names the joint or foot without a partner.
    """
    symmetry = symmetry_of(robot)
    frames = np.unique(np.linspace(0, poses.num_frames - 1, _CHECKED_FRAMES).astype(np.int64))
    _check_feet(robot, symmetry, poses.dof_pos[frames])
    return Poses(poses.root_pos * _REFLECTION, rotations.mirror_y(poses.root_rot), symmetry.mirror_joints(poses.dof_pos))


def symmetry_of(robot: Robot) -> Symmetry:
    """The robot's left-right symmetry, read off its model and checked by forward kinematics.

    Raises:
      InputRefused: a joint or foot without a partner; names it and how far off the nearest one is.
    """
    model = robot.model
    offset = np.array(model.qpos0[robot.qpos_adr], dtype=np.float64)
    reference_pose = _upright_poses(robot, offset[None])
    data = next(iterate_poses(model, reference_pose))
    reach = max(float(np.linalg.norm(data.geom_xpos[geom])) for foot in robot.feet for geom in foot.geoms)
    partner, sign = _pair_joints(robot, data, SYMMETRY_REACH * reach)
    singles = [name for j, name in enumerate(robot.joint_names) if partner[partner[j]] != j]
    if singles:
        raise _asymmetry(robot, f"the joints {', '.join(singles)} do not come in pairs")
    feet = _pair_feet(robot, foot_centres(robot, reference_pose)[0], SYMMETRY_REACH * reach)
    symmetry = Symmetry(partner, sign, offset, feet, reach)
    # Signs and order are confirmed in random poses inside the limits, the same ones every time.
    low = np.maximum(robot.joint_range[:, 0], offset - 0.5)
    high = np.minimum(robot.joint_range[:, 1], offset + 0.5)
    _check_feet(robot, symmetry, low + (high - low) * np.random.default_rng(0).random((_CHECKED_POSES, len(offset))))
    return symmetry


def _pair_joints(robot: Robot, data: Any, limit: float) -> tuple[NDArray[np.int64], Array]:
    """(n,) the partner of each joint, and (n,) the sign of its angle there.

    Args:
      data: the forward kinematics of the reference pose.
      limit: m, how far a mirrored axis may lie from its partner's.
    """
    ids = [int(robot.model.joint(name).id) for name in robot.joint_names]
    anchors, axes = np.array(data.xanchor[ids]), np.array(data.xaxis[ids])
    parents = _joint_parents(robot.model, ids)
    partner, sign = np.full(len(ids), -1, np.int64), np.ones(len(ids))
    # Bodies are numbered parents first, so a joint's parent has its partner by the time that the joint is paired.
    for j in sorted(range(len(ids)), key=lambda joint: ids[joint]):
        image, axis = _REFLECTION * anchors[j], -_REFLECTION * axes[j]
        parent = -1 if parents[j] < 0 else int(partner[parents[j]])
        candidates = []
        for k in (k for k in range(len(ids)) if parents[k] == parent and k not in partner):
            from_anchor = image - anchors[k]
            distance = float(np.linalg.norm(from_anchor - (from_anchor @ axes[k]) * axes[k])) / limit
            angle = math.acos(min(1.0, abs(float(axis @ axes[k])))) / SYMMETRY_ANGLE
            candidates.append((distance + angle, max(distance, angle), float(np.linalg.norm(from_anchor)), k))
        least = min((total for total, *_ in candidates), default=math.inf)
        # Two hips may turn about one line, which is then the image of both: the anchors tell them apart.
        ties = [(gap, excess, k) for total, excess, gap, k in candidates if total <= least + _TIE]
        _, excess, k = min(ties, default=(math.inf, math.inf, -1))
        if k < 0 or excess > 1.0:
            nearest = "" if k < 0 else f": the nearest is {robot.joint_names[k]!r}, {excess:.1f} times too far"
            raise _asymmetry(robot, f"the joint {robot.joint_names[j]!r} has no mirror image{nearest}")
        partner[j], sign[j] = k, math.copysign(1.0, float(axis @ axes[k]))
    return partner, sign


def _joint_parents(model: Any, ids: list[int]) -> list[int]:
    """For each joint the index of the listed joint above it, -1 where there is none."""
    index_of = {joint: index for index, joint in enumerate(ids)}
    parents = []
    for joint in ids:
        body, parent = int(model.jnt_bodyid[joint]), -1
        while body > 0 and parent < 0:
            first, count = int(model.body_jntadr[body]), int(model.body_jntnum[body])
            above = [index_of[k] for k in range(first, first + count) if k < joint and k in index_of]
            parent = above[-1] if above else -1
            body = int(model.body_parentid[body])
        parents.append(parent)
    return parents


def _pair_feet(robot: Robot, centres: Array, limit: float) -> tuple[int, ...]:
    """For each foot the one at its mirror image, to `limit` m; `centres` (F, 3) m in the reference pose."""
    partners = []
    for foot, centre in zip(robot.feet, centres, strict=True):
        distance = np.linalg.norm(centres - _REFLECTION * centre, axis=1)
        nearest = int(np.argmin(distance))
        if distance[nearest] > limit:
            gap = f"{distance[nearest] * 1e3:.0f} mm"
            raise _asymmetry(robot, f"the foot {foot.name!r} has no mirror image: the nearest is {gap} off it")
        partners.append(nearest)
    if sorted(partners) != list(range(len(partners))):
        raise _asymmetry(robot, "its feet do not come in pairs")
    return tuple(partners)


def _check_feet(robot: Robot, symmetry: Symmetry, dof_pos: Array) -> None:
    """Refuses a symmetry whose mirrored joints (M, n) do not put the feet at the mirror images of these joints' feet."""
    limit = SYMMETRY_REACH * symmetry.reach
    images = _REFLECTION * foot_centres(robot, _upright_poses(robot, dof_pos))
    centres = foot_centres(robot, _upright_poses(robot, symmetry.mirror_joints(dof_pos)))[:, list(symmetry.feet)]
    for errors in np.linalg.norm(centres - images, axis=2):
        if errors.max() > limit:
            foot = robot.feet[int(np.argmax(errors))].name
            raise _asymmetry(
                robot,
                f"in a mirrored pose the foot {foot!r} is {errors.max() * 1e3:.0f} mm off its image (limit {limit * 1e3:.0f})",
            )


def _upright_poses(robot: Robot, dof_pos: Array) -> Array:
    """(M, nq) the poses with these joint angles (M, n) and the root upright at the origin."""
    return robot.poses(np.zeros((len(dof_pos), 3)), np.tile([0.0, 0.0, 0.0, 1.0], (len(dof_pos), 1)), dof_pos)


def _asymmetry(robot: Robot, problem: str) -> InputRefused:
    return InputRefused(
        f"the robot {robot.name!r} has no left-right symmetry: {problem}",
        key="mirror",
        expected="joints and feet in pairs about the root's xz plane (x forward, z up)",
        remedy="Leave out the mirror for this robot, or mend its model",
    )
