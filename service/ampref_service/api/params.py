"""Types of path segments, query parameters and body fields that several resources share.

Every text has a pattern without control characters: PostgreSQL cannot store NUL, and nobody can read the others.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from amp_core.dataset.names import check_alias, check_dataset_name, check_version

# `ampref_service.api.faults` has words for each of these.
ID_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"
NAME_PATTERN = r"^[^\x00-\x1f\x7f/\\]+$"
TEXT_PATTERN = r"^[^\x00-\x1f\x7f]+$"
TAG_PATTERN = r"^[^\x00-\x1f\x7f,]{1,64}$"
MODE_PATTERN = r"^[a-z_]{1,32}$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
CURSOR_PATTERN = r"^[A-Za-z0-9_=.-]{1,1000}$"
POSITION_PATTERN = r"^[0-9]{1,9}$"
DATASET_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"
VERSION_PATTERN = r"^(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})(-[0-9A-Za-z]+([.-][0-9A-Za-z]+)*)?$"
ALIAS_PATTERN = r"^[a-z]([a-z0-9._-]{0,62}[a-z0-9])?$"
VERSION_OR_ALIAS_PATTERN = r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$"
FILE_PATTERN = r"^[A-Za-z0-9._-]{1,128}$"

_ID = StringConstraints(pattern=ID_PATTERN)

Id = Annotated[str, _ID]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=120)]
RobotName = Annotated[str, StringConstraints(pattern=TEXT_PATTERN, min_length=1, max_length=120)]
Tag = Annotated[str, StringConstraints(pattern=TAG_PATTERN)]
Mode = Annotated[str, StringConstraints(pattern=MODE_PATTERN)]
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
Note = Annotated[str, StringConstraints(pattern=TEXT_PATTERN, min_length=1, max_length=1000)]
Tier = Literal[0, 1, -1]
LockableTier = Literal[0, 1]
"""What may be in a version; a Rejected clip teaches nothing."""
TierParam = Annotated[int, Field(ge=-1, le=1)]
"""In a query, where everything is text at first and a Literal of numbers would match nothing."""
Cursor = Annotated[str, StringConstraints(pattern=CURSOR_PATTERN)]
Position = Annotated[str, StringConstraints(pattern=POSITION_PATTERN)]
"""A cursor in a list that never changes: the place of the last item."""
Seed = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""As large as every JSON reader keeps exact."""

_DATASET = StringConstraints(pattern=DATASET_PATTERN)
_VERSION = StringConstraints(pattern=VERSION_PATTERN, max_length=48)
_ALIAS = StringConstraints(pattern=ALIAS_PATTERN)


def _checked(check: Any) -> AfterValidator:
    # The rules proper are amp_core's; the patterns above only tell OpenAPI about them.
    def validate(value: str) -> str:
        try:
            check(value)
        except Exception as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(validate)


DatasetName = Annotated[str, _DATASET, _checked(check_dataset_name)]
ExactVersion = Annotated[str, _VERSION, _checked(check_version)]
AliasName = Annotated[str, _ALIAS, _checked(check_alias)]
VersionOrAlias = Annotated[
    str, StringConstraints(pattern=VERSION_OR_ALIAS_PATTERN), Field(description="`0.11.0`, `latest`, or an alias")
]
FileName = Annotated[str, StringConstraints(pattern=FILE_PATTERN)]


def _from_epoch(value: Any) -> Any:
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else value


Time = Annotated[datetime, BeforeValidator(_from_epoch)]
"""UTC, as RFC 3339 text in JSON; the catalog keeps epoch seconds."""

Metrics = dict[str, float | int | None]
"""By the names of `GET /v1/schema/metrics`; null where a metric does not apply or could not be computed."""


class View(BaseModel):
    """A response that is read off a catalog record."""

    model_config = ConfigDict(from_attributes=True)


class Body(BaseModel):
    """A request body; a key that it does not know is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)
