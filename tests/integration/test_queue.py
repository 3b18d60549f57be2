"""Whose turn it is: owners, priorities, robots, pauses, workers that are kept away, and clocks that go back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from catalogkit import Clock, add_clip, new_clip, recipe, result, sha
from sqlalchemy import column as lightweight
from sqlalchemy import insert, select, table, text, update

from amp_core.errors import Conflict, Unavailable
from ampref_service.catalog import Catalog, clips, job_rows, locking, worker_rows
from ampref_service.catalog import tables as t
from ampref_service.catalog.engine import new_id
from ampref_service.catalog.records import Job, JobTerms, Select, Worker
from ampref_service.jobs import Claim, JobQueue

ROBOT = sha("robot")


def submit(queue: JobQueue, name: str, owner: str = "", priority: int = 0, **changes: Any) -> Job:
    with queue.catalog.begin() as session:
        made = clips.submit(session, new_clip(name, **changes), recipe(), terms=JobTerms(3, owner, priority)).job
    assert made is not None
    return made


def claim(queue: JobQueue, worker: str = "w", **options: Any) -> Claim:
    found = queue.claim(worker, **options)
    assert found is not None
    return found


def job(queue: JobQueue, job_id: str) -> Job:
    with queue.catalog.session() as session:
        return worker_rows.explain_waiting(session, [job_rows.get(session, job_id)])[0]


def show(queue: JobQueue, name: str, state: str = "working", robots: dict[str, str] | None = None) -> str:
    """Register a worker; its id."""
    worker = Worker(
        id=new_id("worker"), name=name, host="h", machine="m", pid=1, release="0", robots=robots or {"wildrobot": ROBOT},
        concurrency=1, state=state, reason="its disk is gone" if state == "paused" else None,
    )  # fmt: skip
    with queue.catalog.begin() as session:
        worker_rows.save(session, worker)
    return worker.id


def test_owners_take_turns_and_priority_counts_within_one(queue: JobQueue, clock: Clock) -> None:
    heavy = [submit(queue, f"heavy{number}", "heavy") for number in range(6)]
    urgent = submit(queue, "urgent", "heavy", priority=5)
    first = [claim(queue).job.id for _ in range(2)]
    assert first == [urgent.id, heavy[0].id]
    clock.at += 1
    light = [submit(queue, f"light{number}", "light", priority=-10) for number in range(2)]
    # The one with fewer running jobs, however many the other has queued and however low its priority.
    assert [claim(queue).job.id for _ in range(4)] == [light[0].id, light[1].id, heavy[1].id, heavy[2].id]


def test_of_equals_the_one_that_was_served_the_longest_ago_is_next(queue: JobQueue, clock: Clock) -> None:
    for owner in ("a", "b", "c"):
        for number in range(3):
            submit(queue, f"{owner}{number}", owner)
    served = []
    for _ in range(9):
        clock.at += 1
        mine = claim(queue)
        served.append(mine.job.owner)
        queue.complete_rollout(mine, result())
    assert served == ["a", "b", "c"] * 3


def test_a_job_goes_to_workers_that_have_its_robot(queue: JobQueue) -> None:
    other = submit(queue, "g1", robot="g1", robot_digest=sha("g1"))
    older = submit(queue, "older", robot_digest=sha("before the robot changed"))
    assert queue.claim("w", robots={ROBOT}) is None
    mine = submit(queue, "walk")
    assert claim(queue, robots={ROBOT}).job.id == mine.id
    with queue.catalog.begin() as session:  # A lock of an older release has no digest.
        _, lock = locking.begin_version(session, "walk", "1.0.0", Select("wildrobot"))
    assert claim(queue, robots={ROBOT}).job.id == lock.id
    assert claim(queue, robots={sha("g1"), ROBOT}).job.id == other.id
    assert queue.claim("w", robots={sha("g1"), ROBOT}) is None
    assert claim(queue).job.id == older.id


def test_a_job_that_nobody_can_take_says_why(queue: JobQueue, clock: Clock) -> None:
    waiting = submit(queue, "g1", robot="g1", robot_digest=sha("g1"))
    with queue.catalog.session() as session:
        assert worker_rows.stuck_robots(session) == [f"waits for a worker with robot g1 {sha('g1')}: no live one is known"]
    assert "no live one is known" in (job(queue, waiting.id).message or "")
    show(queue, "wrong")
    assert f"waits for a worker with robot g1 {sha('g1')}" in (job(queue, waiting.id).message or "")
    show(queue, "broken", "paused", {"g1": sha("g1")})
    assert "broken is paused, because its disk is gone" in (job(queue, waiting.id).message or "")
    show(queue, "right", robots={"g1": sha("g1")})
    assert job(queue, waiting.id).message is None
    clock.at += worker_rows.SILENT_SEC + 1
    assert "no live one is known" in (job(queue, waiting.id).message or "")


def test_a_retry_is_for_another_worker_first(queue: JobQueue, clock: Clock) -> None:
    submit(queue, "walk")
    one = show(queue, "one")
    failed = queue.fail(claim(queue, worker_id=one), {"detail": "crash"})
    assert failed.not_before == clock.at + 2, "there is no other worker: the usual pause"
    clock.at += 2
    two = show(queue, "two")
    queue.fail(claim(queue, worker_id=one), {"detail": "crash"})
    assert queue.claim("one", worker_id=one) is None
    mine = claim(queue, worker_id=two)
    assert (mine.job.attempts, mine.job.failed_on) == (3, one)
    assert queue.fail(mine, {"detail": "crash"}).state == "quarantined"


def test_the_one_that_failed_has_its_turn_again_after_the_pause(queue: JobQueue, clock: Clock) -> None:
    submit(queue, "walk")
    one, _ = show(queue, "one"), show(queue, "busy")
    queue.fail(claim(queue, worker_id=one), {"detail": "crash"})
    assert queue.claim("one", worker_id=one) is None
    clock.at += 2
    assert claim(queue, worker_id=one).job.attempts == 2


def test_a_child_killed_from_outside_is_evidence_only_on_two_workers(queue: JobQueue, clock: Clock) -> None:
    submit(queue, "walk")
    one, two = show(queue, "one"), show(queue, "two")
    for _ in range(3):
        clock.at += 300
        show(queue, "two, still there")
        last = queue.fail(claim(queue, worker_id=one), {"detail": "SIGKILL"}, doubtful=True)
    assert (last.state, last.attempts) == ("queued", 2)
    assert queue.fail(claim(queue, worker_id=two), {"detail": "SIGKILL"}, doubtful=True).state == "quarantined"
    lonely = submit(queue, "lonely")
    clock.at += 300  # Nobody was seen for so long.
    for state in ("queued", "queued", "quarantined"):
        assert queue.fail(claim(queue, worker_id=one), {"detail": "SIGKILL"}, doubtful=True).state == state
        clock.at += 300
    assert job(queue, lonely.id).attempts == 3


def test_a_fault_of_the_machine_costs_no_attempt_and_two_broken_machines_do_not_play_with_a_job(
    queue: JobQueue, clock: Clock
) -> None:
    waiting = submit(queue, "walk")
    one, two = show(queue, "one"), show(queue, "two")
    fault = Unavailable("no descriptors")
    queue.postpone(claim(queue, worker_id=one), fault)
    assert queue.claim("one", worker_id=one) is None
    again = queue.postpone(claim(queue, worker_id=two), fault)
    assert (again.attempts, again.faults, again.not_before) == (0, 2, clock.at + 8)
    assert queue.claim("one", worker_id=one) is None, "it is not due for anybody"
    pauses = []
    for _ in range(9):
        clock.at = job(queue, waiting.id).not_before
        pauses.append(queue.postpone(claim(queue, worker_id=one), fault).not_before - clock.at)
    assert pauses[0] == 16
    assert pauses[-1] == 300
    clock.at += 300
    queue.fail(claim(queue), {"detail": "a child worked"})
    assert job(queue, waiting.id).faults == 0


def test_a_pause_that_is_over_is_found_among_many(queue: JobQueue, clock: Clock) -> None:
    for number in range(60):
        submit(queue, f"clip{number:02d}")
    with queue.catalog.begin() as session:
        session.execute(update(t.jobs).values(not_before=clock.at + 10))
    assert queue.claim("w") is None
    clock.at += 10
    assert claim(queue) is not None
    queue.sweep()
    with queue.catalog.session() as session:
        assert session.execute(select(t.jobs.c.id).where(t.jobs.c.not_before > 0)).all() == []


@pytest.mark.parametrize("hours", [2, -2])
def test_a_clock_that_jumps_keeps_nothing_waiting(queue: JobQueue, clock: Clock, hours: int) -> None:
    paused, running, asked, queued = (submit(queue, name) for name in ("paused", "running", "asked", "queued"))
    queue.fail(claim(queue), {"detail": "crash"})
    held = [claim(queue).job.id for _ in range(2)]
    assert held == [running.id, asked.id]
    clock.at += hours * 3600
    assert queue.cancel(asked.id).state == "cancelled", "its lease is over, or ends when no lease can"
    swept = queue.sweep()
    assert swept.requeued == (running.id,)
    assert set(swept.wake) == {paused.id, running.id, queued.id}
    late = submit(queue, "late")
    assert {claim(queue).job.id for _ in range(4)} == {paused.id, running.id, queued.id, late.id}
    assert queue.sweep().requeued == ()


def test_jobs_stay_in_order_when_the_clock_goes_back(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [submit(queue, "now").id]
    with queue.catalog.begin() as session:  # By another process, whose clock is two hours ahead.
        ahead = "job_07" + made[0][6:]
        session.execute(update(t.jobs).values(id=ahead))
    made = [ahead, *(submit(queue, name).id for name in ("later", "latest"))]
    assert made == sorted(made)
    monkeypatch.setattr("ampref_service.catalog.engine.time.time", lambda: 1.0)
    made += [submit(queue, name).id for name in ("back", "back again")]
    assert made == sorted(made)
    with queue.catalog.session() as session:
        page = job_rows.list_jobs(session, limit=2)
        rest = job_rows.list_jobs(session, limit=10, cursor=page.next_cursor)
    assert [row.id for row in (*page.items, *rest.items)] == made[::-1]


def test_a_service_started_under_a_clock_that_is_two_hours_ahead_and_restarted_under_the_right_one(database_url: str) -> None:
    """With real processes: the jobs that were queued, paused and running under the other clock go on at once."""
    code = (
        "import sys, time\n"
        "real = time.time\n"
        "time.time = lambda: real() + 7200\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from catalogkit import add_clip\n"
        "from ampref_service.catalog import Catalog\n"
        "from ampref_service.jobs import JobQueue\n"
        # PostgreSQL has a clock of its own: there it is the server's that is wrong.
        "catalog = Catalog.open(sys.argv[1], time.time)\n"
        "queue = JobQueue(catalog)\n"
        "for name in 'abc':\n    add_clip(catalog, name)\n"
        "queue.fail(queue.claim('w'), {'detail': 'crash'})\n"
        "assert queue.claim('w')\n"
    )
    subprocess.run([sys.executable, "-c", code, database_url], cwd=Path(__file__).parents[2], check=True)
    catalog = Catalog.open(database_url)
    queue = JobQueue(catalog)
    names = {claim(queue).job.payload["clip_name"]}
    assert len(queue.sweep().requeued) == 1
    names |= {claim(queue).job.payload["clip_name"] for _ in range(2)}
    assert names == set("abc")
    catalog.close()


def test_a_job_of_a_deleted_clip_is_not_queued_again(queue: JobQueue) -> None:
    gone = submit(queue, "walk")
    queue.cancel(gone.id)
    with queue.catalog.begin() as session:
        clips.delete_clip(session, str(gone.clip_id))
    with pytest.raises(Conflict, match="was deleted"):
        queue.retry(gone.id)


def test_a_cancellation_in_the_last_moment_stores_nothing(queue: JobQueue) -> None:
    mine = claim(queue) if submit(queue, "walk") else None
    assert mine is not None
    queue.cancel(mine.job.id)
    assert queue.complete_rollout(mine, result()).state == "cancelled"
    with queue.catalog.begin() as session:
        assert session.execute(select(t.rollouts.c.id)).all() == []
        locking.begin_version(session, "walk", "1.0.0", Select("wildrobot"))
    mine = claim(queue)
    queue.cancel(mine.job.id)

    def publish(_: object) -> None:
        raise AssertionError("nothing is to be written")

    assert queue.complete(mine, work=publish).state == "cancelled"
    with queue.catalog.begin() as session:
        locking.begin_version(session, "walk", "1.0.0", Select("wildrobot"))  # The name is free.


def test_dead_workers_jobs_are_taken_back_and_their_rows_forgotten(queue: JobQueue) -> None:
    submit(queue, "walk")
    one, two = show(queue, "one"), show(queue, "two")
    mine = claim(queue, worker_id=one)
    assert queue.take_from([two]).requeued == ()
    assert queue.take_from([one]).requeued == (mine.job.id,)
    assert claim(queue).job.losses == 1
    with queue.catalog.session() as session:
        assert worker_rows.list_workers(session) == []


def test_time_of_workers_adds_up(queue: JobQueue, clock: Clock) -> None:
    made = submit(queue, "walk")
    mine = claim(queue)
    clock.at += 5
    queue.fail(mine, {"detail": "crash"})
    clock.at += 100
    claim(queue)
    clock.at += 500  # Its last heartbeat was at its start.
    queue.sweep()
    assert job(queue, made.id).worked_sec == pytest.approx(35)


def test_an_older_releases_worker_goes_on_beside_this_one(queue: JobQueue, clock: Clock) -> None:
    """Its statements, as release 0.12 wrote them: they know none of the new columns."""
    clip = add_clip(queue.catalog)
    text_names = "id kind state clip_id recipe_digest version_id payload attempts max_attempts not_before created_at updated_at"
    names = f"{text_names} revision token cancel_requested progress actor".split()
    old = table("jobs", *(lightweight(name, t.jobs.c[name].type) for name in names))
    with queue.catalog.begin() as session:
        session.execute(update(t.jobs).values(state="succeeded"))
        values = {
            "id": new_id("job"),
            "kind": "rollout",
            "state": "queued",
            "clip_id": clip.id,
            "recipe_digest": recipe().digest,
        }
        values |= {"payload": {}, "attempts": 0, "max_attempts": 3, "not_before": clock.at, "created_at": clock.at}
        values |= {"updated_at": clock.at, "revision": 1, "token": 0, "cancel_requested": 0, "progress": 0.0, "actor": "old"}
        session.execute(insert(old).values(values))
    mine = claim(queue, robots={ROBOT})
    assert (mine.job.actor, mine.job.robot_digest, mine.job.limit_sec) == ("old", "", None)
    queue.release(mine)

    def run_old(statement: str) -> int:
        with queue.catalog.begin() as session:
            return session.execute(text(statement), {"at": clock.at, "id": mine.job.id}).rowcount

    take = (
        "UPDATE jobs SET state = 'running', worker = 'old', attempts = attempts + 1, token = token + 1, started_at = :at, "
        "updated_at = :at, lease_until = :at + 30, revision = revision + 1 WHERE id = "
        "(SELECT id FROM jobs WHERE state = 'queued' AND not_before <= :at ORDER BY created_at, id LIMIT 1)"
    )
    assert run_old(take) == 1
    assert queue.claim("new") is None
    # It failed there; the old release's pause is respected here.
    give_back = (
        "UPDATE jobs SET state = 'queued', not_before = :at + 2, lease_until = NULL, token = token + 1, updated_at = :at "
        "WHERE id = :id AND state = 'running'"
    )
    assert run_old(give_back) == 1
    assert queue.claim("new") is None
    clock.at += 2
    assert claim(queue).job.attempts == 2
