"""The poses of a clip between the steps of an augmentation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Poses(NamedTuple):
    """N poses: `root_pos` (N, 3) m world, `root_rot` (N, 4) unit xyzw, `dof_pos` (N, n) rad in the robot's joint order."""

    root_pos: Array
    root_rot: Array
    dof_pos: Array

    @property
    def num_frames(self) -> int:
        return len(self.root_pos)

    def frames(self, start: int, stop: int | None = None) -> Poses:
        """The frames `start ≤ k < stop`."""
        return Poses(*(values[start:stop] for values in self))
