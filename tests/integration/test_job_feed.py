"""Followers of jobs cost one query an interval, whatever their number."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from amp_core.errors import Unavailable
from ampref_service import job_feed
from ampref_service.job_feed import JobFeed


def job(name: str, revision: int, *, finished: bool = False) -> Any:
    return SimpleNamespace(id=name, revision=revision, finished=finished)


def test_a_thousand_followers_share_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[set[str]] = []

    def read_changes(_: Any, revisions: dict[str, int]) -> dict[str, Any]:
        looks.append(set(revisions))
        if len(looks) < 3:  # Nothing yet; and one that goes wrong.
            if len(looks) == 2:
                raise Unavailable("the database is away")
            return {}
        return {name: None if name == "job_0" else job(name, 2, finished=True) for name in revisions}

    monkeypatch.setattr(job_feed, "_read_changes", read_changes)

    async def follow(feed: JobFeed, name: str) -> list[int]:
        return [state.revision async for state in feed.follow(job(name, 1))]

    async def main() -> tuple[list[list[int]], set[str]]:
        feed = JobFeed(SimpleNamespace(), every_sec=0.01, max_followers=2000)  # type: ignore[arg-type]
        names = [f"job_{number % 500}" for number in range(1000)]
        revisions = await asyncio.gather(*(follow(feed, name) for name in names))
        await feed.close()
        return revisions, set(names)

    revisions, names = asyncio.run(main())
    assert revisions == [[1] if number % 500 == 0 else [1, 2] for number in range(1000)]
    assert looks[:3] == [names] * 3
    assert len(looks) <= 4


def test_there_is_room_for_so_many_followers() -> None:
    async def main() -> None:
        feed = JobFeed(SimpleNamespace(), every_sec=60, max_followers=1)  # type: ignore[arg-type]
        feed.check_room()
        states = feed.follow(job("job_1", 1))
        await anext(states)
        with pytest.raises(Unavailable, match="1 streams of jobs are open already"):
            feed.check_room()
        await states.aclose()
        feed.check_room()
        await feed.close()

    asyncio.run(main())
