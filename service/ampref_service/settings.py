"""Every setting of the service, read from `AMPREF_*` environment variables.

A setting has one name, one default and one description here; `docs/catalog.md` shows the same table and a test compares the
two.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from amp_core.cpus import usable_cpus
from amp_core.errors import InputRefused
from amp_core.files import expand_home
from amp_core.readiness import TEST_IDS, parse_tests
from ampref_service.urls import check_blob_url, check_broker_url, check_database_url

MIB = 1024 * 1024
_PREFIX = "AMPREF_"
_SEE_DOCS = "Correct or unset it, then start again; docs/catalog.md lists every setting"
_URLS = {"database_url": check_database_url, "blob_url": check_blob_url, "broker_url": check_broker_url}

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

FOREIGN_VARIABLES = (
    *("AMPREF_URL", "AMPREF_CACHE", "AMPREF_OFFLINE", "AMPREF_TOKEN", "AMPREF_PUBLISHED_PORT"),
    "AMPREF_BUILD_WITHOUT_ASSETS",
)
"""Variables with our prefix that are no setting of the service: the client's, that of `docker-compose.yml`, that of a build."""


def _make_absolute(path: Path) -> Path:
    # A worker's child has another working directory, so that no path may be relative.
    try:
        return Path(os.path.abspath(expand_home(path)))
    except InputRefused as error:
        raise ValueError(error.what) from None


_AbsolutePath = Annotated[Path, AfterValidator(_make_absolute)]


_Names = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(
        lambda value: [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    ),
]
"""Of a comma list."""


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _split_networks(value: Any) -> Any:
    """Names and networks from text with commas; what looks like a network and is none is refused."""
    entries = [entry.strip().lower() for entry in value.split(",") if entry.strip()] if isinstance(value, str) else value
    for entry in entries:
        if "/" in entry:
            ipaddress.ip_network(entry, strict=False)  # Its ValueError says what is wrong.
    return entries


