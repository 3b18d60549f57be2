"""Tests 4 and 5: is every clip and frame present and sound, and do the contacts agree with forces and kinematics?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.consistency import ROUNDING, relative_error
from amp_core.dataset.statistics import ColumnStats
from amp_core.digests import digest_of
from amp_core.features import feature_code_hash
from amp_core.verify.context import Context
from amp_core.verify.faults import name_swapped_channels
from amp_core.verify.policy_side import NO_JAX, PATHS, PolicyInputs, root_heights
from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Findings, Peak, Row, TestReport
from amp_core.verify.states import compute_features
from amp_core.verify.subject import locate_row, stack_rows

if TYPE_CHECKING:
    from amp_core.verify.subject import Artifacts, Clip, Subject

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

AGREEMENT = 0.9
"""The least share of frames in which a channel's contact must agree with the forces and with kinematics."""

CLIP_AGREEMENT = 0.8
"""The same for a single clip, in which a frame counts for more; less is a WARN."""

SWAP_MARGIN = 0.05
"""The least by which two channels must agree better crosswise than straight for the reason to call them swapped."""

SINGLE_ROWS = 20_000
"""Rows that test 4 computes one at a time in numpy; a larger version is sampled. In JAX it is every row."""


# --- 4 --------------------------------------------------------------------------------------------------------------------


def batch_coverage(context: Context) -> TestReport:
    """4: every clip and frame is present, finite, and the same alone as in a batch; a locked version's files hold them."""
    findings = Findings("4")
    subject = context.subject
    frames, shapes_fit = check_clips(findings, subject)
    if shapes_fit:
        check_single_rows(findings, context, subject.nonempty_clips)
    files = ""
    if subject.artifacts is not None:
        check_artifacts(findings, subject, subject.artifacts)
        files = "; the version's files against the clips: rows bit for bit, digests, statistics computed again"
    path = "numpy and JAX" if context.policy_side is not None else f"numpy alone ({NO_JAX})"
    if context.policy_side is None:
        findings.add_reason(f"the numpy path alone was tested: {NO_JAX}")
    return findings.report(
        f"all {len(subject.clips)} clips, {frames:,} frames: each computed in a batch and alone, by {path}{files}"
    )


def check_clips(findings: Findings, subject: Subject) -> tuple[int, bool]:
    """Shapes, ranges, finiteness and names of all clips; returns the version's number of frames, and whether shapes fit."""
    layout = subject.robot.layout
    shapes, ranges, nonfinite, empty, total = [], [], [], [], 0
    for clip in subject.clips:
        features = np.asarray(clip.arrays["features"])
        total += len(clip.version_features)
        lengths = {key: len(clip.arrays[key]) for key in ("qpos", "qvel", "foot_contacts", "ctrl", "stab_force")}
        differing = ", ".join(f"{key} {length}" for key, length in lengths.items() if length != len(features))
        if features.ndim != 2 or features.shape[1] != layout.dim or features.dtype != np.float32:
            shapes.append(f"clip {clip.name}: features is {features.dtype} {features.shape}, not float32 (N, {layout.dim})")
        elif differing:
            shapes.append(f"clip {clip.name}: features has {len(features)} rows, but {differing}")
        if not len(clip.version_features):
            empty.append(clip.name)
        end = 0
        for start, stop in clip.ranges:
            if not end <= start < stop <= clip.frames:
                place = f"the range {start} … {stop} does not lie in its {clip.frames} frames, after {end}"
                ranges.append(f"clip {clip.name}: {place}")
            end = stop
        if not np.isfinite(features).all():
            frame, column = np.argwhere(~np.isfinite(features))[0]
            nonfinite.append(f"clip {clip.name}: {layout.names[column]} is not finite at frame {frame}")
    findings.add(Row("clips", len(subject.clips), PASS), Row("frames", total, PASS, note="that the version takes"))
    for name, faults in (("shapes", shapes), ("ranges", ranges), ("nonfinite", nonfinite)):
        findings.check(name, len(faults), "==", 0, note="clips that are wrong", reason="; ".join(faults[:3]))
    place, reason = ", ".join(empty[:5]), f"clip {''.join(empty[:1])} gives no frame"
    findings.check("empty", len(empty), "==", 0, where=place, note="clips that give no frame", reason=reason)
    counts = Counter((clip.name, clip.recipe.digest) for clip in subject.clips)
    duplicates = sorted({name for (name, _), count in counts.items() if count > 1})
    findings.check("repeated", len(duplicates), "==", 0, warn=True, where=", ".join(duplicates[:5]), note="clips there twice")
    digests: dict[str, list[str]] = {}
    for clip in subject.clips:
        if len(clip.version_features):
            digest = digest_of(np.ascontiguousarray(clip.version_features).tobytes())
            digests.setdefault(digest, []).append(clip.name)
    identical_clips = [" = ".join(names) for names in digests.values() if len(names) > 1]
    count = sum(len(names) - 1 for names in digests.values())
    place, note = "; ".join(identical_clips[:5]), "clips with the features of another one, which a lock takes once"
    reason = f"clips with identical features: {place}"
    findings.check("identical", count, "==", 0, warn=True, where=place, note=note, reason=reason)
    return total, not shapes


