"""Observations: the terms of a spec, one after another, with their history."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amp_core.errors import PolicyRefused
from amp_core.onnx_policy.entries import DOCS
from amp_core.onnx_policy.kinds import KINDS, Moment, Operands, Term
from amp_core.onnx_policy.reference import ClipReference
from amp_core.onnx_policy.spec import PolicySpec
from amp_core.onnx_policy.spec_reader import MAX_OBSERVATION
from amp_core.onnx_policy.state import RobotState
from amp_core.robot import Robot

__all__ = ["Observer", "TermSlice", "format_slices"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TermSlice:
    """Where a term stands in the observation: `size` numbers from `offset` on, its history included.

    With a history that is laid out frame by frame, those of the oldest, or newest, frame.
    """

    name: str
    kind: str
    offset: int
    size: int


class Observer:
    """Makes the observations of one run, in the order of its control steps.

    Args:
      reference: the clip, conditioned for the robot.

    Raises:
      PolicyRefused: a scale with another number of factors than its term, or an observation over `MAX_OBSERVATION`.
    """

    def __init__(self, spec: PolicySpec, robot: Robot, reference: ClipReference) -> None:
        self.spec, self._reference = spec, reference
        self._state = RobotState(robot)
        self._operands = [_resolve_names(term, spec, robot) for term in spec.terms]
        self._past: list[deque[Array]] = [deque(maxlen=term.history + term.delay) for term in spec.terms]
        self._state.set(robot.model.qpos0, np.zeros(robot.model.nv))
        moment = self._moment(0, np.zeros(len(spec.action.joints)))
        widths = [len(self._compute(operands, moment, index)) for index, operands in enumerate(self._operands)]
        self.slices = _lay_out(spec, widths)
        self.size = sum(width * term.history for width, term in zip(widths, spec.terms, strict=True))
        if self.size > MAX_OBSERVATION:
            raise PolicyRefused(
                f"an observation has {self.size:,} numbers:\n{format_slices(self.slices)}",
                file=spec.file,
                key="observation",
                expected=f"at most {MAX_OBSERVATION:,}",
            )

    def observe(self, qpos: Array, qvel: Array, step: int, last_action: Array) -> Array:
        """(size,) the observation before control step `step`.

        Args:
          qpos, qvel: (nq,), (nv,) the robot's state.
          last_action: (A,) what the policy answered before; zeros before the first step.
        """
        self._state.set(qpos, qvel)
        moment = self._moment(step, last_action)
        histories: list[list[Array]] = []
        for index, (operands, past) in enumerate(zip(self._operands, self._past, strict=True)):
            term, values = operands.term, self._compute(operands, moment, index)
            while len(past) < term.history + term.delay:
                past.append(np.zeros_like(values) if term.starts_with_zeros else values)
            past.append(values)
            frames = list(past)[: term.history]
            histories.append(frames[::-1] if term.newest_first else frames)
        if self.spec.by_frame:
            rows = [np.concatenate(row) for row in zip(*histories, strict=True)]
            return np.concatenate(rows)
        return np.concatenate([frame for frames in histories for frame in frames])

    def _moment(self, step: int, last_action: Array) -> Moment:
        return Moment(self._state, self._reference, step, step + self.spec.frame_offset, last_action)

    def _compute(self, operands: Operands, moment: Moment, index: int) -> Array:
        """One frame of a term: clipped, then scaled."""
        term, kind = operands.term, KINDS[operands.term.kind]
        values = np.concatenate([kind.compute(operands, moment, moment.clamp(look_ahead)) for look_ahead in term.frames])
        if term.clip is not None:
            values = np.clip(values, *term.clip)
        if len(term.scale) not in (1, len(values)):
            raise PolicyRefused(
                f"the term {term.name!r} has {len(values)} numbers and {len(term.scale)} scales",
                file=self.spec.file,
                key=f"observation[{index}].scale",
                expected=f"one number, or {len(values)}",
                remedy=f"See {DOCS}",
            )
        return np.asarray(values * np.asarray(term.scale))


def _resolve_names(term: Term, spec: PolicySpec, robot: Robot) -> Operands:
    defaults = dict(zip(spec.joints, spec.default_pose or (0.0,) * len(spec.joints), strict=True))
    return Operands(
        term=term,
        columns=np.array([robot.joint_names.index(joint) for joint in term.joints], dtype=np.int64),
        bodies=np.array([robot.model.body(name).id for name in term.bodies], dtype=np.int64),
        body=int(robot.model.body(term.body).id) if term.body else robot.root_body,
        anchor=int(robot.model.body(spec.anchor_body).id),
        default_pose=np.array([defaults[joint] for joint in term.joints]),
    )


def _lay_out(spec: PolicySpec, widths: list[int]) -> tuple[TermSlice, ...]:
    slices, offset = [], 0
    for term, width in zip(spec.terms, widths, strict=True):
        size = width if spec.by_frame else width * term.history
        slices.append(TermSlice(term.name, term.kind, offset, size))
        offset += size
    return tuple(slices)


def format_slices(slices: tuple[TermSlice, ...]) -> str:
    """A line a term: offset, size, name and kind."""
    return "\n".join(
        f"  {entry.offset:6} … {entry.offset + entry.size - 1:6}  {entry.size:5}  {entry.name} ({entry.kind})"
        for entry in slices
    )
