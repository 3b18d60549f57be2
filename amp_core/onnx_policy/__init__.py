"""Policies of motion tracking as ONNX files, run on a clip in the robot's own model (`docs/tracking-policies.md`).

`record` asks a policy at every control step and keeps the controls with the clip. What a policy observes is declared as data
(`read_spec`); the model itself runs in a child process with limits (`PolicySession`).
"""

from amp_core.onnx_policy.metadata import check_metadata
from amp_core.onnx_policy.model_file import ModelFile
from amp_core.onnx_policy.observation import Observer, TermSlice
from amp_core.onnx_policy.recording import PolicyRun, record
from amp_core.onnx_policy.reference import ClipReference
from amp_core.onnx_policy.session import PolicyLimits, PolicySession
from amp_core.onnx_policy.spec import ActionSpec, PolicySpec
from amp_core.onnx_policy.spec_reader import read_spec

__all__ = [
    "ActionSpec",
    "ClipReference",
    "ModelFile",
    "Observer",
    "PolicyLimits",
    "PolicyRun",
    "PolicySession",
    "PolicySpec",
    "TermSlice",
    "check_metadata",
    "read_spec",
    "record",
]
