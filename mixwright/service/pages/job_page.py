"""The page of a job: how far it is, what it made, or what went wrong."""

from __future__ import annotations

import json
from typing import get_args

from mixwright.jobs.run import AnyRequest
from mixwright.schemas.jobs import Job, JobState
from mixwright.service.pages.html import render
from mixwright.service.pages.lineage_view import page_address

JOB_STATES: tuple[JobState, ...] = get_args(JobState)
JOB_KINDS: tuple[str, ...] = tuple(
    sorted(get_args(each.model_fields["kind"].annotation)[0] for each in get_args(get_args(AnyRequest)[0]))
)
LOG_LINES = 200


def job_page(job: Job, log: str) -> str:
    """The job as it is now, with the end of its log; a script follows it from there."""
    return render(
        "job.html",
        section="jobs",
        crumbs=(("Catalog", "/"), ("Jobs", "/jobs")),
        scripts=() if job.is_final else ("job.js",),
        job=job,
        named=job.request.get("name") or job.request.get("corpus") or job.request.get("datastore"),
        log=log,
        request_rows=_request_rows(job),
        commands=_commands(job),
        page_address=page_address,
    )


def _request_rows(job: Job) -> list[tuple[str, str]]:
    """The fields that say something, as JSON."""
    told = {name: value for name, value in job.request.items() if value not in (None, [], {})}
    return [(name, json.dumps(value, ensure_ascii=False)) for name, value in told.items()]


def _commands(job: Job) -> list[str]:
    commands = [f"mixwright jobs show {job.id}", f"mixwright jobs logs {job.id}"]
    if not job.is_final:
        commands.append(f"mixwright jobs cancel {job.id}")
    return ["\n".join(commands)]
