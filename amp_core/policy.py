"""The policy side: the features that training computes from a policy's observations, in JAX.

The reference side is `amp_core.features`: numpy, float64, one rounding. This module makes the same numbers where a policy runs:
batched, under `jit` and `vmap`, from an observation. `observe` builds the observation from a simulator's state, and
`extract_amp_features` assembles features from it. docs/policy.md is the contract between the two sides.

    config = AMPFeatureConfig.for_robot(robot)                  # frozen and hashable: a static argument of jit
    obs = observe(config, qpos, qvel, prev_action)
    features = extract_amp_features(obs, config, root_height, prev_joint_pos, dt, foot_contacts, use_obs_joint_vel=True)

Frames. The heading frame is that of `amp_core.features`: the world turned about z by the direction of the root's x axis. The up
direction is the world's z axis in the root's own frame, (0, 0, 1) when the robot stands upright; gravity points the other way.

No simulator takes part in it. Contacts that nobody measured are estimated by forward kinematics. Only heights are asked for,
and the height of a point p of a body is `h + u·p`, with h the height of the body's origin and u the up direction in the body's
frame: four numbers a body, which `_descend` carries from the root down the MJCF's tree. All of it is written as sums of
products and never as a matrix product, which accelerators would round to fewer bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from amp_core import features as reference
from amp_core.dataset import ColumnStats
from amp_core.engine import mujoco
from amp_core.features import FeatureLayout

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:  # pragma: no cover - the test suite has JAX
    raise ImportError(
        "amp_core.policy needs JAX, which is not installed: pip install '.[train]' in the checkout that ampref came from, "
        "or its wheel with [train]"
    ) from error

if TYPE_CHECKING:
    from amp_core.robot import Robot

__all__ = [
    "CONTACT_HEIGHT",
    "AMPFeatureConfig",
    "ObservationLayout",
    "PolicyLayout",
    "channel_heights",
    "estimate_contacts",
    "extract_amp_features",
    "observe",
    "observe_host",
]

Array = jax.Array
Vector = tuple[float, float, float]
Components = tuple[Array, Array, Array]
AnyArray = TypeVar("AnyArray", npt.NDArray[Any], jax.Array)

CONTACT_HEIGHT = 0.0
"""m; a channel whose lowest point is below this height counts as touching.

