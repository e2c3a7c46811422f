"""The job board: requests wait here, workers claim them, everybody can watch.

A claim is a lease that the worker keeps renewing. A worker that dies stops renewing, and its job goes back to
the queue. Every change that a running attempt makes names the attempt, so that a process left over from an
earlier one can no longer touch the job.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Update, and_, or_, select, update
from sqlalchemy.exc import IntegrityError

from mixwright.errors import ConflictError, JobError, MixwrightError, NotFoundError
from mixwright.fingerprint import fingerprint
from mixwright.jobs.database import Database, JobRow
from mixwright.jobs.pages import Page, decode_cursor, encode_cursor
from mixwright.schemas.jobs import Job, JobProgress, JobResult, JobState
from mixwright.schemas.manifests import Manifest

MAX_ATTEMPTS = 3
LEASE = timedelta(seconds=15)
"""How long a job stays claimed without a heartbeat."""

_ACTIVE: tuple[JobState, ...] = ("queued", "running")


class Claim(NamedTuple):
    """The right to run a job: lost when the lease ends without a heartbeat."""

    job_id: str
    attempt: int


def log_path(home: Path, job_id: str) -> Path:
    """The log file of a job."""
    return home / "jobs" / f"{job_id}.log"


class Board:
    """The job board in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Everybody

    def submit(self, request: dict[str, Any], inputs_state: str | None = None) -> Job:
        """Put a request (JSON with its ``kind``) on the board.

        The same request that is queued or running is the same job; so is one that succeeded, if
        ``inputs_state`` (see ``jobs.inputs``) is known and what it reads has not changed since.
        """
        identity = fingerprint("job", [], request)
        row = _new_row(request, identity, inputs_state)
        job = _job(row)
        try:
            with self._database.writing() as session:
                earlier = session.scalars(_same_request(identity, inputs_state)).first()
                if earlier is not None:
                    return _job(earlier)
                session.add(row)
        except IntegrityError:
            # Another process submitted the same request between our look and our write.
            with self._database.reading() as session:
                return _job(session.scalars(_same_request(identity, inputs_state)).one())
        return job

    def get(self, job_id: str) -> Job:
        """One job; raises NotFoundError."""
        with self._database.reading() as session:
            # PostgreSQL holds no NUL characters, and refuses to look for one.
            row = None if "\0" in job_id else session.get(JobRow, job_id)
            if row is None:
                raise NotFoundError(f"no job {job_id}: list the jobs to see which there are")
            return _job(row)

    def page(
        self, limit: int, cursor: str | None = None, state: JobState | None = None, kind: str | None = None
    ) -> Page[Job]:
        """Jobs, newest first; raises ConfigError for a cursor that is not from an earlier page."""
        query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)
        if state is not None:
            query = query.where(JobRow.state == state)
        if kind is not None:
            query = query.where(JobRow.kind == kind)
        if cursor is not None:
            created_at, job_id = decode_cursor(cursor, (datetime, str))
            query = query.where(
                or_(JobRow.created_at < created_at, and_(JobRow.created_at == created_at, JobRow.id < job_id))
            )
        with self._database.reading() as session:
            jobs = [_job(row) for row in session.scalars(query)]
        more = len(jobs) > limit
        last = jobs[limit - 1] if more else None
        return Page(items=jobs[:limit], next_cursor=encode_cursor(last.created_at, last.id) if last else None)

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, a running one as soon as its worker sees it.

        Cancelling twice is fine. Raises NotFoundError, ConflictError if the job has ended otherwise.
        """
        self.get(job_id)
        self._update(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.state == "queued")
            .values(cancel_requested=True, **_ended("cancelled"))
        )
        self._update(
            update(JobRow).where(JobRow.id == job_id, JobRow.state == "running").values(cancel_requested=True)
        )
        job = self.get(job_id)
        if job.is_final and job.state != "cancelled":
            raise ConflictError(
                f"job {job_id} has {job.state} and cannot be cancelled: submit it again to rerun it"
            )
        return job

    # Workers

    def claim(self, owner: str) -> Claim | None:
        """Claim the oldest queued job; None if there is none. Safe with any number of workers."""
        self.requeue_expired()
        while True:
            with self._database.reading() as session:
                oldest = select(JobRow.id, JobRow.attempts).where(JobRow.state == "queued")
                found = session.execute(oldest.order_by(JobRow.created_at, JobRow.id).limit(1)).first()
            if found is None:
                return None
            now = datetime.now(UTC)
            claimed = self._update(
                update(JobRow)
                .where(JobRow.id == found.id, JobRow.state == "queued", JobRow.attempts == found.attempts)
                .values(
                    state="running",
                    owner=owner,
                    attempts=found.attempts + 1,
                    lease_until=now + LEASE,
                    started_at=now,
                    progress=None,
                )
            )
            if claimed:
                return Claim(found.id, found.attempts + 1)

    def heartbeat(self, claim: Claim) -> bool:
        """Renew the lease; False if the job is not this attempt's any more."""
        return self._update(_held(claim).values(lease_until=datetime.now(UTC) + LEASE))

    def report(self, claim: Claim, progress: JobProgress) -> bool:
        """Store the progress; False if the job is not this attempt's any more."""
        return self._update(_held(claim).values(progress=progress.model_dump()))

    def succeed(self, claim: Claim, manifest: Manifest) -> bool:
        """Store the result; False if the job is not this attempt's any more."""
        result = JobResult(kind=manifest.kind, ref=manifest.ref, fingerprint=manifest.fingerprint)
        return self._update(_held(claim).values(result=result.model_dump(), **_ended("succeeded")))

    def fail(self, claim: Claim, error: MixwrightError) -> bool:
        """Store why the job failed; False if the job is not this attempt's any more."""
        return self._update(_held(claim).values(error=error.problem(), **_ended("failed")))

    def end_cancelled(self, claim: Claim) -> bool:
        """The job was stopped because somebody asked for it."""
        return self._update(_held(claim).values(**_ended("cancelled")))

    def release(self, claim: Claim) -> bool:
        """Put a job back into the queue: its worker goes away, through no fault of the job."""
        return self._update(
            _held(claim).values(
                state="queued", attempts=JobRow.attempts - 1, owner=None, lease_until=None, progress=None
            )
        )

    def requeue_expired(self) -> None:
        """Put jobs whose worker stopped renewing its lease back into the queue, at most MAX_ATTEMPTS times."""
        expired = and_(JobRow.state == "running", JobRow.lease_until < datetime.now(UTC))
        with self._database.reading() as session:
            if session.scalars(select(JobRow.id).where(expired).limit(1)).first() is None:
                return
        died = JobError(
            f"the job's worker died {MAX_ATTEMPTS} times while running it: read the job's log, give it more "
            "memory or less work, and submit it again"
        )
        self._update(update(JobRow).where(expired, JobRow.cancel_requested).values(**_ended("cancelled")))
        self._update(
            update(JobRow)
            .where(expired, JobRow.attempts >= MAX_ATTEMPTS)
            .values(error=died.problem(), **_ended("failed"))
        )
        self._update(
            update(JobRow).where(expired).values(state="queued", owner=None, lease_until=None, progress=None)
        )

    def _update(self, statement: Update) -> bool:
        """Run one conditional UPDATE in its own transaction; True if it changed a row."""
        with self._database.writing() as session:
            return bool(session.connection().execute(statement).rowcount)


