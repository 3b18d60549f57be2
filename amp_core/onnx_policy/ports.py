"""How a spec and a model are connected: which input has what, which output is the action, and whether sizes fit."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from amp_core.errors import PolicyRefused
from amp_core.onnx_policy.model_file import ModelFile, TensorInfo
from amp_core.onnx_policy.observation import Observer, format_slices
from amp_core.onnx_policy.session import PolicySession
from amp_core.onnx_policy.spec import PolicySpec

__all__ = ["ModelPorts"]

Array = npt.NDArray[np.float64]

_FLOATS = ("float32", "float64", "float16")
_MAX_STATE = 1 << 20
"""Numbers of one state that a policy keeps between steps."""


class ModelPorts:
    """The model's inputs and outputs, and what each has; checked before the run.

    Raises:
      PolicyRefused: an input that nothing feeds, or sizes that do not fit.
    """

    def __init__(self, spec: PolicySpec, model: ModelFile, observer: Observer) -> None:
        self._spec, self._model, self._observer = spec, model, observer
        by_name = {tensor.name: tensor for tensor in model.inputs}
        self._sources = dict(spec.inputs)
        for name in (*spec.inputs, *spec.state):
            if name not in by_name:
                self._refuse(f"the model has no input {name!r}", "inputs")
        open_inputs = [name for name in by_name if name not in spec.inputs and name not in spec.state]
        if "observation" not in spec.inputs.values() and len(open_inputs) >= 1:
            # The first input is the observation, as in every export.
            self._sources[open_inputs.pop(0)] = "observation"
        if "time_step" in open_inputs:
            self._sources["time_step"] = "time_step"
            open_inputs.remove("time_step")
        if open_inputs:
            self._refuse(f"the spec does not say what the model's input {open_inputs[0]!r} has", "inputs")
        outputs = {tensor.name: tensor for tensor in model.outputs}
        self._action_output = spec.action.output or model.outputs[0].name
        for name, key in ((self._action_output, "action.output"), *((output, "state") for output in spec.state.values())):
            if name not in outputs:
                self._refuse(f"the model has no output {name!r}", key)
        self._inputs = {name: by_name[name] for name in self._sources}
        for name, source in self._sources.items():
            self._check_input(by_name[name], source)
        sizes = [size for size in outputs[self._action_output].shape if size != 1]
        if len(sizes) == 1 and sizes[0] is not None and sizes[0] != len(spec.action.joints):
            self._refuse(
                f"the model answers {sizes[0]} actions for {len(spec.action.joints)} joints of the spec", "action.joints"
            )
        self._state = {name: self._make_state(by_name[name]) for name in spec.state}

    def ask(self, session: PolicySession, observation: Array, clip_frame: int, frame: int) -> Array:
        """(A,) the action on an observation.

        Args:
          clip_frame: what an input `time_step` has. frame: the control step, for errors.
        """
        values = {"observation": observation, "time_step": np.array([float(clip_frame)])}
        feeds: dict[str, npt.NDArray[Any]] = {}
        for name, tensor in self._inputs.items():
            value = values[self._sources[name]]
            feeds[name] = value.reshape(_fit_shape(tensor, value.size)).astype(tensor.dtype)
        outputs = dict.fromkeys((self._action_output, *self._spec.state.values()))
        try:
            answer = session.run({**feeds, **self._state}, list(outputs))
        except PolicyRefused as error:
            error.frame = frame
            raise
        action = np.asarray(answer[self._action_output], dtype=np.float64).ravel()
        if action.size != len(self._spec.action.joints):
            self._refuse(
                f"the model answers {action.size} actions for {len(self._spec.action.joints)} joints of the spec",
                "action.joints",
            )
        for name, output in self._spec.state.items():
            if answer[output].shape != self._state[name].shape:
                self._refuse(
                    f"the output {output!r} has the shape {answer[output].shape}, its input {self._state[name].shape}", "state"
                )
            self._state[name] = answer[output].astype(self._state[name].dtype)
        arrays = (action, *self._state.values())
        if not all(np.isfinite(array).all() for array in arrays):
            index = int(np.argmin(np.isfinite(action)))
            joint = "its state" if np.isfinite(action).all() else f"the action of {self._spec.action.joints[index]!r}"
            raise PolicyRefused(
                f"the policy's answer is not finite: {joint}",
                file=self._model.file,
                frame=frame,
                expected="finite numbers",
                remedy="Compare the observation with how the policy was trained: wrong scales make networks overflow",
            )
        return action

    def _check_input(self, tensor: TensorInfo, source: str) -> None:
        if tensor.dtype not in (*_FLOATS, "int64", "int32") or (source == "observation" and tensor.dtype not in _FLOATS):
            self._refuse(f"the input {tensor} has another type than a policy's", "inputs")
        size = self._observer.size if source == "observation" else 1
        if not _fit_shape(tensor, size):
            self._refuse(
                f"the observation of the spec has {size} numbers, the model's input is {tensor}:\n"
                f"  offset … last    size  term\n{format_slices(self._observer.slices)}",
                "observation" if source == "observation" else "inputs",
            )

    def _make_state(self, tensor: TensorInfo) -> npt.NDArray[Any]:
        shape = tuple(1 if length is None else length for length in tensor.shape)
        if tensor.dtype not in _FLOATS or math.prod(shape) > _MAX_STATE:
            self._refuse(f"the state {tensor} is no floats, or over {_MAX_STATE:,} of them", "state")
        return np.zeros(shape, tensor.dtype)

    def _refuse(self, what: str, key: str) -> NoReturn:
        inputs, outputs = (", ".join(map(str, tensors)) for tensors in (self._model.inputs, self._model.outputs))
        raise PolicyRefused(
            what,
            file=self._spec.file,
            key=key,
            expected=f"what the model has: inputs {inputs}; outputs {outputs}",
            remedy="Correct the spec (docs/tracking-policies.md)",
        )


def _fit_shape(tensor: TensorInfo, size: int) -> tuple[int, ...]:
    """The shape that so many numbers have as an input; empty where they do not fit. Open sizes are 1, but for the last."""
    shape = [1 if length is None else length for length in tensor.shape]
    if tensor.shape and tensor.shape[-1] is None:
        shape[-1] = max(1, size // max(1, math.prod(shape[:-1])))
    return tuple(shape) if math.prod(shape) == size else ()
