"""`ampref robots`: what can be scored for."""

from __future__ import annotations

from amp_core.cli.options import Json, Quiet
from amp_core.cli.output import Output
from amp_core.robot import Robot, bundled_robots


def robots(json_out: Json = None, quiet: Quiet = False) -> None:
    """List the bundled robots; any other is given as a path to its robot.yaml."""
    out = Output(json_out, quiet=quiet)
    bundle = [Robot.load(name) for name in bundled_robots()]
    documents = [
        {
            "name": robot.name,
            "digest": robot.digest,
            "joint_names": list(robot.joint_names),
            "feature_dim": robot.layout.dim,
            "mass_kg": float(robot.mass),
        }
        for robot in bundle
    ]
    out.print_result(documents, (robot.name for robot in bundle))
    rows = [(robot.name, len(robot.joint_names), robot.layout.dim, f"{robot.mass:.3f}", robot.control_dt) for robot in bundle]
    out.print_table(("Robot", ">joints", ">features", ">mass kg", ">control s"), rows)
    out.print("\nnext: ampref score MOTION --robot NAME, or --robot path/to/robot.yaml for your own")