def _new_row(request: dict[str, Any], identity: str, inputs_state: str | None) -> JobRow:
    return JobRow(
        id=secrets.token_hex(8),
        kind=request["kind"],
        request={field: value for field, value in request.items() if field != "kind"},
        request_fingerprint=identity,
        active_fingerprint=identity,
        inputs_state=inputs_state,
        state="queued",
        attempts=0,
        cancel_requested=False,
        created_at=datetime.now(UTC),
    )


def _same_request(identity: str, inputs_state: str | None) -> Any:
    same: ColumnElement[bool] = JobRow.active_fingerprint == identity
    if inputs_state is not None:
        done = and_(JobRow.state == "succeeded", JobRow.request_fingerprint == identity)
        same = or_(same, and_(done, JobRow.inputs_state == inputs_state))
    return select(JobRow).where(same).order_by(JobRow.created_at.desc())


def _held(claim: Claim) -> Update:
    return update(JobRow).where(
        JobRow.id == claim.job_id, JobRow.state == "running", JobRow.attempts == claim.attempt
    )


def _ended(state: JobState) -> dict[str, Any]:
    return {
        "state": state,
        "active_fingerprint": None,
        "owner": None,
        "lease_until": None,
        "finished_at": datetime.now(UTC),
    }


def _job(row: JobRow) -> Job:
    return Job.model_validate({name: getattr(row, name) for name in Job.model_fields})