def check_single_rows(findings: Findings, context: Context, clips: Sequence[Clip]) -> None:
    """Every row alone and in small batches against the same row in one batch of all."""
    if not clips:
        return
    robot, side = context.subject.robot, context.policy_side
    frame_counts = {id(clip): frames for clip, frames in context.sample(clips, SINGLE_ROWS)}
    peaks = {"numpy": Peak(), "numpy.chunks": Peak()}

    def compare(path: str, rows: Floats, batch: Floats, clip: Clip) -> None:
        error = np.nan_to_num(relative_error(rows, batch), nan=np.inf).max(axis=1)
        peaks[path].record(float(error.max()), f"clip {clip.name} at frame {int(np.argmax(error))}")

    for number, clip in enumerate(clips):
        context.progress(0.5 * number / len(clips), clip.name)
        arrays = [np.asarray(clip.arrays[key]) for key in ("qpos", "qvel", "foot_contacts")]

        def compute(size: int, rows: int, arrays: list[npt.NDArray[Any]] = arrays) -> Floats:
            parts = [compute_features(robot, *(array[k : k + size] for array in arrays)) for k in range(0, rows, size)]
            return np.concatenate(parts)

        batch = compute_features(robot, *arrays)
        compare("numpy.chunks", compute(7, clip.frames), batch, clip)
        rows = frame_counts.get(id(clip), 0)
        if rows:
            compare("numpy", compute(1, rows), batch[:rows], clip)
    if side is not None:
        inputs, qpos, qvel = PolicyInputs.of(robot, clips), stack_rows(clips, "qpos"), stack_rows(clips, "qvel")
        for path in PATHS:
            context.progress(0.5, f"{path} row by row")
            peaks[f"jax.{path}"] = Peak()
            obs = side.observations(path, qpos, qvel)
            batch_rows, single = (side.features(obs, inputs, robot.control_dt, one_by_one=single) for single in (False, True))
            first = 0
            for clip in clips:
                compare(f"jax.{path}", batch_rows[first : first + clip.frames], single[first : first + clip.frames], clip)
                first += clip.frames
    notes = {"numpy": f"{sum(frame_counts.values()):,} rows one at a time", "numpy.chunks": "7 rows at a time"}
    for path, peak in peaks.items():
        op, limit = ("<=", ROUNDING) if path.startswith("jax") else ("==", 0.0)
        reason = (
            f"{path}: a row in a batch differs by {peak.value:.2g} from the same row alone, worst in {peak.place}: rows are "
        )
        reason += "mixed up"
        note = notes.get(path, "every row")
        findings.check(f"single.{path}", peak.value, op, limit, where=peak.place, note=note, reason=reason)


