"""Which version a spec means, and the digest of its manifest: as the service says, or as the cache remembers."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amp_core.client.answers import AliasTarget, ManifestDigest
from amp_core.client.cache import Cache
from amp_core.client.http import Connection, Retry
from amp_core.client.readiness import Readiness
from amp_core.client.spec import Spec, check_digest
from amp_core.dataset.names import check_version, file_names
from amp_core.errors import InputRefused, IntegrityError, NotFound, Unavailable

__all__ = ["DatasetWarning", "Resolution", "Resolver", "warn"]

log = logging.getLogger("amp_core.client")


class DatasetWarning(UserWarning):
    """A version was yanked or is not ready for training, or an alias was resolved from memory."""


@dataclass(frozen=True)
class Resolution:
    """A version, by the digest of its manifest.

    Args:
      readiness: the outcome of its checklist; unknown where neither the service nor the cache has it.
      online: whether the service answered; otherwise the cache did.
      manifest_size: bytes of the manifest, where the service says so.
      download_origin: where else the service may send a reader for the files, as `scheme://host[:port]`.
    """

    version: str
    manifest: str
    yanked: bool
    yank_reason: str | None
    readiness: Readiness
    online: bool
    manifest_size: int | None = None
    download_origin: str | None = None


class Resolver:
    """Resolves a spec, and warns of a version that is yanked, and of an alias that no service was asked for.

    Args:
      connection: None when no service may be asked.
      pin: the digest that the manifest must have; None for any.
    """

    def __init__(self, spec: Spec, connection: Connection | None, cache: Cache, pin: str | None) -> None:
        self._spec = spec
        self._connection = connection
        self._cache = cache
        self._pin = pin

    def resolve(self) -> Resolution:
        """The version that is meant.

        Raises:
          NotFound: no such dataset, version or alias, there or (offline) here.
          IntegrityError: the manifest has another digest than the pin, or than at the last pull.
          Unavailable: the service does not answer, and the cache has nothing.
        """
        resolution = self._find()
        if resolution.yanked:
            reason = f": {resolution.yank_reason}" if resolution.yank_reason else ""
            warn(f"{self._spec.name}=={resolution.version} was yanked{reason}. Move to another version.")
        return resolution

    def _find(self) -> Resolution:
        cached_resolution = self._read_cache()
        if self._connection is not None:
            # With the cache to fall back on, a service that does not answer costs one quick try.
            retry = self._connection.retry if cached_resolution is None else self._connection.retry.impatient()
            try:
                return self._ask(self._connection, retry)
            except Unavailable as error:
                if cached_resolution is None:
                    raise
                log.warning("%s; using the cache", error.what)
        if cached_resolution is None:
            if self._spec.version is not None:
                digest = _read_digest(self._cache.read_ref(self._spec.name, self._spec.version))
                self._check_pin(digest or self._pin, self._spec.version)
            raise NotFound(
                f"{self._spec} is not in the cache and no service may be asked",
                file=str(self._cache.root),
                expected="a version that was pulled before",
                remedy=f"Run 'ampref pull {self._spec}' where the service can be reached, with the same cache, then try again.",
            )
        if self._spec.alias is not None:
            warn(
                f"{self._spec} was not looked up: no service was asked. It last meant version {cached_resolution.version}; "
                f"write {self._spec.name}=={cached_resolution.version} to pin it."
            )
        return cached_resolution

    def _read_cache(self) -> Resolution | None:
        """The version as this cache knows it."""
        name, version = self._spec.name, self._spec.version
        if version is None:
            try:
                version = check_version(self._cache.read_ref(name, f"@{self._spec.alias}").get("version", ""))
            except InputRefused:
                return None
        ref = self._cache.read_ref(name, version)
        digest = _read_digest(ref)
        if self._pin is not None and self._pin != digest:
            # The pin names the manifest; what the cache remembers of another one does not apply.
            ref, digest = {}, self._pin
        if digest is None or not self._cache.blob(digest).exists():
            return None
        return _build(version, digest, ref, online=False)

    def _ask(self, connection: Connection, retry: Retry) -> Resolution:
        name, version = self._spec.name, self._spec.version or self._ask_alias(connection, retry)
        _, facts = connection.json("GET", f"v1/datasets/{name}/versions/{version}", kind=ManifestDigest, retry=retry)
        manifest = _read_digest(facts)
        if manifest is None:
            raise Unavailable(
                f"the service gives no manifest digest for {name}=={version}",
                key="manifest_sha256",
                expected="a locked version",
                remedy="Check the address: something else than an ampref service may be listening there.",
            )
        self._check_pin(manifest, version)
        previous = self._cache.read_ref(name, version).get("manifest_sha256")
        if self._pin is None and isinstance(previous, str) and previous != manifest:
            raise IntegrityError(
                f"{name}=={version} is not what it was when this cache last pulled it: {manifest}",
                key="manifest_sha256",
                expected=previous,
                remedy="Ask the service's operator. To accept the new one, pass manifest_sha256 with its digest.",
            )
        return _build(version, manifest, facts, online=True)

    def _ask_alias(self, connection: Connection, retry: Retry) -> str:
        """The version that the spec's alias means; the cache remembers it."""
        name, alias = self._spec.name, self._spec.alias or ""
        _, dataset = connection.json("GET", f"v1/datasets/{name}", kind=AliasTarget, retry=retry)
        aliases = dict(dataset.get("aliases", {}))
        if latest := aliases.get("latest") or dataset.get("latest"):
            aliases["latest"] = latest
        versions = dataset.get("versions", ())
        if alias == "latest" and "latest" not in aliases and versions:
            raise _no_latest(name, versions)
        if alias not in aliases:
            raise NotFound(
                f"dataset {name!r} has no version called {alias!r}",
                key="alias",
                expected=f"one of {', '.join(sorted(aliases))}" if aliases else "a dataset with a locked version",
                remedy=f"See 'ampref dataset show {name}'.",
            )
        version = check_version(aliases[alias])
        self._cache.write_ref(name, f"@{alias}", {"version": version})
        log.info("%s is version %s; write %s==%s to pin it", self._spec, version, name, version)
        return version

    def _check_pin(self, digest: str | None, version: str) -> None:
        if self._pin is not None and digest != self._pin:
            raise IntegrityError(
                f"the manifest of {self._spec.name}=={version} has the digest {digest}",
                key="manifest_sha256",
                expected=self._pin,
                remedy="Correct the pinned digest if another version or service was meant; otherwise do not train on this.",
            )


