"""The micro-training: does a discriminator learn on this reference, and does its reward reach a policy?

A hundred iterations of adversarial motion priors (Peng et al., 2021) on the robot in MuJoCo, small and complete: a
discriminator on transitions of normalized AMP features, and PPO on its reward. It proves wiring: features, statistics,
contacts, physics and both losses fit together. It does not train a gait. docs/smoke.md says what it
runs, and what a failure means.

This module imports without JAX and optax.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from amp_core.verify.context import Context
from amp_core.verify.policy_side import NO_JAX
from amp_core.verify.report import FAIL, PASS, Findings, Row, TestReport
from amp_core.verify.smoke_reference import Normalization, Reference
from amp_core.verify.smoke_settings import SmokeSettings
from amp_core.verify.smoke_training import Fault, train

Curves = Mapping[str, Sequence[float]]

AUC = 0.55
"""From the specification: the discriminator must rank reference above policy more often than this; 0.5 is chance."""

LOSS_FALL = 0.01
"""Share of its initial value by which the discriminator's loss must fall: less is noise and rounding."""

REWARD_STD = 0.01
"""From the specification: a reward that varies less gives the policy no direction."""

LAST = 0.1
"""The gates are on the mean over the last iterations, which are this share of all."""


def run(context: Context, settings: SmokeSettings | None = None) -> TestReport:
    """The micro-training on the subject's Tier 0 frames."""
    settings = settings or (SmokeSettings() if context.iterations is None else SmokeSettings(iterations=context.iterations))
    findings = Findings("smoke")
    # JAX reads it when it first looks for devices. A run on the CPU must not take a GPU's memory from a training beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    side = context.policy_side
    if side is None:
        return findings.skip(NO_JAX)
    try:
        import jax  # noqa: PLC0415 - JAX is optional
        import optax  # noqa: F401, PLC0415 - JAX is optional
    except ImportError:
        return findings.skip(NO_JAX)
    reference = Reference.of(context.subject)
    if reference is None:
        return findings.skip("there is no Tier 0 clip: training would have no transition")
    normal = Normalization.of(findings, context.subject, reference) if reference.check_finite(findings) else None
    if normal is None:
        return findings.report(reference.description)
    # The CPU on every machine, so that the same seed gives the same figures beside a GPU too.
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        return findings.skip(f"JAX has no CPU to run on ({error}): add cpu to JAX_PLATFORMS")
    with jax.default_device(device):
        curves, fault = train(context, settings, side, reference, normal)
    # Five digits; JSON has no number for what is not finite.
    findings.figures["curves"] = {
        name: [float(f"{value:.5g}") if np.isfinite(value) else None for value in values] for name, values in curves.items()
    }
    findings.figures["settings"] = asdict(settings)
    findings.figures["reference"] = {"transitions": len(reference.train), "held_out": len(reference.held_out)}
    judge(findings, curves, settings, fault)
    return findings.report(
        f"{len(curves['auc'])} iterations of {settings.frames} control steps in {settings.worlds} worlds: "
        f"{settings.loss.upper()} with a gradient penalty on transitions of normalized features, PPO on its reward; "
        f"{reference.description}"
    )


def judge(findings: Findings, curves: Curves, settings: SmokeSettings, fault: Fault | None) -> None:
    """The specification's gates on curves that have a value an iteration.

    Args:
      curves: `d_loss` and `auc` on held-out reference and on fresh policy transitions, before each iteration's updates;
        `auc_untrained`, against the untrained policy's; `reward_std`; `policy_loss`; `policy_moved`, the norm of what all
        updates so far changed in the policy's parameters; and figures without a gate.
      fault: the quantity that was not finite, if any; the curves end before it.
    """
    if fault is not None:
        findings.add(Row("nonfinite", fault.iteration, FAIL, note=fault.quantity, where=f"iteration {fault.iteration}"))
        findings.add_reason(
            f"{fault.quantity} not finite in iteration {fault.iteration} of {settings.iterations}, the first of all quantities "
            f"in the order of their computation: {fault.remedy}"
        )
        return
    findings.add(Row("nonfinite", 0, PASS, "==", 0.0, note="features, logits, rewards, losses, gradients and parameters"))
    window = max(1, round(LAST * len(curves["auc"])))
    last = {name: float(np.mean(values[-window:])) for name, values in curves.items()}
    place = f"mean of the last {window} iterations"

    first = float(curves["d_loss"][0])
    fall = (first - last["d_loss"]) / first
    note = f"share; from {first:.4g}, which is chance, to {last['d_loss']:.4g} on transitions that it was not trained on"
    reason = (
        f"the discriminator's loss does not fall (from {first:.4g} to {last['d_loss']:.4g}): it does not learn; is its "
        f"learning rate ({settings.discriminator_rate:g}) too small or too large, or is there nothing to learn?"
    )
    findings.check("d_loss.fall", fall, ">", LOSS_FALL, where=place, note=note, reason=reason)
    note = "of its outputs on held-out reference and on fresh policy transitions; 0.5 is chance"
    reason = (
        f"the discriminator cannot tell reference from policy (AUC {last['auc']:.3f}, asked > {AUC:g}): run tests 1A to 5, "
        "look at test 6 for degenerate features and at test 7 for the reference's quality, and check that the statistics "
        "are this version's"
    )
    findings.check("auc", last["auc"], ">", AUC, where=place, note=note, reason=reason)
    note = "the same against the untrained policy's own rollout, which the discriminator was not trained on"
    reason = (
        f"the discriminator cannot tell reference from an untrained policy (AUC {last['auc_untrained']:.3f}, asked > "
        f"{AUC:g}): the reference looks like noise about its mean pose; was it recorded from a policy?"
    )
    findings.check("auc_untrained", last["auc_untrained"], ">", AUC, where=place, note=note, reason=reason)
    reason = (
        f"the AMP reward is constant (std {last['reward_std']:.2g}, asked > {REWARD_STD:g}): the policy is told nothing; a "
        "discriminator that does not learn, one that is certain of everything, or features without variance (stale "
        "statistics)"
    )
    findings.check("reward_std", last["reward_std"], ">", REWARD_STD, where=place, reason=reason)
    bad = sum(not np.isfinite(value) for value in curves["policy_loss"])
    note = f"iterations; {last['policy_loss']:.3g} in the mean of the last ones"
    findings.check("policy_loss.nonfinite", bad, "==", 0.0, note=note)
    distance = float(curves["policy_moved"][-1])
    note = "norm of the change of the policy's parameters"
    reason = "the policy's parameters did not change: the reward does not reach it, or its learning rate is 0"
    findings.check("policy_moved", distance, ">", 0.0, note=note, reason=reason)
    for name in ("reward_mean", "fall_rate", "value_loss"):
        note = f"told only; {curves[name][0]:.3g} in the first iteration"
        findings.add(Row(name, last[name], PASS, where=place, note=note))
