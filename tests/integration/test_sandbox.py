"""The sandbox against children that hang, crash, hoard and lie. Every one of them is a real process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from misbehaving_child import Answer, Behaviour
from workerkit import CHILD, alive, wait_until

import amp_core
import ampref_workers
from amp_core.kernels import kernel_variables
from ampref_workers import sandbox
from ampref_workers.protocol import (
    MEMBERS,
    Failed,
    HostFault,
    NoReport,
    NoRoom,
    Refused,
    RobotReference,
    SandboxLimits,
    Stopped,
    VerifyReport,
    VerifyRequest,
)

QUICK = SandboxLimits(timeout_sec=30, memory_mb=512, nice=0)  # Behind the tests of other processes it would wait.


def do(job_dir: Path, what: str, limits: SandboxLimits = QUICK, **options: Any) -> Answer | NoReport:
    return sandbox.run(job_dir, Behaviour(what), Answer, limits, command=CHILD, **options)


def test_a_result_comes_back_with_its_progress(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    outcome = do(tmp_path, "answer yes", on_progress=lambda fraction, message: told.append((fraction, message)))
    assert isinstance(outcome, Answer)
    assert outcome.value["answer"] == "yes"
    assert told == [(0.25, "doing answer")]
    assert outcome.value["cwd"] == str(tmp_path)  # so that MUJOCO_LOG.TXT goes there


def test_the_child_stands_behind_its_parent_for_the_processor(tmp_path: Path) -> None:
    outcome = do(tmp_path, "answer yes", replace(QUICK, nice=10))
    assert isinstance(outcome, Answer)
    assert outcome.value["nice"] >= 10
    # In a session of its own Linux would weigh it against the parent's whole session, whatever its niceness; a group of its own
    # keeps a Ctrl-C away from it.
    assert outcome.value["session"] == os.getsid(0)
    assert outcome.value["group"] == outcome.value["pid"]


def test_the_environment_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMPREF_DATABASE_URL", "postgresql://ampref:secret@db/ampref")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    outcome = do(tmp_path, "answer yes")
    assert isinstance(outcome, Answer)
    environ = outcome.value["environ"]
    assert "secret" not in str(environ)
    assert environ["OMP_NUM_THREADS"] == "1"
    assert kernel_variables().items() <= environ.items()
    assert environ["HOME"] == str(tmp_path)
    assert environ["PYTHONNOUSERSITE"] == "1"  # Where it runs with another home, the owner's packages are no longer in reach.


def test_the_child_runs_the_code_of_its_parent(tmp_path: Path) -> None:
    """Also in a checkout that is not the installed one."""
    checkout, job_dir = tmp_path / "checkout", tmp_path / "job"
    job_dir.mkdir()
    for package in (amp_core, ampref_workers):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, checkout / source.name / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import sys; from pathlib import Path; from ampref_workers.protocol import SandboxLimits\n"
        "from ampref_workers.sandbox import run\n"
        f"sys.path.append({str(Path(__file__).parent)!r}); from misbehaving_child import Answer, Behaviour\n"
        f"outcome = run(Path({str(job_dir)!r}), Behaviour('answer yes'), Answer, SandboxLimits(nice=0), command={CHILD!r})\n"
        "print(*outcome.value['packages'], sep='\\n')\n"
    )
    import_path = os.pathsep.join(map(str, checkout.iterdir()))
    parent = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=os.environ | {"PYTHONPATH": import_path},
        capture_output=True,
        text=True,
        check=True,
    )
    names = ("amp_core", "ampref_workers")
    assert parent.stdout.split() == [str(checkout / name / name / "__init__.py") for name in names]


def test_the_job_folder_is_not_on_the_import_path(tmp_path: Path, set_traps: Callable[..., Path]) -> None:
    set_traps(tmp_path, "amp_core", "ampref_workers", "numpy")
    (tmp_path / MEMBERS).touch()
    robot = RobotReference("no-such-robot", "sha256:0", ())
    outcome = sandbox.run(tmp_path, VerifyRequest("walk", "1.0.0", robot, (), threads=1), VerifyReport, QUICK)
    assert isinstance(outcome, Refused), outcome


def test_a_refusal_keeps_its_facts(tmp_path: Path) -> None:
    outcome = do(tmp_path, "refuse")
    assert isinstance(outcome, Refused)
    assert outcome.error["type"] == "motion-refused"
    assert (outcome.error["file"], outcome.error["key"], outcome.error["frame"]) == ("march.pkl", "root_pos", 17)


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("eat", "memory", "memory: it needed more than its 512 MiB"),
        ("segfault", "crash", "SIGSEGV"),
        ("killed", "killed", "SIGKILL; a machine that is short of memory"),
        ("abort", "crash", "SIGABRT"),
        ("exit 0", "crash", "status 0 and no result"),
        ("exit 3", "crash", "status 3 and no result"),
        ("half", "crash", "status 0 and no result"),
        ("explode", "exception", "the state is not finite"),
        ("raise not this one", "exception", "ValueError: not this one (in misbehave, misbehaving_child.py:"),
        ("unserializable", "exception", "ValueError"),
    ],
)
def test_an_end_that_is_not_well_says_how(tmp_path: Path, what: str, kind: str, said: str) -> None:
    outcome = do(tmp_path, what)
    assert isinstance(outcome, Failed)
    assert outcome.kind == kind
    assert said in outcome.reason
    assert alive(tmp_path) == []


def test_a_segfault_tells_where(tmp_path: Path) -> None:
    outcome = do(tmp_path, "segfault")
    assert isinstance(outcome, Failed)
    assert "misbehave" in outcome.stderr


@pytest.mark.parametrize("what", ["hang", "spin"])
def test_what_does_not_end_is_killed(tmp_path: Path, what: str) -> None:
    outcome = do(tmp_path, what, replace(QUICK, timeout_sec=1.5))
    assert isinstance(outcome, Failed)
    assert outcome.kind == "timeout"
    assert "1.5 s" in outcome.reason
    assert alive(tmp_path) == []


def test_processor_time_is_limited(tmp_path: Path) -> None:
    outcome = do(tmp_path, "spin", replace(QUICK, timeout_sec=60, cpu_sec=1))
    assert isinstance(outcome, Failed)
    assert outcome.kind == "timeout"
    assert "processor time" in outcome.reason


def test_file_size_is_limited(tmp_path: Path) -> None:
    outcome = do(tmp_path, "write", replace(QUICK, file_mb=1))
    assert isinstance(outcome, Failed)
    assert "File too large" in outcome.reason
    assert (tmp_path / "huge").stat().st_size <= 1 << 20


@pytest.mark.parametrize("what", ["fill", "fill-lock", "fill-result"])
def test_a_full_disk_is_not_the_childs_fault(tmp_path: Path, what: str) -> None:
    assert do(tmp_path, what) == NoRoom(f"no space left for jobs in {tmp_path.parent}")


def test_a_child_that_talks_without_end_blocks_nobody(tmp_path: Path) -> None:
    told: list[float] = []
    outcome = do(tmp_path, "chatter", on_progress=lambda fraction, message: told.append(fraction))
    assert isinstance(outcome, Answer)
    assert told[-1] == 1.0


def test_a_progress_line_that_is_too_long_is_dropped(tmp_path: Path) -> None:
    told: list[str] = []
    outcome = do(tmp_path, "shout", on_progress=lambda fraction, message: told.append(message))
    assert isinstance(outcome, Answer)
    assert told == ["doing shout", "whispered"]


@pytest.mark.parametrize(("size", "expected"), [(64 << 20, Answer), ((64 << 20) + 1, Failed)])
def test_a_result_that_is_too_large_is_none(size: int, expected: type, tmp_path: Path) -> None:
    assert isinstance(do(tmp_path, f"pad {size}"), expected)


def test_stopping_kills_the_child_and_what_it_started(tmp_path: Path) -> None:
    outcome = do(tmp_path, "spawn", should_stop=(tmp_path / "grandchild").exists)
    assert isinstance(outcome, Stopped)
    wait_until(lambda: alive(tmp_path) == [], "nothing of the child's group is left")


def test_a_caller_that_raises_leaves_no_child(tmp_path: Path) -> None:
    def broken(fraction: float, message: str) -> None:
        raise RuntimeError("the caller's own fault")

    with pytest.raises(RuntimeError, match="own fault"):
        do(tmp_path, "hang", on_progress=broken)
    assert alive(tmp_path) == []


def test_a_result_of_an_earlier_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    assert isinstance(do(tmp_path, "answer one"), Answer)
    assert isinstance(do(tmp_path, "exit 0"), Failed)


def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    do(tmp_path, "answer one")
    before = psutil.Process().num_fds()
    for _ in range(3):
        do(tmp_path, "exit 3")
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_its_parent(tmp_path: Path, number: int) -> None:
    script = (
        "import sys; from pathlib import Path; from ampref_workers.protocol import SandboxLimits\n"
        "from ampref_workers.sandbox import run\n"
        f"sys.path.append({str(Path(__file__).parent)!r}); from misbehaving_child import Answer, Behaviour\n"
        f"run(Path({str(tmp_path)!r}), Behaviour('spin'), Answer, SandboxLimits(nice=0), command={CHILD!r},"
        f" on_progress=lambda *_: Path({str(tmp_path / 'started')!r}).touch())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        wait_until((tmp_path / "started").exists, "the child runs")
        assert len(alive(tmp_path)) >= 1
        os.kill(parent.pid, number)
    finally:
        if not (tmp_path / "started").exists():
            parent.kill()
        parent.wait(10)
    wait_until(lambda: alive(tmp_path) == [], "the child is gone as well")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/bin/false",), "exited with status 1"),
        ((sys.executable, "-c", "import nothing_of_that_name"), "No module named 'nothing_of_that_name'"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), "SIGKILL"),
    ],
)
def test_a_child_that_cannot_begin_is_no_evidence(tmp_path: Path, command: tuple[str, ...], reason: str) -> None:
    outcome = sandbox.run(tmp_path, Behaviour("answer yes"), Answer, QUICK, command=command)
    assert isinstance(outcome, HostFault)
    assert "could not begin its work" in outcome.reason
    assert reason in outcome.reason


def test_a_kernel_that_is_short_of_memory_takes_the_child_first(tmp_path: Path) -> None:
    outcome = do(tmp_path, "answer yes")
    assert isinstance(outcome, Answer)
    assert outcome.value["oom_score_adj"] > int(Path("/proc/self/oom_score_adj").read_text())
