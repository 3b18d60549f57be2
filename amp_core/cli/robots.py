"""`ampref robots`: what can be scored for."""

from __future__ import annotations

from amp_core.cli.output import Json, Output, Quiet


def robots(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the bundled robots; any other is given as a path to its robot.yaml."""
    out = Output(as_json=as_json, quiet=quiet)

    from amp_core.robot import Robot, bundled_robots

    found = [Robot.load(name) for name in bundled_robots()]
    out.document(
        [
            {
                "name": r.name,
                "digest": r.digest,
                "joint_names": list(r.joint_names),
                "feature_dim": r.layout.dim,
                "mass_kg": float(r.mass),
            }
            for r in found
        ]
    )
    out.values(r.name for r in found)
    out.table(
        ("Robot", ">joints", ">features", ">mass kg", ">control s"),
        [(r.name, len(r.joint_names), r.layout.dim, f"{r.mass:.3f}", r.control_dt) for r in found],
    )
    out.say("\nnext: ampref score MOTION --robot NAME, or --robot path/to/robot.yaml for your own")
