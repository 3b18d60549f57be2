"""Tests 4 and 5: is everything there that should be, and are its contacts what touched?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.dataset.statistics import ColumnStats
from amp_core.features import feature_code_hash
from amp_core.verify import faults, states
from amp_core.verify.context import NO_JAX, Context, Findings, heights, sample
from amp_core.verify.inputs import PATHS, ROUNDING, PolicyInputs, rows_of, with_rows
from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Row, TestReport, check
from amp_core.verify.states import assemble, relative

if TYPE_CHECKING:
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

AGREEMENT = 0.9
"""Share of the frames in which a channel's contact must be what it is held against."""

SWAPPED = 0.05
"""How much better two channels must agree crosswise than straight, for the reason to say that they look swapped."""

CLIP_AGREEMENT = 0.8
"""The same of a single clip, in which a frame counts for more: below, it is a WARN."""

SINGLE_ROWS = 20_000
"""Rows that test 4 computes one at a time in numpy; a larger version is sampled. In JAX it is every row."""


# --- 4 --------------------------------------------------------------------------------------------------------------------


def batch_coverage(context: Context) -> TestReport:
    """4: every clip and every frame is there, finite, and the same alone as in a batch; a locked version's files hold them."""
    found = Findings("4", "batch coverage")
    subject, robot = context.subject, context.subject.robot
    layout = robot.layout
    bad_shapes, bad_ranges, nonfinite, empty, rows = [], [], [], [], 0
    for clip in subject.clips:
        features = np.asarray(clip.arrays["features"])
        rows += len(clip.taken)
        others = {key: len(clip.arrays[key]) for key in ("qpos", "qvel", "foot_contacts", "ctrl", "stab_force")}
        if features.ndim != 2 or features.shape[1] != layout.dim or features.dtype != np.float32:
            bad_shapes.append(f"clip {clip.name}: features is {features.dtype} {features.shape}, not float32 (N, {layout.dim})")
        elif any(count != len(features) for count in others.values()):
            listed = ", ".join(f"{key} {count}" for key, count in others.items() if count != len(features))
            bad_shapes.append(f"clip {clip.name}: features has {len(features)} rows, but {listed}")
        if not len(clip.taken):
            empty.append(clip.name)
        end = 0
        for start, stop in clip.ranges:
            if not end <= start < stop <= clip.frames:
                bad_ranges.append(
                    f"clip {clip.name}: the range {start} … {stop} does not lie in its {clip.frames} frames, after {end}"
                )
            end = stop
        if not np.isfinite(features).all():
            frame, column = np.argwhere(~np.isfinite(features))[0]
            nonfinite.append(f"clip {clip.name}: {layout.names[column]} is not finite at frame {frame}")
    found.add(Row("clips", len(subject.clips), PASS), Row("frames", rows, PASS, note="that the version takes"))
    for name, wrong in (("shapes", bad_shapes), ("ranges", bad_ranges), ("nonfinite", nonfinite)):
        if not found.add(check(name, len(wrong), "==", 0, note="clips that are wrong")):
            found.because("; ".join(wrong[:3]))
    if not found.add(check("empty", len(empty), "==", 0, note="clips that give no frame", where=", ".join(empty[:5]))):
        found.because(f"clip {empty[0]} gives no frame")
    keys = [(clip.name, clip.recipe.digest) for clip in subject.clips]
    repeated = sorted({name for name, digest in keys if keys.count((name, digest)) > 1}) if len(keys) < 5000 else []
    found.add(check("repeated", len(repeated), "==", 0, warn=True, where=", ".join(repeated[:5]), note="clips there twice"))
    _single_rows(found, context, [clip for clip in subject.clips if clip.frames and not bad_shapes])
    said = "" if subject.artifacts is None else _artifacts(found, context)
    path = "numpy and JAX" if context.policy_side is not None else f"numpy alone ({NO_JAX})"
    if context.policy_side is None:
        found.because(f"the numpy path alone was tested: {NO_JAX}")
    return found.report(f"all {len(subject.clips)} clips, {rows:,} frames: each computed in a batch and alone, by {path}{said}")


