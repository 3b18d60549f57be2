"""Every page of the service."""

from __future__ import annotations

from fastapi import APIRouter

from ampref_service.web import clip, clips, compare, home, jobs, lock, login, versions

_MODULES = (home, login, clips, clip, compare, lock, jobs, versions)

router = APIRouter()
for module in _MODULES:
    router.include_router(module.router)

ROUTES = tuple(route for module in _MODULES for route in module.router.routes)
