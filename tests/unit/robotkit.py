"""Robots of other kinds as text: a humanoid with stiff servos, and a quadruped with motors. Every number is made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from amp_core.formats import Motion
from amp_core.robot import Robot

_HEAD = """<mujoco model="{model}">
  <compiler angle="radian"/>
  <option timestep="0.002" integrator="implicitfast" cone="elliptic"/>
  <default><geom friction="0.9" contype="0" conaffinity="1" density="0"/><joint damping="0.2" armature="0.004"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="0 0 1" contype="1"/>
"""

_SIDES = (("left", 1), ("right", -1))


def _part(size: str, mass: float, place: str = "0 0 0") -> str:
    return f'<geom type="box" size="{size}" pos="{place}" mass="{mass}"/>'


def _joint(name: str, axis: str, low: float, high: float, limit: float | None = None) -> str:
    force = "" if limit is None else f' actuatorfrcrange="{-limit} {limit}"'
    return f'<joint name="{name}" axis="{axis}" range="{low} {high}"{force}/>'


def _humanoid_leg(side: str, y: int) -> str:
    return f"""
      <body name="{side}_hip" pos="0 {0.10 * y} -0.05">{_joint(f"{side}_hip_pitch", "0 1 0", -1.8, 1.2)}
        {_part(".04 .04 .03", 0.9)}
      <body name="{side}_hip_2">{_joint(f"{side}_hip_roll", "1 0 0", -0.6, 0.6)}{_part(".03 .03 .03", 0.6)}
      <body name="{side}_thigh">{_joint(f"{side}_hip_yaw", "0 0 1", -0.8, 0.8)}{_part(".05 .05 .12", 2.6, "0 0 -.12")}
      <body name="{side}_shank" pos="0 0 -0.26">{_joint(f"{side}_knee", "0 1 0", 0.0, 2.2)}
        {_part(".04 .04 .11", 1.7, "0 0 -.13")}
      <body name="{side}_ankle" pos="0 0 -0.26">{_joint(f"{side}_ankle_pitch", "0 1 0", -0.9, 0.5)}{_part(".02 .02 .02", 0.2)}
      <body name="{side}_foot">{_joint(f"{side}_ankle_roll", "1 0 0", -0.4, 0.4)}
        <geom name="{side}_toe" type="box" size=".055 .045 .015" pos=".075 0 -.035" mass="0.35"/>
        <geom name="{side}_heel" type="box" size=".045 .045 .015" pos="-.025 0 -.035" mass="0.35"/>
      </body></body></body></body></body></body>"""


def _humanoid_arm(side: str, y: int) -> str:
    return f"""
      <body name="{side}_shoulder" pos="0 {0.18 * y} 0.27">{_joint(f"{side}_shoulder_pitch", "0 1 0", -3, 1.2, 18.0)}
        {_part(".04 .04 .04", 0.7)}
      <body name="{side}_arm">{_joint(f"{side}_shoulder_roll", "1 0 0", -1.5, 1.5, 18.0)}{_part(".03 .03 .09", 0.9, "0 0 -.1")}
      <body name="{side}_forearm" pos="0 0 -0.2">{_joint(f"{side}_elbow", "0 1 0", -2, 0, 18.0)}
        {_part(".03 .03 .09", 0.8, "0 0 -.1")}
      </body></body></body>"""


def write_humanoid(folder: Path) -> Path:
    """The `robot.yaml` of a humanoid of 1.1 m and 30 kg, 19 joints, with stiff servos; arms are limited at their joints."""
    legs, arms = ("".join(part(*side) for side in _SIDES) for part in (_humanoid_leg, _humanoid_arm))
    gains = {"hip_pitch": (260, 90), "hip_roll": (260, 60), "hip_yaw": (200, 40), "knee": (300, 90)}
    gains |= {"ankle_pitch": (220, 40), "ankle_roll": (260, 20)}
    legs_servos = "".join(
        f'<position joint="{side}_{joint}" kp="{kp}" kv="{kp * 0.025}" forcerange="{-limit} {limit}"/>'
        for side, _ in _SIDES
        for joint, (kp, limit) in gains.items()
    )
    arm_servos = "".join(
        f'<position joint="{side}_{joint}" kp="60" kv="1.5"/>'
        for side, _ in _SIDES
        for joint in ("shoulder_pitch", "shoulder_roll", "elbow")
    )
    (folder / "humanoid.xml").write_text(
        f"""{_HEAD.format(model="humanoid")}
    <body name="trunk" pos="0 0 0.62"><freejoint/>{_part(".08 .11 .06", 4.5)}{legs}
      <body name="torso" pos="0 0 0.06">{_joint("waist", "0 0 1", -1, 1)}{_part(".08 .12 .16", 6.1, "0 0 .17")}
        {_part(".06 .06 .07", 1.2, "0 0 .40")}{arms}
      </body>
    </body>
  </worldbody>
  <actuator>{legs_servos}{arm_servos}<position joint="waist" kp="200" kv="5" forcerange="-50 50"/></actuator>
