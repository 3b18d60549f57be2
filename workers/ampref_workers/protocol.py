"""The messages between a worker and the child of a job: frozen dataclasses here, JSON files in the job folder.

    request.json    the work: a `RolloutRequest`, `VerifyRequest` or `LockRequest`
    sandbox.json    the `Sandbox` that the child runs in
    result.json     the end: the report of the work, or `Refused`, `Failed`, `NoRoom` or `HostFault`

The arrays, archives and reports that go with a message are files whose names are here. A worker and its children are of one
release, so a message has no version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from amp_core.dataset.candidate import Candidate
from amp_core.formats import Limits
from amp_core.strict_json import format_json, read_json

REQUEST, SANDBOX, RESULT = "request.json", "sandbox.json", "result.json"

SOURCE = "source.bin"
"""The uploaded bytes of a rollout job."""

VERIFICATION = "verification.json"
"""The whole report of the readiness tests."""

MEMBERS = "members.jsonl"
"""The members of a version to be, in the order in which it will have them: a `Member` a line."""

VERSION_FOLDER = "version"
"""The folder of a version's finished files."""

TESTS_OFF = "turned off by the operator's setting AMPREF_LOCK_TESTS"
"""The reason of a readiness test that did not run."""

START_LINE = b"started"
"""The line on the pipe for progress by which a child says that it begins the work: what goes wrong before is the machine's
fault."""

DISK_FULL = 73
"""The exit status of a child that had no room to write even its result (`EX_CANTCREAT`)."""


def export_name(number: int) -> str:
    """The file with the arrays of a rollout job's score of that number."""
    return f"export-{number}.npz"


def thumbnail_name(number: int) -> str:
    """The file with the thumbnail of a request's export of that number."""
    return f"thumbnail-{number}.webp"


class Message:
    """A frozen dataclass that travels as a JSON object, which names its class."""

    def encode(self) -> bytes:
        """As JSON; a `ValueError` where strict JSON has no such value."""
        return format_json({"message": type(self).__name__, **vars(self)}, default=vars, ensure_ascii=True).encode()


M = TypeVar("M", bound=Message)


def decode(data: bytes, *kinds: type[M]) -> M:
    """Back from `Message.encode`, nested dataclasses and tuples included.

    Raises:
      ValueError, KeyError, TypeError: it is damaged, or a message of none of these kinds.
    """
    fields = read_json(data)
    kind = {kind.__name__: kind for kind in kinds}[fields.pop("message")]
    return cast(M, _restore(kind, fields))


_read_hints = cache(get_type_hints)


