"""What a policy observes and what its actions mean, as data; `amp_core.onnx_policy.spec_reader` reads it from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from amp_core.onnx_policy.kinds import Term

__all__ = ["ActionSpec", "PolicySpec"]


@dataclass(frozen=True)
class ActionSpec:
    """What an action means: the target of joint j is `offset_j + scale_j · clip(action_j)` rad.

    Args:
      joints: A names, in the order of the model's output.
      scale: (A,) rad a unit of action.
      offset: `default_pose`, `reference` (the clip's angle in the observed frame) or `zero`.
      clip: bounds of the action before it is scaled; None for none.
      other_joints: what joints without an action are driven by: `reference` or `default_pose`.
      output: the model's output that holds the action; None for its first.
    """

    joints: tuple[str, ...]
    scale: tuple[float, ...]
    offset: str = "default_pose"
    clip: tuple[float, float] | None = None
    other_joints: str = "reference"
    output: str | None = None


@dataclass(frozen=True)
class PolicySpec:
    """A checked observation spec.

    Args:
      file, digest: of the YAML; `sha256:…`.
      control_rate: Hz, at which the policy is asked; None for the robot's own rate.
      joints: n names, in the policy's own order, which all joint terms have.
      default_pose: (n,) rad, in that order; None where nothing needs it.
      anchor_body: the body that anchor terms are of.
      terms: the observation, in its order.
      by_frame: whether the history is laid out frame by frame, all terms of each, instead of term by term.
      frame_offset: added to the number of the control step: the clip's frame that a term's frame 0 is.
      inputs: what feeds an input of the model: `observation` or `time_step`, by the input's name.
      state: the output that an input of the model has in the next step, by the input's name; zeros in the first.
      from_metadata: keys that were taken from the model's metadata.
    """

    file: str
    digest: str
    control_rate: float | None
    joints: tuple[str, ...]
    default_pose: tuple[float, ...] | None
    anchor_body: str
    terms: tuple[Term, ...]
    by_frame: bool
    frame_offset: int
    action: ActionSpec
    inputs: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)
    from_metadata: tuple[str, ...] = ()
