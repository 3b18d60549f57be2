"""From a motion as its file has it to one that the robot can be driven with, and the account of everything that was changed.

`check_clip` finds what can be told without simulating, and `check_motion` refuses what of it cannot be meant. `condition`
resamples to the control rate, puts quaternions on one hemisphere, clips joints to their limits, fits the ground, and derives
the initial state. Every change is in the `IngestReport`; what looks wrong but is no error is there too, as a sentence in
`notes`. Nothing is repaired in silence.

Quaternions are xyzw and take body to world, as clips have them; only `initial_qpos` is wxyz, as MuJoCo has it.
"""

from amp_core.formats.clip import Limits, Motion
from amp_core.formats.names import clean_name
from amp_core.motion.checks import check_clip, check_motion, find_refusal
from amp_core.motion.conditioning import Conditioned, condition
from amp_core.motion.findings import ClipCheck, Finding
from amp_core.motion.joint_order import JointOrder, reorder_joints
from amp_core.motion.recording import BoundRecording, bind_recording, check_controls
from amp_core.motion.report import FirstFrame, IngestReport, JointClip
from amp_core.motion.resampling import resampled_count
from amp_core.motion.root_frame import RootFrame

__all__ = [
    "BoundRecording",
    "ClipCheck",
    "Conditioned",
    "Finding",
    "FirstFrame",
    "IngestReport",
    "JointClip",
    "JointOrder",
    "Limits",
    "Motion",
    "RootFrame",
    "bind_recording",
    "check_clip",
    "check_controls",
    "check_motion",
    "clean_name",
    "condition",
    "find_refusal",
    "reorder_joints",
    "resampled_count",
]