def _no_latest(name: str, versions: Sequence[Mapping[str, Any]]) -> NotFound:
    """The error for a dataset of which no version is `latest`: what they are, and which of them can be pulled all the same."""
    states = Counter(
        "archived" if item.get("archived") is True else "yanked" if item.get("yanked") is True else "a pre-release"
        for item in versions
    )
    first = next((item["version"] for item in versions if item.get("archived") is not True), None)
    return NotFound(
        f"dataset {name!r} has no latest version: of its {len(versions)}, "
        + " and ".join(f"{count} {'is' if count == 1 else 'are'} {state}" for state, count in states.items()),
        key="alias",
        expected="a version that is neither yanked nor archived" if first is None else "an exact version, or an alias",
        remedy=f"See 'ampref dataset show {name}'; "
        + (
            "an archived version has no features any more: lock one anew ('ampref dataset lock')."
            if first is None
            else f"{name}=={first} can be pulled by its exact name."
        ),
    )


def _build(version: str, manifest: str, facts: Mapping[str, Any], *, online: bool) -> Resolution:
    names, reason, origin = file_names(version), facts.get("yank_reason"), facts.get("download_origin")
    return Resolution(
        version,
        manifest,
        yanked=facts.get("yanked") is True,
        yank_reason=reason if isinstance(reason, str) else None,
        readiness=Readiness.from_dict(facts.get("readiness")),
        online=online,
        manifest_size=next((file["size"] for file in facts.get("files", ()) if file["name"] == names.manifest), None),
        download_origin=origin if online and isinstance(origin, str) else None,
    )


def _read_digest(facts: Mapping[str, Any]) -> str | None:
    """The manifest's digest in a reference or a service's answer; None when it has none."""
    try:
        return check_digest(facts.get("manifest_sha256", ""), "manifest_sha256")
    except InputRefused:
        return None


def warn(message: str) -> None:
    """Issue a `DatasetWarning`."""
    # Attributed to the first caller outside of this package, so that Python shows it once per place of use.
    frame, depth = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("amp_core.client"):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, DatasetWarning, stacklevel=depth)
