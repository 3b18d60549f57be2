"""Clips of the curriculum on a training node: from a query to verified, memory-mapped arrays, and a list that pins them."""

from __future__ import annotations

import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import httpx2
import numpy as np
from numpy.typing import NDArray

from amp_core.client.answers import FoundClipPage
from amp_core.client.archive import fetch_arrays
from amp_core.client.cache import Cache, resolve_cache_dir
from amp_core.client.download import Progress, RemoteFile, is_intact
from amp_core.client.http import Connection, Retry, resolve_url
from amp_core.client.resolve import warn
from amp_core.client.spec import check_digest
from amp_core.cpus import usable_cpus
from amp_core.errors import FeatureCodeMismatch, InputRefused, IntegrityError, NotFound, Unavailable
from amp_core.features import feature_code_hash
from amp_core.files import replace_file, write_file
from amp_core.npz import mmap_member
from amp_core.strict_json import canonical_json, json_digest, read_json

__all__ = ["ClipSet", "ReferenceClip", "load_clips"]

log = logging.getLogger("amp_core.client")

_SCHEMA = "ampref-clips/1"
_PAGE = 200
_QUERIES = ".queries"  # The references' folder of what queries last listed; no dataset has such a name.
_KEYS = ("tier", "robot", "mode", "gate_profile", "tag", "name", "parent", "min_duration_sec", "sort", "limit")
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


@dataclass(frozen=True)
class ReferenceClip:
    """A clip with the rollout that represents it, and its export in the cache.

    Args:
      id, rollout_id: of the service that listed it.
      source_digest: SHA-256 of the motion that was uploaded.
      lineage: what a clip shares with all variants of it.
      mode, tier, tier_reason, gate_profile, recipe_digest: how the rollout was made and judged.
      frames: N, the rows of its arrays, one each control step.
      quality_metrics: by name; None where one does not apply.
      arrays_digest, arrays_size: SHA-256 and bytes of the export.
      path: the export, an npz in the cache; read-only, named by its digest.
    """

    id: str
    name: str
    robot: str
    robot_digest: str
    source_digest: str
    lineage: str
    tags: tuple[str, ...]
    rollout_id: str
    mode: str
    tier: int
    tier_reason: str
    gate_profile: str
    recipe_digest: str
    feature_code_hash: str
    frames: int
    quality_metrics: Mapping[str, float | int | None] = field(repr=False)
    arrays_digest: str
    arrays_size: int
    path: Path = field(compare=False)

    @cached_property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """All arrays of the export by name, read-only and memory-mapped: `features`, `qpos`, `qvel`, `ctrl`, ….

        docs/concepts.md has their shapes, units and frames.
        """
        with zipfile.ZipFile(self.path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        return {name: mmap_member(self.path, name) for name in names}

    @property
    def features(self) -> NDArray[np.float32]:
        """(N, F) float32, read-only and memory-mapped."""
        return self.arrays["features"]

    def to_dict(self) -> dict[str, Any]:
        """The clip as JSON-ready data, without its path."""
        return {key: value for key, value in asdict(self).items() if key != "path"} | {"tags": list(self.tags)}


_CLIP_KEYS = tuple(entry.name for entry in fields(ReferenceClip) if entry.name != "path")
_TEXTS = frozenset(_CLIP_KEYS) - {"tags", "tier", "frames", "quality_metrics", "arrays_size"}


class ClipSet(Sequence[ReferenceClip]):
    """The clips that a query listed, in its order, each with its arrays in the cache.

    Attributes:
      query: the filters, sort and limit, by the names of the HTTP API.
      downloaded_bytes: what came over the network; 0 when the cache had everything.
    """

    def __init__(self, clips: Sequence[ReferenceClip], query: Mapping[str, Any], downloaded_bytes: int = 0) -> None:
        self._clips = tuple(clips)
        self.query = dict(query)
        self.downloaded_bytes = downloaded_bytes

    def __len__(self) -> int:
        return len(self._clips)

    @overload
    def __getitem__(self, index: int) -> ReferenceClip: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ReferenceClip]: ...
    def __getitem__(self, index: int | slice) -> ReferenceClip | Sequence[ReferenceClip]:
        return self._clips[index]

    def __repr__(self) -> str:
        frames = sum(clip.frames for clip in self._clips)
        return f"<ClipSet of {len(self)} clips, {frames:,} frames, robot {', '.join(self.robots) or '-'}>"

    @property
    def robots(self) -> dict[str, list[str]]:
        """The digests of each robot by its name; more than one where a robot was changed."""
        robots: dict[str, set[str]] = {}
        for clip in self._clips:
            robots.setdefault(clip.robot, set()).add(clip.robot_digest)
        return {name: sorted(digests) for name, digests in sorted(robots.items())}

    @property
    def gate_profiles(self) -> list[str]:
        """The gate profiles that the clips were judged by."""
        return sorted({clip.gate_profile for clip in self._clips})

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the pinned list: the query and every clip with the digest of its arrays."""
        return json_digest(self._to_dict())

    def pin(self, path: str | os.PathLike[str]) -> Path:
        """Write the list as a file that `load_clips(pinned=…)` loads again, also when the catalog has grown since.

        Raises `InputRefused` where it cannot be written.
        """
        target = Path(path)
        try:
            write_file(target, canonical_json(self._to_dict() | {"digest": self.digest}))
        except OSError as error:
            raise _refuse_path(target, "the list cannot be written", error) from error
        return target

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Copy the exports into a folder as `NAME.npz`, in the order of the clips.

        Where several clips have one name, a part of the digest is in the names of their files.

        Raises `InputRefused` where it cannot be written.
        """
        target = Path(folder)
        stems = [_UNSAFE.sub("_", clip.name).strip(". ") or "clip" for clip in self._clips]
        case_free = [stem.casefold() for stem in stems]
        paths = []
        try:
            target.mkdir(parents=True, exist_ok=True)
            for clip, stem, key in zip(self._clips, stems, case_free, strict=True):
                suffix = f"-{clip.arrays_digest.removeprefix('sha256:')[:12]}" if case_free.count(key) > 1 else ""
                path = target / f"{stem}{suffix}.npz"
                with replace_file(path) as partial:
                    shutil.copyfile(clip.path, partial)
                paths.append(path)
        except OSError as error:
            raise _refuse_path(target, "the arrays cannot be copied there", error) from error
        return paths

    def _to_dict(self) -> dict[str, Any]:
        return {
            "schema": _SCHEMA,
            "query": self.query,
            "robots": self.robots,
            "gate_profiles": self.gate_profiles,
            "clips": [clip.to_dict() for clip in self._clips],
        }


