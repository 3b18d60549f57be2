"""Generation: conditioned clips in, simulated rollouts out, many clips in one batch.

Timing. A clip of N frames gives N rows. Control step k holds `ctrl[k]` and the harness force `stab_force[k]` over all its
physics substeps; row k of every array is the state after that step and is compared with frame k of the clip. `ctrl[k]` is the
clip's joint angles of frame k or, in tracked mode, the planned ones, clipped to the servos' range. The simulation starts from
the clip's frame 0. In mode `recorded` controls and initial state came with the clip, and a frame's controls may change from
step to step.

A simulation that raises a warning or leaves the finite numbers at frame k is stopped there: rows 0 … k−1 are kept, and
`failure` gives the reason. It cannot disturb the others in its batch: each clip's rows are the same bits alone, in any company,
and on any number of threads.
"""

from amp_core.rollout.batches import generate
from amp_core.rollout.record import Failure, Rollout, replay, saturated_actuators
from amp_core.tracking import harness_force

__all__ = ["Failure", "Rollout", "generate", "harness_force", "replay", "saturated_actuators"]