def _single_rows(found: Findings, context: Context, clips: Sequence[Clip]) -> None:
    if not clips:
        return
    robot, side = context.subject.robot, context.policy_side
    chosen = {id(clip): frames for clip, frames in sample(clips, SINGLE_ROWS)}
    worst: dict[str, tuple[float, str]] = {"numpy": (0.0, ""), "numpy.chunks": (0.0, "")}

    def compare(path: str, one: npt.NDArray[Any], two: npt.NDArray[Any], clip: Clip, first: int = 0) -> None:
        error = np.nan_to_num(relative(one, two), nan=np.inf).max(axis=1)
        if float(error.max()) > worst[path][0]:
            worst[path] = (float(error.max()), f"clip {clip.name} at frame {first + int(np.argmax(error))}")

    for number, clip in enumerate(clips):
        context.progress(0.5 * number / len(clips), clip.name)
        qpos, qvel, contacts = (np.asarray(clip.arrays[key]) for key in ("qpos", "qvel", "foot_contacts"))
        whole = assemble(robot, qpos, qvel, contacts)
        pieces = [assemble(robot, *(a[k : k + 7] for a in (qpos, qvel, contacts))) for k in range(0, len(qpos), 7)]
        compare("numpy.chunks", np.concatenate(pieces), whole, clip)
        count = chosen.get(id(clip), 0)
        if count:
            single = [assemble(robot, *(a[k : k + 1] for a in (qpos, qvel, contacts))) for k in range(count)]
            compare("numpy", np.concatenate(single), whole[:count], clip)
    if side is not None:
        inputs = PolicyInputs.of(side, robot, clips)
        worst |= {f"jax.{path}": (0.0, "") for path in PATHS}
        for path in PATHS:
            context.progress(0.5, f"{path} row by row")
            batched = side.features(*inputs.of_path(path), robot.control_dt)
            single_rows = side.features_one_by_one(*inputs.of_path(path), robot.control_dt)
            first = 0
            for clip in clips:
                rows = slice(first, first + clip.frames)
                compare(f"jax.{path}", batched[rows], single_rows[rows], clip)
                first += clip.frames
    counted = sum(chosen.values())
    for path, (value, where) in worst.items():
        limit = ROUNDING if path.startswith("jax") else 0.0
        note = (
            f"{counted:,} rows one at a time"
            if path == "numpy"
            else "7 rows at a time"
            if path == "numpy.chunks"
            else "every row"
        )
        op = "<=" if limit else "=="
        if not found.add(check(f"single.{path}", value, op, limit, where=where, note=note)):
            found.because(
                f"{path}: a row in a batch differs by {value:.2g} from the same row alone, worst in {where}: rows are mixed up"
            )