Shapes press where they overlap, and measurement agrees: of 22 heights from −3 to 20 mm this one fits the true contacts best, on
each of two robots and in each kind of motion (docs/policy.md). A real floor is known less well and wants more.
"""

_GIMBAL = reference._GIMBAL
_ROOT = -1
_STATS_ROWS = 1 << 16


# --- Layouts --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObservationLayout:
    """Where what the extractor reads is in an observation. Training may append more (commands, a phase): it is not read.

    Args:
      joints: n.
      actions: nu, the entries of the previous action.
    """

    joints: int
    actions: int

    @property
    def up(self) -> slice:
        """The world's up direction in the root's frame, a unit vector."""
        return slice(0, 3)

    @property
    def root_ang_vel(self) -> slice:
        """rad/s, heading frame."""
        return slice(3, 6)

    @property
    def root_lin_vel(self) -> slice:
        """m/s, heading frame."""
        return slice(6, 9)

    @property
    def joint_pos(self) -> slice:
        """rad, in feature order."""
        return slice(9, 9 + self.joints)

    @property
    def joint_vel(self) -> slice:
        """rad/s, in feature order."""
        return slice(9 + self.joints, 9 + 2 * self.joints)

    @property
    def prev_action(self) -> slice:
        """The action that led to this state; no feature is made of it."""
        return slice(9 + 2 * self.joints, self.dim)

    @property
    def dim(self) -> int:
        """9 + 2·n + nu: what `observe` returns."""
        return 9 + 2 * self.joints + self.actions


@dataclass(frozen=True)
class PolicyBlock:
    """One run of dimensions of a config's features.

    Args:
      name, start, stop, unit, frame, source: as in `features.FeatureBlock`; `unit` is what the number 1 means.
      canonical: (start, stop) of the same block in the canonical layout.
      maximum: every component is clipped to ± this, in the canonical unit; None where it is not.
      scale: every component is divided by this, in the canonical unit, after clipping; None where it is not.
    """

    name: str
    start: int
    stop: int
    unit: str
    frame: str
    source: str
    canonical: tuple[int, int]
    maximum: float | None = None
    scale: float | None = None

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def transform(self) -> str:
        """What is done to the canonical numbers, in order; empty for nothing."""
        steps = []
        if self.maximum is not None:
            steps.append(f"clipped to ±{self.maximum:g}")
        if self.scale is not None:
            steps.append(f"divided by {self.scale:g}")
        return ", ".join(steps)


@dataclass(frozen=True)
class PolicyLayout:
    """A config's features as data: the canonical layout, less what was dropped, with what was transformed.

    Args:
      canonical: the layout that it was made from.
      blocks: in order; they cover `0 … dim` without gaps.
      dropped: names of the canonical blocks that are left out.
    """

    canonical: FeatureLayout
    blocks: tuple[PolicyBlock, ...]
    dropped: tuple[str, ...]

    @property
    def dim(self) -> int:
        """F, the number of features."""
        return self.blocks[-1].stop

    @cached_property
    def names(self) -> tuple[str, ...]:
        """One name a dimension, as in the canonical layout."""
        return tuple(name for block in self.blocks for name in self.canonical.names[slice(*block.canonical)])

    @cached_property
    def is_canonical(self) -> bool:
        """Whether nothing is dropped and nothing transformed."""
        return not self.dropped and not any(block.transform for block in self.blocks)

    def block(self, name: str) -> PolicyBlock:
        """The block called `name`.

        Raises:
          KeyError: it was dropped, or there never was one; the message lists those there are.
        """
        for block in self.blocks:
            if block.name == name:
                return block
        what = "was dropped" if name in self.dropped else "does not exist"
        raise KeyError(f"the feature block {name!r} {what}; there are {', '.join(b.name for b in self.blocks)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the keys of `FeatureLayout.to_dict`, with `transform` in each block, and `dropped`."""
        more = [
            {"start": b.start, "stop": b.stop, "size": b.size, "unit": b.unit, "transform": b.transform} for b in self.blocks
        ]
        canonical = self.canonical.to_dict()
        by_name = {block["name"]: block for block in canonical["blocks"]}
        return canonical | {
            "dim": self.dim,
            "blocks": [by_name[block.name] | new for block, new in zip(self.blocks, more, strict=True)],
            "names": list(self.names),
            "dropped": list(self.dropped),
        }


