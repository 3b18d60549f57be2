"""The policy side under test: the functions of `amp_core.policy` on all frames of clips, compiled for rows in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
        from amp_core import policy  # noqa: PLC0415 - JAX is optional

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
        states = {"qpos": qpos.astype(np.float32), "qvel": qvel.astype(np.float32)}
        return _run_in_chunks(self.observe, states, config=self.config)

    def features(self, obs: Floats, inputs: PolicyInputs, dt: float, one_by_one: bool = False) -> Floats:
        """(N, F) the features of observations (N, O), with `one_by_one` each row on its own."""
        rows = {
            "obs": obs,
            "root_height": inputs.height,
            "prev_joint_pos": inputs.prev_joint_pos,
            "foot_contacts_override": inputs.contacts,
        }
        options = {"config": self.config, "dt": dt, "use_obs_joint_vel": True}
        if one_by_one:
            return _run_in_chunks(_extract_one_by_one, rows, extract=self.extract, **options)
        return _run_in_chunks(self.extract, rows, **options)

    def contacts(self, obs: Floats, height: Floats) -> Floats:
        """(N, C) 0/1: the channels in contact by forward kinematics."""
        return _run_in_chunks(self.estimate_contacts, {"obs": obs, "root_height": height}, config=self.config)


def root_heights(robot: Robot, clips: Sequence[Clip]) -> Floats:
    """(N,) m, the root's height in all frames as the policy gets it."""
    return np.concatenate([clip.arrays["qpos"][:, robot.root_qpos_adr + 2].astype(np.float32) for clip in clips])


def _extract_one_by_one(extract: Callable[..., Any], config: Any, dt: float, use_obs_joint_vel: bool, **rows: Any) -> Any:
    import jax  # noqa: PLC0415 - JAX is optional

    options = {"config": config, "dt": dt, "use_obs_joint_vel": use_obs_joint_vel}
    return jax.lax.map(lambda row: extract(**row, **options), rows)


def _run_in_chunks(function: Callable[..., Any], rows: Mapping[str, Floats], **static: Any) -> Floats:
    """`function` over rows, `CHUNK` at a time; the last chunk is filled up with its last row.

    It is compiled for the static arguments, and once for equal ones: JAX keeps compiled code by function and static arguments.
    """
    import jax  # noqa: PLC0415 - JAX is optional

    jit_function = jax.jit(function, static_argnames=tuple(static))
    results = []
    count = len(next(iter(rows.values())))
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        chunk = {name: array[start : start + size] for name, array in rows.items()}
        if size < CHUNK:
            chunk = {name: np.concatenate([part, np.repeat(part[-1:], CHUNK - size, axis=0)]) for name, part in chunk.items()}
        results.append(np.asarray(jit_function(**chunk, **static), dtype=np.float32)[:size])
    return np.concatenate(results)
