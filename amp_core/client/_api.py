"""A thin client over the HTTP API: one method a call, JSON in and out, exceptions for problems."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2

from amp_core.client._http import Connection, Retry, RetryableError
from amp_core.errors import AmprefError, InputRefused, Unavailable
from amp_core.files import replace_file
from amp_core.strict_json import parse_json

__all__ = ["ApiClient"]

JobProgress = Callable[[dict[str, Any]], None]
"""Called with a job whenever it has changed."""

_FINISHED = frozenset({"succeeded", "failed", "quarantined", "cancelled"})
_MB = 1 << 20


class ApiClient:
    """The service's HTTP API.

        with ApiClient("http://127.0.0.1:8000") as api:
            clip = api.submit_clip("walk.pkl")
            job = api.wait_for_job(clip["job"]["id"])

    Answers are the decoded JSON, as `docs/http.md` describes it. Every method raises what the service's problem stands for
    (`NotFound`, `Conflict`, `MotionRefused`, …) and `Unavailable` when there is no service.

    Args:
      url: default `$AMPREF_URL`, then `http://127.0.0.1:8000`.
      retry: patience with a network or service that fails.
      transport: replaces the network (tests).
    """

    def __init__(
        self, url: str | None = None, *, retry: Retry | None = None, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self._connection = Connection(url, retry=retry, transport=transport)

    @property
    def url(self) -> str:
        """The service's address."""
        return self._connection.url

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Clips

    def submit_clip(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        robot: str | None = None,
        mode: str | None = None,
        seed: int | None = None,
        tags: Sequence[str] = (),
        fps: float | None = None,
        quat_order: str | None = None,
        format: str | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Upload a motion and have it scored: `{clip, job, rollout}`, with `known` true when nothing had to be added.

        Safe to repeat: the same bytes with the same recipe are one clip and one job.
        """
        fields: dict[str, Any] = {
            "name": name,
            "robot": robot,
            "mode": mode,
            "seed": seed,
            "fps": fps,
            "quat_order": quat_order,
            "format": format,
            "recipe": None if recipe is None else json.dumps(dict(recipe)),
            "tags": list(tags),
        }
        data = {
            key: value if isinstance(value, list) else str(value) for key, value in fields.items() if value not in (None, [])
        }
        source = Path(path)
        try:
            file = open(source, "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise InputRefused(
                f"the file cannot be read ({error.strerror or error})", file=str(source), remedy="Check the path."
            ) from error
        with closing(file):
            status, answer = self._connection.json("POST", "v1/clips", data=data, files={"file": (source.name, file)})
        return {**_object(answer), "known": status == 200}

    def list_clips(self, **filters: Any) -> dict[str, Any]:
        """One page of the curriculum query, `{items, next_cursor}`: `tier, robot, mode, tag, min_duration_sec, sort, limit,
        cursor`, and `min_…`/`max_…` of any metric."""
        return self._get("v1/clips", params=_params(filters))

    def iter_clips(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Every clip of the query, page by page."""
        return self._pages("v1/clips", filters)

    def get_clip(self, clip_id: str) -> dict[str, Any]:
        """A clip with its rollouts and jobs."""
        return self._get(f"v1/clips/{_part(clip_id)}")

    def download_clip(self, clip_id: str, target: str | os.PathLike[str]) -> Path:
        """Save the file that was uploaded as `target`, whole or not at all."""
        return self._download(f"v1/clips/{_part(clip_id)}/file", Path(target))

    def delete_clip(self, clip_id: str) -> None:
        """Delete a clip; `Conflict` while a locked version holds it."""
        self._connection.json("DELETE", f"v1/clips/{_part(clip_id)}", repeatable=False)

    def add_rollout(
        self,
        clip_id: str,
        *,
        mode: str | None = None,
        seed: int | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Score a clip again with another mode, seed or whole recipe: `{clip, job, rollout}`."""
        body = {"mode": mode, "seed": seed, "recipe": None if recipe is None else dict(recipe)}
        return self._post(f"v1/clips/{_part(clip_id)}/rollouts", {k: v for k, v in body.items() if v is not None}, True)

    def augment_clip(
        self,
        clip_id: str,
        augmentations: Sequence[str],
        *,
        mode: str | None = None,
        seed: int | None = None,
        recipe: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Make variants of a clip, such as `["mirror", "warp=0.9"]`: `{parent, variants: [{augmentation, seam, clip, job,
        rollout}]}`. Safe to repeat."""
        body = {
            "augmentations": list(augmentations),
            "mode": mode,
            "seed": seed,
            "recipe": None if recipe is None else dict(recipe),
            "tags": list(tags) or None,
        }
        return self._post(f"v1/clips/{_part(clip_id)}/augment", {k: v for k, v in body.items() if v is not None}, True)

    # Rollouts

    def get_rollout(self, rollout_id: str) -> dict[str, Any]:
        """A rollout with its gates, segments and provenance."""
        return self._get(f"v1/rollouts/{_part(rollout_id)}")

    def download_arrays(self, rollout_id: str, target: str | os.PathLike[str]) -> Path:
        """Save a rollout's export npz as `target`, whole or not at all."""
        return self._download(f"v1/rollouts/{_part(rollout_id)}/arrays", Path(target))

    def _download(self, path: str, final: Path) -> Path:
        def call(patience: Retry) -> Path:
            with (
                self._connection.stream("GET", path, retry=patience) as response,
                replace_file(final) as partial,
                open(partial, "wb") as file,
            ):
                for chunk in response.iter_bytes(_MB):
                    file.write(chunk)
            return final

        try:
            return self._connection.retried(call, self._connection.retry)
        except OSError as error:
            raise Unavailable(
                f"the file cannot be written ({error.strerror or error})", file=str(final), remedy="Give another path."
            ) from error

    # Jobs

    def get_job(self, job_id: str) -> dict[str, Any]:
        """A job's state (`queued, running, succeeded, failed, quarantined, cancelled`), progress and message."""
        return self._get(f"v1/jobs/{_part(job_id)}")

    def list_jobs(self, **filters: Any) -> dict[str, Any]:
        """One page of jobs, newest first: `state, kind, limit, cursor`."""
        return self._get("v1/jobs", params=_params(filters))

    def iter_jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Every job of the query, page by page."""
        return self._pages("v1/jobs", filters)

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; `Conflict` when it has finished."""
        return _object(self._connection.json("DELETE", f"v1/jobs/{_part(job_id)}", repeatable=False)[1])

    def retry_job(self, job_id: str) -> dict[str, Any]:
        """Queue again what failed, was quarantined or cancelled: the new job."""
        return self._post(f"v1/jobs/{_part(job_id)}/retry", None, False)

    def wait_for_job(
        self, job_id: str, *, timeout: float | None = None, progress: JobProgress | None = None, poll: float = 0.5
    ) -> dict[str, Any]:
        """The job when it has finished, whichever way; look at its `state`.

        Follows the job's server-sent events, and asks every `poll` seconds where a proxy keeps them back.

        Args:
          timeout: seconds; None waits for ever. `Unavailable` when it is over; the job goes on.
          progress: called with the job now and whenever it has changed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        seen: Any = None
        while True:
            for job in self._watch(job_id, deadline):
                if progress is not None and job != seen:
                    progress(job)
                seen = job
                if job.get("state") in _FINISHED:
                    return job
            if deadline is not None and time.monotonic() >= deadline:
                raise Unavailable(
                    f"job {job_id} has not finished within {timeout:g} s",
                    expected="a finished job",
                    remedy="It goes on. Wait longer, and check that a worker runs.",
                )
            time.sleep(poll)

    def _watch(self, job_id: str, deadline: float | None) -> Iterator[dict[str, Any]]:
        """The job now, and then as its events tell, until they end."""
        job = self.get_job(job_id)
        yield job
        if job.get("state") in _FINISHED:
            return
        left = 60.0 if deadline is None else max(0.1, deadline - time.monotonic())
        # An idle stream ends the wait for it, so that the deadline holds; the caller comes back.
        patience = Retry(attempts=1, read=min(left, 30.0), connect=self._connection.retry.connect)
        path = f"v1/jobs/{_part(job_id)}/events"
        try:
            with self._connection.stream("GET", path, retry=patience, headers={"accept": "text/event-stream"}) as response:
                if response.status_code == 204:
                    return
                for event in httpx2.EventSource(response):
                    told = parse_json(event.data) if event.data else None
                    if isinstance(told, dict) and "state" in told:
                        yield told
                        if told["state"] in _FINISHED:
                            return
                    if deadline is not None and time.monotonic() >= deadline:
                        return
        except (RetryableError, AmprefError, httpx2.HTTPError, ValueError):
            return  # Polling goes on where events do not come through.

    # Datasets

    def list_datasets(self) -> list[dict[str, Any]]:
        """Every dataset that has a locked version."""
        items = self._get("v1/datasets").get("items")
        return items if isinstance(items, list) else []

    def get_dataset(self, name: str) -> dict[str, Any]:
        """A dataset's versions and aliases."""
        return self._get(f"v1/datasets/{_part(name)}")

    def get_version(self, name: str, version: str) -> dict[str, Any]:
        """A locked version, by its exact name, `latest` or an alias."""
        return self._get(f"v1/datasets/{_part(name)}/versions/{_part(version)}")

    def get_manifest(self, name: str, version: str) -> dict[str, Any]:
        """The manifest of a locked version, as it is served; `pull` verifies it, this does not."""
        url = self.get_version(name, version).get("manifest_url")
        if not isinstance(url, str):
            raise Unavailable(f"the service gives no manifest for {name}=={version}", remedy="Check its address.")
        return self._get(url)

    def get_verification(self, name: str, version: str) -> dict[str, Any]:
        """All that the readiness tests found before the version was locked; `NotFound` where it is older than they are."""
        return self._get(f"v1/datasets/{_part(name)}/versions/{_part(version)}/verification")

    def iter_members(self, name: str, version: str) -> Iterator[dict[str, Any]]:
        """The segments of a version, in order: `{position, clip_id, rollout_id, name, start, end, tier}`."""
        return self._pages(f"v1/datasets/{_part(name)}/versions/{_part(version)}/members", {"limit": 500})

    def lock_version(
        self, name: str, version: str, *, select: Mapping[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        """Have the selected rollouts tested and locked as a version: `{dataset, version, state, job}`; `Conflict` when it
        exists. `waivers=[{"test": "6", "reason": "…"}]` bears the failure of a test."""
        body = {"version": version, "select": dict(select or {}), **{k: v for k, v in options.items() if v is not None}}
        return self._post(f"v1/datasets/{_part(name)}/versions", body, False)

    def set_alias(self, name: str, alias: str, version: str) -> dict[str, Any]:
        """Let an alias mean a version."""
        path = f"v1/datasets/{_part(name)}/aliases/{_part(alias)}"
        return _object(self._connection.json("PUT", path, json={"version": version})[1])

    def delete_alias(self, name: str, alias: str) -> None:
        """Forget an alias."""
        self._connection.json("DELETE", f"v1/datasets/{_part(name)}/aliases/{_part(alias)}", repeatable=False)

    def yank_version(self, name: str, version: str, reason: str) -> dict[str, Any]:
        """Warn everybody off a version; it stays readable by its exact name."""
        return self._post(f"v1/datasets/{_part(name)}/versions/{_part(version)}/yank", {"reason": reason}, True)

    def unyank_version(self, name: str, version: str) -> dict[str, Any]:
        """Take a yank back."""
        return self._post(f"v1/datasets/{_part(name)}/versions/{_part(version)}/unyank", None, True)

    def diff_versions(self, name: str, before: str, after: str) -> dict[str, Any]:
        """Which clips were added, removed and changed between two versions."""
        return self._get(f"v1/datasets/{_part(name)}/diff", params={"before": before, "after": after})

    # The service

    def list_robots(self) -> list[dict[str, Any]]:
        """The robots that the service knows."""
        items = self._get("v1/robots").get("items")
        return items if isinstance(items, list) else []

    def get_robot(self, name: str) -> dict[str, Any]:
        """One robot with its joints, time steps and features."""
        return self._get(f"v1/robots/{_part(name)}")

    def ready(self) -> bool:
        """Whether database, blobs and broker answer; False as well when nothing does. One quick try."""
        try:
            self._connection.json("GET", "readyz", retry=self._connection.retry.impatient())
        except Unavailable:
            return False
        return True

    def _get(self, path: str, **options: Any) -> dict[str, Any]:
        return _object(self._connection.json("GET", path, **options)[1])

    def _post(self, path: str, body: Any, repeatable: bool) -> dict[str, Any]:
        options = {} if body is None else {"json": body}
        return _object(self._connection.json("POST", path, repeatable=repeatable, **options)[1])

    def _pages(self, path: str, filters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        params = _params(filters)
        while True:
            page = self._get(path, params=params)
            yield from page.get("items", [])
            cursor = page.get("next_cursor")
            if not cursor:
                return
            params["cursor"] = cursor


def _object(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise Unavailable("the service answered something else than a JSON object", remedy="Check its address.")
    return answer


def _params(filters: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in filters.items() if value is not None}


def _part(text: str) -> str:
    """One segment of a path; whatever it holds, it does not become two."""
    if text in ("", ".", ".."):
        raise InputRefused(f"{text!r} names nothing", expected="an id or a name")
    return quote(str(text), safe="")