</mujoco>
"""
    )
    channels = ", ".join(f"{side}_{part}: [{side}_{part}]" for side, _ in _SIDES for part in ("toe", "heel"))
    (folder / "robot.yaml").write_text(
        f"model: humanoid.xml\ncontact_channels: {{{channels}}}\nheight_range: [0.35, 0.85]\nexpected_mass: 30\n"
    )
    return folder / "robot.yaml"


def _quadruped_leg(name: str, x: int, y: int) -> str:
    return f"""
      <body name="{name}_hip" pos="{0.19 * x} {0.05 * y} 0">{_joint(f"{name}_hip_joint", "1 0 0", -0.8, 0.8)}
        {_part(".04 .03 .03", 0.6)}
      <body name="{name}_thigh" pos="0 {0.08 * y} 0">{_joint(f"{name}_thigh_joint", "0 1 0", -0.6, 2.5)}
        {_part(".02 .02 .1", 0.9, "0 0 -.1")}
      <body name="{name}_calf" pos="0 0 -0.21">{_joint(f"{name}_calf_joint", "0 1 0", -2.7, -0.8)}
        {_part(".01 .01 .09", 0.2, "0 0 -.1")}
        <geom type="sphere" size="0.022" pos="0 0 -0.21" mass="0.06" contype="0" conaffinity="1"/>
      </body></body></body>"""


LEGS = (("FR", 1, -1), ("FL", 1, 1), ("RR", -1, -1), ("RL", -1, 1))
"""Of the quadruped: name, forwards or backwards, left or right."""


def write_quadruped(folder: Path) -> Path:
    """The `robot.yaml` of a quadruped of 12 kg on unnamed spheres, with 12 motors that `servos:` replaces."""
    joints = [f"{leg}_{part}_joint" for leg, _, _ in LEGS for part in ("hip", "thigh", "calf")]
    motors = "".join(f'<motor joint="{joint}" gear="1" ctrlrange="-24 24"/>' for joint in joints)
    (folder / "quadruped.xml").write_text(
        f"""{_HEAD.format(model="quadruped")}
    <body name="trunk" pos="0 0 0.3"><freejoint/>{_part(".19 .06 .05", 4.96)}{"".join(_quadruped_leg(*leg) for leg in LEGS)}
    </body>
  </worldbody>
  <actuator>{motors}</actuator>
</mujoco>
"""
    )
    channels = ", ".join(f"{leg}: {{body: {leg}_calf}}" for leg, _, _ in LEGS)
    (folder / "robot.yaml").write_text(
        f"model: quadruped.xml\ncontact_channels: {{{channels}}}\nheight_range: [0.15, 0.40]\n"
        "servos:\n  .*: {kp: 40, kd: 1, limit: 20, armature: 0.01}\n"
    )
    return folder / "robot.yaml"


def sway(robot: Robot, seconds: float = 0.8) -> Motion:
    """The robot of this kit goes down on level feet and comes up, swaying its arms: by 3 cm (humanoid) or 2 cm (quadruped)."""
    frames = round(seconds / robot.control_dt) + 1
    bend = 1.0 - np.cos(2 * np.pi * np.arange(frames) / (frames - 1))  # from 0 to 2 and back
    joints = np.zeros((frames, len(robot.joint_names)))
    column = {name: joints[:, i] for i, name in enumerate(robot.joint_names)}
    if "waist" in column:
        angle, lift = 0.25 + 0.1 * bend, 0.05
        for side, _ in _SIDES:
            column[f"{side}_hip_pitch"][:], column[f"{side}_knee"][:] = -angle, 2 * angle
            column[f"{side}_ankle_pitch"][:], column[f"{side}_elbow"][:] = -angle, -0.3 - 0.2 * bend
        height = 0.05 + 0.52 * np.cos(angle) + lift
    else:
        angle = 0.8 + 0.06 * bend
        for leg, _, _ in LEGS:
            column[f"{leg}_thigh_joint"][:], column[f"{leg}_calf_joint"][:] = angle, -2 * angle
        height = 0.42 * np.cos(angle) + 0.022
    # As in a real clip, the feet are not to the last digit on the floor, where rounding would decide what touches.
    root_pos = np.column_stack([np.zeros((frames, 2)), height - 0.001 * bend])
    rotation = np.tile([0.0, 0.0, 0.0, 1.0], (frames, 1))
    digest = f"sha256:{frames:064x}"
    return Motion("sway", 1.0 / robot.control_dt, root_pos, rotation, joints, digest, "made here")
