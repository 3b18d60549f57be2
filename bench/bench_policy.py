"""The policy extractor under `jit`: microseconds a batch of environments, against copying its inputs to its output once.

    python -m bench.bench_policy [--envs N] [--rounds N] [--json FILE]

The baseline is a jitted `jnp.concatenate` of the slices that features consist of: the least that any extractor has to do. The
bound is on the path that parity needs, with measured contacts and observed joint velocities; it is called as training calls it,
with the config as a static argument. Finite differences and estimated contacts are measured beside it, without a bound.

All sides take turns, a few calls each, with another side first in every round, so that a machine that gets slower gets slower
for all of them. Every call waits for its result. Ratios are of the medians over all calls; the least times are printed too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from amp_core.policy import AMPFeatureConfig, extract_amp_features, observe
from amp_core.robot import Robot

LIMIT_RATIO = 2.0
CALLS = 5
BASELINE = "concatenate"
BOUND = "parity"

Side = Callable[[], jax.Array]


def sides(robot: Robot, envs: int) -> dict[str, Side]:
    """The timed calls: the baseline and the extractor's paths, on the same random states, which are on the device already."""
    config = AMPFeatureConfig.for_robot(robot)
    rng = np.random.default_rng(0)
    qpos = rng.normal(size=(envs, config.nq)).astype(np.float32)
    qvel = rng.normal(size=(envs, config.nv)).astype(np.float32)
    obs = observe(config, qpos, qvel, rng.normal(size=(envs, config.nu)))
    height = jnp.asarray(rng.uniform(0.3, 0.6, envs), jnp.float32)
    prev_joint_pos = jnp.asarray(rng.normal(size=(envs, len(config.joint_names))), jnp.float32)
    contacts = jnp.asarray(rng.integers(0, 2, (envs, len(config.channels))), jnp.float32)
    layout = config.obs

    @jax.jit
    def concatenate(obs: jax.Array, height: jax.Array, contacts: jax.Array) -> jax.Array:
        slices = (layout.joint_pos, layout.joint_vel, layout.root_lin_vel, layout.root_ang_vel)
        return jnp.concatenate([*(obs[..., part] for part in slices), height[..., None], contacts], axis=-1)

    extract = jax.jit(extract_amp_features, static_argnames=("config", "use_obs_joint_vel"))
    dt = robot.control_dt
    calls: dict[str, Side] = {
        BASELINE: lambda: concatenate(obs, height, contacts),
        BOUND: lambda: extract(obs, config, height, prev_joint_pos, dt, contacts, use_obs_joint_vel=True),
        "finite differences": lambda: extract(obs, config, height, prev_joint_pos, dt, contacts),
        "estimated contacts": lambda: extract(obs, config, height, prev_joint_pos, dt, use_obs_joint_vel=True),
        "both": lambda: extract(obs, config, height, prev_joint_pos, dt),
    }
    if not np.array_equal(calls[BASELINE](), calls[BOUND]()):
        raise RuntimeError("the extractor's features are not the slices that the baseline copies")
    return calls


def measure(calls: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call of every side."""
    for side in calls.values():
        for _ in range(CALLS):
            side().block_until_ready()
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            side = calls[name]
            for _ in range(CALLS):
                start = time.perf_counter()
                side().block_until_ready()
                times[name].append(time.perf_counter() - start)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    args = parser.parse_args()
    robot = Robot.load("wildrobot")
    with jax.default_device(jax.devices("cpu")[0]):
        times = measure(sides(robot, args.envs), args.rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    measures: dict[str, Any] = {
        "envs": args.envs,
        "features": robot.layout.dim,
        "jax": jax.__version__,
        "median_us": {name: round(value * 1e6, 1) for name, value in medians.items()},
        "least_us": {name: round(min(values) * 1e6, 1) for name, values in times.items()},
        "ratio": {name: round(value / medians[BASELINE], 3) for name, value in medians.items() if name != BASELINE},
    }
    is_pass = medians[BOUND] <= LIMIT_RATIO * medians[BASELINE]
    for name in times:
        ratio = f", {measures['ratio'][name]:.2f} times the baseline" if name != BASELINE else ""
        print(f"{name}: median {measures['median_us'][name]:.1f} µs, least {measures['least_us'][name]:.1f} µs{ratio}")
    requirements = {f"ratio.{BOUND}": f"<= {LIMIT_RATIO:g}"}
    result = json.dumps({"name": "policy", "figures": measures, "required": requirements, "passed": is_pass})
    if args.json:
        args.json.write_text(result + "\n")
    print(result)
    return 0 if is_pass else 1


if __name__ == "__main__":
    sys.exit(main())
