"""The job table as a queue, on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
import multiprocessing
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from catalogkit import Clock, add_clip, new_clip, opened, recipe, result
from sqlalchemy import func, select, update

from amp_core.errors import Conflict, InputRefused, MotionRefused, NotFound
from ampref_service.catalog import clips, job_rows, locking, rollouts, selection
from ampref_service.catalog import tables as t
from ampref_service.catalog.curriculum import ClipQuery, list_clips
from ampref_service.catalog.engine import Session, now
from ampref_service.catalog.records import Job, Select
from ampref_service.jobs import Claim, JobQueue, LeaseLost


def claim(queue: JobQueue, worker: str = "w") -> Claim:
    found = queue.claim(worker)
    assert found is not None
    return found


def job(queue: JobQueue, job_id: str) -> Job:
    with queue.catalog.session() as session:
        return job_rows.get(session, job_id)


def counts(queue: JobQueue) -> dict[str, int]:
    with queue.catalog.session() as session:
        return job_rows.counts(session)


def test_jobs_are_claimed_once_and_in_their_order(queue: JobQueue, clock: Clock) -> None:
    made = []
    for name in "abc":
        made.append(add_clip(queue.catalog, name).id)
        clock.at += 1
    claims = [claim(queue, f"w{number}") for number in range(3)]
    assert [item.job.clip_id for item in claims] == made
    assert queue.claim("w") is None
    first = claims[0].job
    assert (first.state, first.worker, first.attempts, first.token, first.lease_until) == ("running", "w0", 1, 1, clock.at + 30)
    assert counts(queue) == {"queued": 0, "running": 3, "succeeded": 0, "failed": 0, "quarantined": 0, "cancelled": 0}


def test_a_worker_may_ask_for_one_kind_only(queue: JobQueue) -> None:
    add_clip(queue.catalog)
    assert queue.claim("w", kinds=("lock",)) is None
    assert queue.claim("w", kinds=("rollout",)) is not None


def test_a_job_that_tried_several_modes_stores_them_all_or_nothing(queue: JobQueue, clock: Clock) -> None:
    auto = recipe("auto")
    with queue.catalog.begin() as session:
        clip_id = clips.submit(session, new_clip(), auto).clip.id
    mine = claim(queue)
    tried = [
        dataclasses.replace(result(-1), recipe=recipe("rollout")),
        dataclasses.replace(result(0, "tracked"), recipe=recipe("tracked")),
    ]
    wrong = dataclasses.replace(tried[1], metrics={})
    with pytest.raises(InputRefused, match="metrics"):
        queue.complete_rollout(mine, tried[0], wrong, answer=1, triage={})
    with queue.catalog.session() as session:
        assert rollouts.for_clip(session, clip_id) == [], "the first of them went with the second"
    clock.at += 31
    queue.sweep()
    with pytest.raises(LeaseLost):
        queue.complete_rollout(mine, *tried, answer=1, triage={})
    clock.at += 2
    mine = claim(queue)
    queue.complete_rollout(mine, *tried, answer=1, triage={"lacks": []})
    with queue.catalog.session() as session:
        found = rollouts.for_clip(session, clip_id)
        shown = found[0]
        assert [(one.mode, one.tier, one.recipe_digest) for one in found] == [
            ("tracked", 0, recipe("tracked").digest),
            ("rollout", -1, recipe("rollout").digest),
        ]
        (listed,) = list_clips(session, ClipQuery()).items
        assert listed.rollout is not None
        assert listed.rollout.id == shown.id
        # Each clip is in a version once, however many modes it was tried in.
        for wanted in ({}, {"tiers": (0, 1)}, {"mode": "tracked"}, {"segments": True}):
            (member,) = selection.select_members(session, Select("wildrobot", **wanted))
            assert member.rollout_id == shown.id
    assert job(queue, mine.job.id).result == {
        "rollout_id": shown.id,
        "tier": 0,
        "triage": {"lacks": []},
        "tried": [
            {"rollout_id": found[1].id, "mode": "rollout", "tier": -1},
            {"rollout_id": found[0].id, "mode": "tracked", "tier": 0},
        ],
    }
    # Asked again, the job's answer is the answer; a mode that was tried on the way is known as well.
    with queue.catalog.begin() as session:
        again = clips.submit(session, new_clip(), auto)
        assert (again.rollout, again.new_job) == (shown, False)
        assert clips.request_rollout(session, clip_id, recipe("rollout")).rollout == found[1]
    with queue.catalog.begin() as session, pytest.raises(InputRefused, match="mode auto") as refusal:
        locking.begin_version(session, "walk", "1.0.0", Select("wildrobot", recipe=auto.digest))
    assert refusal.value.key == "select.recipe"
    with queue.catalog.begin() as session, pytest.raises(InputRefused, match="mode auto") as refusal:
        locking.begin_version(session, "walk", "1.0.0", Select("wildrobot", mode="auto"))
    assert refusal.value.key == "select.mode"


def test_a_job_that_ended_badly_is_no_answer(queue: JobQueue) -> None:
    with queue.catalog.begin() as session:
        clips.submit(session, new_clip(), recipe("auto"))
    queue.fail(claim(queue), {"detail": "bad"}, retry=False)
    with queue.catalog.begin() as session:
        again = clips.submit(session, new_clip(), recipe("auto"))
    assert (again.rollout, again.new_job) == (None, True)


def test_a_cancelled_job_is_seen_without_a_heartbeat(queue: JobQueue) -> None:
    add_clip(queue.catalog)
    mine = claim(queue)
    revision = job(queue, mine.job.id).revision
    assert not queue.cancel_requested(mine)
    assert job(queue, mine.job.id).revision == revision
    queue.cancel(mine.job.id)
    assert queue.cancel_requested(mine)


def test_a_result_the_curriculum_and_the_job_change_together(queue: JobQueue) -> None:
    add_clip(queue.catalog)
    mine = claim(queue)
    stored = queue.complete_rollout(mine, result(0))
    done = job(queue, mine.job.id)
    assert stored == done
    assert (done.state, done.progress, (done.result or {})["tier"]) == ("succeeded", 1.0, 0)
    with pytest.raises(LeaseLost):
        queue.complete_rollout(mine, result(0))
    with pytest.raises(LeaseLost):
        queue.fail(mine, {"detail": "late"})
    assert job(queue, mine.job.id) == done


def test_when_the_result_cannot_be_stored_the_job_goes_on(queue: JobQueue) -> None:
    add_clip(queue.catalog)
    mine = claim(queue)
    before = job(queue, mine.job.id)

    def work(session: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        queue.complete(mine, work=work)
    assert job(queue, mine.job.id) == before


def test_heartbeats_keep_a_lease_and_tell_watchers_what_is_new(queue: JobQueue, clock: Clock) -> None:
    add_clip(queue.catalog)
    mine = claim(queue)
    revision = mine.job.revision
    clock.at += 25
    assert queue.heartbeat(mine) is True
    now = job(queue, mine.job.id)
    assert (now.lease_until, now.revision) == (clock.at + 30, revision), "a heartbeat without news is no news"
    assert queue.heartbeat(mine, 0.5, "frame 50 of 100") is True
    now = job(queue, mine.job.id)
    assert (now.progress, now.message, now.revision) == (0.5, "frame 50 of 100", revision + 1)
    queue.heartbeat(mine, 0.5, "frame 50 of 100")
    assert job(queue, mine.job.id).revision == revision + 1
    queue.heartbeat(mine, 7.0)
    assert job(queue, mine.job.id).progress == 1.0


def test_a_silent_worker_loses_its_job_and_what_it_writes_later_is_refused(queue: JobQueue, clock: Clock) -> None:
    add_clip(queue.catalog)
    late = claim(queue, "late")
    clock.at += 29
    assert queue.sweep().requeued == ()
    clock.at += 2
    swept = queue.sweep()
    assert swept.requeued == (late.job.id,)
    waiting = job(queue, late.job.id)
    assert (waiting.state, waiting.attempts, waiting.losses) == ("queued", 0, 1)
    assert waiting.error is not None
    assert "worker late sent no heartbeat" in waiting.error["detail"]
    assert queue.cancel_requested(late), "its child is stopped at the next look, not only once another worker has the job"
    for write in (
        lambda: queue.heartbeat(late, 0.9),
        lambda: queue.complete_rollout(late, result(0)),
        lambda: queue.fail(late, {"detail": "x"}),
        lambda: queue.release(late),
        lambda: queue.confirm_cancel(late),
    ):
        with pytest.raises(LeaseLost, match="this worker's is 1"):
            write()
    assert job(queue, late.job.id) == waiting
    other = claim(queue, "other")
    assert (other.job.id, other.job.attempts) == (late.job.id, 1)
    assert other.token > late.token
    with pytest.raises(LeaseLost):
        queue.complete_rollout(late, result(1))
    assert (queue.complete_rollout(other, result(0)).result or {})["tier"] == 0
    with queue.catalog.session() as session:
        assert session.execute(select(func.count()).select_from(t.rollouts)).scalar_one() == 1


def test_a_worker_that_is_late_but_was_not_missed_may_finish(queue: JobQueue, clock: Clock) -> None:
    add_clip(queue.catalog)
    mine = claim(queue)
    clock.at += 100
    assert queue.heartbeat(mine) is True
    assert queue.sweep().requeued == ()


def test_a_heartbeat_between_the_look_of_a_sweep_and_its_lock_keeps_the_job(
    queue: JobQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_clip(queue.catalog)
    mine = claim(queue)
    clock.at += 31
    begin = queue.catalog.begin

    def begin_late() -> AbstractContextManager[Session]:
        monkeypatch.undo()
        assert queue.heartbeat(mine) is True
        return begin()

    monkeypatch.setattr(queue.catalog, "begin", begin_late)
    assert queue.sweep().requeued == ()
    assert queue.catalog.begin == begin, "the sweep has come to its lock"
    assert (job(queue, mine.job.id).state, job(queue, mine.job.id).token) == ("running", mine.token)


def test_a_lost_worker_is_no_evidence_against_a_clip(queue: JobQueue, clock: Clock) -> None:
    """It costs no attempt, however often; the pauses grow, and the job goes behind the others of its owner and is run alone."""
    unlucky = add_clip(queue.catalog, "unlucky")
    pauses = []
    for losses in range(1, 12):
        mine = claim(queue, f"w{losses}")
        assert (mine.job.clip_id, mine.job.attempts) == (unlucky.id, 1)
        clock.at += 31
        swept = queue.sweep()
        assert swept.requeued == (mine.job.id,)
        waiting = job(queue, mine.job.id)
        assert (waiting.state, waiting.attempts, waiting.losses) == ("queued", 0, losses)
        pauses.append(max(0.0, waiting.not_before - clock.at))
        clock.at += pauses[-1]
    assert pauses == [0, 8, 16, 32, 64, 128, 256, *[300] * 4]
    later = add_clip(queue.catalog, "later")
    assert claim(queue).job.clip_id == later.id
    assert queue.claim("busy", can_run_alone=False) is None
    assert claim(queue).job.clip_id == unlucky.id


def test_failed_attempts_wait_longer_each_time_and_then_stop(queue: JobQueue, clock: Clock) -> None:
    add_clip(queue.catalog)
    pauses = []
    for _ in range(2):
        now = queue.fail(claim(queue), MotionRefused("it exploded", frame=7))
        assert now.state == "queued"
        assert (now.error or {})["frame"] == 7
        pauses.append(now.not_before - clock.at)
        clock.at = now.not_before
    assert pauses == [2, 4]
    end = queue.fail(claim(queue), MotionRefused("it exploded again"))
    assert (end.state, end.attempts) == ("quarantined", 3)
    assert end.finished_at == clock.at


def test_no_pause_is_longer_than_five_minutes(queue: JobQueue, clock: Clock) -> None:
    add_clip(queue.catalog)
    queue.backoff_sec = 200
    pauses = []
    for _ in range(2):
        end = queue.fail(claim(queue), MotionRefused("it exploded"))
        pauses.append(end.not_before - clock.at)
        clock.at = end.not_before
    assert pauses == [200, 300]


def test_a_failure_for_good_takes_one_attempt(queue: JobQueue) -> None:
    add_clip(queue.catalog)
    end = queue.fail(claim(queue), InputRefused("no such robot"), retry=False)
    assert (end.state, end.attempts, (end.error or {})["type"]) == ("failed", 1, "input-refused")


def test_a_released_job_is_as_if_it_had_not_begun(queue: JobQueue) -> None:
    add_clip(queue.catalog)
    mine = claim(queue)
    queue.release(mine)
    again = claim(queue)
    assert (again.job.id, again.job.attempts) == (mine.job.id, 1)
    with pytest.raises(LeaseLost):
        queue.heartbeat(mine)


def test_cancelling(queue: JobQueue) -> None:
    waiting, running = (add_clip(queue.catalog, name) for name in "ab")
    with queue.catalog.session() as session:
        jobs = {item.clip_id: item for clip in (waiting, running) for item in job_rows.for_clip(session, clip.id)}
    assert queue.cancel(jobs[waiting.id].id).state == "cancelled"
    assert queue.cancel(jobs[waiting.id].id).state == "cancelled", "asking twice is no error"
    mine = claim(queue)
    asked = queue.cancel(mine.job.id, actor="ann")
    assert (asked.state, asked.cancel_requested) == ("running", True)
    assert asked.revision > mine.job.revision
    assert queue.heartbeat(mine) is False
    assert queue.confirm_cancel(mine).state == "cancelled"
    with pytest.raises(NotFound):
        queue.cancel("job_none")


def test_a_cancelled_job_of_a_dead_worker_is_not_tried_again(queue: JobQueue, clock: Clock) -> None:
    add_clip(queue.catalog)
    mine = claim(queue)
    queue.cancel(mine.job.id)
    clock.at += 31
    assert queue.sweep().cancelled == (mine.job.id,)


def test_what_has_ended_cannot_be_cancelled(queue: JobQueue) -> None:
    add_clip(queue.catalog)
    mine = claim(queue)
    queue.complete_rollout(mine, result())
    with pytest.raises(Conflict, match="succeeded already"):
        queue.cancel(mine.job.id)
    with pytest.raises(Conflict, match="did not succeed"):
        queue.retry(mine.job.id)


def test_a_quarantined_job_can_be_tried_again_with_fresh_attempts(queue: JobQueue) -> None:
    add_clip(queue.catalog)
    mine = claim(queue)
    queue.fail(mine, {"detail": "bad"}, retry=False)
    again = queue.retry(mine.job.id)
    assert (again.state, again.attempts, again.clip_id) == ("queued", 0, mine.job.clip_id)
    assert queue.retry(mine.job.id).id == again.id, "asking twice makes one job"


def test_the_sweep_names_jobs_that_nobody_was_told_of(queue: JobQueue, clock: Clock) -> None:
    add_clip(queue.catalog, "a")
    add_clip(queue.catalog, "b")
    with queue.catalog.session() as session:
        ids = [item.id for item in job_rows.list_jobs(session).items]
    with queue.catalog.begin() as session:
        session.execute(update(t.jobs).where(t.jobs.c.id == ids[0]).values(rung_at=now(session)))
    assert queue.sweep().wake == (ids[1],)
    assert queue.sweep().wake == ()
    clock.at += 61
    assert set(queue.sweep().wake) == set(ids), "a broker that lost its messages is made good"
    clock.at += 61
    claim(queue)
    assert len(queue.sweep().wake) == 1


def test_jobs_are_listed_newest_first_in_pages(queue: JobQueue) -> None:
    import time

    for number in range(5):
        add_clip(queue.catalog, f"clip {number}")
        time.sleep(0.002)
    with queue.catalog.session() as session:
        whole = [item.id for item in job_rows.list_jobs(session).items]
        seen, cursor = [], None
        for _ in range(3):
            page = job_rows.list_jobs(session, limit=2, cursor=cursor)
            seen += [item.id for item in page.items]
            cursor = page.next_cursor
        assert seen == whole == sorted(whole, reverse=True)
        assert cursor is None
        assert job_rows.list_jobs(session, state="running").items == ()
        with pytest.raises(InputRefused):
            job_rows.list_jobs(session, cursor="'; DROP TABLE jobs")


def _drain(url: str, worker: str, out: str) -> None:
    with opened(url) as catalog:
        queue = JobQueue(catalog)
        ids = []
        while (mine := queue.claim(worker)) is not None:
            ids.append(mine.job.id)
            queue.heartbeat(mine, 0.5)
            queue.complete_rollout(mine, result(0))
        Path(out).write_text("\n".join(ids))


def test_processes_share_the_work_and_nothing_is_done_twice(database_url: str, tmp_path: Path) -> None:
    count = 40
    with opened(database_url) as catalog:
        with catalog.begin() as session:
            from catalogkit import new_clip

            for number in range(count):
                clips.submit(session, new_clip(f"clip {number}"), recipe())
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=_drain, args=(database_url, f"w{n}", str(tmp_path / f"w{n}"))) for n in range(3)]
        catalog.close()
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        done = [line for n in range(3) for line in (tmp_path / f"w{n}").read_text().split()]
        assert len(done) == len(set(done)) == count
        with catalog.session() as session:
            assert job_rows.counts(session)["succeeded"] == count
            assert session.execute(select(func.max(t.jobs.c.attempts))).scalar_one() == 1
            assert session.execute(select(func.count()).select_from(t.rollouts)).scalar_one() == count


def test_a_claim_ends_with_the_process_that_died_on_it(queue: JobQueue, clock: Clock, database_url: str) -> None:
    import os
    import signal
    import subprocess
    import sys

    add_clip(queue.catalog)
    code = (
        "import os, signal, sys\nfrom ampref_service.catalog import Catalog\nfrom ampref_service.jobs import JobQueue\n"
        "assert JobQueue(Catalog.open(sys.argv[1])).claim('victim')\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, database_url], cwd=root, check=False).returncode == -signal.SIGKILL
    assert os.getpid()
    assert counts(queue)["running"] == 1
    clock.at = 4e9
    assert len(queue.sweep().requeued) == 1
    assert claim(queue).job.token == 3


def test_the_time_that_is_left_follows_from_the_rate_since_the_start(queue: JobQueue, clock: Clock) -> None:
    add_clip(queue.catalog, "a")
    clock.at += 100  # waiting in the queue is no work
    mine = claim(queue)
    assert mine.job.eta_sec is None
    clock.at += 1
    queue.heartbeat(mine, 0.01, "loading")
    assert job(queue, mine.job.id).eta_sec is None  # too little to tell
    clock.at += 29
    queue.heartbeat(mine, 0.25, "planning")
    assert job(queue, mine.job.id).eta_sec == pytest.approx(90)
    clock.at += 30
    queue.heartbeat(mine)  # a lease is no progress
    assert job(queue, mine.job.id).eta_sec == pytest.approx(90)
    queue.heartbeat(mine, 0.75)
    assert job(queue, mine.job.id).eta_sec == pytest.approx(20)
    queue.fail(mine, MotionRefused("no"), retry=True)
    assert job(queue, mine.job.id).eta_sec is None
    clock.at += 3
    again = claim(queue)
    assert (again.job.progress, again.job.eta_sec) == (0.0, None)
    clock.at += 10
    queue.heartbeat(again, 0.5)
    assert job(queue, again.job.id).eta_sec == pytest.approx(10)  # since this attempt began
    queue.fail(again, MotionRefused("no"), retry=False)
    assert job(queue, again.job.id).eta_sec is None
