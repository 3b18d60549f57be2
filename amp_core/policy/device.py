"""Observations, features and contact estimates in JAX: batched, under `jit` and `vmap`.

Contacts without a measurement are estimated by forward kinematics. The height of a point p of a body is `h + u·p`, with h the
height of the body's origin and u the up direction in the body's frame: four numbers a body, carried down the
MJCF's tree. All of it is written as sums of products instead of matrix products, which accelerators round to fewer bits.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import numpy.typing as npt

from amp_core import features as reference
from amp_core.policy.config import AMPFeatureConfig, select_columns
from amp_core.policy.host import check_action, check_state
from amp_core.policy.tree import ROOT, Sole, Vector

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError(
        "amp_core.policy needs JAX, which is not installed: pip install '.[train]' in the checkout that ampref came from, "
        "or its wheel with [train]"
    ) from error

Array = jax.Array
Components = tuple[Array, Array, Array]


# --- Features -------------------------------------------------------------------------------------------------------------


def extract_amp_features(
    obs: npt.ArrayLike,
    config: AMPFeatureConfig,
    root_height: npt.ArrayLike,
    prev_joint_pos: npt.ArrayLike | None,
    dt: float | Array,
    foot_contacts_override: npt.ArrayLike | None = None,
    use_obs_joint_vel: bool = False,
) -> Array:
    """A policy's AMP features, (…, F) float32 in `config.layout`: the canonical layout where no option is set.

    Under `jit`, `config` and `use_obs_joint_vel` are static arguments.

    Args:
      obs: (…, D) observations, as `observe` makes them; further entries at the end are not read.
      root_height: (…,) or (…, 1) m, height of the root above the ground.
      prev_joint_pos: (…, n) rad, the joints one control step earlier; needed by finite differences alone, else None.
      dt: s, the control step; needed by finite differences alone.
      foot_contacts_override: (…, C) 0 or 1, measured contacts. None: those of `estimate_contacts`, which break parity.
      use_obs_joint_vel: True: joint velocities are the observed ones, the true `qvel`. False: their mean over the step,
        (joint_pos − prev_joint_pos) / dt, for references that were made like that; it breaks parity with this project's.

    Raises:
      ValueError: shapes that do not fit together.
    """
    obs = jnp.asarray(obs, jnp.float32)
    layout, lead = config.obs, _leading_axes(obs, config)
    joint_pos = obs[..., layout.joint_pos]
    if use_obs_joint_vel:
        joint_vel = obs[..., layout.joint_vel]
    else:
        if prev_joint_pos is None:
            raise ValueError("prev_joint_pos is None, but finite differences need it; give it, or use_obs_joint_vel=True")
        if isinstance(dt, int | float) and not dt > 0:
            raise ValueError(f"dt is {dt}; expected the control step in seconds, a positive number")
        prev = _as_shape("prev_joint_pos", prev_joint_pos, (*lead, len(config.joint_names)), lead)
        joint_vel = (joint_pos - prev) / dt
    height = _as_height(root_height, lead)
    if foot_contacts_override is not None:
        contacts = _as_shape("foot_contacts_override", foot_contacts_override, (*lead, len(config.channels)), lead)
    elif config.drop_contacts:
        contacts = jnp.zeros((*lead, len(config.channels)), jnp.float32)  # `select` drops them.
    else:
        contacts = estimate_contacts(obs, config, height)
    root = (obs[..., layout.root_lin_vel], obs[..., layout.root_ang_vel], height[..., None])
    return config.select(jnp.concatenate([joint_pos, joint_vel, *root, contacts], axis=-1))


def estimate_contacts(obs: npt.ArrayLike, config: AMPFeatureConfig, root_height: npt.ArrayLike) -> Array:
    """(…, C) float32, 1 where a channel's lowest point is below `config.contact_height`, else 0; by forward kinematics.

    Args:
      obs: (…, D) observations; the up direction and the joints' angles are read.
      root_height: (…,) or (…, 1) m.

    Raises:
      ValueError: shapes that do not fit together.
    """
    return (channel_heights(obs, config, root_height) < config.contact_height).astype(jnp.float32)


def channel_heights(obs: npt.ArrayLike, config: AMPFeatureConfig, root_height: npt.ArrayLike) -> Array:
    """(…, C) m: the height of each channel's lowest point above the ground z = 0; arguments as of `estimate_contacts`."""
    obs = jnp.asarray(obs, jnp.float32)
    height = _as_height(root_height, _leading_axes(obs, config))
    angles = obs[..., config.obs.joint_pos]
    # For the root and every link: the height of its origin, and the up direction in its frame.
    frames: dict[int, tuple[Array, Components]] = {ROOT: (height, _components(obs[..., config.obs.up]))}
    for index, link in enumerate(config.links):
        origin, up = frames[link.parent]
        origin = origin + _dot(up, link.offset)
        up = _change_frame(up, link.rotation)
        rotated_up = _rotate_back(up, link.axis, angles[..., link.joint] - np.float32(link.ref))
        # The anchor keeps its place while the body rotates about it.
        origin = origin + _dot(up, link.anchor) - _dot(rotated_up, link.anchor)
        frames[index] = (origin, rotated_up)
    lowest = [[_lowest_point(sole, *frames[sole.link]) for sole in soles] for soles in config.soles]
    return jnp.stack([reduce(jnp.minimum, heights) for heights in lowest], axis=-1)