# --- The robot, as forward kinematics needs it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """One hinge of the way from the root to a contact channel, with everything rigid before it folded in.

    Args:
      parent: index of the link that it hangs on, or −1 for the root.
      offset: m, origin of the hinge's body in the parent's frame.
      rotation: its axes in the parent's frame at the reference angle; a 3×3 matrix by rows.
      axis, anchor: of the hinge, in the body's frame; a unit vector, and m.
      joint: the joint's index in feature order.
      ref: rad, the joint's angle in the pose that the MJCF draws (`qpos0`).
    """

    parent: int
    offset: Vector
    rotation: tuple[Vector, Vector, Vector]
    axis: Vector
    anchor: Vector
    joint: int
    ref: float


@dataclass(frozen=True)
class Sole:
    """One geom of a contact channel.

    Args:
      link: index of the link that it is fixed to, or −1 for the root.
      kind: box, sphere, capsule, cylinder, ellipsoid or points.
      center: m, in the link's frame.
      axes: of the geom, in the link's frame; a 3×3 matrix whose columns are the axes, by rows.
      size: m, MuJoCo's: half lengths of a box or an ellipsoid; radius and half length of the others.
      points: m, corners of the convex hull, in the geom's frame; only of `points`.
    """

    link: int
    kind: str
    center: Vector
    axes: tuple[Vector, Vector, Vector]
    size: Vector
    points: tuple[Vector, ...] = ()


# --- The config -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AMPFeatureConfig:
    """What the policy side knows about a robot, and the options of its features. Hashable: a static argument of `jit`.

    Make one with `for_robot`. The options reduce what the discriminator sees in an early stage of training; all of them act in
    `select`, which the policy's and the reference's features go through alike.

    Args:
      robot: its name.
      joint_names: n, in feature order.
      channels: C contact channels, in feature order.
      nq, nv, nu: sizes of the model's `qpos`, `qvel` and `ctrl`.
      root_qpos_adr, root_qvel_adr: the free joint's addresses.
      joint_qpos_adr, joint_qvel_adr: n addresses, in feature order.
      links, soles: the MJCF's tree as forward kinematics needs it; one tuple of soles a channel.
      contact_height: m; a channel whose lowest point is below it is estimated to touch.
      drop_contacts, drop_height: leave the block out.
      max_root_lin_vel, max_root_ang_vel: m/s, rad/s; clip every component to ± this.
      root_lin_vel_scale, root_ang_vel_scale: m/s, rad/s; divide every component by this, after clipping.
    """

    robot: str
    joint_names: tuple[str, ...]
    channels: tuple[str, ...]
    nq: int
    nv: int
    nu: int
    root_qpos_adr: int
    root_qvel_adr: int
    joint_qpos_adr: tuple[int, ...]
    joint_qvel_adr: tuple[int, ...]
    links: tuple[Link, ...] = field(repr=False)
    soles: tuple[tuple[Sole, ...], ...] = field(repr=False)
    contact_height: float = CONTACT_HEIGHT
    drop_contacts: bool = False
    drop_height: bool = False
    max_root_lin_vel: float | None = None
    max_root_ang_vel: float | None = None
    root_lin_vel_scale: float | None = None
    root_ang_vel_scale: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.contact_height):
            raise ValueError(f"contact_height is {self.contact_height}; expected a height above the ground in metres")
        for name in ("max_root_lin_vel", "max_root_ang_vel", "root_lin_vel_scale", "root_ang_vel_scale"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                unit = "m/s" if "lin" in name else "rad/s"
                raise ValueError(f"{name} is {value}; expected a positive number in {unit}, or None")

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # jit asks for a static argument's hash at every call, and the tree has some hundred numbers.
        return hash(tuple(getattr(self, f.name) for f in fields(self)))

    def __getstate__(self) -> dict[str, Any]:
        # Without what is cached: the hash of a text differs from process to process.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def for_robot(cls, robot: Robot, **options: Any) -> AMPFeatureConfig:
        """The config of a loaded robot.

        Args:
          robot: any that `Robot.load` accepts.
          **options: `contact_height, drop_contacts, drop_height, max_root_lin_vel, max_root_ang_vel, root_lin_vel_scale,
            root_ang_vel_scale`; see the class.

        Raises:
          TypeError: an option that there is not; the message lists those there are.
          ValueError: a value that makes no sense.
        """
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise TypeError(f"no option {', '.join(map(repr, unknown))}; there are {', '.join(_OPTIONS)}")
        links, soles = _tree(robot)
        return cls(
            robot=robot.name,
            joint_names=robot.joint_names,
            channels=robot.channels,
            nq=int(robot.model.nq),
            nv=int(robot.model.nv),
            nu=int(robot.model.nu),
            root_qpos_adr=robot.root_qpos_adr,
            root_qvel_adr=robot.root_qvel_adr,
            joint_qpos_adr=tuple(map(int, robot.qpos_adr)),
            joint_qvel_adr=tuple(map(int, robot.qvel_adr)),
            links=links,
            soles=soles,
            **options,
        )

    @cached_property
    def obs(self) -> ObservationLayout:
        """Where everything is in an observation."""
        return ObservationLayout(len(self.joint_names), self.nu)

    @cached_property
    def canonical(self) -> FeatureLayout:
        """The layout of the reference's features: 2·n + 7 + C."""
        return FeatureLayout(self.joint_names, self.channels)

    @cached_property
    def layout(self) -> PolicyLayout:
        """The layout of this config's features: what is dropped is missing, what is transformed says so."""
        dropped = tuple(
            name for name, drop in (("root_height", self.drop_height), ("foot_contacts", self.drop_contacts)) if drop
        )
        options = {
            "root_lin_vel": (self.max_root_lin_vel, self.root_lin_vel_scale),
            "root_ang_vel": (self.max_root_ang_vel, self.root_ang_vel_scale),
        }
        blocks, start = [], 0
        for block in self.canonical.blocks:
            if block.name in dropped:
                continue
            maximum, scale = options.get(block.name, (None, None))
            blocks.append(
                PolicyBlock(
                    name=block.name,
                    start=start,
                    stop=start + block.size,
                    unit=block.unit if scale is None else f"{scale:g} {block.unit}",
                    frame=block.frame,
                    source=block.source,
                    canonical=(block.start, block.stop),
                    maximum=maximum,
                    scale=scale,
                )
            )
            start += block.size
        return PolicyLayout(self.canonical, tuple(blocks), dropped)

    def root_height(self, qpos: AnyArray) -> AnyArray:
        """(…,) m: the root's height in the states (…, nq); numpy stays numpy."""
        return qpos[..., self.root_qpos_adr + 2]

    def joint_pos(self, qpos: AnyArray) -> AnyArray:
        """(…, n) rad: the joints' angles in the states (…, nq), in feature order; numpy stays numpy."""
        return _pick(qpos, self.joint_qpos_adr)

    def select(self, features: AnyArray) -> AnyArray:
        """This config's features of canonical ones: drop, clip, scale.

        `extract_amp_features` ends with this function, and whoever feeds the discriminator reference frames calls it, so that
        both sides go through the same operations, in float32: numpy and JAX give the same bits.

        Args:
          features: (…, 2n+7+C) canonical features, of numpy (a version's) or of JAX.
        Returns: (…, F) float32, of the same library; numpy's own memory where nothing changes.

        Raises:
          ValueError: another number of features.
        """
        traced = isinstance(features, jax.Array)
        array: Any = jnp.asarray(features, jnp.float32) if traced else np.asarray(features, np.float32)
        if array.ndim == 0 or array.shape[-1] != self.canonical.dim:
            raise ValueError(f"features are {array.shape}; expected (…, {self.canonical.dim}), the canonical layout")
        if self.layout.is_canonical:
            return array  # type: ignore[no-any-return]
        xp: Any = jnp if traced else np
        parts = []
        for block in self.layout.blocks:
            part = array[..., slice(*block.canonical)]
            if block.maximum is not None:
                part = xp.clip(part, np.float32(-block.maximum), np.float32(block.maximum))
            if block.scale is not None:
                # A product, because a compiler may turn the division by a constant into one, and round differently.
                part = part * np.float32(1.0 / block.scale)
            parts.append(part)
        return xp.concatenate(parts, axis=-1)  # type: ignore[no-any-return]

    def stats(self, features: npt.ArrayLike) -> dict[str, list[float]]:
        """The normalization statistics of this config's features over a version's frames.

        Args:
          features: (N, 2n+7+C) canonical float32 features, such as `Dataset.features`; read in parts, for large files.
        Returns: `mean`, `std`, `min`, `max`, `clip_low` and `clip_high`, F values each, as in the normalization artifact and as
          exact as there: without options they are equal to the artifact's.

        Raises:
          ValueError: another shape, or no frames, or a number that is not finite.
        """
        rows = np.asanyarray(features)
        if rows.ndim != 2 or rows.shape[1] != self.canonical.dim:
            raise ValueError(f"features are {rows.shape}; expected (N, {self.canonical.dim}), the canonical layout")
        found = ColumnStats(self.layout.dim)
        for start in range(0, len(rows), _STATS_ROWS):
            found.add(self.select(np.asarray(rows[start : start + _STATS_ROWS])))
        return found.to_dict()


