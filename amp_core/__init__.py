"""Physically grounded reference motions for Adversarial Motion Priors: scored, locked, verified.

    from amp_core import load_dataset

    data = load_dataset("walk==0.11.0", url="http://127.0.0.1:8000")

These names are loaded when they are first used, so that `import amp_core` costs next to nothing and the client needs no MuJoCo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amp_core.lazy import is_installed, lazy_exports

if TYPE_CHECKING:
    from amp_core.client import load_clips, load_dataset, pull
    from amp_core.formats import read_motion
    from amp_core.recipe import Recipe
    from amp_core.reference import read_reference
    from amp_core.robot import Robot
    from amp_core.scoring import score
    from amp_core.version import __version__
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "amp_core.client": ("load_clips", "load_dataset", "pull"),
            "amp_core.formats": ("read_motion",),
            "amp_core.recipe": ("Recipe",),
            "amp_core.reference": ("read_reference",),
            "amp_core.robot": ("Robot",),
            "amp_core.scoring": ("score",),
            "amp_core.version": ("__version__",),
        },
    )

__all__ = ["Recipe", "__version__", "load_clips", "load_dataset", "pull", "read_motion", "read_reference"]
if TYPE_CHECKING or is_installed("mujoco"):  # Else `help` and `import *` would fail.
    __all__ += ["Robot", "score"]
