"""The policy side: the features that training computes from a policy's observations, in JAX.

The reference side is `amp_core.features`: numpy, float64, rounded once. This package computes the same numbers where a policy
runs: batched, under `jit` and `vmap`, from an observation. `observe` builds the observation from a simulator's state, and
`extract_amp_features` assembles features from it. docs/policy.md is the contract between the two sides.

    config = AMPFeatureConfig.for_robot(robot)                  # frozen and hashable: a static argument of jit
    obs = observe(config, qpos, qvel, prev_action)
    features = extract_amp_features(obs, config, root_height, prev_joint_pos, dt, foot_contacts, use_obs_joint_vel=True)

Frames. The heading frame is that of `amp_core.features`: the world turned about z by the direction of the root's x axis. The up
direction is the world's z axis in the root's own frame, (0, 0, 1) when the robot stands upright; gravity points the other way.

The package imports without JAX and without MuJoCo. The functions that compute in JAX load it at their first use, and only
`AMPFeatureConfig.for_robot` needs MuJoCo: a config pickles, and travels to a machine without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amp_core.lazy import lazy_exports
from amp_core.policy.config import CONTACT_HEIGHT, AMPFeatureConfig
from amp_core.policy.host import observe_host
from amp_core.policy.layout import ObservationLayout, PolicyBlock, PolicyLayout
from amp_core.policy.tree import Link, Sole

if TYPE_CHECKING:
    from amp_core.policy.device import channel_heights, estimate_contacts, extract_amp_features, observe
else:
    __getattr__, __dir__ = lazy_exports(
        __name__, {"amp_core.policy.device": ("channel_heights", "estimate_contacts", "extract_amp_features", "observe")}
    )

__all__ = [
    "CONTACT_HEIGHT",
    "AMPFeatureConfig",
    "Link",
    "ObservationLayout",
    "PolicyBlock",
    "PolicyLayout",
    "Sole",
    "channel_heights",
    "estimate_contacts",
    "extract_amp_features",
    "observe",
    "observe_host",
]
