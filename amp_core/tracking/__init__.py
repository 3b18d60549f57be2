"""The tracked mode: controls planned so that the robot follows a clip on its own feet, with no harness.

docs/tracking.md explains how `plan` works, and its alternatives.
"""

from amp_core.tracking.harness import harness_force, harness_targets
from amp_core.tracking.planner import Plan, plan

__all__ = ["Plan", "harness_force", "harness_targets", "plan"]
