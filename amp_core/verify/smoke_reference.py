"""The reference of the micro-training: transitions and start states of one physics, and the normalization of its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from amp_core.dataset.statistics import STD_FLOOR
from amp_core.verify.report import FAIL, Findings, Row

if TYPE_CHECKING:
    from amp_core.recipe import PhysicsScale
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip, Subject

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

FEATURE_CLIP = 3.0
"""Normalized features are clipped to ± this, contacts apart, as `Dataset.normalize(x, clip=True)` does on a training node."""

STATS_TOLERANCE = 0.05
"""The most that the version's normalized rows may differ from mean 0 and std 1; with the right statistics it is rounding."""

_BLOCK, _HOLD_OUT_STEP = 10, 5
"""Every fifth block of ten transitions is held out of training."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The Tier 0 frames of one physics: transitions for the discriminator, start states for the environment.

    Args:
      robot: of the clips.
      physics, force_threshold: that the clips were generated with.
      rows: (M, F) the frames' features.
      names: (M,) clip and frame of each.
      starts_qpos, starts_qvel, starts_contacts: (M, …) their states and contacts.
      train, held_out: first rows of the transitions (i, i + 1); none crosses from one window to another.
      description: in words.
    """

    robot: Robot
    physics: PhysicsScale
    force_threshold: float
    rows: Floats
    names: tuple[tuple[str, int], ...]
    starts_qpos: Array
    starts_qvel: Array
    starts_contacts: Floats
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    description: str

    @classmethod
    def of(cls, subject: Subject) -> Reference | None:
        """The reference of a subject; of several physics the one with the most frames. None where there is no transition."""
        groups: dict[tuple[PhysicsScale, float], list[Clip]] = {}
        for clip in subject.tier_0_clips:
            groups.setdefault((clip.recipe.physics, clip.recipe.force_threshold), []).append(clip)
        if not groups:
            return None
        (physics, threshold), clips = max(groups.items(), key=lambda item: sum(len(clip.version_features) for clip in item[1]))
        parts: dict[str, list[npt.NDArray[Any]]] = {key: [] for key in ("features", "qpos", "qvel", "foot_contacts")}
        names: list[tuple[str, int]] = []
        firsts: list[int] = []
        for clip in clips:
            for start, end in clip.windows:
                stop = min(end, clip.frames)
                firsts += range(len(names), len(names) + max(0, stop - start - 1))
                names += [(clip.name, frame) for frame in range(start, stop)]
                for key, part in parts.items():
                    part.append(np.asarray(clip.arrays[key])[start:stop])
        transitions = np.array(firsts, np.int64)
        if len(transitions) < _HOLD_OUT_STEP:
            return None
        # Neighbours look alike, so whole blocks are held out; where there are few transitions, shorter ones.
        block = max(1, min(_BLOCK, len(transitions) // (2 * _HOLD_OUT_STEP)))
        held_out = (np.arange(len(transitions)) // block) % _HOLD_OUT_STEP == _HOLD_OUT_STEP - 1
        choice = f", the physics with the most frames of {len(groups)}" if len(groups) > 1 else ""
        return cls(
            robot=subject.robot,
            physics=physics,
            force_threshold=threshold,
            rows=np.concatenate(parts["features"]).astype(np.float32),
            names=tuple(names),
            starts_qpos=np.concatenate(parts["qpos"]),
            starts_qvel=np.concatenate(parts["qvel"]),
            starts_contacts=np.concatenate(parts["foot_contacts"]).astype(np.float32),
            train=transitions[~held_out],
            held_out=transitions[held_out],
            description=f"{len(names):,} reference frames of {len(clips)} Tier 0 clips in {physics.name} physics{choice}",
        )

    @property
    def environment(self) -> dict[str, Any]:
        """The arguments of an `Environment` whose episodes start from these frames, in their physics."""
        starts = {"starts_qpos": self.starts_qpos, "starts_qvel": self.starts_qvel, "starts_contacts": self.starts_contacts}
        return {"robot": self.robot, "scale": self.physics, "force_threshold": self.force_threshold, **starts}

    def check_finite(self, findings: Findings) -> bool:
        """Whether all features are finite; else a FAIL that names the first that is not."""
        finite = np.isfinite(self.rows)
        if finite.all():
            return True
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        clip, frame = self.names[row]
        count, place = int((~finite).sum()), f"clip {clip}, frame {frame}, {self.robot.layout.names[column]}"
        note = "the reference's features, before the first iteration"
        findings.add(Row("nonfinite", count, FAIL, "==", 0.0, where=place, note=note))
        findings.add_reason(
            f"the reference's features are not finite: {count} values, the first in {place}; take the clip out of the version "
            "and generate it again"
        )
        return False


class Normalization(NamedTuple):
    """(F,) each: features are normalized by `clip((x − mean) / scale, ± limit)`."""

    mean: Floats
    scale: Floats
    limit: Floats

    @classmethod
    def of(cls, findings: Findings, subject: Subject, reference: Reference) -> Normalization | None:
        """By a locked version's own statistics, else by the reference's; None, and a FAIL, where they cannot be used."""
        layout = subject.robot.layout
        if subject.artifacts is None:
            rows = reference.rows.astype(np.float64)
            mean, std = rows.mean(axis=0), rows.std(axis=0)
        else:
            mean, std = (np.asarray(subject.artifacts.stats.get(key, ()), np.float64) for key in ("mean", "std"))
            fits = mean.shape == std.shape == (layout.dim,) and np.isfinite([mean, std]).all() and (std >= 0).all()
            if not fits:
                note = f"mean {mean.shape}, std {std.shape}; expected ({layout.dim},) finite numbers"
                findings.add(Row("stats", None, FAIL, note=note))
                findings.add_reason(
                    f"the version's statistics cannot be used: mean and std are {mean.shape} and {std.shape}, expected "
                    f"{layout.dim} finite numbers each, no std below 0; lock the version again"
                )
                return None
            _check_statistics(findings, subject, mean, std)
        limit = np.full(layout.dim, FEATURE_CLIP)
        limit[layout.block("foot_contacts").slice] = np.inf
        scale = np.maximum(std, STD_FLOOR)
        return cls(mean.astype(np.float32), scale.astype(np.float32), limit.astype(np.float32))

    def apply(self, rows: Floats) -> Floats:
        normal_rows: Floats = np.clip((rows - self.mean) / self.scale, -self.limit, self.limit)
        return normal_rows


def _check_statistics(findings: Findings, subject: Subject, mean: Array, std: Array) -> None:
    """The version's statistics against those of its rows, of every tier."""
    names = subject.robot.layout.names
    features = [clip.version_features for clip in subject.clips]
    count = sum(len(rows) for rows in features)
    row_mean = sum(rows.sum(axis=0, dtype=np.float64) for rows in features) / count
    row_std = np.sqrt(sum(((rows - row_mean) ** 2).sum(axis=0) for rows in features) / count)
    scale = np.maximum(std, STD_FLOOR)
    shift, stretch = np.abs(row_mean - mean) / scale, np.abs(row_std - std) / scale
    is_pass = True
    for name, error, note in (("stats.mean", shift, "normalized mean from 0"), ("stats.std", stretch, "normalized std from 1")):
        worst = int(np.argmax(error))
        is_pass &= findings.check(name, float(error[worst]), "<=", STATS_TOLERANCE, where=names[worst], note=note)
    if not is_pass:
        worst = int(np.argmax(np.maximum(shift, stretch)))
        findings.add_reason(
            f"the normalization statistics are not those of the version's rows (stale?): {names[worst]} is "
            f"{row_mean[worst]:.3g} ± {row_std[worst]:.3g}, the statistics say {mean[worst]:.3g} ± {std[worst]:.3g}; use the "
            "file that was locked with these rows"
        )
