"""`rayhook jobs ...`: the analyses of an installation, from the command line of the machine that holds it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rayhook.deploy.account_commands import AGENT
from rayhook.fhir.errors import InvalidRequest

if TYPE_CHECKING:
    from rayhook.smart_app.job_acts import JobActs

app = typer.Typer(no_args_is_help=True, help="Show the analyses, and have failed ones tried again.")

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]

out = Console()


@app.command("list")
def list_jobs(data_dir: DataDir = None) -> None:
    """Print how many analyses there are in each state, and those that ended without a result."""
    with _opened(data_dir) as acts:
        found = acts.overview(agent=AGENT)
    out.print(", ".join(f"{count} {state}" for state, count in found.counts.items()), highlight=False)
    table = Table("id", "EHR", "state", "code", "attempts", "ended", "request", "retry")
    for job in found.jobs:
        ended = f"{datetime.fromtimestamp(job.ended_at, UTC):%Y-%m-%d %H:%M:%S}"
        may = "yes" if job.may_retry else ""
        table.add_row(job.id, job.ehr_id, job.state, job.code, str(job.attempts), ended, job.request_id, may)
    out.print(table)


@app.command("retry")
def retry(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the jobs.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All that may be tried again.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Queue failed analyses again; a running service takes them up within seconds."""
    if every == bool(job_ids):
        raise InvalidRequest("name the jobs, or --all", code="jobs_not_named")
    with _opened(data_dir) as acts:
        ids = job_ids or ()
        jobs = acts.retry_all(agent=AGENT) if every else [acts.retry(id_, agent=AGENT) for id_ in ids]
    out.print(f"{len(jobs)} queued again", highlight=False)


@contextmanager
def _opened(data_dir: Path | None) -> "Iterator[JobActs]":
    from rayhook.deploy.maintenance import Installation
    from rayhook.deploy.settings import StorageSettings
    from rayhook.smart_app.job_acts import JobActs

    settings = StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)
    with Installation.opened(settings) as installation:
        yield JobActs(installation.database.sessions, installation.audit)
