"""Errors for people.

Every error tells what was wrong, where it is, what was expected and what to do next. One class has all of it, so that the
command line, the HTTP API and the job table show the same facts.

    AmprefError
    ├── InputRefused            the caller's input cannot be used (HTTP 4xx, exit 1)
    │   ├── MotionRefused       a motion file or its contents
    │   ├── RecipeRefused       a recipe, mode or physics scale
    │   ├── RobotRefused        a robot.yaml or its MJCF
    │   └── PolicyRefused       a policy's model, its observation spec, or what it answers
    ├── NotFound                no such clip, job, dataset or version
    ├── FileGone                it was there, and was deleted on purpose
    ├── Conflict                it exists already, is locked, or is in use
    ├── Unauthorized            no key, or one that is not valid
    ├── Forbidden               the key does not permit this
    ├── QuotaExceeded           the key has used up what it may
    ├── TooLarge                over a configured limit
    ├── IntegrityError          bytes that do not have the expected digest
    ├── FeatureCodeMismatch     this machine computes features with other code than the version was locked with
    ├── NotReady                a locked version that is not ready for training
    ├── Unavailable             a server, broker or blob store cannot be reached
    │   ├── Busy                the service has no room for another request at the moment
    │   └── DiskFull            a folder has no room left
    ├── EngineRefused           the installed MuJoCo is mixed or not of a supported version
    └── PhysicsFailed           a simulation could not be run to its end
"""

from __future__ import annotations

from typing import Any


def name_key(key: str) -> str:
    """A key as a place: quoted, but for the header that holds a key of another sort."""
    return "the Authorization header" if key == "authorization" else f"key {key!r}"


class AmprefError(Exception):
    """An error with its place and remedy.

    Args:
      what: what was wrong, as one sentence without a full stop.
      file: the file that has it.
      key: the key, column or field.
      frame: the first offending frame (0-based).
      expected: what would have been right.
      remedy: what to do next.
    """

    slug = "error"
    title = "Something went wrong"
    status = 500

    def __init__(
        self,
        what: str,
        *,
        file: str | None = None,
        key: str | None = None,
        frame: int | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.file = file
        self.key = key
        self.frame = frame
        self.expected = expected
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        key = name_key(self.key) if self.key is not None else None
        frame = f"frame {self.frame}" if self.frame is not None else None
        place = ", ".join(filter(None, (self.file, key, frame)))
        text = f"{place}: {self.what}" if place else self.what
        if self.expected:
            text += f"; expected {self.expected}"
        if self.remedy:
            text += f". {self.remedy}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON-ready facts: `type` (the slug), `title`, `detail`, `what`, and the other attributes that it has."""
        facts: dict[str, Any] = {"type": self.slug, "title": self.title, "detail": str(self), "what": self.what}
        for name in ("file", "key", "frame", "expected", "remedy"):
            value = getattr(self, name)
            if value is not None:
                facts[name] = value
        return facts


class InputRefused(AmprefError):
    slug = "input-refused"
    title = "The input cannot be used"
    status = 422


class MotionRefused(InputRefused):
    slug = "motion-refused"
    title = "The motion cannot be used"


class RecipeRefused(InputRefused):
    slug = "recipe-refused"
    title = "The recipe cannot be used"


class RobotRefused(InputRefused):
    slug = "robot-refused"
    title = "The robot cannot be used"


class PolicyRefused(InputRefused):
    slug = "policy-refused"
    title = "The policy cannot be used"


class NotFound(AmprefError):
    slug = "not-found"
    title = "Not found"
    status = 404


class FileGone(AmprefError):
    slug = "gone"
    title = "No longer kept"
    status = 410


class Conflict(AmprefError):
    slug = "conflict"
    title = "In conflict with what is there"
    status = 409


class Unauthorized(AmprefError):
    slug = "unauthorized"
    title = "A valid key is needed"
    status = 401


class Forbidden(AmprefError):
    slug = "forbidden"
    title = "The key does not permit this"
    status = 403


class QuotaExceeded(AmprefError):
    """The key has used up what it may; `retry_after_sec` says when that may have changed."""

    slug = "quota"
    title = "Over a quota of the key"
    status = 429
    retry_after_sec = 60.0


class TooLarge(AmprefError):
    slug = "too-large"
    title = "Over a limit"
    status = 413


class IntegrityError(AmprefError):
    slug = "integrity"
    title = "The bytes are not what was promised"


class FeatureCodeMismatch(AmprefError):
    slug = "feature-code-mismatch"
    title = "Other feature code than the version was locked with"
    status = 409


class NotReady(AmprefError):
    slug = "not-ready"
    title = "The version is not ready for training"
    status = 409


class Unavailable(AmprefError):
    slug = "unavailable"
    title = "Not reachable"
    status = 503


class Busy(Unavailable):
    slug = "busy"
    title = "Too much at once"


class DiskFull(Unavailable):
    """A folder has no room left; a worker blames no clip for it."""

    slug = "disk-full"
    title = "No space left"


class EngineRefused(AmprefError):
    slug = "engine-refused"
    title = "The installed MuJoCo cannot be used"


class PhysicsFailed(AmprefError):
    slug = "physics-failed"
    title = "The simulation could not be run"