def load_clips(
    *,
    tier: int | None = None,
    robot: str | None = None,
    mode: str | None = None,
    gate_profile: str | None = None,
    tags: Sequence[str] = (),
    name: str | None = None,
    parent: str | None = None,
    min_duration_sec: float | None = None,
    sort: str | None = None,
    limit: int | None = None,
    pinned: str | os.PathLike[str] | None = None,
    url: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    token: str | None = None,
    retry: Retry | None = None,
    transport: httpx2.BaseTransport | None = None,
    **bounds: float | None,
) -> ClipSet:
    """The scored clips of a curriculum query with their arrays, each verified by its SHA-256 and memory-mapped.

        clips = load_clips(tier=1, robot="wildrobot", max_slip_rate=0.1, tags=["flat"])
        clips.pin("curriculum.json")                    # on another node: load_clips(pinned="curriculum.json")
        clips[0].arrays["qpos"]

    Arrays that are in the cache are verified and not downloaded again; the others come in few requests. Clips that have no
    result yet are left out.

    Args:
      tier: 0, 1 or -1, of the rollout that represents the clip: its best, or its best in `mode` and by `gate_profile`.
      tags: the clip has all of them.
      name: part of the name. `parent`: the id of a clip, for its variants.
      sort: `created_at`, `duration_sec` or a metric; with `-` before it descending. Default: the newest first.
      limit: so many clips at most; None for all.
      bounds: `min_…` and `max_…` of any metric.
      pinned: a file that `ClipSet.pin` wrote; instead of a query.
      url, cache_dir, progress, token, retry, transport: as for `pull`.
      offline: True asks no service and takes what this query listed last; None means `$AMPREF_OFFLINE`, else to ask and to fall
        back on that, with a `DatasetWarning`.
    Raises:
      InputRefused: a filter that does not exist; a file that is no pinned list.
      NotFound: arrays are no longer at the service; offline, or not in the cache.
      IntegrityError: bytes differ from a digest; a pinned list was changed.
      FeatureCodeMismatch: this machine computes features with other code than a clip's were computed with.
      Unavailable: no service and no complete cache, or no room.
    """
    for key in bounds:
        if not key.startswith(("min_", "max_")):
            raise TypeError(f"load_clips() got an unexpected keyword argument {key!r}")
    values = (tier, robot, mode, gate_profile, list(tags) or None, name, parent, min_duration_sec, sort, limit)
    query = {key: value for key, value in (dict(zip(_KEYS, values, strict=True)) | bounds).items() if value is not None}
    if limit is not None and limit < 1:
        raise InputRefused(f"the limit is {limit}", key="limit", expected="at least 1, or None for all")
    if pinned is not None and query:
        raise InputRefused(
            f"a pinned list is loaded as it is, without {', '.join(query)}",
            key="pinned",
            expected="a pinned list or a query",
            remedy="Leave out one of them.",
        )
    address = resolve_url(url)
    if offline is None:
        offline = os.environ.get("AMPREF_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    cache = Cache(resolve_cache_dir(cache_dir), address)
    connection = None if offline else Connection(address, token=token, retry=retry, transport=transport)
    try:
        clips, query = _read_pinned(Path(pinned), cache) if pinned is not None else _list_clips(connection, cache, query)
        _check_clips(clips)
        downloaded_bytes = _obtain(connection, cache, clips, progress)
    finally:
        if connection is not None:
            connection.close()
    cache.sync().result()
    return ClipSet(clips, query, downloaded_bytes)


def _list_clips(
    connection: Connection | None, cache: Cache, query: dict[str, Any]
) -> tuple[list[ReferenceClip], dict[str, Any]]:
    """What a query lists now or, where no service answers, what it listed last."""
    label = json_digest(query).removeprefix("sha256:")
    items = cache.read_ref(_QUERIES, label).get("clips")
    if connection is not None:
        # With the cache to fall back on, a service that does not answer costs one quick try.
        retry = connection.retry if items is None else connection.retry.impatient()
        try:
            clips = [_read_item(item, cache) for item in _iterate_items(connection, query, retry)]
        except Unavailable as error:
            if items is None:
                raise
            log.warning("%s; using the cache", error.what)
        else:
            cache.write_ref(_QUERIES, label, {"query": query, "clips": [clip.to_dict() for clip in clips]})
            return clips, query
    if not isinstance(items, list):
        raise NotFound(
            "this query was never asked with this cache, and no service may be asked",
            file=str(cache.root),
            expected="a query that was made before, or a pinned list",
            remedy="Make the query where the service can be reached, with the same cache, then try again.",
        )
    warn("The clips were not looked up: no service was asked. They are what this query listed last; pin them to say so.")
    return [_read_clip(item, cache) for item in items], query


def _iterate_items(connection: Connection, query: Mapping[str, Any], retry: Retry) -> Iterator[Mapping[str, Any]]:
    """The scored clips of the query as the service lists them, at most `limit`."""
    count, cursor = query.get("limit"), None
    while count is None or count > 0:
        # Clips without a result count for a page and not for the limit.
        page_query = {**query, "limit": _PAGE if count is None else min(count, _PAGE), "cursor": cursor}
        parameters = {key: value for key, value in page_query.items() if value is not None}
        _, page = connection.json("GET", "v1/clips", kind=FoundClipPage, params=parameters, retry=retry)
        scored = [item for item in page["items"] if item.get("rollout")]
        yield from scored[:count]
        count = None if count is None else count - len(scored)
        if not page.get("next_cursor"):
            return
        if page["next_cursor"] == cursor:
            raise connection.refuse_answer("v1/clips", "answered the same page again")
        cursor = page["next_cursor"]


def _read_item(item: Mapping[str, Any], cache: Cache) -> ReferenceClip:
    """A clip as `GET /v1/clips` lists it."""
    rollout = item["rollout"]
    if "arrays_digest" not in rollout:
        raise Unavailable(
            "the service does not list the digests of the clips' arrays",
            key="arrays_digest",
            remedy="Its release is older than this client's: upgrade the service.",
        )
    return _read_clip({**rollout, **item, "rollout_id": rollout.get("id")}, cache)


def _read_clip(facts: Any, cache: Cache) -> ReferenceClip:
    """A clip of a pinned list; raises `IntegrityError` for one that lacks a fact or has it in another form."""
    try:
        values = {key: facts[key] for key in _CLIP_KEYS}
        wrong = [key for key in _TEXTS if not isinstance(values[key], str)]
        wrong += [key for key in ("frames", "arrays_size") if type(values[key]) is not int or values[key] < 0]
        wrong += ["tier"] * (values["tier"] not in (0, 1, -1))
        if wrong or not isinstance(values["quality_metrics"], Mapping):
            raise TypeError(", ".join(wrong) or "quality_metrics")
        values["tags"] = tuple(str(tag) for tag in values["tags"])
        values["arrays_digest"] = check_digest(values["arrays_digest"], "arrays_digest")
    except (KeyError, TypeError, InputRefused) as error:
        raise IntegrityError(
            "a clip is not described as it should be", key=str(error)[:80].strip("'"), expected=f"{', '.join(_CLIP_KEYS)}"
        ) from error
    return ReferenceClip(**values, path=cache.blob(values["arrays_digest"]))


def _read_pinned(path: Path, cache: Cache) -> tuple[list[ReferenceClip], dict[str, Any]]:
    """The clips and the query of a file that `ClipSet.pin` wrote."""
    try:
        document = read_json(path.read_bytes())
    except OSError as error:
        raise _refuse_path(path, "the pinned list cannot be read", error) from error
    except ValueError as error:
        raise _refuse_pinned(path, f"it is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != _SCHEMA or not isinstance(document.get("clips"), list):
        raise _refuse_pinned(path, "this is no pinned list of clips")
    digest = document.pop("digest", None)
    if (actual := json_digest(document)) != digest:
        raise IntegrityError(
            f"the pinned list was changed: its digest is {actual}",
            file=str(path),
            key="digest",
            expected=str(digest)[:80],
            remedy="Copy the file again from where it was written, or make and pin the query anew.",
        )
    query = document.get("query")
    return [_read_clip(item, cache) for item in document["clips"]], query if isinstance(query, dict) else {}


def _check_clips(clips: Sequence[ReferenceClip]) -> None:
    """Refuse features of other code, and warn of one robot in two shapes and of verdicts by different profiles."""
    code_hash = feature_code_hash()
    foreign = [clip for clip in clips if clip.feature_code_hash != code_hash]
    if foreign:
        raise FeatureCodeMismatch(
            f"{len(foreign)} of {len(clips)} clips have features of other code than this machine's {code_hash}, "
            f"such as {foreign[0].name!r} with {foreign[0].feature_code_hash}",
            key="feature_code_hash",
            expected="the same code, so that the discriminator compares like with like",
            remedy="Score them again with the release that is installed here, or install the one that they were scored with.",
        )
    summary = ClipSet(clips, {})
    for name, digests in summary.robots.items():
        if len(digests) > 1:
            warn(f"The robot {name!r} was changed between these clips: {', '.join(digests)}.")
    if len(summary.gate_profiles) > 1:
        warn(f"The clips were judged by different gate profiles: {', '.join(summary.gate_profiles)}; gate_profile takes one.")


def _obtain(connection: Connection | None, cache: Cache, clips: Sequence[ReferenceClip], progress: Progress | None) -> int:
    """Have every export in the cache, verified; how many bytes were downloaded."""
    files = {clip.arrays_digest: RemoteFile(f"{clip.name}.npz", clip.arrays_digest, clip.arrays_size) for clip in clips}
    with ThreadPoolExecutor(min(8, usable_cpus())) as pool:
        intact = pool.map(lambda file: is_intact(cache.blob(file.digest), file), files.values())
    missing = [file for file, is_present in zip(files.values(), intact, strict=True) if not is_present]
    if not missing:
        return 0
    for file in missing:
        if cache.blob(file.digest).exists():
            log.warning("%s in the cache is damaged; downloading it again", cache.blob(file.digest))
    if connection is None:
        names = ", ".join(file.path for file in missing[:5]) + " and more" * (len(missing) > 5)
        raise NotFound(
            f"{len(missing)} of {len(files)} arrays are not in the cache, or damaged, and no service may be asked: {names}",
            file=str(cache.root),
            remedy="Load the clips where the service can be reached, with the same cache.",
        )
    try:
        return fetch_arrays(connection, cache, missing, progress)
    except NotFound as error:
        names = ", ".join(file.path for file in missing if file.digest in error.what)
        raise NotFound(
            f"the service has no longer the arrays of {names or f'some of {len(missing)} clips'}",
            key=error.key,
            expected="clips that are still in the catalog",
            remedy="Their clips were deleted: make the query again, or copy the files from a cache that has them.",
        ) from error


def _refuse_path(path: Path, what: str, error: OSError) -> InputRefused:
    return InputRefused(f"{what} ({error.strerror or error})", file=str(path), remedy="Check the path.")


def _refuse_pinned(path: Path, what: str) -> InputRefused:
    return InputRefused(
        what,
        file=str(path),
        expected="a file that 'ampref clips --pin FILE' or ClipSet.pin wrote",
        remedy="Make the query again and pin it.",
    )
