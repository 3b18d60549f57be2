"""The policy side under test: the functions of `amp_core.policy` on all frames of clips, compiled for rows in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.verify.states import start_poses
from amp_core.verify.subject import stack_rows

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

CHUNK = 1024
"""Rows that go through the policy's compiled code at a time: one shape, so that it is compiled once."""

NO_JAX = "JAX is not installed: install ampref[train]"

PATHS = ("observe_host", "observe")
"""The two ways to an observation: on the host in float64, and in float32 as training makes it."""


@dataclass(frozen=True, eq=False)
class PolicyInputs:
    """The policy's inputs beside observations, for all N frames of some clips.

    Args:
      height: (N,) m, of the root.
      prev_joint_pos: (N, n) rad, a frame earlier.
      contacts: (N, C) 0/1.
    """

    height: Floats
    prev_joint_pos: Floats
    contacts: Floats

    @classmethod
    def of(cls, robot: Robot, clips: Sequence[Clip]) -> PolicyInputs:
        start = np.concatenate([start_poses(clip) for clip in clips])
        return cls(
            height=root_heights(robot, clips),
            prev_joint_pos=start[:, robot.qpos_adr].astype(np.float32),
            contacts=stack_rows(clips, "foot_contacts").astype(np.float32),
        )


@dataclass(frozen=True)
class PolicySide:
    """The functions of `amp_core.policy` and the config of one robot.

    Tests reach the policy through this value, so that a faulty one can take its place.
    """

    config: Any
    observe: Callable[..., Any]
    observe_host: Callable[..., Any]
    extract: Callable[..., Any]
    estimate_contacts: Callable[..., Any]

    @classmethod
    def of(cls, robot: Robot) -> PolicySide:
        """The product's own policy side.

        Raises:
          ImportError: JAX is not installed.
        """
        from amp_core import policy

        return cls(
            config=policy.AMPFeatureConfig.for_robot(robot),
            observe=policy.observe,
            observe_host=policy.observe_host,
            extract=policy.extract_amp_features,
            estimate_contacts=policy.estimate_contacts,
        )

    def observations(self, path: str, qpos: Array, qvel: Array) -> Floats:
        """(N, O) the observations of states (N, nq), (N, nv) by one of `PATHS`."""
        if path == "observe_host":
            return np.asarray(self.observe_host(self.config, qpos, qvel), dtype=np.float32)
        return _in_chunks(_compile_observe(self.observe, self.config), qpos.astype(np.float32), qvel.astype(np.float32))

    def features(self, obs: Floats, inputs: PolicyInputs, dt: float, one_by_one: bool = False) -> Floats:
        """(N, F) the features of observations (N, O), with `one_by_one` each row on its own."""
        extract = _compile_extract(self.extract, self.config, dt, one_by_one)
        return _in_chunks(extract, obs, inputs.height, inputs.prev_joint_pos, inputs.contacts)

    def contacts(self, obs: Floats, height: Floats) -> Floats:
        """(N, C) 0/1: the channels in contact by forward kinematics."""
        return _in_chunks(_compile_estimate(self.estimate_contacts, self.config), obs, height)


def root_heights(robot: Robot, clips: Sequence[Clip]) -> Floats:
    """(N,) m, the root's height in all frames as the policy gets it."""
    return np.concatenate([clip.arrays["qpos"][:, robot.root_qpos_adr + 2].astype(np.float32) for clip in clips])


@lru_cache(maxsize=16)
def _compile_observe(observe: Callable[..., Any], config: Any) -> Callable[..., Any]:
    import jax

    return jax.jit(lambda qpos, qvel: observe(config, qpos, qvel))


@lru_cache(maxsize=16)
def _compile_extract(extract: Callable[..., Any], config: Any, dt: float, one_by_one: bool) -> Callable[..., Any]:
    import jax

    def assemble(obs: Any, height: Any, prev_joint_pos: Any, contacts: Any) -> Any:
        return extract(obs, config, height, prev_joint_pos, dt, foot_contacts_override=contacts, use_obs_joint_vel=True)

    return jax.jit((lambda *rows: jax.lax.map(lambda row: assemble(*row), rows)) if one_by_one else assemble)


@lru_cache(maxsize=16)
def _compile_estimate(estimate: Callable[..., Any], config: Any) -> Callable[..., Any]:
    import jax

    return jax.jit(lambda obs, height: estimate(obs, config, height))


def _in_chunks(function: Callable[..., Any], *arrays: Floats) -> Floats:
    """`function` over rows, `CHUNK` at a time; the last chunk is filled up with its last row."""
    results = []
    for start in range(0, len(arrays[0]), CHUNK):
        parts = [array[start : start + CHUNK] for array in arrays]
        rows = len(parts[0])
        if rows < CHUNK:
            parts = [np.concatenate([part, np.repeat(part[-1:], CHUNK - rows, axis=0)]) for part in parts]
        results.append(np.asarray(function(*parts), dtype=np.float32)[:rows])
    return np.concatenate(results)