def _lowest_point(sole: Sole, origin: Array, up: Components) -> Array:
    """(…,) m: the height of a geom's lowest point: the height of its center, less how far the geom reaches down from there."""
    center = origin + _dot(up, sole.center)
    x, y, z = _change_frame(up, sole.axes)
    first, second, third = (np.float32(size) for size in sole.size)
    match sole.kind:
        case "box":
            reach = first * jnp.abs(x) + second * jnp.abs(y) + third * jnp.abs(z)
        case "sphere":
            reach = jnp.full_like(center, first)
        case "capsule":
            reach = first + second * jnp.abs(z)
        case "cylinder":
            reach = first * jnp.sqrt(x * x + y * y) + second * jnp.abs(z)
        case "ellipsoid":
            reach = jnp.sqrt((first * x) ** 2 + (second * y) ** 2 + (third * z) ** 2)
        case "points":
            p = jnp.array(sole.points, jnp.float32)
            reach = -(p[:, 0] * x[..., None] + p[:, 1] * y[..., None] + p[:, 2] * z[..., None]).min(axis=-1)
        case _:
            raise ValueError(f"the sole's kind is {sole.kind!r}; expected box, sphere, capsule, cylinder, ellipsoid or points")
    return center - reach


def _dot(up: Components, vector: Vector) -> Array:
    """(…,) products with a constant vector; its zero components cost nothing."""
    terms = [np.float32(value) * component for component, value in zip(up, vector, strict=True) if value != 0.0]
    return reduce(lambda total, term: total + term, terms) if terms else jnp.zeros_like(up[0])


def _change_frame(up: Components, axes: tuple[Vector, Vector, Vector]) -> Components:
    """A direction in the frame whose axes are the columns of this matrix."""
    x, y, z = (_dot(up, column) for column in zip(*axes, strict=True))
    return x, y, z


