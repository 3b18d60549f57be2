"""Parts of a clip as clips of their own: which frames, what they are called, and their files' bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from amp_core.augment.encoding import MAX_NAME_BYTES, motion_bytes
from amp_core.digests import digest_of
from amp_core.formats.clip import Motion
from amp_core.lineage import Lineage

__all__ = ["LEAST_SEC", "Part", "cut_motion", "split_evenly"]

LEAST_SEC = 1.0
"""A part that is shorter holds no step, and is not worth a clip."""

DIGITS = 3


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a clip: its motion, its file's bytes (an npz that `read_motion` reads back), its first and last frame."""

    motion: Motion
    data: bytes
    first: int
    last: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the arrays."""
        lineage = self.motion.lineage
        assert lineage is not None
        return {
            "name": self.motion.name,
            "frames": [self.first, self.last],
            "duration_sec": self.motion.duration_sec,
            "fps": self.motion.fps,
            "source_digest": self.motion.source_digest,
            "parent": lineage.parent,
            "lineage": lineage.ancestor,
        }


def cut_motion(motion: Motion, start: int, stop: int | None = None, *, digits: int = DIGITS) -> Part:
    """The part of a clip with the frames `start ≤ k < stop`, called `NAME_FIRST-LAST`; the same bytes every time.

    Recorded controls go with a part that begins with the clip.

    Args:
      motion: the whole clip and `stop`; or, without `stop`, the part itself, which begins at the frame `start` of its file.
      digits: of the frame numbers in the name, so that the names of all parts sort by time.
    """
    if stop is not None:
        motion = replace(
            motion,
            root_pos=motion.root_pos[start:stop],
            root_rot=motion.root_rot[start:stop],
            dof_pos=motion.dof_pos[start:stop],
            # Of a later start the state is not known.
            recording=motion.recording.cut(stop) if motion.recording is not None and start == 0 else None,
        )
    last = start + motion.num_frames - 1
    tail = f"_{start:0{digits}d}-{last:0{digits}d}"
    name = motion.name.encode()[: MAX_NAME_BYTES - len(tail)].decode(errors="ignore").strip() + tail
    lineage = Lineage(motion.source_digest, motion.ancestor, f"cut={start}:{last + 1}")
    arrays = motion.root_pos, motion.root_rot, motion.dof_pos
    data = motion_bytes(
        motion.fps,
        *arrays,
        lineage=lineage,
        joint_names=motion.joint_names,
        name_lists=motion.name_lists,
        recording=motion.recording,
    )
    part = replace(motion, name=name, source_digest=digest_of(data), source_format="npz", lineage=lineage, recording_fault=None)
    return Part(part, data, start, last)


def split_evenly(frames: int, fps: float, seconds: float) -> list[tuple[int, int]]:
    """The parts of `seconds` that a clip of `frames` has, as `start, stop`; the last is shorter, and there if worth a clip."""
    length = max(2, round(seconds * fps))
    parts = [(start, min(start + length, frames)) for start in range(0, frames, length)]
    return [(start, stop) for start, stop in parts if stop - start >= max(2, round(LEAST_SEC * fps))]
