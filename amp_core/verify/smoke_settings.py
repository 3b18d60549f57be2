"""What the micro-training trains, and how long."""

from __future__ import annotations

from dataclasses import dataclass

from amp_core.verify.environment import ACTION_SCALE, EPISODE_FRAMES

LSGAN, BCE = "lsgan", "bce"


@dataclass(frozen=True)
class SmokeSettings:
    """The settings of the micro-training.

    Args:
      iterations: of both networks.
      worlds, steps: their product is the number of control steps an iteration.
      loss: `lsgan` (least squares, targets ±1) or `bce` (logistic), both with a gradient penalty.
      gradient_penalty: factor on the mean squared gradient of the discriminator in the reference's transitions.
      hidden: sizes of the hidden layers of actor, critic and discriminator.
      discriminator_rate, policy_rate: Adam's step sizes.
      minibatch: transitions, of the policy and as many of the reference.
      epochs: of PPO over an iteration's control steps; the discriminator sees each once.
      discount, trace: γ and λ of the generalized advantage estimate.
      clip: of the surrogate's ratio.
      entropy: weight of the policy's entropy.
      max_gradient: norm that gradients are clipped to.
      action_scale: rad that an action of 1 adds to a joint's target.
      episode_frames: control steps an episode, at most.
      untrained: frames of the untrained policy, on whose transitions the discriminator is tested and never trained.

    Raises:
      ValueError: an unknown loss, a count below 1, or control steps that are no multiple of the minibatch.
    """

    iterations: int = 100
    worlds: int = 64
    steps: int = 16
    loss: str = LSGAN
    gradient_penalty: float = 5.0
    hidden: tuple[int, ...] = (64, 64)
    discriminator_rate: float = 1e-3
    policy_rate: float = 1e-3
    minibatch: int = 256
    epochs: int = 3
    discount: float = 0.95
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 0.0
    max_gradient: float = 1.0
    action_scale: float = ACTION_SCALE
    episode_frames: int = EPISODE_FRAMES
    untrained: int = 10_000

    def __post_init__(self) -> None:
        if self.loss not in (LSGAN, BCE):
            raise ValueError(f"loss is {self.loss!r}; expected {LSGAN!r} or {BCE!r}")
        for name in ("iterations", "worlds", "steps", "minibatch", "epochs", "untrained"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.frames % self.minibatch:
            raise ValueError(
                f"worlds · steps is {self.frames}, which is no multiple of the minibatch of {self.minibatch} transitions"
            )

    @property
    def frames(self) -> int:
        """Control steps an iteration."""
        return self.worlds * self.steps