_OPTIONS = tuple(f.name for f in fields(AMPFeatureConfig) if f.default is not MISSING)


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
      prev_joint_pos: (…, n) rad, the joints one control step ago. Only finite differences need it; None will do otherwise.
      dt: s, the control step; only finite differences need it.
      foot_contacts_override: (…, C) 0 or 1, measured contacts. None: estimated by `estimate_contacts`, which is no parity.
      use_obs_joint_vel: True: joint velocities are the observed ones, the true `qvel`. False: their mean over the step,
        (joint_pos − prev_joint_pos) / dt; for references that were made like that, and no parity with this project's.

    Raises:
      ValueError: shapes that do not fit together.
    """
    obs = jnp.asarray(obs, jnp.float32)
    layout, lead = config.obs, _lead(obs, config)
    joint_pos = obs[..., layout.joint_pos]
    if use_obs_joint_vel:
        joint_vel = obs[..., layout.joint_vel]
    else:
        if prev_joint_pos is None:
            raise ValueError("prev_joint_pos is None, but finite differences need it; give it, or use_obs_joint_vel=True")
        if isinstance(dt, int | float) and not dt > 0:
            raise ValueError(f"dt is {dt}; expected the control step in seconds, a positive number")
        before = _shaped("prev_joint_pos", prev_joint_pos, (*lead, len(config.joint_names)), lead)
        joint_vel = (joint_pos - before) / dt
    height = _height(root_height, lead)
    if foot_contacts_override is not None:
        contacts = _shaped("foot_contacts_override", foot_contacts_override, (*lead, len(config.channels)), lead)
    elif config.drop_contacts:
        contacts = jnp.zeros((*lead, len(config.channels)), jnp.float32)  # Dropped below.
    else:
        contacts = _touching(obs, config, height)
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
    obs = jnp.asarray(obs, jnp.float32)
    return _touching(obs, config, _height(root_height, _lead(obs, config)))


def channel_heights(obs: npt.ArrayLike, config: AMPFeatureConfig, root_height: npt.ArrayLike) -> Array:
    """(…, C) m: the height of each channel's lowest point above the ground z = 0; arguments as of `estimate_contacts`."""
    obs = jnp.asarray(obs, jnp.float32)
    return _heights(obs, config, _height(root_height, _lead(obs, config)))