def _restore(kind: Any, value: Any) -> Any:
    """A JSON value as the annotation `kind` has it."""
    if value is None:
        return None
    if isinstance(kind, UnionType):
        kind = kind.__args__[0]
    if is_dataclass(kind):
        kinds = _read_hints(cast(type, kind))
        return kind(**{name: _restore(kinds[name], item) for name, item in value.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        return tuple(_restore(get_args(kind)[0], item) for item in value)
    return value


@dataclass(frozen=True)
class SandboxLimits:
    """What one child may use.

    Args:
      timeout_sec: wall clock from the begin of the work to the exit; the interpreter's start is not part of it.
      memory_mb: MiB of private memory. On Linux files that are only mapped for reading do not count (`RLIMIT_DATA`);
        elsewhere it is the address space (`RLIMIT_AS`), and systems that do not enforce that only have the clock.
      cpu_sec: processor seconds, all threads together; `None` is twice the wall clock and a bit.
      file_mb: MiB of the largest file that it may write.
      open_files: descriptors.
      nice: added to the niceness from the first instruction on, so that the API on the same machine stays quick.
    """

    timeout_sec: float = 120.0
    memory_mb: int = 2048
    cpu_sec: int | None = None
    file_mb: int = 1024
    open_files: int = 256
    nice: int = 10


@dataclass(frozen=True)
class Sandbox(Message):
    """What a child applies to itself before it works.

    Args:
      parent: the process without which it must not live.
      progress_fd: the pipe for its progress, JSON lines `[fraction, text]`.
    """

    parent: int
    progress_fd: int
    limits: SandboxLimits


@dataclass(frozen=True)
class Refused(Message):
    """The input cannot be used, and another attempt would change nothing. `error` is `AmprefError.to_dict()`."""

    error: Mapping[str, Any]


@dataclass(frozen=True)
class Failed(Message):
    """The child did not end well, which costs an attempt.

    Args:
      reason: one sentence for people.
      stderr: the end of what it wrote there.
    """

    kind: Literal["timeout", "memory", "crash", "killed", "exception"]
    reason: str
    stderr: str = ""

    def problem(self) -> dict[str, Any]:
        """The failure as JSON-ready facts, of the same shape as an `AmprefError`'s."""
        facts = {"type": f"child-{self.kind}", "title": "The work did not end well", "detail": self.reason}
        return facts | ({"stderr": self.stderr} if self.stderr else {})


@dataclass(frozen=True)
class NoRoom(Message):
    """A disk is full, which is not the input's fault and costs no attempt. `reason` names the folder."""

    reason: str


def no_room(job_dir: Path) -> NoRoom:
    """The job's own folder is removed with the job; the message names the folder above, which the operator knows."""
    return NoRoom(f"no space left for jobs in {job_dir.parent}")


@dataclass(frozen=True)
class HostFault(Message):
    """The machine could not begin the work, or lacks what it needs: not the input's fault, costs no attempt.

    Args:
      reason: one sentence for people.
      stderr: the end of what the child wrote there.
    """

    reason: str
    stderr: str = ""


@dataclass(frozen=True)
class Stopped:
    """The child was killed because the caller asked for it: cancelled, lease lost, shutting down."""


NoReport = Refused | Failed | NoRoom | HostFault | Stopped
"""Why there is no report of the work."""


@dataclass(frozen=True)
class RobotReference:
    """A robot as the catalog names it.

    Args:
      name: of the robot.
      digest: of its model; another model under that name is refused.
      paths: the operator's robot files, where it may be found beside the bundled ones.
    """

    name: str
    digest: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """How the bytes of a clip are read: arguments of `read_motion`."""

    format: str
    fps: float | None
    quat_order: str | None
    limits: Limits


@dataclass(frozen=True)
class ProbeRequest(Message):
    """Show that a child can start and import what a rollout needs."""


@dataclass(frozen=True)
class ProbeReport(Message):
    """It can."""


@dataclass(frozen=True)
class RolloutRequest(Message):
    """Score the clip in `SOURCE` under a recipe, with so many threads of physics."""

    name: str
    source_digest: str
    robot: RobotReference
    reading: Reading
    recipe: Mapping[str, Any]
    threads: int


@dataclass(frozen=True)
class RolloutReport(Message):
    """The scores of a clip; the arrays of score k are in `export_name(k)`.

    Args:
      scores: `Score.to_dict()` of each mode that was tried (one, but in mode `auto`), in order.
      selected: which of them is the clip's.
      triage: what mode `auto` found that the clip lacks; None in other modes.
    """

    scores: tuple[Mapping[str, Any], ...]
    selected: int
    triage: Mapping[str, Any] | None


@dataclass(frozen=True)
class ThumbnailRequest(Message):
    """Draw the thumbnails of some exports, each as `thumbnail_name(k)`.

    Args:
      platform: the GL to draw with.
      exports: their files.
      is_idle: whether to work only where the processor has nothing else to do.
    """

    robot: RobotReference
    platform: str
    exports: tuple[str, ...]
    is_idle: bool = True


@dataclass(frozen=True)
class ThumbnailReport(Message):
    """Of each export why it cannot be drawn, empty where its thumbnail is there."""

    faults: tuple[str, ...]


@dataclass(frozen=True)
class MemberSource:
    """What a member's rollout was generated from: the uploaded bytes, the recipe, the number of the plan (0 without one)."""

    path: str
    reading: Reading
    recipe: Mapping[str, Any]
    attempt: int


@dataclass(frozen=True)
class Member(Candidate, Message):
    """A rollout of a version, as the catalog remembers it; `source` is None where no test needs it."""

    source: MemberSource | None = None


@dataclass(frozen=True)
class _VersionRequest(Message):
    """Work on a version to be, whose members are in `MEMBERS`."""

    name: str
    version: str
    robot: RobotReference


@dataclass(frozen=True)
class VerifyRequest(_VersionRequest):
    """Run the readiness tests of these ids on the members, with so many threads of physics."""

    only: tuple[str, ...]
    threads: int


@dataclass(frozen=True)
class TestFailure:
    """A readiness test that failed."""

    __test__ = False  # Not a test case, whatever pytest makes of the name.

    id: str
    name: str
    reason: str


@dataclass(frozen=True)
class VerifyReport(Message):
    """The tests that failed; the whole report is in `VERIFICATION`."""

    failed: tuple[TestFailure, ...]


@dataclass(frozen=True)
class LockRequest(_VersionRequest):
    """Write the files of a version.

    Args:
      select: the selection that gave the members, as the manifest quotes it.
      verified: whether `VERIFICATION` holds what the readiness tests found; False where the operator turned all of them off.
      waivers: `{test, reason}` of each failure that is waived.
      report_name: the file for the tests' report with its checklist, in `VERSION_FOLDER`.
    """

    select: Mapping[str, Any]
    verified: bool
    waivers: tuple[Mapping[str, str], ...]
    report_name: str


@dataclass(frozen=True)
class LockedFile:
    """A file in `VERSION_FOLDER`: name, bytes and `sha256:…`."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class LockReport(Message):
    """A version's files and what the catalog keeps of it.

    Args:
      files: the artifacts; `manifest` is the name of one of them.
      verification: the tests' report, which is kept beside them.
      readiness: the outcome of the checks and tests, and the checklist.
      coverage: what the frames cover.
      duplicates: the members that were left out, as the manifest has them.
    """

    files: tuple[LockedFile, ...]
    manifest: str
    verification: LockedFile
    dataset_hash: str
    feature_code_hash: str
    num_clips: int
    num_frames: int
    readiness: Mapping[str, Any]
    coverage: Mapping[str, Any]
    duplicates: tuple[Mapping[str, Any], ...] = ()
