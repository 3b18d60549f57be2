"""Making a robot usable: a first `robot.yaml` for a model, and what of a robot will not work, and why."""

from amp_core.robot_setup.draft import Draft, draft_robot
from amp_core.robot_setup.inspection import Inspection, Notice, inspect_robot

__all__ = ["Draft", "Inspection", "Notice", "draft_robot", "inspect_robot"]
