"""Errors that people read.

Every refusal says what was wrong, where it is, what was expected and what to do next. One class carries all of it, so the
command line, the HTTP API and the job table show the same facts.

    AmprefError
    ├── InputRefused            the caller's input cannot be used (HTTP 4xx, exit 1)
    │   ├── MotionRefused       a motion file or its contents
    │   ├── RecipeRefused       a recipe, mode or physics scale
    │   └── RobotRefused        a robot.yaml or its MJCF
    ├── NotFound                no such clip, job, dataset or version
    ├── Conflict                it exists already, is locked, or is held by something
    ├── TooLarge                over a configured limit
    ├── IntegrityError          bytes that do not have the digest that was promised
    ├── FeatureCodeMismatch     this machine computes features with other code than the version was locked with
    ├── Unavailable             a server, broker or blob store cannot be reached
    │   └── DiskFull            a folder has no room left; nobody's fault but the machine's
    ├── EngineRefused           the installed MuJoCo is mixed or not of a supported version
    └── PhysicsFailed           a simulation could not be run to its end
"""

from __future__ import annotations

from typing import Any


class AmprefError(Exception):
    """An error with everything that its reader needs.

    Args:
      what: what was wrong, as one sentence without a full stop.
      file: the file it was found in.
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
        where = ", ".join(
            part
            for part in (
                self.file,
                f"key {self.key!r}" if self.key is not None else None,
                f"frame {self.frame}" if self.frame is not None else None,
            )
            if part
        )
        text = f"{where}: {self.what}" if where else self.what
        if self.expected:
            text += f"; expected {self.expected}"
        if self.remedy:
            text += f". {self.remedy}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON-ready facts: `type` (the slug), `title`, `detail` and whichever of the places are known."""
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


class NotFound(AmprefError):
    slug = "not-found"
    title = "Not found"
    status = 404


class Conflict(AmprefError):
    slug = "conflict"
    title = "In conflict with what is there"
    status = 409


class TooLarge(AmprefError):
    slug = "too-large"
    title = "Over a limit"
    status = 413


class IntegrityError(AmprefError):
    slug = "integrity"
    title = "The bytes are not what was promised"
    status = 500


class FeatureCodeMismatch(AmprefError):
    slug = "feature-code-mismatch"
    title = "Other feature code than the version was locked with"
    status = 409


class Unavailable(AmprefError):
    slug = "unavailable"
    title = "Not reachable"
    status = 503


class DiskFull(Unavailable):
    """No room is left in a folder. Over HTTP it is `unavailable`, like its parent; to a worker no clip is to blame for it."""

    title = "No space left"


class EngineRefused(AmprefError):
    slug = "engine-refused"
    title = "The installed MuJoCo cannot be used"


class PhysicsFailed(AmprefError):
    slug = "physics-failed"
    title = "The simulation could not be run"
    status = 500
