"""Workers: who scores, with which robots, and why one does not."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from ampref_service.api.deps import CallerDep, ServicesDep, needs
from ampref_service.api.params import Time, View
from ampref_service.api.problems import responses
from ampref_service.api.strict import make_router
from ampref_service.catalog import worker_rows
from ampref_service.catalog.records import Worker

router = make_router("workers", dependencies=[needs("jobs:read")])


class WorkerView(View):
    """A process that runs jobs."""

    id: str
    name: str = Field(description="`HOST:PID`, the beginning of a job's `worker`.")
    host: str
    pid: int
    release: str = Field(description="Of this software.")
    robots: dict[str, str] = Field(description="What is installed there: name and digest.")
    concurrency: int = Field(description="Jobs that it runs at a time.")
    state: Literal["working", "paused", "stopping"] = Field(
        description="`paused`: its machine failed; it takes no job until a probe goes well."
    )
    reason: str | None = Field(description="Why it is paused.")
    live: bool = Field(description="Whether it was seen in the last 30 s.")
    jobs: int = Field(description="Attempts that ended there and say nothing against its machine.")
    host_faults: int = Field(description="Jobs that it gave back because its machine failed.")
    started_at: Time
    seen_at: Time


class WorkerList(BaseModel):
    """Every worker that was seen within a day and did not end in order, the newest first."""

    items: list[WorkerView]


@router.get("", response_model=WorkerList, responses=responses())
def list_workers(services: ServicesDep, caller: CallerDep) -> dict[str, list[Worker]]:
    """Who runs jobs of the robots that the caller may reach."""
    with services.catalog.session() as session:
        return {"items": worker_rows.list_workers(session, caller.bounds)}
