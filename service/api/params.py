"""Types of path segments, query parameters and body fields that several resources share.

Every text has a pattern without control characters: PostgreSQL cannot store NUL, and nobody can read the others.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from amp_core.dataset import check_alias, check_dataset_name, check_version

_ID = StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
_TEXT = r"^[^\x00-\x1f\x7f]+$"

Id = Annotated[str, _ID]
Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f/\\]+$", min_length=1, max_length=120)]
RobotName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", min_length=1, max_length=120)]
Tag = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f,]{1,64}$")]
Mode = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Note = Annotated[str, StringConstraints(pattern=_TEXT, min_length=1, max_length=1000)]
Tier = Literal[0, 1, -1]
TierParam = Annotated[int, Field(ge=-1, le=1)]
"""In a query, where everything is text at first and a Literal of numbers would match nothing."""
Cursor = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_=.-]{1,1000}$")]
Seed = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""As large as every JSON reader keeps exact."""

_DATASET = StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")
_VERSION = StringConstraints(
    pattern=r"^(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})(-[0-9A-Za-z]+([.-][0-9A-Za-z]+)*)?$", max_length=48
)
_ALIAS = StringConstraints(pattern=r"^[a-z]([a-z0-9._-]{0,62}[a-z0-9])?$")


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
    str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$"), Field(description="`0.11.0`, `latest`, or an alias")
]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,128}$")]


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
