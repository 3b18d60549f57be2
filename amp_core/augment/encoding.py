"""A clip as the bytes of a file that `read_motion` reads, with its lineage."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from amp_core.augment.loop import Seam
from amp_core.augment.poses import Array
from amp_core.formats.name_lists import NAME_LISTS_KEY
from amp_core.formats.recording import Recording, encode_recording
from amp_core.lineage import Lineage
from amp_core.npz import write_npz
from amp_core.strict_json import canonical_json

MAX_NAME_BYTES = 120
"""Of the name of a variant or a part."""


def motion_bytes(
    fps: float,
    root_pos: Array,
    root_rot: Array,
    dof_pos: Array,
    lineage: Lineage | None = None,
    seam: Seam | None = None,
    joint_names: tuple[str, ...] | None = None,
    name_lists: Mapping[str, tuple[str, ...]] | None = None,
    recording: Recording | None = None,
) -> bytes:
    """A clip as an npz that `read_motion` reads. The same arrays give the same bytes.

    Args:
      name_lists: those of a motion that no robot's joints have been compared with yet.
      recording: the controls of the clip.
    """
    members: dict[str, Any] = {"fps": np.float64(fps), "root_pos": root_pos, "root_rot": root_rot, "dof_pos": dof_pos}
    if joint_names is not None:
        members["joint_names"] = np.array(joint_names)
    if name_lists:
        members[NAME_LISTS_KEY] = np.frombuffer(canonical_json(dict(name_lists)), np.uint8)
    if recording is not None:
        members |= encode_recording(recording)
    if lineage is not None:
        members |= {key: np.array(text) for key, text in lineage.to_members().items()}
    if seam is not None:
        members["ampref_seam_frames"] = np.array([seam.start, seam.end], np.int64)
        members["ampref_seam_residual"] = np.float64(seam.residual)
    stream = io.BytesIO()
    write_npz(stream, members)
    return stream.getvalue()
