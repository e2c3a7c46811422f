"""Health: is the process up, can it work, and how much does it do."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from mixwright.errors import UnavailableError
from mixwright.service.metrics import CONTENT_TYPE
from mixwright.service.problems import problem_responses
from mixwright.service.readiness import State
from mixwright.service.state import ServicesDep

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Everything that requests need is there."""

    status: Literal["ready"] = "ready"
    database: Literal["ok"]
    store: Literal["ok"]
    worker: Literal["ok", "off"]
    ray: Literal["ok", "on demand"] = Field(description="on demand: a job starts a Ray of its own")


class NotReadyError(UnavailableError):
    """Parts of the service do not work, or it is about to stop; the problem document names the state of each."""

    title = "Not ready"

    def __init__(self, message: str, states: dict[str, str]) -> None:
        super().__init__(message)
        self.states = states

    def extras(self) -> dict[str, str]:
        return self.states


@router.get("/healthz", name="get_health", summary="Is the service up?")
def health() -> Health:
    """Answers as long as the process does."""
    return Health()


@router.get("/readyz", name="get_readiness", summary="Can the service work?", responses=problem_responses(503))
def readiness(services: ServicesDep) -> Ready:
    """Asks the database, the store, the worker and Ray, each for two seconds at most and once a second.

    503 names what does not work; its problem document has a member for each part. Once the service was told to
    stop it is not ready any more, so that load balancers send nothing new.
    """
    states = services.readiness.states()
    texts = {name: state.text for name, state in states.items()}
    if services.life.stopping:
        raise NotReadyError("the service is about to stop: ask another one, or again in a while", texts)
    if not all(state.ok for state in states.values()):
        raise NotReadyError(_broken(states), texts)
    return Ready.model_validate(texts)


def _broken(states: dict[str, State]) -> str:
    return "; ".join(f"the {name} {state.text}" for name, state in states.items() if not state.ok)


@router.get(
    "/metrics",
    name="get_metrics",
    summary="Metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format", "content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}
    },
)
def metrics(services: ServicesDep) -> Response:
    """What the service does, for Prometheus: requests, streams, searches, jobs, and what is up."""
    return Response(services.metrics.exposition(), media_type=CONTENT_TYPE)