def _rotate_back(up: Components, axis: Vector, angle: Array) -> Components:
    """A fixed direction in the frame of a body that rotated by `angle` about `axis`: Rodrigues with the sign reversed."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    along = _dot(up, axis) * (1 - cos)
    a, b, c = axis
    cross = (_dot(up, (0.0, -c, b)), _dot(up, (c, 0.0, -a)), _dot(up, (-b, a, 0.0)))
    x, y, z = (up[i] * cos - cross[i] * sin + (np.float32(axis[i]) * along if axis[i] else 0.0) for i in range(3))
    return x, y, z


def _as_height(root_height: npt.ArrayLike, lead: tuple[int, ...]) -> Array:
    """(…,) root heights, from (…,) or (…, 1)."""
    height = jnp.asarray(root_height, jnp.float32)
    if height.shape == (*lead, 1):
        return height[..., 0]
    return _as_shape("root_height", height, lead, lead)


def _as_shape(name: str, value: npt.ArrayLike, shape: tuple[int, ...], lead: tuple[int, ...]) -> Array:
    array = jnp.asarray(value, jnp.float32)
    if array.shape != shape:
        raise ValueError(f"{name} is {array.shape}; expected {shape}, as the leading axes of obs are {lead}")
    return array


def _leading_axes(obs: Array, config: AMPFeatureConfig) -> tuple[int, ...]:
    """The leading axes of observations that have all entries that are read."""
    layout = config.obs
    if obs.ndim == 0 or obs.shape[-1] < layout.joint_vel.stop:
        n = layout.joints
        raise ValueError(
            f"obs is {obs.shape}; expected (…, {layout.dim}), or at least {layout.joint_vel.stop} entries: up 3, root angular "
            f"velocity 3, root linear velocity 3, joint positions {n}, joint velocities {n}; then the previous action"
        )
    return obs.shape[:-1]


# --- Observations ---------------------------------------------------------------------------------------------------------


def observe(
    config: AMPFeatureConfig, qpos: npt.ArrayLike, qvel: npt.ArrayLike, prev_action: npt.ArrayLike | None = None
) -> Array:
    """Observations (…, 9+2n+nu) float32 of simulator states, as training makes them: in JAX, under `jit` and `vmap`.

    Args:
      qpos: (…, nq) of `mjData` or of mjx; the root's quaternion is wxyz there, of any length but zero.
      qvel: (…, nv); the root's linear velocity is in the world frame, its angular velocity in the **body** frame.
      prev_action: (…, nu) the action that led to this state; None for zeros.

    Raises:
      ValueError: shapes that do not fit together.
    """
    pos, vel = jnp.asarray(qpos), jnp.asarray(qvel)
    lead = check_state(config, pos.shape, vel.shape)
    action = jnp.zeros((*lead, config.nu), jnp.float32) if prev_action is None else jnp.asarray(prev_action, jnp.float32)
    check_action(config, action.shape, lead)
    root_q, root_v = config.root_qpos_adr, config.root_qvel_adr
    matrix = _matrix_rows(pos[..., root_q + 3 : root_q + 7])
    linear, body_angular = _components(vel[..., root_v : root_v + 3]), _components(vel[..., root_v + 3 : root_v + 6])
    angular = tuple(row[0] * body_angular[0] + row[1] * body_angular[1] + row[2] * body_angular[2] for row in matrix)
    cos, sin = _heading(matrix)
    in_heading = [(cos * v[0] + sin * v[1], cos * v[1] - sin * v[0], v[2]) for v in (angular, linear)]
    root = jnp.stack([*matrix[2], *in_heading[0], *in_heading[1]], axis=-1)
    joints = [select_columns(pos, config.joint_qpos_adr), select_columns(vel, config.joint_qvel_adr)]
    return jnp.concatenate([part.astype(jnp.float32) for part in (root, *joints, action)], axis=-1)


def _components(vector: Array) -> Components:
    return vector[..., 0], vector[..., 1], vector[..., 2]


def _matrix_rows(quat_wxyz: Array) -> tuple[Components, Components, Components]:
    """The rows of the rotation matrices, body to world, of (…, 4) quaternions: nine arrays (…,)."""
    q = quat_wxyz / jnp.sqrt((quat_wxyz * quat_wxyz).sum(axis=-1, keepdims=True))
    w, x, y, z = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


def _heading(matrix: tuple[Components, Components, Components]) -> tuple[Array, Array]:
    """cos and sin of the yaw: `features.heading_direction` in JAX."""
    # Its threshold for a vertical x axis has a private name there, because that file's bytes are the feature code's hash.
    vertical = jnp.hypot(matrix[0][0], matrix[1][0]) < reference._GIMBAL
    sign = -jnp.sign(matrix[2][0])
    x = jnp.where(vertical, sign * matrix[0][2], matrix[0][0])
    y = jnp.where(vertical, sign * matrix[1][2], matrix[1][0])
    length = jnp.sqrt(x * x + y * y)
    return x / length, y / length
