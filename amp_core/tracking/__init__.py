"""The tracked mode: controls planned so that the robot follows a clip on its own feet, with no harness.

`plan` is all there is to call; docs/tracking.md says how it works and what was tried.
"""

from amp_core.tracking.planner import Plan, plan

__all__ = ["Plan", "plan"]
