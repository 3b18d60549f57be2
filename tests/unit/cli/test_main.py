"""The entry point: help, exit codes, missing extras, interruption, a reader that leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from amp_core.cli import main as cli
from amp_core.cli.group import load_verbs
from amp_core.errors import Conflict
from amp_core.robot import bundled_robots

ROOT = Path(__file__).parents[3]
VERBS = (
    "score",
    "up",
    "api",
    "worker",
    "migrate",
    "submit",
    "clips",
    "clip",
    "jobs",
    "job",
    "dataset",
    "pull",
    "demo",
    "robots",
)
BARE = ("mujoco", "yaml", "fastapi", "starlette", "uvicorn", "pydantic_settings", "sqlalchemy", "alembic", "psycopg", "obstore")
BARE += ("celery", "kombu", "redis", "structlog", "prometheus_client", "sse_starlette")


def _bare(*arguments: str, cwd: Path = ROOT, missing: tuple[str, ...] = BARE) -> subprocess.CompletedProcess[str]:
    """`ampref` in an environment that has only what the bare install brings, or that lacks other packages."""
    code = f"""
    import sys
    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {missing!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    sys.meta_path.insert(0, Blocker())
    from amp_core.cli.main import main
    main()
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )


def test_help_works_with_the_bare_install_and_names_every_verb() -> None:
    done = _bare("--help")
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert set(VERBS) <= listed
    assert "ampref demo" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from amp_core.cli.main import run; run(['--help']);"
        f"print(sorted(set(sys.modules) & {{'numpy', 'rich', 'httpx2', 'blake3', *{BARE!r}}}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("verb", [verb.name for verb in load_verbs() if verb.extra is None])
def test_a_verb_without_an_extra_works_with_the_bare_install(verb: str) -> None:
    done = _bare(verb, "--help")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["score", "verify", "buckets", "augment"])
def test_the_help_of_a_verb_that_simulates_needs_no_physics(verb: str) -> None:
    done = _bare(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: ampref {verb}" in done.stdout


def test_clips_of_a_service_are_augmented_with_the_bare_install(tmp_path: Path) -> None:
    done = _bare("augment", "--clip", "walk", "--mirror", "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    done = _bare("augment", "walk.npz", "--mirror", "--out", "variants", cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install '.[physics]'" in done.stderr


def test_a_verb_whose_extra_is_missing_has_a_json_document_for_it() -> None:
    done = _bare("up", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["type"] == "missing-extra"


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["score", "walk.npz"], "physics"),
        (["robots"], "physics"),
        (["up", "--port", "0"], "service,train"),
        (["api"], "service"),
        (["migrate"], "service"),
        (["worker"], "worker"),
    ],
)
def test_a_verb_whose_extra_is_missing_says_what_to_install(arguments: list[str], extra: str, tmp_path: Path) -> None:
    done = _bare(*arguments)
    assert done.returncode == 1
    assert f"pip install '.[{extra}]' in the checkout" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("package", ["celery", "kombu", "redis"])
def test_an_api_with_a_broker_needs_the_extra_of_the_workers(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMPREF_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("AMPREF_DATA_DIR", str(tmp_path))
    done = _bare("api", "--port", "0", cwd=tmp_path, missing=(package,))
    assert done.returncode == 1
    assert f"this needs the package {package!r}" in done.stderr
    assert "pip install '.[worker]' in the checkout" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["score"],
        ["score", "x.npz", "--nonsense"],
        ["score", "x.csv", "--quat-order", "zyxw"],
        ["score", "x.npz", "--threads", "0"],
        ["clips", "--tier", "7"],
        ["clips", "--min", "slip_rate"],
        ["clips", "--max", "slip_rate=low"],
        ["clips", "--mode", "rolout"],
        ["clip", "walk", "--score", "rolout"],
        ["clip", " "],
        ["submit", "x.npz", "--mode", "rolout"],
        ["dataset", "lock", "walk", "1.0.0", "--mode", "rolout"],
        ["dataset", "lock", "walk", "1.0.0", "--tier", "-1"],
        ["dataset", "lock", "walk", "1.0.0", "--alias", "latest"],
        ["dataset", "lock", "walk", "1.0.0", "--alias", "Production"],
        ["dataset", "lock", "walk", "1.0.0", "--alias", "1st"],
        ["dataset", "lock", "walk"],
        ["dataset", "yank", "walk", "1.0.0"],
        ["dataset", "alias", "walk", "production"],
        ["up", "--port", "70000"],
    ],
)
def test_wrong_usage_is_2_and_says_how_to_get_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert "--help" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["score", "x.npz", "--seed", "abc"], "'abc' is not a whole number"),
        (["score", "x.npz", "--fps", "abc"], "'abc' is not a number"),
        (["score", "x.npz", "--threads", "0"], "0 is less than 1"),
        (["clips", "--tier", "5"], "5 is more than 1"),
        (["score", "x.npz", "--quat-order", "{a}"], "'{a}' is not one of 'xyzw', 'wxyz'"),
    ],
)
def test_wrong_usage_repeats_the_value(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert f"Invalid value for '{arguments[-2]}': {text}" in capsys.readouterr().err


def test_a_file_that_looks_like_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-walk.pkl").touch()
    assert cli.run(["score", "-walk.pkl"]) == 2
    assert "(for the file: ./-walk.pkl)" in capsys.readouterr().err
    assert cli.run(["score", "-walk2.pkl"]) == 2
    assert "for the file" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], ["score"], ["dataset", "lock"]])
