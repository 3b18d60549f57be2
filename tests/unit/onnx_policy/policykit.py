"""Small ONNX models and specs for the tests of policies."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml

from amp_core.formats import read_motion
from amp_core.motion import Conditioned, condition
from amp_core.motions import bundled_motions, reading_options
from amp_core.onnx_policy import ModelFile, PolicyLimits, PolicyRun, PolicySession, read_spec, record
from amp_core.robot import Robot

ROOT = Path(__file__).parents[3]


def load_example(name: str) -> ModuleType:
    """A module of `examples/`, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


onnx = load_example("onnx_writer")


def bundled_clip(name: str, robot: Robot, frames: int | None = None) -> Conditioned:
    path = next(path for path in bundled_motions() if path.stem == name)
    motion = read_motion(path, frames=None if frames is None else (0, frames), **reading_options(path))
    return condition(motion, robot)


def linear_model(
    weights: Any, *, inputs: Mapping[str, Sequence[int | str]] | None = None, metadata: Mapping[str, str] | None = None
) -> bytes:
    """actions = obs · weights, of (D, A) weights."""
    weights = np.asarray(weights, np.float32)
    nodes = [onnx.node("MatMul", ["obs", "W"], ["actions"])]
    shapes = {"obs": [1, len(weights)], **(inputs or {})}
    values = [onnx.value(name, shape) for name, shape in shapes.items()]
    return bytes(onnx.model(nodes, values, [onnx.value("actions", [1, weights.shape[1]])], {"W": weights}, metadata))


def endless_model() -> bytes:
    """A loop whose condition always holds."""
    body = onnx.graph(
        [onnx.node("Identity", ["go"], ["go_on"]), onnx.node("Identity", ["x"], ["x_next"])],
        [onnx.value("i", [], "int64"), onnx.value("go", [], "bool"), onnx.value("x", [1, 8])],
        [onnx.value("go_on", [], "bool"), onnx.value("x_next", [1, 8])],
        {},
    )
    nodes = [onnx.node("Loop", ["count", "start", "obs"], ["actions"], body=body)]
    weights = {"count": np.array(2**62, np.int64), "start": np.array(True)}
    return bytes(onnx.model(nodes, [onnx.value("obs", [1, 8])], [onnx.value("actions", [1, 8])], weights))


def greedy_model() -> bytes:
    """It asks for 6 GB."""
    nodes = [
        onnx.node("Expand", ["obs", "shape"], ["big"]),
        onnx.node("ReduceSum", ["big", "axes"], ["actions"], keepdims=0),
    ]
    weights = {"shape": np.array([200_000, 1000, 8], np.int64), "axes": np.array([0], np.int64)}
    return bytes(onnx.model(nodes, [onnx.value("obs", [1, 8])], [onnx.value("actions", [1, 8])], weights))


def unary_model(operator: str) -> bytes:
    nodes = [onnx.node(operator, ["obs"], ["actions"])]
    return bytes(onnx.model(nodes, [onnx.value("obs", [1, 8])], [onnx.value("actions", [1, 8])]))


OPEN_LOOP: dict[str, Any] = {"observation": [{"kind": "reference_joint_pos"}], "action": {"scale": 1, "offset": "zero"}}
"""The action is the observation: with `linear_model(np.eye(8))` the clip's joint angles."""


def write_files(folder: Path, model: bytes, spec: Mapping[str, Any]) -> tuple[Path, Path]:
    policy, spec_path = folder / "policy.onnx", folder / "obs.yaml"
    policy.write_bytes(model)
    spec_path.write_text(yaml.safe_dump(dict(spec), sort_keys=False))
    return policy, spec_path


def run_policy(
    folder: Path,
    model: bytes,
    spec: Mapping[str, Any],
    robot: Robot,
    clip: Conditioned,
    limits: PolicyLimits | None = None,
) -> PolicyRun:
    policy, spec_path = write_files(folder, model, spec)
    file = ModelFile.read(policy)
    policy_spec = read_spec(spec_path, robot, file)
    with PolicySession(file, limits) as session:
        return record(robot, clip, policy_spec, file, session)
