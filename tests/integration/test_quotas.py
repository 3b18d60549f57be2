"""What a key may store, have queued and have worked on, on both databases, also when requests come at the same time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from catalogkit import Clock, add_clip, new_clip, opened, recipe
from sqlalchemy import update

from amp_core.errors import QuotaExceeded
from ampref_service.catalog import Catalog, clips, job_rows, keys
from ampref_service.catalog.records import JobTerms, Key
from ampref_service.catalog.tables import jobs
from ampref_service.jobs import JobQueue
from ampref_service.keys import make_bounds, make_key


def add_key(catalog: Catalog, name: str = "node", **quotas: Any) -> Key:
    _, new = make_key(name, (), make_bounds((), ()), **quotas)
    with catalog.begin() as session:
        return keys.add_key(session, new, actor="operator")


def submit(catalog: Catalog, key: Key, name: str, **changes: Any) -> Any:
    with catalog.begin() as session:
        terms = JobTerms(owner=key.id, key=key)
        return clips.submit(session, new_clip(name, **changes), recipe(), terms=terms, actor=key.actor)


def test_bytes_that_are_stored(database_url: str) -> None:
    with opened(database_url) as catalog:
        key, free = add_key(catalog, max_bytes=2500), add_key(catalog, "free")
        add_clip(catalog, "theirs")
        submit(catalog, key, "one")
        first = submit(catalog, key, "two")
        with pytest.raises(QuotaExceeded, match="its clips would have 3,000 bytes; expected at most 2,500"):
            submit(catalog, key, "three")
        assert not submit(catalog, key, "one").new_clip, "what is known adds nothing"
        submit(catalog, free, "three")
        with catalog.begin() as session:
            assert keys.get_usage(session, key).bytes == 2000
            clips.delete_clip(session, first.clip.id)
        submit(catalog, key, "four")
        # The next key of this name begins at nothing.
        with catalog.begin() as session:
            keys.revoke_key(session, key.id, actor="operator")
        catalog._clock = lambda: 4_000_000_000.0
        submit(catalog, add_key(catalog, max_bytes=1500), "five")


def test_jobs_that_wait_or_run(database_url: str) -> None:
    with opened(database_url) as catalog:
        key, queue = add_key(catalog, max_queued=2), JobQueue(catalog)
        submit(catalog, key, "one")
        submit(catalog, key, "two")
        claim = queue.claim("w")
        assert claim is not None
        with pytest.raises(QuotaExceeded, match="3 of its jobs would wait or run; expected at most 2") as refused:
            submit(catalog, key, "three")
        assert refused.value.retry_after_sec == 30.0
        with catalog.session() as session:
            assert len(job_rows.list_jobs(session).items) == 2, "nothing of what was refused is there"
        job = queue.fail(claim, {"type": "x"}, retry=False)
        submit(catalog, key, "three")
        with pytest.raises(QuotaExceeded):
            queue.retry(job.id, owner=key.id, key=key)


def test_seconds_of_work_in_a_day(database_url: str) -> None:
    clock = Clock()
    with opened(database_url, clock) as catalog:
        key = add_key(catalog, max_planning_sec=250.0)
        started = clock.at
        for name, worked in (("one", 100.0), ("two", 60.0)):
            job = submit(catalog, key, name).job
            with catalog.begin() as session:
                values = {"state": "succeeded", "started_at": clock(), "worked_sec": worked}
                session.execute(update(jobs).where(jobs.c.id == job.id).values(values))
            clock.at += 3600.0
        submit(catalog, key, "three")  # It counts as the average of the two: 240 s.
        with pytest.raises(QuotaExceeded, match=r"would take 320 s of work.*at most 250 s") as refused:
            submit(catalog, key, "four")
        assert refused.value.retry_after_sec == pytest.approx(started + 86_400.0 - clock.at)
        clock.at = started + 86_401.0
        submit(catalog, key, "four")


def test_requests_at_the_same_time_are_counted_one_by_one(database_url: str) -> None:
    with opened(database_url) as catalog:
        key = add_key(catalog, max_queued=3)
        outcomes: list[bool] = []

        def post(name: str) -> None:
            try:
                submit(catalog, key, name)
                outcomes.append(True)
            except QuotaExceeded:
                outcomes.append(False)

        threads = [threading.Thread(target=post, args=(f"clip {number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [False] * 5 + [True] * 3