def test_a_short_option_shows_the_help_too(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert cli.run([*verb, "-h"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_shows_no_type_of_python(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--help"]) == 0
    assert not re.search("<(list|int|float|str|Path)", capsys.readouterr().out)


def test_the_package_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "amp_core", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ampref ")


def test_migrate_names_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMPREF_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("AMPREF_DATABASE_URL", raising=False)
    assert cli.run(["migrate", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["database"].startswith(f"sqlite:///{tmp_path}")
    assert f"the catalog {document['database']} is at revision {document['revision']}" in captured.err


def test_an_error_is_1_and_printed_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Command:
        def main(self, **_: object) -> None:
            raise Conflict("it is held", remedy="Let it go")

    monkeypatch.setattr("typer.main.get_command", lambda _: Command())
    assert cli.run([]) == 1
    assert capsys.readouterr() == ("", "error: it is held\n  what to do: Let it go\n")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    class Command:
        def main(self, **_: object) -> None:
            raise ZeroDivisionError

    monkeypatch.setattr("typer.main.get_command", lambda _: Command())
    with pytest.raises(ZeroDivisionError):
        cli.run([])


def test_a_module_of_ours_that_is_missing_is_a_bug_and_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    class Command:
        def main(self, **_: object) -> None:
            raise ModuleNotFoundError("No module named 'amp_core.gone'", name="amp_core.gone")

    monkeypatch.setattr("typer.main.get_command", lambda _: Command())
    with pytest.raises(ModuleNotFoundError):
        cli.run([])


def test_no_service_is_1_and_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["clips", "--url", "http://127.0.0.1:1", "--json"]) == 1
    captured = capsys.readouterr()
    assert "ampref up" in captured.err
    document = json.loads(captured.out)
    assert document["type"] == "unavailable"
    assert document["remedy"] in captured.err


@pytest.mark.parametrize("verb", [["up", "--port", "0"], ["migrate"]])
def test_a_data_folder_that_cannot_be_written_is_named(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may write everywhere, so the refusal is the file system's by proxy."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("AMPREF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("ampref_service.cli.startup.tempfile.TemporaryFile", refuse)
    assert cli.run(verb) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'data'}: the data folder cannot be written: Permission denied" in said
    assert "--data-dir" in said
    assert not list((tmp_path / "data").iterdir())


def test_a_demo_whose_service_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = """
import json
import re
print(json.dumps({"type": "missing-extra", "what": "this needs the package 'x'", "remedy": "install x"}))
raise SystemExit(1)
"""
    real = subprocess.Popen
    monkeypatch.setattr(
        "ampref_workers.cli.demo.subprocess.Popen", lambda command, **more: real([command[0], "-c", program], **more)
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert cli.run(["demo"]) == 1
    said = capsys.readouterr().err
    assert "the service did not start: this needs the package 'x'" in said
    assert "install x" in said


def test_an_interrupted_demo_whose_service_is_still_starting_ends_at_once(tmp_path: Path) -> None:
    program = """
    import subprocess, sys, threading
    import amp_core.cli.main as cli
    class Service(subprocess.Popen):
        def __init__(self, command, **more):
            super().__init__([command[0], "-c", "import time; time.sleep(600)"], **more)
            Service.latest = self
    class Watchdog(threading.Timer):
        def start(self):
            super().start()
            print("starting", Service.latest.pid, file=sys.stderr, flush=True)
    subprocess.Popen, threading.Timer = Service, Watchdog
    cli.main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), "demo", "-q"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert process.stderr is not None
    word, pid = process.stderr.readline().split()
    assert word == "starting"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, "interrupted")
    assert not Path(f"/proc/{pid}").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_an_error_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.run(["up", "--port", "0", "--data-dir", str(tmp_path / "file" / "data")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {tmp_path / 'file'}")
    assert "what to do:" in captured.err


@pytest.mark.parametrize("verb", [["up", "--port", "0"], ["api", "--port", "0"], ["worker"], ["migrate"]])
def test_a_variable_that_nothing_reads_is_told_once(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("AMPREF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AMPREF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("AMPREF_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AMPREF_MAX_FSP", "200")
    monkeypatch.setenv("AMPREF_NONSENSE", "1")
    if verb != ["migrate"]:
        monkeypatch.setenv("AMPREF_ROBOTS", str(tmp_path / "none.yaml"))  # So that it ends at once.
    monkeypatch.setattr("ampref_service.logs.configure", lambda *_, **__: None)
    assert cli.run(verb) == (0 if verb == ["migrate"] else 1)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1
    assert "AMPREF_MAX_FSP (did you mean AMPREF_MAX_FPS?), AMPREF_NONSENSE;" in told[0]
    assert "AMPREF_URL" not in told[0]


@pytest.mark.parametrize(("present", "tests", "told"), [(False, "all", 1), (True, "all", 0), (False, "none", 0)])
@pytest.mark.parametrize("verb", [["up", "--port", "0"], ["worker"]])
def test_tests_that_cannot_run_are_told_at_the_start(
    verb: list[str],
    present: bool,
    tests: str,
    told: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if present or name != "jax" else None)
    monkeypatch.setenv("AMPREF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("AMPREF_LOCK_TESTS", tests)
    monkeypatch.setenv("AMPREF_ROBOTS", str(tmp_path / "none.yaml"))  # So that it ends at once.
    monkeypatch.setattr("ampref_service.logs.configure", lambda *_, **__: None)
    assert cli.run(verb) == 1
    assert capsys.readouterr().err.count("warning: JAX is not installed here") == told


@pytest.mark.parametrize("verb", ["up", "api"])
def test_robots_are_loaded_once(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from amp_core.robot import Robot

    loaded: list[object] = []
    load = Robot.load
    monkeypatch.setattr(Robot, "load", lambda source: (loaded.append(source), load(source))[1])
    monkeypatch.setattr("ampref_service.logs.configure", lambda *_, **__: None)
    monkeypatch.setenv("AMPREF_DATA_DIR", str(tmp_path / "data"))

    def serve(app: Any, _settings: object, listener: Any) -> None:
        with listener, TestClient(app) as client:
            assert client.get("/v1/robots").status_code == 200

    monkeypatch.setattr("ampref_service.server.run", serve)
    if verb == "api":
        assert cli.run(["migrate", "--quiet"]) == 0
    assert cli.run([verb, "--port", "0"]) == 0
    assert loaded == bundled_robots()


@pytest.mark.parametrize("verb", [["up", "--port", "0"], ["api", "--port", "0"], ["worker"]])
def test_a_robot_that_cannot_be_used_is_refused_before_anything_starts(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    robot = tmp_path / "none.yaml"
    monkeypatch.setenv("AMPREF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("AMPREF_ROBOTS", str(robot))
    monkeypatch.setattr("ampref_service.logs.configure", lambda *_, **__: None)
    assert cli.run(verb) == 1
    captured = capsys.readouterr()
    assert str(robot) in captured.err
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 3
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_ends_without_a_traceback(number: signal.Signals, code: int) -> None:
    program = """
    import os, sys, time, typer
    import amp_core.cli.main as cli
    @cli.app.command("hang")
    def hang():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("cleaned up", flush=True)
    cli.main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), "hang"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == "cleaned up\n"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        ("typer", ["--help"], ""),
        ("amp_core.cli.verbs", ["--help"], ""),  # a table of an entry point
        ("mujoco.batch", ["score", "walk.npz"], "interrupted\n"),
    ],
)
def test_an_interrupt_while_it_is_still_starting_is_as_quiet(
    module: str, arguments: list[str], expected: str, tmp_path: Path
) -> None:
    """A library written in C raises an ImportError for what it cannot raise in the middle of its initialization."""
    begins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ampref"].partition(":")[0]
    program = f"""
    import sys, time
    class Slow:
        def find_spec(self, name, path=None, target=None):
            if name == {module!r}:
                print("importing", flush=True)
                try:
                    time.sleep(60)
                except KeyboardInterrupt as error:
                    if name == "mujoco.batch":
                        raise ImportError("initialization failed") from error
                    raise
    sys.meta_path.insert(0, Slow())
    from {begins} import main
    main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.lstrip()) == (130, "", expected)


def test_a_reader_that_leaves_is_no_error_message() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        process = subprocess.Popen(
            [sys.executable, "-m", "amp_core.cli", "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    _, err = process.communicate(timeout=30)
    assert err == ""
    assert process.returncode in (0, 1)


def test_the_version_is_printed() -> None:
    done = _bare("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("ampref 0.")


def test_a_recipe_file_must_be_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.json"
    for text in ("[1]", "{", "[" * 100_000, json.dumps({"mode": "rollout", "nonsense": 1})):
        recipe.write_text(text)
        assert cli.run(["score", "x.npz", "--recipe", str(recipe)]) == 1
        assert capsys.readouterr().err.startswith("error: ")
    assert cli.run(["score", "x.npz", "--recipe", str(tmp_path / "none.json")]) == 1
    assert "none.json: cannot be read" in capsys.readouterr().err
    recipe.write_text(json.dumps({"mode": "rollout"}))
    assert cli.run(["score", "x.npz", "--recipe", str(recipe), "--mode", "teacher_forced"]) == 2
