"""From a spec to three verified files on this machine."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from amp_core.client._cache import Cache, resolve_cache_dir
from amp_core.client._download import Progress, Remote, download, is_intact
from amp_core.client._http import Connection, Retry, resolve_url
from amp_core.client._spec import Spec, check_digest, parse_spec
from amp_core.dataset.blocks import BLOCK_ALGORITHM, BLOCK_SIZE, BLOCKS_AVAILABLE
from amp_core.dataset.manifest import MANIFEST_SCHEMA
from amp_core.dataset.names import check_version, file_names
from amp_core.errors import FeatureCodeMismatch, InputRefused, IntegrityError, NotFound, Unavailable
from amp_core.features import feature_code_hash
from amp_core.files import replace_file
from amp_core.strict_json import read_json

__all__ = ["DatasetWarning", "PulledVersion", "pull"]

log = logging.getLogger("amp_core.client")


class DatasetWarning(UserWarning):
    """A version can be used, and its user should know something: it was yanked, or an alias was resolved from memory."""


@dataclass(frozen=True)
class PulledVersion:
    """A version that is whole and verified on this machine.

    Args:
      features, normalization_stats, manifest: paths of the three files.
      manifest_sha256: pins the version: the manifest names the digests of the other two.
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
    features: Path
    normalization_stats: Path
    manifest: Path
    yanked: bool
    yank_reason: str | None
    downloaded_bytes: int
    disk: Future[None] = field(repr=False, compare=False)

    def wait_for_disk(self) -> None:
        """Return when the cached files would survive a power failure. `pull` returns before that; the interpreter does not end.

        Raises `Unavailable` when the disk would not take them.
        """
        self.disk.result()

    @property
    def files(self) -> tuple[Path, Path, Path]:
        return self.features, self.normalization_stats, self.manifest

    def training_config(self) -> str:
        """Lines to paste: the training config's YAML, and the Python that loads exactly these bytes."""
        return (
            "# training config (YAML)\n"
            "amp:\n"
            f"  reference_data: {json.dumps(str(self.features), ensure_ascii=False)}\n"
            f"  normalization: {json.dumps(str(self.normalization_stats), ensure_ascii=False)}\n"
            "\n"
            "# or in Python\n"
            "from amp_core.client import load_dataset\n"
            "\n"
            "data = load_dataset(\n"
            f'    "{self.name}=={self.version}",\n'
            f'    url="{self.url}",\n'
            f'    manifest_sha256="{self.manifest_sha256}",\n'
            ")\n"
        )

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data."""
        facts = {key: value for key, value in vars(self).items() if key != "disk"}
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in facts.items()}
        return plain | {"training_config": self.training_config()}


def pull(
    spec: str,
    *,
    url: str | None = None,
    manifest_sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    to: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    retry: Retry | None = None,
    transport: httpx2.BaseTransport | None = None,
) -> PulledVersion:
    """Bring a locked version to this machine, verified; nothing is downloaded that is there already.

    Verified means: the manifest against its SHA-256, which pins the rest; the statistics against their SHA-256; the features
    block by block against the BLAKE3 digests that the manifest lists (their SHA-256 where it lists none). `load_dataset`
    computes `dataset_hash`, the SHA-256 of the rows, as well.

    Args:
      spec: `name==version`, `name@alias`, or `name` for its latest version.
      url: of the service; default `$AMPREF_URL`, then `http://127.0.0.1:8000`.
      manifest_sha256: the version's digest, from an earlier pull: anything else is refused.
      cache_dir: default `$AMPREF_CACHE`, then `~/.cache/ampref`.
      offline: True asks no service; None means `$AMPREF_OFFLINE`, else to ask and to fall back on a whole cache.
      to: a folder that gets copies of the three files under their own names.
      progress: called with bytes done and in total for the features.
      retry: patience with the network.
      transport: replaces the network (tests).
    Raises:
      InputRefused: a bad spec, address or digest.
      NotFound: no such dataset or version, there or (offline) here.
      IntegrityError: bytes differ from a digest.
      FeatureCodeMismatch: this machine computes features with other code.
      Unavailable: no service and no whole cache, or no room.
    """
    wanted = parse_spec(spec)
    pin = None if manifest_sha256 is None else check_digest(manifest_sha256, "manifest_sha256")
    address = resolve_url(url)
    if offline is None:
        offline = os.environ.get("AMPREF_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    connection = None if offline else Connection(address, retry=retry, transport=transport)
    try:
        return _Pull(wanted, address, connection, Cache(resolve_cache_dir(cache_dir), address), pin, progress).run(to)
    finally:
        if connection is not None:
            connection.close()


@dataclass(frozen=True)
class _Record:
    """What is known of a version before its manifest is read."""

    version: str
    manifest: str
    yanked: bool = False
    yank_reason: str | None = None


class _Pull:
    """One pull. `connection` is None when no service may be asked, and becomes None when none answers."""

    def __init__(
        self,
        spec: Spec,
        url: str,
        connection: Connection | None,
        cache: Cache,
        pin: str | None,
        progress: Progress | None,
    ) -> None:
        self._spec = spec
        self._url = url
        self._connection = connection
        self._cache = cache
        self._pin = pin
        self._progress = progress
        self._downloaded = 0

    def run(self, to: str | os.PathLike[str] | None) -> PulledVersion:
        record = self._resolve()
        names = file_names(record.version)
        if record.yanked:
            reason = f": {record.yank_reason}" if record.yank_reason else ""
            _warn(f"{self._spec.name}=={record.version} was yanked{reason}. Move to another version.")
        base = f"v1/datasets/{self._spec.name}/versions/{record.version}/files"
        path = self._obtain(Remote(f"{base}/{names.manifest}", record.manifest), None)
        manifest = _read_manifest(path, self._spec.name, record.version)
        _check_feature_code(manifest)
        stats = _remote(manifest, "normalization_stats", f"{base}/{names.normalization_stats}")
        features = _remote(manifest, "features", f"{base}/{names.features}")
        self._obtain(stats, None)
        self._obtain(features, self._progress)
        self._cache.write_ref(
            self._spec.name,
            record.version,
            {"manifest_sha256": record.manifest, "yanked": record.yanked, "yank_reason": record.yank_reason},
        )
        digests = {
            names.features: features.digest,
            names.normalization_stats: stats.digest,
            names.manifest: record.manifest,
        }
        if to is None:
            paths = self._cache.snapshot(self._spec.name, record.version, record.manifest, digests)
        else:
            paths = {name: _copy(self._cache.blob(digest), Path(to).absolute() / name) for name, digest in digests.items()}
        return PulledVersion(
            name=self._spec.name,
            version=record.version,
            url=self._url,
            manifest_sha256=record.manifest,
            dataset_hash=manifest["dataset_hash"],
            feature_code_hash=manifest["feature_code_hash"],
            num_clips=manifest["num_clips"],
            num_frames=manifest["num_frames"],
            features=paths[names.features],
            normalization_stats=paths[names.normalization_stats],
            manifest=paths[names.manifest],
            yanked=record.yanked,
            yank_reason=record.yank_reason,
            downloaded_bytes=self._downloaded,
            disk=self._cache.sync(),
        )

    def _resolve(self) -> _Record:
        """Which version, and its manifest's digest: as the service says, or as the cache remembers when no service answers."""
        remembered = self._remembered()
        if self._connection is not None:
            # With something to fall back on, a service that does not answer costs one quick try.
            patience = self._connection.retry.impatient() if remembered is not None else self._connection.retry
            try:
                record = self._ask(self._connection, patience)
            except Unavailable as error:
                if remembered is None:
                    raise
                self._connection = None
                log.warning("%s; using the cache", error.what)
            else:
                self._check_unchanged(record)
                return record
        if remembered is None:
            if self._spec.version is not None:
                known = _digest_in(self._cache.read_ref(self._spec.name, self._spec.version) or {})
                self._check_pin(known or self._pin, self._spec.version)
            raise NotFound(
                f"{self._spec} is not in the cache and no service may be asked",
                file=str(self._cache.root),
                expected="a version that was pulled before",
                remedy=f"Run 'ampref pull {self._spec}' where the service can be reached, with the same cache, then try again.",
            )
        if self._spec.alias is not None:
            _warn(
                f"{self._spec} was not looked up: no service was asked. It last meant version {remembered.version}; "
                f"write {self._spec.name}=={remembered.version} to pin it."
            )
        return remembered

    def _remembered(self) -> _Record | None:
        """The version as this cache knows it."""
        name, version = self._spec.name, self._spec.version
        if version is None:
            alias = self._cache.read_ref(name, f"@{self._spec.alias}") or {}
            try:
                version = check_version(alias.get("version", ""))
            except InputRefused:
                return None
        ref = self._cache.read_ref(name, version) or {}
        # A pinned manifest needs no service's word: its digest is its name.
        digest = self._pin or _digest_in(ref)
        if digest is None or not self._cache.blob(digest).exists():
            return None
        reason = ref.get("yank_reason") if digest == _digest_in(ref) else None
        yanked = ref.get("yanked") is True and digest == _digest_in(ref)
        return _Record(version, digest, yanked, reason if isinstance(reason, str) else None)

    def _ask(self, connection: Connection, patience: Retry) -> _Record:
        name, version = self._spec.name, self._spec.version
        if version is None:
            _, dataset = connection.json("GET", f"v1/datasets/{name}", retry=patience)
            known = _aliases(dataset)
            there = [one["version"] for one in (dataset.get("versions") if isinstance(dataset, Mapping) else None) or ()]
            if self._spec.alias == "latest" and "latest" not in known and there:
                raise NotFound(
                    f"dataset {name!r} has no latest version: each of its {len(there)} is yanked or a pre-release",
                    key="alias",
                    expected="an exact version, or an alias",
                    remedy=f"See 'ampref dataset show {name}'; a yanked version is still there, such as {name}=={there[0]}.",
                )
            if self._spec.alias not in known:
                raise NotFound(
                    f"dataset {name!r} has no version called {self._spec.alias!r}",
                    key="alias",
                    expected=f"one of {', '.join(sorted(known))}" if known else "a dataset with a locked version",
                    remedy=f"See 'ampref dataset show {name}'.",
                )
            version = check_version(known[self._spec.alias or ""])
            self._cache.write_ref(name, f"@{self._spec.alias}", {"version": version})
            log.info("%s is version %s; write %s==%s to pin it", self._spec, version, name, version)
        _, answer = connection.json("GET", f"v1/datasets/{name}/versions/{version}", retry=patience)
        facts = answer if isinstance(answer, Mapping) else {}
        manifest = _digest_in(facts)
        if manifest is None:
            raise Unavailable(
                f"the service gives no manifest digest for {name}=={version}",
                key="manifest_sha256",
                expected="a locked version",
                remedy="Check the address: something else than an ampref service may be listening there.",
            )
        self._check_pin(manifest, version)
        reason = facts.get("yank_reason")
        return _Record(version, manifest, facts.get("yanked") is True, reason if isinstance(reason, str) else None)

    def _check_pin(self, digest: str | None, version: str) -> None:
        if self._pin is not None and digest != self._pin:
            raise IntegrityError(
                f"the manifest of {self._spec.name}=={version} has the digest {digest}",
                key="manifest_sha256",
                expected=self._pin,
                remedy="Correct the pinned digest if another version or service was meant; otherwise do not train on this.",
            )

    def _check_unchanged(self, record: _Record) -> None:
        """A locked version never changes; if the service now says otherwise, something is wrong there."""
        ref = self._cache.read_ref(self._spec.name, record.version) or {}
        before = ref.get("manifest_sha256")
        if self._pin is None and isinstance(before, str) and before != record.manifest:
            raise IntegrityError(
                f"{self._spec.name}=={record.version} is not what it was when this cache last pulled it: {record.manifest}",
                key="manifest_sha256",
                expected=before,
                remedy="Ask the service's operator. To accept the new one, pass manifest_sha256 with its digest.",
            )

    def _obtain(self, remote: Remote, progress: Progress | None) -> Path:
        """The verified blob: from the cache if it is good, else from the service."""
        blob = self._cache.blob(remote.digest)
        damaged = False
        if blob.exists():
            if is_intact(blob, remote):
                return blob
            damaged = True
            log.warning("%s in the cache is damaged; downloading it again", blob)
        if self._connection is None:
            raise (IntegrityError if damaged else NotFound)(
                f"the cached file is {'damaged' if damaged else 'missing'} and no service can be asked",
                file=str(blob),
                expected=remote.digest,
                remedy=f"Run 'ampref pull {self._spec}' where the service can be reached, with the same cache.",
            )
        if not damaged and self._cache.wait_for_peer(remote.digest) and is_intact(blob, remote):
            return blob
        path = download(self._connection, self._cache, remote, progress)
        self._downloaded += path.stat().st_size
        return path


