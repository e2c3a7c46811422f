"""Health: is the process up, and can it work."""

from __future__ import annotations

import os
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from mixwright.service.problems import problem_responses
from mixwright.service.state import Services, ServicesDep

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Everything that requests need is there."""

    status: Literal["ready"] = "ready"
    database: Literal["ok"] = "ok"
    store: Literal["ok"] = "ok"
    worker: Literal["ok", "off"]


@router.get("/healthz", name="get_health", summary="Is the service up?")
def health() -> Health:
    """Answers as long as the process does."""
    return Health()


@router.get("/readyz", name="get_readiness", summary="Can the service work?", responses=problem_responses(503))
def readiness(services: ServicesDep) -> Readiness:
    """Checks the database, the store and the worker; 503 names what does not work."""
    broken = _broken(services)
    if broken:
        raise HTTPException(503, "; ".join(broken))
    return Readiness(worker="off" if services.worker is None else "ok")


def _broken(services: Services) -> list[str]:
    broken = []
    try:
        services.database.check()
    except SQLAlchemyError:
        broken.append("the database does not answer: check MIXWRIGHT_DATABASE_URL and the home folder")
    if not os.access(services.store.home, os.R_OK | os.W_OK | os.X_OK):
        broken.append(
            f"the store {services.store.home} cannot be written: check that the folder is there and whose"
        )
    if services.worker is not None and not services.worker.alive:
        broken.append("the job worker has stopped: read the service's log and restart it")
    return broken