def check_artifacts(findings: Findings, subject: Subject, files: Artifacts) -> None:
    """The files of a locked version against the clips that it was locked from."""
    rows = np.concatenate([clip.version_features for clip in subject.clips])
    features = np.asarray(files.features)
    entries = files.manifest.get("clips")
    entry_names = [str(entry.get("name")) for entry in entries or ()]
    absent = ", ".join([clip.name for clip in subject.clips if clip.name not in entry_names][:5])
    reason = f"the version's features have {len(features)} rows, its clips {len(rows)}: "
    reason += f"missing are {absent}" if absent else "a clip or a window is missing, or there are too many"
    if findings.check("artifact.frames", len(features), "==", len(rows), reason=reason):
        count, place = len(rows), ""
        differing = np.arange(len(rows))
        if features.dtype == np.float32:
            differing = np.flatnonzero((features.view(np.uint32) != rows.view(np.uint32)).any(axis=1))
            count = len(differing)
        if count:
            number, frame = locate_row(int(differing[0]), [len(clip.version_features) for clip in subject.clips])
            place = f"first: row {frame} of clip {subject.clips[number].name}"
        note = "rows that differ from their clip's in any bit"
        reason = (
            f"{count} rows of the version are not their clip's, {place}: clips in another order, or features of another day"
        )
        findings.check("artifact.rows", count, "==", 0, where=place, note=note, reason=reason)
    if entries is not None:
        expected, actual = Counter(clip.name for clip in subject.clips), Counter(entry_names)
        missing, surplus = sorted((expected - actual).elements()), sorted((actual - expected).elements())
        note = "clips that only one side names"
        parts = [f"{kind} {', '.join(names[:5])}" for kind, names in (("missing", missing), ("surplus", surplus)) if names]
        reason = "the manifest's clips are not the members: " + "; ".join(parts)
        findings.check("artifact.clips", len(missing) + len(surplus), "==", 0, note=note, reason=reason)
    # What each hash must be, and the reason where it is not.
    hashes = {
        "dataset_hash": (
            digest_of(np.ascontiguousarray(features, dtype="<f4").tobytes()),
            "the {}'s dataset_hash is not that of the features: the file belongs to another version",
        ),
        "feature_code_hash": (
            feature_code_hash(),
            "the {} was locked with other feature code than this machine's (feature_code_hash): install that version, or lock "
            "the dataset again",
        ),
    }
    for file, document in (("manifest", files.manifest), ("stats", files.stats)):
        for key, (expected_hash, reason) in hashes.items():
            matches = document.get(key) == expected_hash
            if not findings.add(Row(f"artifact.{file}.{key}", matches, PASS if matches else FAIL, "==", 1.0)):
                findings.add_reason(reason.format(file))
    check_statistics(findings, subject.robot.layout.names, files)


def check_statistics(findings: Findings, names: Sequence[str], files: Artifacts) -> None:
    """The statistics of the rows, computed again, against those of the file; every bit counts."""
    features = np.asarray(files.features)
    stats = ColumnStats(features.shape[1])
    stats.add(features.astype(np.float32, copy=False))
    stale: dict[str, set[str]] = {}
    for key, values in stats.to_dict().items():
        stored_value = files.stats.get(key)
        if not isinstance(stored_value, list) or len(stored_value) != len(values):
            stale.setdefault("(all)", set()).add(key)
            continue
        for i, (value, locked_value) in enumerate(zip(values, stored_value, strict=True)):
            if value != locked_value:
                stale.setdefault(names[i] if i < len(names) else f"column {i}", set()).add(key)
    note = "dimensions whose statistics are not those of the rows"
    if not findings.check("artifact.statistics", len(stale), "==", 0, note=note):
        first = next(iter(stale))
        findings.add_reason(
            f"the normalization statistics are stale: {', '.join(sorted(stale[first]))} of {first} are not those of the rows"
            + (f", nor are those of {len(stale) - 1} more dimensions" if len(stale) > 1 else "")
            + "; use the statistics that were locked with this version"
        )


# --- 5 --------------------------------------------------------------------------------------------------------------------