def _digest_in(facts: Mapping[str, Any]) -> str | None:
    """The manifest's digest that a reference or a service's answer gives; None when it gives none."""
    try:
        return check_digest(facts.get("manifest_sha256", ""), "manifest_sha256")
    except InputRefused:
        return None


def _aliases(dataset: Any) -> dict[str, str]:
    """What a dataset's aliases mean now, `latest` among them when there is one."""
    facts = dataset if isinstance(dataset, Mapping) else {}
    given = facts.get("aliases")
    known = {**given} if isinstance(given, Mapping) else {}
    known["latest"] = known.get("latest") or facts.get("latest")
    return {str(alias): version for alias, version in known.items() if isinstance(version, str)}


def _remote(manifest: Mapping[str, Any], kind: str, path: str) -> Remote:
    """A file as the manifest describes it. Its name there is not used: names of files come from the version alone."""
    try:
        facts = manifest["files"][kind]
        size, blocks = facts["size"], None
        if type(size) is not int or size < 0:
            raise TypeError("size")
        listed = facts.get("blocks")
        known = BLOCKS_AVAILABLE and isinstance(listed, Mapping)
        if known and listed.get("algorithm") == BLOCK_ALGORITHM and listed.get("size") == BLOCK_SIZE:
            blocks = tuple(str(digest) for digest in listed["digests"])
            if len(blocks) != -(-size // BLOCK_SIZE):
                raise TypeError("blocks")
        return Remote(path, check_digest(facts["sha256"], f"files.{kind}.sha256"), size, blocks)
    except (KeyError, TypeError, InputRefused) as error:
        raise IntegrityError(
            "the manifest does not describe its files",
            key=f"files.{kind}",
            expected="name, size and sha256",
            remedy="Lock the version again with this release of ampref.",
        ) from error


def _read_manifest(path: Path, name: str, version: str) -> dict[str, Any]:
    try:
        manifest = read_json(path.read_bytes())
    except ValueError as error:
        raise IntegrityError("the manifest is not JSON", file=str(path), remedy="Lock the version again.") from error
    found = manifest if isinstance(manifest, dict) else {}
    if found.get("schema") != MANIFEST_SCHEMA:
        raise IntegrityError(
            f"the manifest follows {found.get('schema')!r}",
            file=str(path),
            key="schema",
            expected=MANIFEST_SCHEMA,
            remedy="Install the release of ampref that the version was locked with, or a newer one.",
        )
    if (found.get("name"), found.get("version")) != (name, version):
        raise IntegrityError(
            f"the manifest is of {found.get('name')}=={found.get('version')}",
            file=str(path),
            expected=f"{name}=={version}",
            remedy="Check the pinned digest; if it is right, ask the service's operator.",
        )
    checks: dict[str, Callable[[Any], bool]] = {
        "dataset_hash": lambda value: isinstance(value, str),
        "feature_code_hash": lambda value: isinstance(value, str),
        "num_clips": lambda value: type(value) is int,
        "num_frames": lambda value: type(value) is int,
        "feature_layout": lambda value: isinstance(value, dict),
    }
    for key, fits in checks.items():
        if not fits(found.get(key)):
            raise IntegrityError("the manifest lacks a value", file=str(path), key=key, remedy="Lock the version again.")
    return found


def _check_feature_code(manifest: Mapping[str, Any]) -> None:
    here, there = feature_code_hash(), manifest["feature_code_hash"]
    if here != there:
        release = manifest.get("generator_version")
        raise FeatureCodeMismatch(
            f"{manifest['name']}=={manifest['version']} was locked with feature code {there}; this machine has {here}",
            key="feature_code_hash",
            expected="the same code, so that the discriminator compares like with like",
            remedy=f"Install the release that it was locked with (generator version {release}) on this machine, "
            "or lock a new version with the release that is installed here.",
        )


def _copy(blob: Path, target: Path) -> Path:
    """A copy of a cached file under its own name, whole or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(target) as partial:
            shutil.copyfile(blob, partial)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise Unavailable(
            f"the files cannot be copied there ({error.strerror or error})",
            file=str(target.parent),
            remedy="Make room, or give another folder." if full else "Give a folder that can be written.",
        ) from error
    return target


def _warn(message: str) -> None:
    # Attributed to the first caller outside of this package, so that Python shows it once per place of use.
    warnings.warn(message, DatasetWarning, stacklevel=_depth())


def _depth() -> int:
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("amp_core.client"):
        frame, depth = frame.f_back, depth + 1
    return depth
