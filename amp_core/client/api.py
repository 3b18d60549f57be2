"""A thin client over the HTTP API: one method a call, JSON in and out, exceptions for problems."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2

from amp_core.client import answers
from amp_core.client.answers import check_answer
from amp_core.client.bulk import BatchFile, post_batch
from amp_core.client.download import UNKNOWN_LIMIT
from amp_core.client.http import JSON_LIMIT, Connection, Retry, RetryableError, iter_body
from amp_core.errors import AmprefError, InputRefused, Unavailable
from amp_core.files import replace_file
from amp_core.strict_json import parse_json

__all__ = ["ApiClient", "JobProgress"]

JobProgress = Callable[[dict[str, Any]], None]
"""Called with a job whenever it has changed."""

_END_STATES = frozenset({"succeeded", "failed", "quarantined", "cancelled"})
_EVENT_PAGE = 1000


class ApiClient:
    """The service's HTTP API.

        with ApiClient("http://127.0.0.1:8000") as api:
            clip = api.submit_clip("walk.pkl")
            job = api.wait_for_job(clip["job"]["id"])

    Answers are the decoded JSON, as `docs/http.md` describes it. Every method raises what the service's problem stands for
    (`NotFound`, `Conflict`, `MotionRefused`, …) and `Unavailable` when there is no service.

    Args:
      url: default `$AMPREF_URL`, then `http://127.0.0.1:8000`.
      token: the service's key; default `$AMPREF_TOKEN`, then the file `~/.config/ampref/token`. Nobody else gets it.
      retry: patience with a network or service that fails.
      transport: replaces the network (tests).
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        retry: Retry | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(url, token=token, retry=retry, transport=transport)

    @property
    def url(self) -> str:
        """The service's address as it may be printed: without a user and a password."""
        return self._connection.url

    @property
    def address(self) -> str:
        """The service's address, with the user and password that it may hold."""
        return self._connection.address

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
        terms = {"robot": robot, "mode": mode, "seed": seed, "fps": fps, "quat_order": quat_order, "format": format}
        form = _clip_fields(recipe, tags, name=name, **terms)
        source = Path(path)
        try:
            file = open(source, "rb")  # noqa: SIM115 (closed below; only this call's errors are refusals)
        except OSError as error:
            raise InputRefused(
                f"the file cannot be read ({error.strerror or error})", file=str(source), remedy="Check the path."
            ) from error
        with file:
            upload = {"file": (source.name, file)}
            status, answer = self._connection.json("POST", "v1/clips", kind=answers.SubmitAnswer, data=form, files=upload)
        return {**answer, "known": status == 200}

    def submit_batch(
        self,
        files: Sequence[BatchFile],
        report: Callable[[Path, dict[str, Any] | AmprefError], None],
        *,
        recipe: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        **terms: Any,
    ) -> None:
        """Upload several motions in one request; at most 1,000, together of less than 256 MiB.

        Safe to repeat. A file that is refused costs the others nothing.

        Args:
          report: called with each file once it is stored: with `{clip, job, rollout, known}`, or with why it was refused.
          terms: `robot, mode, seed, fps, quat_order, format, priority`, the same for all of them.
        """
        post_batch(self._connection, files, _clip_fields(recipe, tags, **terms), report)

    def list_clips(self, **filters: Any) -> dict[str, Any]:
        """One page of the curriculum query, `{items, next_cursor}`.

        Args:
          filters: `tier, robot, mode, gate_profile, tag, min_duration_sec, sort, limit, cursor`, and `min_…`/`max_…` of any
            metric.
        """
        return self._get(answers.ClipPage, "clips", params=filters)

    def iter_clips(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Every clip of the query, page by page."""
        return self._iterate_pages(answers.ClipPage, "clips", params=filters)

    def get_clip(self, clip_id: str) -> dict[str, Any]:
        """A clip with its rollouts and jobs."""
        return self._get(answers.Clip, "clips", clip_id)

    def download_clip(self, clip_id: str, target: str | os.PathLike[str]) -> Path:
        """Save the file that was uploaded as `target`, complete or not at all."""
        return self._download(_join("clips", clip_id, "file"), Path(target))

    def delete_clip(self, clip_id: str) -> None:
        """Delete a clip; `Conflict` while a locked version holds it."""
        self._connection.json("DELETE", _join("clips", clip_id), kind=None, repeatable=False)

    def add_rollout(
        self, clip_id: str, *, mode: str | None = None, seed: int | None = None, recipe: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Score a clip again with another mode, seed or recipe: `{clip, job, rollout}`."""
        body = {"mode": mode, "seed": seed, "recipe": None if recipe is None else dict(recipe)}
        return self._send(answers.SubmitAnswer, "POST", "clips", clip_id, "rollouts", body=body)

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
        """Make variants of a clip, such as `["mirror", "warp=0.9"]`. Safe to repeat.

        Returns:
          `{parent, variants: [{augmentation, seam, clip, job, rollout}]}`.
        """
        body: dict[str, Any] = {"augmentations": list(augmentations), "mode": mode, "seed": seed, "tags": list(tags) or None}
        body["recipe"] = None if recipe is None else dict(recipe)
        return self._send(answers.AugmentAnswer, "POST", "clips", clip_id, "augment", body=body)

    # Rollouts

    def get_rollout(self, rollout_id: str) -> dict[str, Any]:
        """A rollout with its gates, segments and provenance."""
        return self._get(answers.Rollout, "rollouts", rollout_id)

    def download_arrays(self, rollout_id: str, target: str | os.PathLike[str]) -> Path:
        """Save a rollout's export npz as `target`, complete or not at all."""
        return self._download(_join("rollouts", rollout_id, "arrays"), Path(target))

    # Jobs

    def get_job(self, job_id: str) -> dict[str, Any]:
        """A job's state (`queued, running, succeeded, failed, quarantined, cancelled`), progress and message."""
        return self._get(answers.Job, "jobs", job_id)

    def list_jobs(self, **filters: Any) -> dict[str, Any]:
        """One page of jobs, newest first: `state, kind, limit, cursor`."""
        return self._get(answers.JobPage, "jobs", params=filters)

    def iter_jobs(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Every job of the query, page by page."""
        return self._iterate_pages(answers.JobPage, "jobs", params=filters)

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; `Conflict` when it has finished."""
        return self._send(answers.Job, "DELETE", "jobs", job_id, repeatable=False)

    def retry_job(self, job_id: str) -> dict[str, Any]:
        """Queue a job again that failed, was quarantined or cancelled: the new job."""
        return self._send(answers.Job, "POST", "jobs", job_id, "retry", repeatable=False)

    def wait_for_job(
        self, job_id: str, *, timeout: float | None = None, progress: JobProgress | None = None, poll: float = 0.5
    ) -> dict[str, Any]:
        """The job when it has finished, whichever way; look at its `state`.

        Follows the job's server-sent events, and asks every `poll` seconds where a proxy keeps them back.

        Args:
          timeout: seconds; None waits for ever. `Unavailable` when it is over; the job goes on.
          progress: called with the job at first and whenever it has changed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        last: dict[str, Any] | None = None
        while True:
            for job in self._watch_job(job_id, deadline):
                if progress is not None and job != last:
                    progress(job)
                last = job
                if job["state"] in _END_STATES:
                    return job
            if deadline is not None and time.monotonic() >= deadline:
                raise Unavailable(
                    f"job {job_id} has not finished within {timeout:g} s",
                    expected="a finished job",
                    remedy="It goes on. Wait longer, and check that a worker runs.",
                )
            time.sleep(poll)

    def _watch_job(self, job_id: str, deadline: float | None) -> Iterator[dict[str, Any]]:
        """The job at first, and then with each of its events, until they end or fail."""
        job = self.get_job(job_id)
        yield job
        if job["state"] in _END_STATES:
            return
        remaining = 60.0 if deadline is None else max(0.1, min(60.0, deadline - time.monotonic()))
        # The stream ends after that, whatever comes on it, so that the deadline holds; the caller comes back.
        retry = Retry(attempts=1, timeout=remaining, read=min(remaining, 30.0), connect=self._connection.retry.connect)
        path, headers = _join("jobs", job_id, "events"), {"accept": "text/event-stream", "accept-encoding": "identity"}
        try:
            with self._connection.stream("GET", path, retry=retry, headers=headers) as response:
                if response.status_code == 204 or "content-encoding" in response.headers:
                    return
                for event in httpx2.EventSource(response):
                    data = parse_json(event.data) if event.data else None
                    if isinstance(data, dict):
                        check_answer(answers.Job, data)
                        yield data
                        if data["state"] in _END_STATES:
                            return
                    if deadline is not None and time.monotonic() >= deadline:
                        return
        except (RetryableError, AmprefError, httpx2.HTTPError, ValueError):
            return  # Polling goes on where events do not come through.

    # Events

    def list_events(self, *, kinds: Sequence[str] = (), **filters: Any) -> dict[str, Any]:
        """A page of what happened, `{items, next_after, gap}`.

        Args:
          kinds: such as `["version.locked"]`; none are all.
          filters: `after, last, dataset, robot, limit`.
        """
        return self._get(answers.EventPage, "events", params={**filters, "kind": list(kinds) or None})

    def follow_events(
        self, *, after: int | None = None, kinds: Sequence[str] = (), dataset: str | None = None, robot: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """What happens, event by event, without an end; `Unavailable` when the service is gone for longer than patience lasts.

        The stream is resumed where it broke off, and asked for in pages where a proxy keeps it back. What was missed, because
        it is kept no longer, is said by `{kind: "gap", after, oldest}`.

        Args:
          after: the position to begin behind; None for what happens from now on.
        """
        filters: dict[str, Any] = {"kinds": kinds, "dataset": dataset, "robot": robot}
        position = self.list_events(last=0, **filters)["next_after"] if after is None else after
        while True:
            page = self.list_events(after=position, limit=_EVENT_PAGE, **filters)
            if page["gap"]:
                yield {"kind": "gap", **page["gap"]}
            yield from page["items"]
            position = page["next_after"]
            if len(page["items"]) < _EVENT_PAGE:
                for event, end in self._stream_events(position, filters):
                    position = end
                    if event is not None:
                        yield event
                time.sleep(self._connection.retry.wait_initial)

    def _stream_events(self, after: int, filters: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any] | None, int]]:
        """Events as they come, each with its position, until the stream ends or fails."""
        # The service ends a stream after 10 minutes, and sends something at least every 15 s.
        retry = Retry(attempts=1, timeout=660.0, read=30.0, connect=self._connection.retry.connect)
        params = _drop_none({"after": after, "dataset": filters["dataset"], "robot": filters["robot"]})
        params["kind"] = list(filters["kinds"])
        headers = {"accept": "text/event-stream", "accept-encoding": "identity"}
        try:
            with self._connection.stream("GET", "v1/events", retry=retry, headers=headers, params=params) as response:
                if "content-encoding" in response.headers:
                    return
                for event in httpx2.EventSource(response):
                    if event.id.isdigit():
                        # An id without data says how far the stream is.
                        data: Any = parse_json(event.data) if event.data else None
                        if event.event == "gap":
                            check_answer(answers.Gap, data)
                            data = {"kind": "gap", **data}
                        elif data is not None:
                            check_answer(answers.Event, data)
                        yield data, int(event.id)
        except (RetryableError, AmprefError, httpx2.HTTPError, ValueError):
            return  # The next page says what is wrong, or what came meanwhile.

    # Webhooks

    def add_webhook(
        self, url: str, *, kinds: Sequence[str] = (), dataset: str | None = None, robot: str | None = None
    ) -> dict[str, Any]:
        """Have events sent to an address from now on; the answer's `secret` is not shown again."""
        body = {"url": url, "kinds": list(kinds), "dataset": dataset, "robot": robot}
        return self._send(answers.NewWebhook, "POST", "webhooks", body=body, repeatable=False)

    def list_webhooks(self) -> list[dict[str, Any]]:
        """Every webhook, the oldest first."""
        return list(self._get(answers.WebhookList, "webhooks")["items"])

    def get_webhook(self, webhook_id: str) -> dict[str, Any]:
        """A webhook with its last failure and its last test."""
        return self._get(answers.Webhook, "webhooks", webhook_id)

    def remove_webhook(self, webhook_id: str) -> None:
        """Send nothing more to an address."""
        self._connection.json("DELETE", _join("webhooks", webhook_id), kind=None, repeatable=False)

    def test_webhook(self, webhook_id: str) -> dict[str, Any]:
        """Have a test sent; the webhook's `test` says how it ended."""
        return self._send(answers.Webhook, "POST", "webhooks", webhook_id, "test", repeatable=False)

    def retry_webhook(self, webhook_id: str) -> dict[str, Any]:
        """Try at once, also what was quarantined."""
        return self._send(answers.Webhook, "POST", "webhooks", webhook_id, "retry")

    # Datasets

    def list_datasets(self) -> list[dict[str, Any]]:
        """Every dataset that has a locked version."""
        return list(self._get(answers.DatasetList, "datasets")["items"])

    def get_dataset(self, name: str) -> dict[str, Any]:
        """A dataset's versions and aliases."""
        return self._get(answers.Dataset, "datasets", name)

    def get_version(self, name: str, version: str) -> dict[str, Any]:
        """A locked version, by its exact name, `latest` or an alias."""
        return self._get(answers.Version, "datasets", name, "versions", version)

    def get_manifest(self, name: str, version: str) -> dict[str, Any]:
        """The manifest of a locked version, as it is served; `pull` verifies it, this does not."""
        facts = self.get_version(name, version)
        # No promise of the service lets it fill this machine's memory.
        size = max((file["size"] for file in facts["files"] if file.get("url") == facts["manifest_url"]), default=0)
        limit = min(max(JSON_LIMIT, size), UNKNOWN_LIMIT)
        answer: dict[str, Any] = self._connection.json("GET", facts["manifest_url"], kind=answers.Manifest, limit=limit)[1]
        return answer

    def get_verification(self, name: str, version: str) -> dict[str, Any]:
        """The report of the readiness tests that ran before the lock; `NotFound` for a version that is older than they are."""
        return self._get(dict[str, Any], "datasets", name, "versions", version, "verification")

    def iter_members(self, name: str, version: str) -> Iterator[dict[str, Any]]:
        """The segments of a version, in order: `{position, clip_id, rollout_id, name, start, end, tier}`."""
        return self._iterate_pages(answers.MemberPage, "datasets", name, "versions", version, "members", params={"limit": 500})

    def lock_version(
        self, name: str, version: str, *, select: Mapping[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        """Have the selected rollouts tested and locked as a version; `Conflict` when it exists.

        Args:
          options: such as `waivers=[{"test": "6", "reason": "…"}]`, which accepts the failure of a test.
        Returns:
          `{dataset, version, state, job}`.
        """
        body = {"version": version, "select": dict(select or {}), **options}
        return self._send(answers.LockAnswer, "POST", "datasets", name, "versions", body=body, repeatable=False)

    def set_alias(self, name: str, alias: str, version: str) -> dict[str, Any]:
        """Let an alias mean a version."""
        return self._send(answers.Version, "PUT", "datasets", name, "aliases", alias, body={"version": version})

    def delete_alias(self, name: str, alias: str) -> None:
        """Forget an alias."""
        self._connection.json("DELETE", _join("datasets", name, "aliases", alias), kind=None, repeatable=False)

    def yank_version(self, name: str, version: str, reason: str) -> dict[str, Any]:
        """Warn everybody off a version; it stays readable by its exact name."""
        return self._send(answers.Yank, "POST", "datasets", name, "versions", version, "yank", body={"reason": reason})

    def unyank_version(self, name: str, version: str) -> dict[str, Any]:
        """Take a yank back."""
        return self._send(answers.Yank, "POST", "datasets", name, "versions", version, "unyank")

    def archive_version(
        self, name: str, version: str, reason: str, *, manifest_sha256: str, dry_run: bool = False
    ) -> dict[str, Any]:
        """Give up a version's features on the service; the manifest's digest says that it is the version that is meant.

        Args:
          dry_run: only say what would be free, and refuse what would be refused.
        """
        body: dict[str, Any] = {"reason": reason, "expected_manifest_sha256": manifest_sha256}
        if dry_run:
            body["dry_run"] = True
        return self._send(answers.ArchiveReport, "POST", "datasets", name, "versions", version, "archive", body=body)

    def unarchive_version(self, name: str, version: str) -> dict[str, Any]:
        """Take an archive back, where the service has the features again."""
        return self._send(answers.Archive, "POST", "datasets", name, "versions", version, "unarchive")

    def diff_versions(self, name: str, before: str, after: str) -> dict[str, Any]:
        """Which clips were added, removed and changed between two versions."""
        return self._get(answers.Diff, "datasets", name, "diff", params={"before": before, "after": after})

    # The service

    def purge(self, *, older_than_days: float, dry_run: bool = True, **options: Any) -> dict[str, Any]:
        """Delete Rejected clips of long ago, or count them; `options` are `tier, robot, unreferenced_rollouts, limit`.

        One request deletes a part; `remaining` says how much is left.
        """
        body = {"older_than_days": older_than_days, "dry_run": dry_run, **options}
        return self._send(answers.Purge, "POST", "purges", body=body)

    def list_robots(self) -> list[dict[str, Any]]:
        """The robots that the service knows."""
        return list(self._get(answers.RobotList, "robots")["items"])

    def get_robot(self, name: str) -> dict[str, Any]:
        """One robot with its joints, time steps and features."""
        return self._get(answers.Robot, "robots", name)

    def ready(self) -> bool:
        """Whether database, blobs and broker answer; False as well when there is no service. One quick try."""
        try:
            self._connection.json("GET", "readyz", retry=self._connection.retry.impatient())
        except Unavailable:
            return False
        return True

    def _get(self, kind: Any, *segments: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = self._connection.json("GET", _join(*segments), kind=kind, params=_drop_none(params or {}))[1]
        return answer

    def _send(
        self, kind: Any, method: str, *segments: str, body: Mapping[str, Any] | None = None, repeatable: bool = True
    ) -> dict[str, Any]:
        json = None if body is None else _drop_none(body)
        answer: dict[str, Any] = self._connection.json(method, _join(*segments), kind=kind, repeatable=repeatable, json=json)[1]
        return answer

    def _iterate_pages(self, kind: Any, *segments: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        cursor = params.get("cursor")
        while True:
            page = self._get(kind, *segments, params={**params, "cursor": cursor})
            yield from page["items"]
            if not page.get("next_cursor"):
                return
            if page["next_cursor"] == cursor:
                raise self._connection.refuse_answer(_join(*segments), "answered the same page again")
            cursor = page["next_cursor"]

    def _download(self, path: str, target: Path) -> Path:
        headers = {"accept": "*/*", "accept-encoding": "identity"}

        def call(retry: Retry) -> Path:
            with (
                self._connection.stream("GET", path, retry=retry, is_transfer=True, headers=headers) as response,
                replace_file(target) as partial,
                open(partial, "wb") as file,
            ):
                for chunk in iter_body(response):
                    file.write(chunk)
                    if file.tell() > UNKNOWN_LIMIT:
                        raise self._connection.refuse_answer(path, f"sends more than {UNKNOWN_LIMIT:,} bytes")
            return target

        try:
            return self._connection.retry_call(call, self._connection.retry)
        except OSError as error:
            raise Unavailable(
                f"the file cannot be written ({error.strerror or error})", file=str(target), remedy="Give another path."
            ) from error


def _clip_fields(recipe: Mapping[str, Any] | None, tags: Sequence[str], **terms: Any) -> dict[str, Any]:
    """The fields of an upload besides its file, as text."""
    fields: dict[str, Any] = {key: str(value) for key, value in _drop_none(terms).items()}
    if recipe is not None:
        fields["recipe"] = json.dumps(dict(recipe))
    if tags:
        fields["tags"] = list(tags)
    return fields


def _drop_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _join(*segments: str) -> str:
    """The path of these segments; whatever a segment holds, it stays one."""
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InputRefused(f"{segment!r} names nothing", expected="an id or a name")
    return "/".join(("v1", *(quote(str(segment), safe="") for segment in segments)))
