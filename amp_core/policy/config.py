"""The extractor's configuration: plain numbers of one robot, and the options of its features. It needs numpy alone."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from amp_core.dataset.statistics import ColumnStats
from amp_core.features import FeatureLayout
from amp_core.policy.layout import ObservationLayout, PolicyBlock, PolicyLayout
from amp_core.policy.tree import Link, Sole

if TYPE_CHECKING:
    import jax

    from amp_core.robot import Robot

AnyArray = TypeVar("AnyArray", npt.NDArray[Any], "jax.Array")

CONTACT_HEIGHT = 0.0
"""m; a channel whose lowest point is below this height counts as touching.

MuJoCo's shapes press where they overlap. Of 22 heights from −3 to 20 mm this one fits the recorded contacts best, on each
of two robots and in each kind of motion (docs/benchmarks.md). A real floor is known less well: use a larger value.
"""

STATS_ROWS = 1 << 16
"""Rows that `AMPFeatureConfig.stats` reads at a time."""


@dataclass(frozen=True)
class AMPFeatureConfig:
    """A robot's numbers as the policy side needs them, and the options of its features. Hashable: a static argument of `jit`.

    `for_robot` makes one. The options reduce what the discriminator sees in an early stage of training; all of them act in
    `select`, which the policy's and the reference's features both pass through.

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

    Raises:
      ValueError: an option that is not finite, or not positive where it must be.
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
        # Without the cached properties: the hash of a text differs from process to process.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def for_robot(cls, robot: Robot, **options: Any) -> AMPFeatureConfig:
        """The config of a loaded robot.

        Args:
          robot: any that `Robot.load` accepts.
          **options: `contact_height, drop_contacts, drop_height, max_root_lin_vel, max_root_ang_vel, root_lin_vel_scale,
            root_ang_vel_scale`; see the class.

        Raises:
          TypeError: an option that does not exist; the message lists those that do.
          ValueError: an option's value is out of range.
        """
        from amp_core.policy.model import read_tree  # noqa: PLC0415 - only this path needs MuJoCo

        optional_names = [f.name for f in fields(cls) if f.default is not MISSING]
        unknown = sorted(set(options) - set(optional_names))
        if unknown:
            raise TypeError(f"no option {', '.join(map(repr, unknown))}; there are {', '.join(optional_names)}")
        links, soles = read_tree(robot)
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

    def to_json(self) -> str:
        """The config as text, for a machine without MuJoCo; `from_json` reads it there."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> AMPFeatureConfig:
        """The config that `to_json` wrote; it is equal to the first one.

        Raises:
          ValueError: it is not JSON, or an option's value is out of range.
          KeyError, TypeError: it lacks a field, or has one that this release does not know.
        """
        values = _freeze(json.loads(text))
        values["links"] = tuple(Link(**link) for link in values["links"])
        values["soles"] = tuple(tuple(Sole(**sole) for sole in channel) for channel in values["soles"])
        return cls(**values)

    @cached_property
    def obs(self) -> ObservationLayout:
        """The layout of an observation."""
        return ObservationLayout(len(self.joint_names), self.nu)

    @cached_property
    def canonical(self) -> FeatureLayout:
        """The layout of the reference's features: 2·n + 7 + C."""
        return FeatureLayout(self.joint_names, self.channels)

    @cached_property
    def layout(self) -> PolicyLayout:
        """The layout of this config's features, without the dropped blocks and with the transforms of the others."""
        drops = {"root_height": self.drop_height, "foot_contacts": self.drop_contacts}
        transforms = {
            "root_lin_vel": (self.max_root_lin_vel, self.root_lin_vel_scale),
            "root_ang_vel": (self.max_root_ang_vel, self.root_ang_vel_scale),
        }
        blocks, start = [], 0
        for block in self.canonical.blocks:
            if drops.get(block.name):
                continue
            maximum, scale = transforms.get(block.name, (None, None))
            unit = block.unit if scale is None else f"{scale:g} {block.unit}"
            stop, canonical = start + block.size, (block.start, block.stop)
            blocks.append(PolicyBlock(block.name, start, stop, unit, block.frame, block.source, canonical, maximum, scale))
            start = stop
        return PolicyLayout(self.canonical, tuple(blocks), tuple(name for name, drop in drops.items() if drop))

    def root_height(self, qpos: AnyArray) -> AnyArray:
        """(…,) m: the root's height in the states (…, nq); numpy stays numpy."""
        return qpos[..., self.root_qpos_adr + 2]

    def joint_pos(self, qpos: AnyArray) -> AnyArray:
        """(…, n) rad: the joints' angles in the states (…, nq), in feature order; numpy stays numpy."""
        return select_columns(qpos, self.joint_qpos_adr)

    def select(self, features: AnyArray) -> AnyArray:
        """This config's features from canonical ones: drop, clip, scale.

        `extract_amp_features` ends with this function. Code that feeds reference frames to the discriminator calls it too, so
        that both sides go through the same operations in float32: numpy and JAX give the same bits.

        Args:
          features: (…, 2n+7+C) canonical features, of numpy (a version's) or of JAX.

        Returns:
          (…, F) float32 of the same library; for numpy without options the argument's own memory.

        Raises:
          ValueError: another number of features.
        """
        jax = sys.modules.get("jax")  # An array of JAX exists only where JAX is imported already.
        xp: Any = jax.numpy if jax is not None and isinstance(features, jax.Array) else np
        array = xp.asarray(features, np.float32)
        if array.ndim == 0 or array.shape[-1] != self.canonical.dim:
            raise ValueError(f"features are {array.shape}; expected (…, {self.canonical.dim}), the canonical layout")
        if self.layout.is_canonical:
            return array  # type: ignore[no-any-return]
        parts = []
        for block in self.layout.blocks:
            part = array[..., slice(*block.canonical)]
            if block.maximum is not None:
                part = xp.clip(part, np.float32(-block.maximum), np.float32(block.maximum))
            if block.scale is not None:
                # A product, because a compiler may replace the division by a constant with one, which rounds differently.
                part = part * np.float32(1.0 / block.scale)
            parts.append(part)
        return xp.concatenate(parts, axis=-1)  # type: ignore[no-any-return]

    def stats(self, features: npt.ArrayLike) -> dict[str, list[float]]:
        """The normalization statistics of this config's features over a version's frames.

        Args:
          features: (N, 2n+7+C) canonical float32 features, such as `Dataset.features`; read in parts, for large files.

        Returns:
          `mean`, `std`, `min`, `max`, `clip_low` and `clip_high`, F values each, as in the normalization artifact and as exact:
          without options they are equal to the artifact's.

        Raises:
          ValueError: another shape, no frames, or a number that is not finite.
        """
        rows = np.asanyarray(features)
        if rows.ndim != 2 or rows.shape[1] != self.canonical.dim:
            raise ValueError(f"features are {rows.shape}; expected (N, {self.canonical.dim}), the canonical layout")
        stats = ColumnStats(self.layout.dim)
        for start in range(0, len(rows), STATS_ROWS):
            stats.add(self.select(np.asarray(rows[start : start + STATS_ROWS])))
        return stats.to_dict()


def select_columns(array: AnyArray, columns: tuple[int, ...]) -> AnyArray:
    """(…, k) columns; a slice where they are consecutive, which costs less than to gather them."""
    first = columns[0] if columns else 0
    if columns == tuple(range(first, first + len(columns))):
        return array[..., first : first + len(columns)]
    return array[..., np.array(columns)]


def _freeze(value: Any) -> Any:
    """JSON's value with tuples for its lists."""
    if isinstance(value, dict):
        return {key: _freeze(inner) for key, inner in value.items()}
    return tuple(map(_freeze, value)) if isinstance(value, list) else value
