"""Which entries of an observation and of the features mean what, as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from amp_core.features import FeatureLayout


@dataclass(frozen=True)
class ObservationLayout:
    """The entries of an observation that the extractor reads. Training may append others (commands, a phase).

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
        """The action that led to this state; no feature depends on it."""
        return slice(9 + 2 * self.joints, self.dim)

    @property
    def dim(self) -> int:
        """9 + 2·n + nu: the length of what `observe` returns."""
        return 9 + 2 * self.joints + self.actions


@dataclass(frozen=True)
class PolicyBlock:
    """One run of dimensions of a config's features.

    Args:
      name, start, stop, unit, frame, source: as in `features.FeatureBlock`; `unit` is what the number 1 means.
      canonical: (start, stop) of the same block in the canonical layout.
      maximum: every component is clipped to ± this, in the canonical unit; None for no clipping.
      scale: every component is divided by this, in the canonical unit, after clipping; None for no division.
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
        """The operations on the canonical numbers, in order; empty for none."""
        steps = []
        if self.maximum is not None:
            steps.append(f"clipped to ±{self.maximum:g}")
        if self.scale is not None:
            steps.append(f"divided by {self.scale:g}")
        return ", ".join(steps)


@dataclass(frozen=True)
class PolicyLayout:
    """A config's features as data: the canonical layout without the dropped blocks, and with the transforms of the others.

    Args:
      canonical: the layout that it derives from.
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
        """Whether no block is dropped or transformed."""
        return not self.dropped and not any(block.transform for block in self.blocks)

    def block(self, name: str) -> PolicyBlock:
        """The block called `name`.

        Raises:
          KeyError: it was dropped or does not exist; the message lists the blocks.
        """
        for block in self.blocks:
            if block.name == name:
                return block
        problem = "was dropped" if name in self.dropped else "does not exist"
        raise KeyError(f"the feature block {name!r} {problem}; there are {', '.join(b.name for b in self.blocks)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the keys of `FeatureLayout.to_dict`, with `transform` in each block, and `dropped`."""
        canonical = self.canonical.to_dict()
        by_name = {block["name"]: block for block in canonical["blocks"]}
        changes = [
            {"start": b.start, "stop": b.stop, "size": b.size, "unit": b.unit, "transform": b.transform} for b in self.blocks
        ]
        return canonical | {
            "dim": self.dim,
            "blocks": [by_name[block.name] | change for block, change in zip(self.blocks, changes, strict=True)],
            "names": list(self.names),
            "dropped": list(self.dropped),
        }