def _touching(obs: Array, config: AMPFeatureConfig, height: Array) -> Array:
    return (_heights(obs, config, height) < config.contact_height).astype(jnp.float32)


def _height(root_height: npt.ArrayLike, lead: tuple[int, ...]) -> Array:
    """(…,) root heights, given like that or with an axis of length 1 at the end."""
    height = jnp.asarray(root_height, jnp.float32)
    if height.shape == (*lead, 1):
        return height[..., 0]
    return _shaped("root_height", height, lead, lead)


def _lead(obs: Array, config: AMPFeatureConfig) -> tuple[int, ...]:
    """The leading axes of observations that have the entries that are read."""
    layout = config.obs
    if obs.ndim == 0 or obs.shape[-1] < layout.joint_vel.stop:
        n = layout.joints
        raise ValueError(
            f"obs is {obs.shape}; expected (…, {layout.dim}), or at least {layout.joint_vel.stop} entries: up 3, root angular "
            f"velocity 3, root linear velocity 3, joint positions {n}, joint velocities {n}; then the previous action"
        )
    return obs.shape[:-1]


def _shaped(name: str, value: npt.ArrayLike, shape: tuple[int, ...], lead: tuple[int, ...]) -> Array:
    array = jnp.asarray(value, jnp.float32)
    if array.shape != shape:
        raise ValueError(f"{name} is {array.shape}; expected {shape}, as the leading axes of obs are {lead}")
    return array


# --- Observations ---------------------------------------------------------------------------------------------------------