def _artifacts(found: Findings, context: Context) -> str:
    """The files of a locked version against the clips that it was locked from."""
    subject, files = context.subject, context.subject.artifacts
    assert files is not None
    names = subject.robot.layout.names
    rows = np.concatenate([clip.taken for clip in subject.clips])
    given = np.asarray(files.features)
    if not found.add(check("artifact.frames", len(given), "==", len(rows))):
        listed = [str(entry.get("name")) for entry in files.manifest.get("clips", ())]
        lost = [clip.name for clip in subject.clips if clip.name not in listed]
        found.because(
            f"the version's features have {len(given)} rows, its clips {len(rows)}"
            + (f": missing are {', '.join(lost[:5])}" if lost else ": a clip or a window is missing, or there are too many")
        )
    else:
        differing = (
            np.flatnonzero((given.view(np.uint32) != rows.view(np.uint32)).any(axis=1)) if given.dtype == np.float32 else None
        )
        count = len(rows) if differing is None else len(differing)
        clip, frame = (
            states.clip_of(int(differing[0]), [len(c.taken) for c in subject.clips])
            if differing is not None and count
            else (0, 0)
        )
        where = f"first: row {frame} of clip {subject.clips[clip].name}" if count else ""
        if not found.add(
            check("artifact.rows", count, "==", 0, where=where, note="rows that differ from their clip's in any bit")
        ):
            found.because(
                f"{count} rows of the version are not their clip's, {where}: clips in another order, or features of another day"
            )
    entries = files.manifest.get("clips")
    if entries is not None:
        listed, expected = sorted(str(e.get("name")) for e in entries), sorted(clip.name for clip in subject.clips)
        lost, surplus = _minus(expected, listed), _minus(listed, expected)
        if not found.add(check("artifact.clips", len(lost) + len(surplus), "==", 0, note="clips that only one side names")):
            found.because(
                "the manifest's clips are not the members: "
                + "; ".join(f"{what} {', '.join(some[:5])}" for what, some in (("missing", lost), ("surplus", surplus)) if some)
            )
    digest = "sha256:" + hashlib.sha256(np.ascontiguousarray(given, dtype="<f4").tobytes()).hexdigest()
    for key, document in (("manifest", files.manifest), ("stats", files.stats)):
        same = document.get("dataset_hash") == digest
        if not found.add(_same(f"artifact.{key}.dataset_hash", same)):
            found.because(f"the {key}'s dataset_hash is not that of the features: the file belongs to another version")
        same = document.get("feature_code_hash") == feature_code_hash()
        if not found.add(_same(f"artifact.{key}.feature_code_hash", same)):
            found.because(
                f"the {key} was locked with other feature code than this machine's (feature_code_hash): install that version, "
                "or lock the dataset again"
            )
    column = ColumnStats(given.shape[1])
    column.add(given.astype(np.float32, copy=False))
    fresh = column.to_dict()
    stale: dict[str, set[str]] = {}
    for key, values in fresh.items():
        held = files.stats.get(key)
        if not isinstance(held, list) or len(held) != len(values):
            stale.setdefault("(all)", set()).add(key)
            continue
        for i, (one, two) in enumerate(zip(values, held, strict=True)):
            if one != two:
                stale.setdefault(names[i] if i < len(names) else f"column {i}", set()).add(key)
    if not found.add(
        check("artifact.statistics", len(stale), "==", 0, note="dimensions whose statistics are not those of the rows")
    ):
        first = next(iter(stale))
        found.because(
            f"the normalization statistics are stale: {', '.join(sorted(stale[first]))} of {first} are not those of the rows"
            + (f", nor are those of {len(stale) - 1} more dimensions" if len(stale) > 1 else "")
            + "; use the statistics that were locked with this version"
        )
    return "; the version's files against the clips: rows bit for bit, digests, statistics computed again"


def _same(name: str, same: bool) -> Row:
    return Row(name, same, PASS if same else FAIL, "==", 1.0)


