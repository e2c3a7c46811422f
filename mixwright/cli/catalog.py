"""``mixwright catalog`` and ``mixwright jobs``: what is published, and what is being done."""

from __future__ import annotations

from typing import Annotated

import typer

from mixwright.cli.common import Home, Json, open_board, open_catalog, open_store
from mixwright.cli.output import print_json, print_table

catalog_app = typer.Typer(name="catalog", help="Published artifacts of every kind.", no_args_is_help=True)
jobs_app = typer.Typer(name="jobs", help="The job board of the service.", no_args_is_help=True)

Ref = Annotated[str, typer.Argument(metavar="REF", help="name, name@version or kind:name@version.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")]


@catalog_app.command("list")
def list_artifacts(home: Home = None, json: Json = False) -> None:
    """List every artifact."""
    _, store = open_store(home)
    fields = ("kind", "ref", "fingerprint", "created_at")
    found = [{field: getattr(each, field) for field in fields} for each in store.manifests()]
    if json:
        print_json(found)
        return
    rows = [(e["kind"], e["ref"], e["fingerprint"][:12], f"{e['created_at']:%Y-%m-%d %H:%M}") for e in found]
    print_table(("kind", "artifact", "fingerprint", "created"), rows)


@catalog_app.command("show")
def show_artifact(ref: Ref, home: Home = None) -> None:
    """Print the manifest of an artifact, as JSON."""
    _, store = open_store(home)
    manifest = store.manifest(ref)
    print_json({"ref": manifest.ref} | manifest.model_dump(mode="json"))


@catalog_app.command()
def lineage(ref: Ref, home: Home = None, json: Json = False) -> None:
    """What an artifact was made from, and what was made from it."""
    settings, store = open_store(home)
    manifest = store.manifest(ref)
    with open_catalog(settings) as catalog:
        found = catalog.lineage(manifest.ref, manifest.kind)
    if json:
        print_json(found.model_dump())
        return
    print_table(("from", "to"), [(edge.source, edge.target) for edge in found.edges])


@catalog_app.command()
def rebuild(home: Home = None, json: Json = False) -> None:
    """Make the catalog's database anew from the manifests."""
    settings, _ = open_store(home)
    with open_catalog(settings) as catalog:
        count = catalog.rebuild()
    if json:
        print_json({"artifacts": count})
        return
    typer.echo(f"the catalog holds {count} artifacts")


@catalog_app.command()
def gc(home: Home = None, json: Json = False) -> None:
    """Remove what interrupted jobs left behind. An interrupted embedding starts from the beginning then."""
    _, store = open_store(home)
    removed = store.collect_garbage()
    if json:
        print_json({"removed": removed})
        return
    typer.echo(f"removed {removed} leftovers of interrupted work")


@jobs_app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(help="Newest jobs to list.", min=1, max=1000)] = 50,
    home: Home = None,
    json: Json = False,
) -> None:
    """List the jobs, newest first."""
    settings, _ = open_store(home)
    with open_board(settings) as board:
        jobs = board.page(limit).items
    if json:
        print_json([job.model_dump(mode="json") for job in jobs])
        return
    rows = [
        (job.id, job.kind, job.state, job.result.ref if job.result else "", f"{job.created_at:%Y-%m-%d %H:%M:%S}")
        for job in jobs
    ]
    print_table(("job", "kind", "state", "result", "created"), rows)


@jobs_app.command("show")
def show_job(job_id: JobId, home: Home = None) -> None:
    """Print a job as JSON: request, state, progress, result or error."""
    settings, _ = open_store(home)
    with open_board(settings) as board:
        print_json(board.get(job_id).model_dump(mode="json"))


@jobs_app.command("cancel")
def cancel_job(job_id: JobId, home: Home = None) -> None:
    """Cancel a job; a running one stops within seconds."""
    settings, _ = open_store(home)
    with open_board(settings) as board:
        job = board.cancel(job_id)
    typer.echo(f"{job.id}: {'stopping' if job.state == 'running' else job.state}")


@jobs_app.command("logs")
def show_logs(job_id: JobId, home: Home = None) -> None:
    """Print the log of a job."""
    from mixwright.jobs.board import log_path

    settings, _ = open_store(home)
    with open_board(settings) as board:
        board.get(job_id)
    path = log_path(settings.home, job_id)
    text = path.read_text(errors="replace") if path.exists() else "no log yet: the job has not begun\n"
    typer.echo(text, nl=False)


@jobs_app.command("run", hidden=True)
def run_job(job_id: JobId, home: Home = None) -> None:
    """Run a job that a worker has claimed: what the worker starts as a process of its own."""
    from mixwright.jobs.worker import run_claimed_job

    settings, _ = open_store(home)
    raise typer.Exit(run_claimed_job(settings, job_id))
