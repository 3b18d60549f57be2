"""Motion files in: GMR pickles, npz, JSON and CSV, all safe on hostile bytes.

`read_motion` never executes anything from a file, never allocates more than the file justifies, and answers every file with a
`Motion` or a `MotionRefused`. Needs numpy alone.
"""

from amp_core.formats.clip import WIDE_LIMITS, Limits, Motion
from amp_core.formats.names import EXTENSIONS, clean_name, label_file, name_clip
from amp_core.formats.proportion import check_proportion
from amp_core.formats.reader import FORMATS, QUAT_ORDERS, read_motion, sniff
from amp_core.formats.recording import Recording
from amp_core.lineage import Lineage

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "QUAT_ORDERS",
    "WIDE_LIMITS",
    "Limits",
    "Lineage",
    "Motion",
    "Recording",
    "check_proportion",
    "clean_name",
    "label_file",
    "name_clip",
    "read_motion",
    "sniff",
]