def _minus(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """What is in `one` more often than in `other`."""
    left = list(other)
    found = []
    for name in one:
        if name in left:
            left.remove(name)
        else:
            found.append(name)
    return found


# --- 5 --------------------------------------------------------------------------------------------------------------------


def contact_consistency(context: Context) -> TestReport:
    """5: contacts in the features are those recorded, and agree with the forces and with forward kinematics."""
    found = Findings("5", "contact consistency")
    robot, side, clips = context.subject.robot, context.policy_side, with_rows(context)
    if not clips:
        return found.skipped("no clip has a frame")
    block = robot.layout.block("foot_contacts")
    in_features = rows_of(clips, "features")[:, block.slice]
    recorded = rows_of(clips, "foot_contacts").astype(np.float32)
    lengths = [clip.frames for clip in clips]

    differs = (in_features != recorded).any(axis=1)
    count = int(differs.sum())
    where = ""
    if count:
        number, frame = states.clip_of(int(np.argmax(differs)), lengths)
        where = f"first: clip {clips[number].name}, frame {frame}"
    if not found.add(check("contacts.block", count, "==", 0, where=where, note="frames whose features hold other contacts")):
        swapped = faults.swapped_columns(_agreements(recorded, in_features), robot.channels, SWAPPED)
        found.because(f"the contacts in the features are not those of foot_contacts: {swapped or where}")
    values = float((~np.isin(recorded, (0.0, 1.0))).sum())
    if not found.add(check("contacts.values", values, "==", 0.0, note="entries that are neither 0 nor 1")):
        found.because("foot_contacts holds something else than 0 and 1")

    # Against the forces, wherever the export has them.
    with_loads = [clip for clip in clips if "channel_loads" in clip.arrays]
    if with_loads:
        pressed = np.concatenate(
            [(clip.arrays["channel_loads"] > clip.recipe.force_threshold).astype(np.float32) for clip in with_loads]
        )
        _agree(found, context, "forces", with_loads, pressed, "the forces (their mean over the frame above the threshold)")
    else:
        found.add(Row("forces", None, SKIP, note="the exports hold no channel_loads"))
    if side is None:
        found.add(Row("kinematics", None, SKIP, note=NO_JAX))
        found.because(f"contacts were held against the forces alone: {NO_JAX}")
    else:
        context.progress(0.5, "forward kinematics")
        obs = side.on_host(rows_of(clips, "qpos"), rows_of(clips, "qvel"))
        estimated = side.contacts(obs, np.concatenate([heights(robot, clip.arrays) for clip in clips]))
        _agree(found, context, "kinematics", clips, estimated, "the policy's estimate by forward kinematics")
    against = "the channels' forces and the estimate by forward kinematics" if side is not None else "the channels' forces"
    return found.report(f"true contacts of {len(clips)} clips, {len(recorded):,} frames, against {against}, channel by channel")


def _agreements(one: Floats, other: Floats) -> Array:
    """(C, C) share of the frames in which column i of one is column j of the other."""
    found: Array = (one[:, :, None] == other[:, None, :]).mean(axis=0)
    return found


def _agree(found: Findings, context: Context, name: str, clips: Sequence[Clip], other: Floats, what: str) -> None:
    """Rows of agreement a channel, over all clips, and a WARN for a clip that is far below the others."""
    robot = context.subject.robot
    true = rows_of(clips, "foot_contacts").astype(np.float32)
    agreement = _agreements(true, other)
    straight = np.diag(agreement)
    fine = True
    for channel, share in zip(robot.channels, straight, strict=True):
        fine &= found.add(check(f"{name}.agreement.{channel}", float(share), ">=", AGREEMENT))
    shares = zip(true.mean(axis=0), other.mean(axis=0), straight, strict=True)
    rates = [
        {"channel": channel, "true_rate": float(one), "other_rate": float(two), "agreement": float(share)}
        for channel, (one, two, share) in zip(robot.channels, shares, strict=True)
    ]
    found.figures[name] = {"channels": rates, "agreement_matrix": np.round(agreement, 4).tolist()}
    if not fine:
        swapped = faults.swapped_columns(agreement, robot.channels, SWAPPED)
        low = ", ".join(f"{robot.channels[i]} {straight[i]:.0%}" for i in np.flatnonzero(straight < AGREEMENT))
        found.because(f"{swapped or 'contacts disagree'}: foot_contacts against {what} ({low})")
        return
    first, low_clips = 0, []
    for clip in clips:
        here = slice(first, first + clip.frames)
        first += clip.frames
        share = float((true[here] == other[here]).mean(axis=0).min())
        if share < CLIP_AGREEMENT:
            low_clips.append((share, clip.name))
    if low_clips:
        share, worst = min(low_clips)
        note = f"clips below {CLIP_AGREEMENT:g} in some channel, though all of them together are not"
        found.add(Row(f"{name}.low_clips", len(low_clips), WARN, where=f"clip {worst}: {share:.0%}", note=note))