class Settings(BaseSettings):
    """The service's configuration; frozen once it was read.

    Use `Settings.load()` to read the environment: it turns a bad value into an `InputRefused` that names the variable.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid", validate_default=True)

    data_dir: _AbsolutePath = Field(
        Path("~/.local/share/ampref"), description="Folder of everything the service keeps, unless the next two say otherwise."
    )
    database_url: str = Field(
        "",
        description="Catalog: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/DB`. Default: `catalog.sqlite3` in "
        "the data folder.",
    )
    blob_url: str = Field(
        "",
        description="Blob store: `file:///FOLDER`, `s3://BUCKET/PREFIX` or `memory://` (tests). Default: `blobs` in "
        "the data folder.",
    )
    broker_url: str | None = Field(
        None, description="Celery broker, `redis://HOST:PORT/DB`. Not set: for `ampref up`, which runs jobs itself."
    )
    robots: Annotated[
        tuple[_AbsolutePath, ...],
        NoDecode,
        BeforeValidator(lambda value: list(filter(str.strip, value.split(os.pathsep))) if isinstance(value, str) else value),
    ] = Field(
        (),
        description="`robot.yaml` files besides the bundled ones, separated by `:` (`;` on Windows). Only the "
        "operator adds robots.",
    )

    host: str = Field("127.0.0.1", min_length=1, description="Address that the API listens on.")
    auth: Annotated[Literal["auto", "keys", "none"], BeforeValidator(_lower)] = Field(
        "auto",
        description="`keys`: every request needs a key; `none`: no request does; `auto`: on a loopback address only once a key "
        "was made.",
    )
    allowed_hosts: _Names = Field(
        (),
        description="Names that the API is reached by, separated by commas, such as `ampref.example.org` or `*.example.org`. "
        "Addresses and names without a dot need not be listed.",
    )
    trusted_proxies: _Names = Field(
        (),
        description="Addresses or networks of proxies whose `X-Forwarded-*` headers are believed, separated by commas, such as "
        "`10.0.0.0/8`.",
    )
    proxy_user_header: str = Field(
        "", pattern=r"^[A-Za-z0-9-]{0,64}$", description="Header in which a trusted proxy names the user. Not set: none does."
    )
    proxy_groups_header: str = Field(
        "X-Forwarded-Groups",
        pattern=r"^[A-Za-z0-9-]{1,64}$",
        description="Header in which a trusted proxy names the user's groups, separated by commas.",
    )
    proxy_groups: _Names = Field(
        (), description="Roles of the groups of a proxy's users: `GROUP=ROLE`, separated by commas; `*` is every user's group."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port that the API listens on; 0 takes a free one.")
    max_upload_bytes: int = Field(64 * MIB, ge=1024, description="Largest motion file that is accepted, in bytes.")
    max_duration_sec: Positive = Field(120.0, description="Longest motion that is accepted, in seconds.")
    max_fps: Positive = Field(1000.0, description="Highest frame rate that is accepted, in frames a second.")
    upload_readers: int = Field(2, ge=1, le=64, description="Child processes that read uploads, each one file at a time.")
    reader_memory_mb: int = Field(
        1024, ge=256, description="Private memory that one of them may use, in MiB; a file that takes more is refused."
    )
    reader_timeout_sec: Positive = Field(
        15.0, description="Processor time that reading one file may take, in seconds; four times that by the clock."
    )
    max_batch_mb: int = Field(256, ge=1, description="Largest archive of `POST /v1/clips:batch` that is accepted, in MiB.")
    max_batch_clips: int = Field(1000, ge=1, description="Members that such an archive may have.")
    max_uploads: int = Field(64, ge=1, description="Uploads that are taken at a time: arriving, waiting for a reader or read.")
    upload_budget_mb: int = Field(
        512,
        ge=1,
        description="What their bodies may have together, in MiB; beyond either bound an upload is told to come again.",
    )
    request_timeout_sec: Positive = Field(30.0, description="How long a client may take to send a whole request, in seconds.")
    keep_alive_sec: int = Field(5, ge=1, description="How long an idle HTTP connection is kept open, in seconds.")
    shutdown_grace_sec: int = Field(
        10, ge=0, description="How long open requests may finish when the server stops, in seconds."
    )
    sse_interval_sec: Positive = Field(0.5, description="How often an event stream looks for a job's progress, in seconds.")
    sse_ping_sec: int = Field(15, ge=1, description="How often an idle event stream sends a comment to stay open, in seconds.")

    max_streams: int = Field(1000, ge=1, description="Event streams that one API process keeps open at a time; then 503.")
    webhook_allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_networks)] = Field(
        (),
        description="Private hosts and networks that webhooks may lead to, separated by commas, such as "
        "`hooks.lab,10.2.0.0/16`.",
    )
    event_days: Positive = Field(30.0, description="How long events are kept for those who follow them, in days.")

    job_timeout_sec: Positive = Field(
        120.0, description="Wall-clock limit of one attempt of a rollout job, in seconds; then its child is killed."
    )
    plan_timeout_factor: NonNegative = Field(
        20.0,
        description="Seconds on top of that for each second of the clip and each plan of the usual size; for jobs that "
        "may plan.",
    )
    max_plans: Positive = Field(
        32.0, description="Plans of the usual size that a recipe may ask for; one that asks for more is refused."
    )
    lock_timeout_sec: Positive = Field(
        3600.0,
        description="Wall-clock limit of writing a version in one attempt of a lock job, in seconds; its tests have their own.",
    )
    lock_tests: str = Field(
        "all",
        description="Readiness tests that run before every lock: `all`, `none`, or ids such as `1A,1C,7`. The checklist of a "
        "version shows the others open.",
    )
    verify_timeout_sec: Positive = Field(
        3600.0, description="Wall-clock limit of the readiness tests in one attempt of a lock job, in seconds."
    )
    job_memory_mb: int = Field(
        4096, ge=256, description="Private memory that a job's child process may use, in MiB; more than that fails the attempt."
    )
    job_nice: int = Field(
        10,
        ge=0,
        le=19,
        description="Added to the niceness of a job's child process, and twice that to the one that draws thumbnails; 0 where "
        "a machine does nothing but jobs.",
    )
    max_attempts: int = Field(3, ge=1, le=100, description="Attempts of a job before it is quarantined with its reason.")
    lease_sec: Positive = Field(
        30.0, description="How long a worker owns a job without a heartbeat, in seconds; then others may take it."
    )
    heartbeat_sec: Positive = Field(
        5.0, description="How often a worker renews its lease, in seconds; at most a third of the lease."
    )
    sweep_sec: Positive = Field(
        10.0, description="How often expired leases and jobs that no worker heard of are looked for, in seconds."
    )
    retry_backoff_sec: NonNegative = Field(
        2.0, description="Pause before the second attempt of a job, in seconds; it doubles with each one."
    )
    poll_sec: Positive = Field(0.5, description="How often an idle embedded worker looks at the job table, in seconds.")
    worker_concurrency: int = Field(1, ge=1, le=256, description="Jobs that one worker process runs at a time.")
    blob_grace_sec: float = Field(
        3600.0,
        ge=60,
        allow_inf_nan=False,
        description="Age at which a blob that no row names is garbage, in seconds; longer than any upload or job "
        "takes to commit.",
    )
    redirect_downloads: bool = Field(
        False, description="Send readers of a version's files to the S3 store itself, by signed URLs; they must reach it."
    )
    scrub_mb_per_sec: NonNegative = Field(
        10.0, description="How fast the scrub reads the stored files, in MB a second; 0 turns it off."
    )
    scrub_days: Positive = Field(7.0, description="From the beginning of one scrub of all files to that of the next, in days.")

    thumbnails: bool = Field(
        True, description="Whether workers with the extra `[render]` and a GL draw a thumbnail of each rollout beside the jobs."
    )

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        "info",
        description="Least level that `ampref api` and `worker` log; `ampref up` too, but `warning` unless this is set.",
    )
    log_json: bool = Field(False, description="Log one JSON object a line instead of text for people.")

    @field_validator("lock_tests", mode="after")
    @classmethod
    def _normalize_tests(cls, value: str) -> str:
        try:
            ids = parse_tests(value)
        except InputRefused as error:
            raise ValueError(f"{error.what}; expected all, none, or a comma list {error.expected}") from None
        # One way to write each choice, whatever was typed.
        return "all" if ids == TEST_IDS else ",".join(ids) or "none"

    @field_validator("allowed_hosts", mode="after")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if host != "*" and not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", host):
                raise ValueError(f"{host!r} is no host's name; expected such as ampref.example.org or *.example.org, no port")
        return value

    @field_validator("trusted_proxies", mode="after")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"{error}; expected such as 127.0.0.1 or 10.0.0.0/8") from None
        return value

    @field_validator(*_URLS, mode="after")
    @classmethod
    def _check_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value:
            try:
                _URLS[str(info.field_name)](value)
            except InputRefused as error:
                raise ValueError(f"{error.what}; expected {error.expected}") from None
        return value or (None if info.field_name == "broker_url" else value)

    @model_validator(mode="after")
    def _fill_urls(self) -> Settings:
        # The model is frozen for its users; defaults that depend on another field are filled in here, once.
        if not self.database_url:
            object.__setattr__(self, "database_url", f"sqlite:///{self.data_dir / 'catalog.sqlite3'}")
        if not self.blob_url:
            object.__setattr__(self, "blob_url", (self.data_dir / "blobs").as_uri())
        if self.heartbeat_sec > self.lease_sec / 3:
            raise ValueError(
                f"heartbeat_sec is {self.heartbeat_sec:g} s; expected at most a third of lease_sec ({self.lease_sec:g} s), "
                "or one late heartbeat loses the job"
            )
        return self

    def rollout_timeout(self, duration_sec: float, plans: float) -> float:
        """s that one attempt of a rollout job may take, for a clip of this duration and this many plans of the usual size."""
        return self.job_timeout_sec + self.plan_timeout_factor * duration_sec * min(plans, self.max_plans)

    @property
    def longest_job_sec(self) -> float:
        """s that no attempt of any job can exceed."""
        return max(self.rollout_timeout(self.max_duration_sec, self.max_plans), self.lock_limit_sec)

    @property
    def lock_limit_sec(self) -> float:
        """s that one attempt of a lock job may take: its tests, then writing the version."""
        return self.lock_timeout_sec + (self.verify_timeout_sec if self.lock_test_ids else 0.0)

    @property
    def lock_test_ids(self) -> tuple[str, ...]:
        """The readiness tests that run before every lock, in the specification's order."""
        return parse_tests(self.lock_tests)

    @property
    def job_threads(self) -> int:
        """Threads of one job's physics: the processors, divided among the jobs that run at a time."""
        return max(1, usable_cpus() // self.worker_concurrency)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the address that the API listens on."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def is_open_without_keys(self) -> bool:
        """Whether everybody may do everything as long as no key was ever made."""
        return self.auth == "none" or (self.auth == "auto" and self.is_loopback and not self.proxy_user_header)

    @property
    def embedded(self) -> bool:
        """Whether jobs run inside the API's process, without a broker."""
        return self.broker_url is None

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read the environment; `overrides` (by field name) win over it.

        Raises:
          InputRefused: names every bad variable, its value and what was expected.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            faults = "; ".join(_explain_fault(fault) for fault in error.errors(include_url=False))
            raise InputRefused(faults, remedy=_SEE_DOCS) from None
        except SettingsError as error:
            raise InputRefused(str(error), remedy=_SEE_DOCS) from None


def _explain_fault(fault: Any) -> str:
    field = ".".join(str(part) for part in fault["loc"])
    name = f"{_PREFIX}{field.upper()}" if field else f"the {_PREFIX}* settings"
    message = fault["msg"].removeprefix("Value error, ")
    # A URL may hold a password, so its value is never repeated.
    value = "" if not field or field.endswith("_url") else f" is {str(fault.get('input'))[:80]!r}"
    return f"{name}{value}: {message[:1].lower()}{message[1:]}"


def unknown_variables(names: Iterable[str]) -> dict[str, str | None]:
    """The `AMPREF_*` variables among `names` that nothing reads, each with the nearest name that something does.

    A misspelt variable is not refused, as another release may read it; starting a process warns of it.
    """
    variables = {*FOREIGN_VARIABLES, *(f"{_PREFIX}{field.upper()}" for field in Settings.model_fields)}
    stems = sorted(variable.removeprefix(_PREFIX) for variable in variables)
    result: dict[str, str | None] = {}
    for name in sorted(names):
        # pydantic-settings reads the names in any case.
        if name.upper().startswith(_PREFIX) and name.upper() not in variables:
            near = difflib.get_close_matches(name.upper().removeprefix(_PREFIX), stems, n=1)
            result[name] = _PREFIX + near[0] if near else None
    return result
