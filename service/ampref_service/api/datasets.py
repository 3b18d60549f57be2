"""Datasets: what there is, what aliases mean, and what changed between versions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query

from ampref_service.api.dataset_schemas import AliasBody, DatasetList, DatasetView, DiffView, VersionView
from ampref_service.api.deps import CallerDep, ServicesDep
from ampref_service.api.params import AliasName, DatasetName, VersionOrAlias
from ampref_service.api.problems import BODY_STATUSES, responses
from ampref_service.api.strict import make_router
from ampref_service.api.versions import READ, Writer, view_version
from ampref_service.catalog import datasets
from ampref_service.catalog.records import Dataset
from ampref_service.diff import compare_versions
from ampref_service.versions import find_version

router = make_router("datasets")


@router.get("", response_model=DatasetList, responses=responses(), dependencies=READ)
def list_datasets(services: ServicesDep, caller: CallerDep) -> dict[str, list[Dataset]]:
    """Every dataset that has a locked version."""
    with services.catalog.session() as session:
        return {"items": datasets.list_datasets(session, caller.bounds)}


@router.get("/{name}", response_model=DatasetView, responses=responses(404), dependencies=READ)
def get_dataset(name: DatasetName, services: ServicesDep) -> Dataset:
    """A dataset: its locked versions, the highest first, its aliases, and what `latest` means now."""
    with services.catalog.session() as session:
        return datasets.get_dataset(session, name)


@router.get("/{name}/diff", response_model=DiffView, responses=responses(404), dependencies=READ)
def diff_versions(
    name: DatasetName,
    old_name: Annotated[VersionOrAlias, Query(alias="before")],
    new_name: Annotated[VersionOrAlias, Query(alias="after")],
    services: ServicesDep,
) -> dict[str, Any]:
    """Which clips came, went or changed from one version to another."""
    with services.catalog.session() as session:
        old, new = find_version(session, name, old_name), find_version(session, name, new_name)
        diff = compare_versions(session, old, new)
    return {
        **vars(diff),
        "dataset": name,
        "before": old.version,
        "after": new.version,
        "same_features": old.dataset_hash is not None and old.dataset_hash == new.dataset_hash,
        "changed": [{"before": old_share, "after": new_share} for old_share, new_share in diff.changed],
    }


@router.put("/{name}/aliases/{alias}", responses=responses(404, 409, *BODY_STATUSES))
def set_alias(name: DatasetName, alias: AliasName, body: AliasBody, services: ServicesDep, caller: Writer) -> VersionView:
    """Let an alias lead to a locked version; what it led to before stays as it is."""
    with services.catalog.begin() as session:
        version = datasets.set_alias(session, name, alias, body.version, actor=caller.name)
        return view_version(session, version, alias)


@router.delete("/{name}/aliases/{alias}", status_code=204, responses=responses(404, 409))
def delete_alias(name: DatasetName, alias: AliasName, services: ServicesDep, caller: Writer) -> None:
    """Forget an alias; the version that it led to stays."""
    with services.catalog.begin() as session:
        datasets.drop_alias(session, name, alias, actor=caller.name)
