"""From a spec to verified files on this machine."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx2

from amp_core.client.answers import AnswerFault, PulledManifest, check_answer
from amp_core.client.cache import Cache, resolve_cache_dir
from amp_core.client.download import Progress, RemoteFile, download, is_intact
from amp_core.client.http import Connection, Retry, hide_password, resolve_url
from amp_core.client.readiness import Readiness
from amp_core.client.resolve import Resolver, warn
from amp_core.client.spec import check_digest, parse_spec
from amp_core.dataset.blocks import BLOCK_ALGORITHM, BLOCK_SIZE, BLOCKS_AVAILABLE
from amp_core.dataset.manifest import read_manifest
from amp_core.dataset.names import file_names, shard_names
from amp_core.errors import FeatureCodeMismatch, InputRefused, IntegrityError, NotFound, Unavailable
from amp_core.features import feature_code_hash
from amp_core.files import NO_ROOM, replace_file

__all__ = ["PulledVersion", "check_manifest", "pull", "pull_ready"]

log = logging.getLogger("amp_core.client")

_SHARDS_AT_ONCE = 4
_STOP_SEC = 1.0  # Seconds that downloads get to let go of their partial files when the pull ends early.


@dataclass(frozen=True)
class PulledVersion:
    """A version that is complete and verified on this machine.

    Args:
      shards: paths of the files with the features, in the order of their rows; one, but for a large version.
      normalization_stats, manifest: paths of the other files.
      manifest_sha256: pins the version: the manifest names the digests of the other files.
      readiness: whether its checklist permits training, and what it lacks.
      downloaded_bytes: what came over the network; 0 when the cache had everything.
      disk: done when the files are on the disk; see `wait_for_disk`.
    """

    name: str
    version: str
    url: str
    manifest_sha256: str
    dataset_hash: str
    feature_code_hash: str
    num_clips: int
    num_frames: int
    shards: tuple[Path, ...]
    normalization_stats: Path
    manifest: Path
    yanked: bool
    yank_reason: str | None
    readiness: Readiness
    downloaded_bytes: int
    disk: Future[None] = field(repr=False, compare=False)

    def wait_for_disk(self) -> None:
        """Return when the cached files would survive a power failure. `pull` returns before that; the interpreter does not end.

        Raises `Unavailable` when the disk would not take them.
        """
        self.disk.result()

    @property
    def features(self) -> Path:
        """The one file with the features.

        Raises:
          ValueError: they are in several shards, each of which is a part of the data.
        """
        if len(self.shards) > 1:
            raise ValueError(
                f"the features of {self.name}=={self.version} are in {len(self.shards)} files: use `shards`, "
                "or `load_dataset`, which maps them as one array"
            )
        return self.shards[0]

    @property
    def files(self) -> tuple[Path, ...]:
        return *self.shards, self.normalization_stats, self.manifest

    def training_config(self) -> str:
        """Lines to paste: the training config's YAML, and the Python that loads exactly these bytes."""
        is_ready = self.readiness.ready is not False
        comment = "" if is_ready else f"# {self.readiness.describe(f'{self.name}=={self.version}')}\n"
        option = "" if is_ready else "    allow_not_ready=True,\n"
        features = [str(path) for path in self.shards] if len(self.shards) > 1 else str(self.features)
        return (
            f"{comment}# training config (YAML)\n"
            "amp:\n"
            f"  reference_data: {json.dumps(features, ensure_ascii=False)}\n"
            f"  normalization: {json.dumps(str(self.normalization_stats), ensure_ascii=False)}\n"
            "\n"
            "# or in Python\n"
            "from amp_core.client import load_dataset\n"
            "\n"
            "data = load_dataset(\n"
            f'    "{self.name}=={self.version}",\n'
            f'    url="{self.url}",\n'
            f'    manifest_sha256="{self.manifest_sha256}",\n'
            f"{option})\n"
        )

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data."""
        facts = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items() if key != "disk"}
        shards = [str(path) for path in self.shards]
        facts |= {"shards": shards, "features": shards[0] if len(shards) == 1 else None}
        return facts | {"readiness": self.readiness.to_dict(), "training_config": self.training_config()}


def pull(
    spec: str,
    *,
    url: str | None = None,
    manifest_sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    to: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    token: str | None = None,
    retry: Retry | None = None,
    transport: httpx2.BaseTransport | None = None,
) -> PulledVersion:
    """Bring a locked version to this machine, verified; files that are in the cache are not downloaded again.

    A version that is not ready for training is pulled with a `DatasetWarning`, so that it can be looked at.

    Verified means: the manifest against its SHA-256, which pins the rest; the statistics against their SHA-256; the features
    block by block against the BLAKE3 digests that the manifest lists (their SHA-256 where it lists none). `load_dataset`
    computes `dataset_hash`, the SHA-256 of the rows, as well.

    Args:
      spec: `name==version`, `name@alias`, or `name` for its latest version.
      url: of the service; default `$AMPREF_URL`, then `http://127.0.0.1:8000`.
      manifest_sha256: the version's digest, from an earlier pull: anything else is refused.
      cache_dir: default `$AMPREF_CACHE`, then `~/.cache/ampref`.
      offline: True asks no service; None means `$AMPREF_OFFLINE`, else to ask and to fall back on a complete cache.
      to: a folder that gets copies of the files under their own names.
      progress: called with bytes done and in total for the features.
      token: the service's key; default `$AMPREF_TOKEN`, then the file `~/.config/ampref/token`. Nobody else gets it.
      retry: patience with the network.
      transport: replaces the network (tests).
    Raises:
      InputRefused: a bad spec, address or digest.
      Unauthorized, Forbidden: the service asks for a key, or for another one.
      NotFound: no such dataset or version, there or (offline) here.
      IntegrityError: bytes differ from a digest.
      FeatureCodeMismatch: this machine computes features with other code.
      Unavailable: no service and no complete cache, or no room.
    """
    return pull_ready(
        spec,
        allow_not_ready=True,
        url=url,
        manifest_sha256=manifest_sha256,
        cache_dir=cache_dir,
        offline=offline,
        to=to,
        progress=progress,
        token=token,
        retry=retry,
        transport=transport,
    )


def pull_ready(
    spec: str,
    *,
    allow_not_ready: bool,
    url: str | None,
    manifest_sha256: str | None,
    cache_dir: str | os.PathLike[str] | None,
    offline: bool | None,
    to: str | os.PathLike[str] | None,
    progress: Progress | None,
    token: str | None,
    retry: Retry | None,
    transport: httpx2.BaseTransport | None,
) -> PulledVersion:
    """`pull`, which raises `NotReady` for a version that is not ready for training, unless `allow_not_ready`."""
    version_spec = parse_spec(spec)
    pin = None if manifest_sha256 is None else check_digest(manifest_sha256, "manifest_sha256")
    address = resolve_url(url)
    if offline is None:
        offline = os.environ.get("AMPREF_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    cache = Cache(resolve_cache_dir(cache_dir), address)
    connection = None if offline else Connection(address, token=token, retry=retry, transport=transport)
    try:
        resolution = Resolver(version_spec, connection, cache, pin).resolve()
        name, version = version_spec.name, resolution.version
        names = file_names(version)
        obtain = partial(_obtain, str(version_spec), connection if resolution.online else None, cache)
        base = f"v1/datasets/{name}/versions/{version}/files"
        origin = resolution.download_origin
        manifest_file = RemoteFile(f"{base}/{names.manifest}", resolution.manifest, resolution.manifest_size, origin=origin)
        downloaded_bytes = obtain(manifest_file)
        manifest = read_manifest(cache.blob(resolution.manifest), name, version)
        check_manifest(manifest, PulledManifest)
        _check_feature_code(manifest)
        readiness = resolution.readiness
        if readiness.ready is None:
            readiness = Readiness.from_manifest(manifest)
        if not allow_not_ready:
            readiness.check(name, version)  # Before its rows are downloaded.
        elif readiness.ready is False:
            warn(f"{readiness.describe(f'{name}=={version}')}. 'ampref dataset show {name} {version}' prints its checklist.")
        entries = manifest.get("files")
        entries = entries if isinstance(entries, Mapping) else {}
        stats = _describe_file(entries.get("normalization_stats"), f"{base}/{names.normalization_stats}", origin)
        shards = _describe_shards(entries.get("features"), base, names.features, origin)
        downloaded_bytes += obtain(stats)
        downloaded_bytes += _obtain_shards(obtain, connection, tuple(shards.values()), progress)
    finally:
        if connection is not None:
            connection.close()
    ref = {
        "manifest_sha256": resolution.manifest,
        "yanked": resolution.yanked,
        "yank_reason": resolution.yank_reason,
        "readiness": readiness.to_dict(),
    }
    cache.write_ref(name, version, ref)
    digests = {
        **{file: shard.digest for file, shard in shards.items()},
        names.normalization_stats: stats.digest,
        names.manifest: resolution.manifest,
    }
    if to is None:
        paths = cache.snapshot(name, version, resolution.manifest, digests)
    else:
        paths = {file: _copy(cache.blob(digest), Path(to).absolute() / file) for file, digest in digests.items()}
    return PulledVersion(
        name=name,
        version=version,
        url=hide_password(address),
        manifest_sha256=resolution.manifest,
        **{key: manifest[key] for key in ("dataset_hash", "feature_code_hash", "num_clips", "num_frames")},
        shards=tuple(paths[file] for file in shards),
        normalization_stats=paths[names.normalization_stats],
        manifest=paths[names.manifest],
        yanked=resolution.yanked,
        yank_reason=resolution.yank_reason,
        readiness=readiness,
        downloaded_bytes=downloaded_bytes,
        disk=cache.sync(),
    )


def _obtain(
    spec: str,
    connection: Connection | None,
    cache: Cache,
    remote: RemoteFile,
    progress: Progress | None = None,
) -> int:
    """Have the verified file in the cache; how many bytes were downloaded for it.

    Args:
      spec: of the version, for messages.
      connection: None when no service can be asked.
    """
    blob = cache.blob(remote.digest)
    is_damaged = blob.exists()
    if is_damaged:
        if is_intact(blob, remote):
            return 0
        log.warning("%s in the cache is damaged; downloading it again", blob)
    if connection is None:
        raise (IntegrityError if is_damaged else NotFound)(
            f"the cached file is {'damaged' if is_damaged else 'missing'} and no service can be asked",
            file=str(blob),
            expected=remote.digest,
            remedy=f"Run 'ampref pull {spec}' where the service can be reached, with the same cache.",
        )
    if not is_damaged and cache.wait_for_peer(remote.digest, connection.stop) and is_intact(blob, remote):
        return 0
    return download(connection, cache, remote, progress).stat().st_size


def _obtain_shards(
    obtain: Callable[..., int], connection: Connection | None, shards: Sequence[RemoteFile], progress: Progress | None
) -> int:
    """`obtain` for each, several at a time; how many bytes were downloaded. The first failure and Ctrl-C end the others."""
    if len(shards) == 1:
        return obtain(shards[0], progress)
    amounts, total = [0] * len(shards), sum(shard.size or 0 for shard in shards)
    numbers = iter(range(len(shards)))
    results: SimpleQueue[int | BaseException] = SimpleQueue()
    reporting = threading.Lock()

    def report(number: int, amount: int) -> None:
        with reporting:
            amounts[number] = amount
            if progress is not None:
                progress(sum(amounts), total)

    def obtain_rest() -> None:
        for number in numbers:
            try:
                num_bytes = obtain(shards[number], lambda amount, _, number=number: report(number, amount))
                report(number, shards[number].size or 0)
                results.put(num_bytes)
            except BaseException as error:
                results.put(error)

    # Not of an executor, whose threads the interpreter waits for at its exit, however long a name is looked up.
    threads = [threading.Thread(target=obtain_rest, name="ampref-pull", daemon=True) for _ in shards[:_SHARDS_AT_ONCE]]
    downloaded_bytes = 0
    try:
        for thread in threads:
            thread.start()
        # In the order of their ends, so that a failure is seen when it happens.
        for _ in shards:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            downloaded_bytes += result
    except BaseException:
        deque(numbers, maxlen=0)  # None is begun any more.
        if connection is not None:
            connection.abort()
        end = time.monotonic() + _STOP_SEC
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        raise
    return downloaded_bytes


def _describe_shards(entry: Any, base: str, name: str, origin: str | None) -> dict[str, RemoteFile]:
    """The files with the features, by their names: the one called `name`, or its shards."""
    shards = entry.get("shards") if isinstance(entry, Mapping) else None
    entries = shards if isinstance(shards, list) and len(shards) > 1 else [entry]
    files = zip(shard_names(name, len(entries)), entries, strict=True)
    return {file: _describe_file(shard, f"{base}/{file}", origin) for file, shard in files}


def _describe_file(entry: Any, path: str, origin: str | None) -> RemoteFile:
    """A file as the manifest describes it. Its name there is not used: names of files come from the version alone."""
    kind = path.rpartition("/")[2]
    try:
        size, blocks = entry["size"], None
        if type(size) is not int or size < 0:
            raise TypeError("size")
        listing = entry.get("blocks")
        expected = (BLOCK_ALGORITHM, BLOCK_SIZE)
        if BLOCKS_AVAILABLE and isinstance(listing, Mapping) and (listing.get("algorithm"), listing.get("size")) == expected:
            blocks = tuple(str(digest) for digest in listing["digests"])
            if len(blocks) != -(-size // BLOCK_SIZE):
                raise TypeError("blocks")
        return RemoteFile(path, check_digest(entry["sha256"], f"sha256 of {kind}"), size, blocks, origin)
    except (KeyError, TypeError, InputRefused) as error:
        raise IntegrityError(
            "the manifest does not describe its files",
            key="files",
            expected=f"name, size and sha256 of {kind}",
            remedy="Lock the version again with this release of ampref.",
        ) from error


def check_manifest(manifest: Mapping[str, Any], kind: Any) -> None:
    """Refuse a manifest that lacks what is read of it; `kind` is a class of `answers`."""
    try:
        check_answer(kind, manifest, "the manifest")
    except AnswerFault as error:
        raise IntegrityError(
            str(error), expected="a manifest that ampref wrote", remedy="Lock the version again with this release of ampref."
        ) from error


def _check_feature_code(manifest: Mapping[str, Any]) -> None:
    code_hash, expected = feature_code_hash(), manifest["feature_code_hash"]
    if code_hash != expected:
        release = manifest.get("generator_version")
        raise FeatureCodeMismatch(
            f"{manifest['name']}=={manifest['version']} was locked with feature code {expected}; this machine has {code_hash}",
            key="feature_code_hash",
            expected="the same code, so that the discriminator compares like with like",
            remedy=f"Install the release that it was locked with (generator version {release}) on this machine, "
            "or lock a new version with the release that is installed here.",
        )


def _copy(blob: Path, target: Path) -> Path:
    """A copy of a cached file under its own name, complete or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(target) as temporary:
            shutil.copyfile(blob, temporary)
    except OSError as error:
        full = error.errno in NO_ROOM | {errno.EFBIG}
        raise Unavailable(
            f"the files cannot be copied there ({error.strerror or error})",
            file=str(target.parent),
            remedy="Make room, or give another folder." if full else "Give a folder that can be written.",
        ) from error
    return target