def contact_consistency(context: Context) -> TestReport:
    """5: contacts in the features are those recorded, and agree with the forces and with forward kinematics."""
    findings = Findings("5")
    robot, side, clips = context.subject.robot, context.policy_side, context.subject.nonempty_clips
    if not clips:
        return findings.skip("no clip has a frame")
    in_features = stack_rows(clips, "features")[:, robot.layout.block("foot_contacts").slice]
    true_contacts = stack_rows(clips, "foot_contacts").astype(np.float32)
    differing = np.flatnonzero((in_features != true_contacts).any(axis=1))
    place = ""
    if len(differing):
        number, frame = locate_row(int(differing[0]), [clip.frames for clip in clips])
        place = f"first: clip {clips[number].name}, frame {frame}"
    note = "frames whose features hold other contacts"
    if not findings.check("contacts.block", len(differing), "==", 0, where=place, note=note):
        swapped_channels = name_swapped_channels(_agreement_matrix(true_contacts, in_features), robot.channels, SWAP_MARGIN)
        findings.add_reason(f"the contacts in the features are not those of foot_contacts: {swapped_channels or place}")
    values = float((~np.isin(true_contacts, (0.0, 1.0))).sum())
    note, reason = "entries that are neither 0 nor 1", "foot_contacts holds something else than 0 and 1"
    findings.check("contacts.values", values, "==", 0.0, note=note, reason=reason)

    with_loads = [clip for clip in clips if "channel_loads" in clip.arrays]
    if with_loads:
        is_pressed = np.concatenate([clip.arrays["channel_loads"] > clip.recipe.force_threshold for clip in with_loads])
        against = "the forces (their mean over the frame above the threshold)"
        check_agreement(findings, robot.channels, "forces", with_loads, is_pressed.astype(np.float32), against)
    else:
        findings.add(Row("forces", None, SKIP, note="the exports hold no channel_loads"))
    if side is None:
        findings.add(Row("kinematics", None, SKIP, note=NO_JAX))
        findings.add_reason(f"contacts were held against the forces alone: {NO_JAX}")
    else:
        context.progress(0.5, "forward kinematics")
        obs = side.observations("observe_host", stack_rows(clips, "qpos"), stack_rows(clips, "qvel"))
        estimate, against = side.contacts(obs, root_heights(robot, clips)), "the policy's estimate by forward kinematics"
        check_agreement(findings, robot.channels, "kinematics", clips, estimate, against)
    against = "the channels' forces and the estimate by forward kinematics" if side is not None else "the channels' forces"
    return findings.report(
        f"true contacts of {len(clips)} clips, {len(true_contacts):,} frames, against {against}, channel by channel"
    )


def _agreement_matrix(contacts: Floats, other_contacts: Floats) -> Array:
    """(C, C) share of the frames in which column i of one equals column j of the other."""
    return np.asarray((contacts[:, :, None] == other_contacts[:, None, :]).mean(axis=0))


def check_agreement(
    findings: Findings, channels: tuple[str, ...], name: str, clips: Sequence[Clip], other_contacts: Floats, against: str
) -> None:
    """Rows of agreement a channel, over all clips, and a WARN for a clip that is far below the others."""
    true_contacts = stack_rows(clips, "foot_contacts").astype(np.float32)
    agreement = _agreement_matrix(true_contacts, other_contacts)
    straight = np.diag(agreement)
    columns = (true_contacts.mean(axis=0).tolist(), other_contacts.mean(axis=0).tolist(), straight.tolist())
    keys = ("channel", "true_rate", "other_rate", "agreement")
    rates = [dict(zip(keys, row, strict=True)) for row in zip(channels, *columns, strict=True)]
    results = [findings.check(f"{name}.agreement.{rate['channel']}", rate["agreement"], ">=", AGREEMENT) for rate in rates]
    findings.figures[name] = {"channels": rates, "agreement_matrix": np.round(agreement, 4).tolist()}
    if not all(results):
        swapped_channels = name_swapped_channels(agreement, channels, SWAP_MARGIN)
        low = ", ".join(f"{channels[i]} {straight[i]:.0%}" for i in np.flatnonzero(straight < AGREEMENT))
        findings.add_reason(f"{swapped_channels or 'contacts disagree'}: foot_contacts against {against} ({low})")
        return
    first, low_clips = 0, []
    for clip in clips:
        rows = slice(first, first + clip.frames)
        first += clip.frames
        share = float((true_contacts[rows] == other_contacts[rows]).mean(axis=0).min())
        if share < CLIP_AGREEMENT:
            low_clips.append((share, clip.name))
    if low_clips:
        share, worst = min(low_clips)
        note = f"clips below {CLIP_AGREEMENT:g} in some channel, though all of them together are not"
        findings.add(Row(f"{name}.low_clips", len(low_clips), WARN, where=f"clip {worst}: {share:.0%}", note=note))
