"""Types of path segments, query parameters and body fields that several resources share.

Every text has a pattern without control characters: PostgreSQL cannot store NUL, and the others are not readable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from amp_core.dataset.names import check_alias, check_dataset_name, check_version
from amp_core.recipe import GENERATED_MODES, MODES
from ampref_service.api.wording import EXPECTED


def text_field(pattern: str, expected: str, *, values: Sequence[str] = (), **constraints: Any) -> Any:
    """A field of text that matches `pattern`; errors describe it by `expected`, which the OpenAPI document has beside it.

    Args:
      values: for the document, what there is; what reads the text says more about another one than a type could.
    """
    extra: dict[str, Any] = {EXPECTED: expected, **({"enum": list(values)} if values else {})}
    return Field(pattern=pattern, json_schema_extra=extra, **constraints)


def _validator(check: Callable[[str], object]) -> AfterValidator:
    # The rules proper are those of amp_core; the patterns here tell OpenAPI about them.
    def validate(value: str) -> str:
        try:
            check(value)
        except Exception as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(validate)


_CURSOR = "the `next_cursor` of the page before, unchanged"

Id = Annotated[str, text_field(r"^[A-Za-z0-9_.-]{1,64}$", "an id as the service gave it, for example clip_01k8m3")]
IdOrKeyName = Annotated[str, text_field(r"^[A-Za-z0-9_.@-]{1,64}$", "a key's id or name, for example alice-laptop")]
Name = Annotated[
    str,
    text_field(
        r"^[^\x00-\x1f\x7f/\\]+$",
        "a name without slashes, line breaks or control characters, for example walk_slow",
        min_length=1,
        max_length=120,
    ),
]
PRINTABLE = text_field(r"^[^\x00-\x1f\x7f]+$", "text without line breaks or control characters", min_length=1)
RobotName = Annotated[str, PRINTABLE, Field(max_length=120)]
Note = Annotated[str, PRINTABLE, Field(max_length=1000)]
Tag = Annotated[
    str,
    text_field(
        r"^[^\x00-\x1f\x7f,]{1,64}$", "a tag of 1 to 64 characters without commas or control characters, for example slow"
    ),
]
Priority = Annotated[
    int, Field(ge=-10, le=10, description="Among the caller's own jobs: a higher one is scored earlier; default 0.")
]
Mode = Annotated[str, text_field(r"^[a-z_]{1,32}$", "the name of a mode, for example rollout", values=MODES)]
GeneratedMode = Annotated[str, Field(json_schema_extra={"enum": list(GENERATED_MODES)})]
"""Of a rollout that there is."""
Digest = Annotated[str, text_field(r"^sha256:[0-9a-f]{64}$", "a digest: sha256: and 64 lower-case hex digits")]
Tier = Literal[0, 1, -1]
LockableTier = Literal[0, 1]
"""What may be in a version; a Rejected clip teaches nothing."""
TierParam = Annotated[int, Field(ge=-1, le=1)]
"""In a query, where every value is text at first and a Literal of numbers would match none."""
Cursor = Annotated[str, text_field(r"^[A-Za-z0-9_=.-]{1,1000}$", _CURSOR)]
Position = Annotated[str, text_field(r"^[0-9]{1,9}$", _CURSOR)]
"""A cursor in a list that never changes: the place of the last item."""
Seed = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""As large as every JSON reader keeps exact."""

DatasetName = Annotated[
    str,
    text_field(
        r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$",
        "a dataset name: 1 to 64 lower-case letters, digits, '.', '_' or '-', beginning and ending with a letter or digit, "
        "for example walk",
    ),
    _validator(check_dataset_name),
]
ExactVersion = Annotated[
    str,
    text_field(
        r"^(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})(-[0-9A-Za-z]+([.-][0-9A-Za-z]+)*)?$",
        "a version MAJOR.MINOR.PATCH without a leading v, for example 0.11.0 or 0.12.0-rc.1",
        max_length=48,
    ),
    _validator(check_version),
]
AliasName = Annotated[
    str,
    text_field(
        r"^[a-z]([a-z0-9._-]{0,62}[a-z0-9])?$",
        "an alias: a lower-case letter, then lower-case letters, digits, '.', '_' or '-', for example production",
    ),
    _validator(check_alias),
]
VersionOrAlias = Annotated[
    str,
    text_field(
        r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$",
        "a version such as 0.11.0, `latest`, or an alias such as production",
        description="`0.11.0`, `latest`, or an alias",
    ),
]
FileName = Annotated[
    str, text_field(r"^[A-Za-z0-9._-]{1,128}$", "a file's name as the version lists it, for example features_v0.11.0.npz")
]


Time = Annotated[
    datetime, BeforeValidator(lambda value: datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else value)
]
"""UTC, as RFC 3339 text in JSON; the catalog keeps epoch seconds."""

Metrics = dict[str, float | int | None]
"""By the names of `GET /v1/schema/metrics`; null where a metric does not apply or could not be computed."""


class View(BaseModel):
    """A response that is read from a record: an endpoint may return the record itself, for which FastAPI makes the view."""

    model_config = ConfigDict(from_attributes=True)


class Body(BaseModel):
    """A request body; a key that it does not have is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _take_whole_float(cls, value: Any, info: ValidationInfo) -> Any:
        # To JSON Schema, and so to the OpenAPI document, 285.0 is an integer.
        is_whole = isinstance(value, float) and value.is_integer()
        return int(value) if is_whole and cls.model_fields[str(info.field_name)].annotation in (int, int | None) else value