def observe(
    config: AMPFeatureConfig, qpos: npt.ArrayLike, qvel: npt.ArrayLike, prev_action: npt.ArrayLike | None = None
) -> Array:
    """Observations (…, 9+2n+nu) float32 of simulator states, as training makes them: in JAX, under `jit` and `vmap`.

    Args:
      qpos: (…, nq) of `mjData` or of mjx; the root's quaternion is wxyz there, of any length but zero.
      qvel: (…, nv); the root's linear velocity is in the world frame, its angular velocity in the **body** frame.
      prev_action: (…, nu) the action that led to this state; zeros where none is given.

    Raises:
      ValueError: shapes that do not fit together.
    """
    pos, vel = jnp.asarray(qpos), jnp.asarray(qvel)
    lead = _check_state(config, pos.shape, vel.shape)
    action = jnp.zeros((*lead, config.nu), jnp.float32) if prev_action is None else _action(config, prev_action, lead)
    root_q, root_v = config.root_qpos_adr, config.root_qvel_adr
    matrix = _matrix(pos[..., root_q + 3 : root_q + 7])
    linear, spin = _components(vel[..., root_v : root_v + 3]), _components(vel[..., root_v + 3 : root_v + 6])
    angular = tuple(row[0] * spin[0] + row[1] * spin[1] + row[2] * spin[2] for row in matrix)
    cos, sin = _heading(matrix)
    turned = [(cos * v[0] + sin * v[1], cos * v[1] - sin * v[0], v[2]) for v in (angular, linear)]
    root = jnp.stack([*matrix[2], *turned[0], *turned[1]], axis=-1)
    joints = [_pick(pos, config.joint_qpos_adr), _pick(vel, config.joint_qvel_adr)]
    return jnp.concatenate([part.astype(jnp.float32) for part in (root, *joints, action)], axis=-1)


def observe_host(
    config: AMPFeatureConfig, qpos: npt.ArrayLike, qvel: npt.ArrayLike, prev_action: npt.ArrayLike | None = None
) -> npt.NDArray[np.float32]:
    """`observe` in numpy: float64 by the functions of `amp_core.features`, and rounded once.

    Features of these observations are the reference's features, bit for bit. Arguments and errors are those of `observe`.
    """
    pos, vel = np.asarray(qpos, np.float64), np.asarray(qvel, np.float64)
    lead = _check_state(config, pos.shape, vel.shape)
    action = np.zeros((*lead, config.nu)) if prev_action is None else np.asarray(_action(config, prev_action, lead))
    root_q, root_v = config.root_qpos_adr, config.root_qvel_adr
    rotation = pos[..., root_q + 3 : root_q + 7][..., [1, 2, 3, 0]]
    angular = reference.body_to_world(rotation, vel[..., root_v + 3 : root_v + 6])
    parts = [
        reference.rotation_matrix(rotation)[..., 2, :],
        reference.world_to_heading(rotation, angular),
        reference.world_to_heading(rotation, vel[..., root_v : root_v + 3]),
        _pick(pos, config.joint_qpos_adr),
        _pick(vel, config.joint_qvel_adr),
        action,
    ]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def _check_state(config: AMPFeatureConfig, qpos: tuple[int, ...], qvel: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes of states of these shapes."""
    lead = qpos[:-1]
    if not qpos or qpos[-1] != config.nq or qvel != (*lead, config.nv):
        raise ValueError(
            f"qpos is {qpos} and qvel {qvel}; expected (…, {config.nq}) and (…, {config.nv}) with the same leading axes, "
            f"for the robot {config.robot!r}"
        )
    return lead


def _action(config: AMPFeatureConfig, prev_action: npt.ArrayLike, lead: tuple[int, ...]) -> Array:
    action = jnp.asarray(prev_action, jnp.float32)
    if action.shape != (*lead, config.nu):
        expected = (*lead, config.nu)
        raise ValueError(f"prev_action is {action.shape}; expected {expected}, as the leading axes of qpos are {lead}")
    return action


def _pick(array: AnyArray, columns: tuple[int, ...]) -> AnyArray:
    """(…, k) columns; as a slice where they are in a row, which costs less than to gather them."""
    first = columns[0] if columns else 0
    if columns == tuple(range(first, first + len(columns))):
        return array[..., first : first + len(columns)]
    return array[..., np.array(columns)]


def _components(vector: Array) -> Components:
    return vector[..., 0], vector[..., 1], vector[..., 2]


def _matrix(quat_wxyz: Array) -> tuple[Components, Components, Components]:
    """The rows of the rotation matrices, body to world, of (…, 4) quaternions: nine arrays (…,)."""
    q = quat_wxyz / jnp.sqrt((quat_wxyz * quat_wxyz).sum(axis=-1, keepdims=True))
    w, x, y, z = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


def _heading(matrix: tuple[Components, Components, Components]) -> tuple[Array, Array]:
    """cos and sin of the yaw: `features.heading_direction`, the gimbal's case included."""
    vertical = jnp.hypot(matrix[0][0], matrix[1][0]) < _GIMBAL
    sign = -jnp.sign(matrix[2][0])
    x = jnp.where(vertical, sign * matrix[0][2], matrix[0][0])
    y = jnp.where(vertical, sign * matrix[1][2], matrix[1][0])
    length = jnp.sqrt(x * x + y * y)
    return x / length, y / length


# --- Forward kinematics ---------------------------------------------------------------------------------------------------


def _heights(obs: Array, config: AMPFeatureConfig, height: Array) -> Array:
    """(…, C) m: the lowest point of each channel."""
    frames = _descend(obs, config, height)
    lowest = [[_lowest(sole, *frames[sole.link]) for sole in soles] for soles in config.soles]
    return jnp.stack([reduce(jnp.minimum, heights) for heights in lowest], axis=-1)


def _descend(obs: Array, config: AMPFeatureConfig, height: Array) -> dict[int, tuple[Array, Components]]:
    """For the root (−1) and every link: the height of its origin, and the up direction in its frame."""
    angles = obs[..., config.obs.joint_pos]
    frames: dict[int, tuple[Array, Components]] = {_ROOT: (height, _components(obs[..., config.obs.up]))}
    for index, link in enumerate(config.links):
        origin, up = frames[link.parent]
        origin = origin + _dot(up, link.offset)
        up = _into(up, link.rotation)
        turned = _unturn(up, link.axis, angles[..., link.joint] - np.float32(link.ref))
        # The anchor stays where it is while the body turns about it.
        origin = origin + _dot(up, link.anchor) - _dot(turned, link.anchor)
        frames[index] = (origin, turned)
    return frames


def _lowest(sole: Sole, origin: Array, up: Components) -> Array:
    """(…,) m: the height of the lowest point of a geom: that of its center, less how far it reaches down."""
    center = origin + _dot(up, sole.center)
    x, y, z = _into(up, sole.axes)
    first, second, third = (np.float32(size) for size in sole.size)
    reach: dict[str, Callable[[], Array]] = {
        "box": lambda: first * jnp.abs(x) + second * jnp.abs(y) + third * jnp.abs(z),
        "sphere": lambda: jnp.full_like(center, first),
        "capsule": lambda: first + second * jnp.abs(z),
        "cylinder": lambda: first * jnp.sqrt(x * x + y * y) + second * jnp.abs(z),
        "ellipsoid": lambda: jnp.sqrt((first * x) ** 2 + (second * y) ** 2 + (third * z) ** 2),
        "points": lambda: _reach(sole.points, (x, y, z)),
    }
    return center - reach[sole.kind]()


def _reach(points: Sequence[Vector], up: Components) -> Array:
    p = jnp.array(points, jnp.float32)
    x, y, z = (component[..., None] for component in up)
    heights: Array = p[:, 0] * x + p[:, 1] * y + p[:, 2] * z
    return -heights.min(axis=-1)


def _dot(up: Components, vector: Vector) -> Array:
    """(…,) products with a constant vector, whose zeros cost nothing."""
    terms = [np.float32(value) * component for component, value in zip(up, vector, strict=True) if value != 0.0]
    total = terms[0] if terms else jnp.zeros_like(up[0])
    for term in terms[1:]:
        total = total + term
    return total


def _into(up: Components, axes: tuple[Vector, Vector, Vector]) -> Components:
    """A direction in the frame whose axes are the columns of this matrix."""
    columns = tuple(zip(*axes, strict=True))
    return _dot(up, columns[0]), _dot(up, columns[1]), _dot(up, columns[2])


def _unturn(up: Components, axis: Vector, angle: Array) -> Components:
    """A fixed direction as seen by a body that has turned by `angle` about `axis`: Rodrigues with the angle's sign reversed."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    along = _dot(up, axis) * (1 - cos)
    a, b, c = axis
    cross = (_dot(up, (0.0, -c, b)), _dot(up, (c, 0.0, -a)), _dot(up, (-b, a, 0.0)))
    x, y, z = (up[i] * cos - cross[i] * sin + (np.float32(axis[i]) * along if axis[i] else 0.0) for i in range(3))
    return x, y, z


# --- Reading the tree from a model ----------------------------------------------------------------------------------------

_Frame = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""A body's frame: the link that it is fixed to, its place [m] and its axes (3×3) in that link's frame."""


def _tree(robot: Robot) -> tuple[tuple[Link, ...], tuple[tuple[Sole, ...], ...]]:
    """The links on the way to the robot's channels, and the channels' geoms on them."""
    model = robot.model
    feature_of = {int(adr): i for i, adr in enumerate(robot.qpos_adr)}
    links: list[Link] = []
    frames: dict[int, _Frame] = {robot.root_body: (_ROOT, np.zeros(3), np.eye(3))}

    def frame(body: int) -> _Frame:
        if body in frames:
            return frames[body]
        link, place, axes = frame(int(model.body_parentid[body]))
        place, axes = place + axes @ model.body_pos[body], axes @ _axes(model.body_quat[body])
        first = int(model.body_jntadr[body])
        for joint in range(first, first + int(model.body_jntnum[body])):
            adr = int(model.jnt_qposadr[joint])
            links.append(
                Link(
                    parent=link,
                    offset=_vector(place),
                    rotation=_rows(axes),
                    axis=_vector(model.jnt_axis[joint]),
                    anchor=_vector(model.jnt_pos[joint]),
                    joint=feature_of[adr],
                    ref=float(model.qpos0[adr]),
                )
            )
            link, place, axes = len(links) - 1, np.zeros(3), np.eye(3)
        frames[body] = (link, place, axes)
        return frames[body]

    soles = tuple(
        tuple(_sole(model, geom, *frame(int(model.geom_bodyid[geom]))) for geom in geoms) for geoms in robot.channel_geoms
    )
    return tuple(links), soles


def _sole(model: Any, geom: int, link: int, place: npt.NDArray[np.float64], axes: npt.NDArray[np.float64]) -> Sole:
    own = _axes(model.geom_quat[geom])
    center, turned = place + axes @ model.geom_pos[geom], axes @ own
    kind = mujoco.mjtGeom(model.geom_type[geom]).name.removeprefix("mjGEOM_").lower()
    size, points = model.geom_size[geom], _hull(model, geom) if kind == "mesh" else ()
    if points:
        kind = "points"
    elif kind not in ("box", "sphere", "capsule", "cylinder", "ellipsoid"):
        # Shapes without a formula: their bounding box, which `contacts.box_corners` takes of every geom.
        box = model.geom_aabb[geom]
        kind, size, center = "box", box[3:], center + turned @ box[:3]
    return Sole(link, kind, _vector(center), _rows(turned), _vector(size), points)


def _hull(model: Any, geom: int) -> tuple[Vector, ...]:
    """The corners of a mesh's convex hull, with which MuJoCo collides, in the geom's frame; none where it was not computed."""
    mesh = int(model.geom_dataid[geom])
    start = int(model.mesh_graphadr[mesh])
    if start < 0:
        return ()
    # The graph: counts of vertices and faces, where each vertex' edges begin, each vertex' number in the mesh, …
    count = int(model.mesh_graph[start])
    numbers = model.mesh_graph[start + 2 + count : start + 2 + 2 * count]
    vertices = model.mesh_vert[int(model.mesh_vertadr[mesh]) + numbers]
    return tuple(_vector(vertex) for vertex in np.unique(vertices, axis=0))


def _axes(quat_wxyz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return reference.rotation_matrix(quat_wxyz[[1, 2, 3, 0]])


def _vector(values: Sequence[float] | npt.NDArray[Any]) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _rows(matrix: npt.NDArray[np.float64]) -> tuple[Vector, Vector, Vector]:
    return _vector(matrix[0]), _vector(matrix[1]), _vector(matrix[2])
