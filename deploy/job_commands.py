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
from rayhook.inference.job_table import JobState

if TYPE_CHECKING:
    from rayhook.smart_app.job_acts import JobActs, JobOverview

_BY_ID = (JobState.CANCELLED, JobState.DEAD)

app = typer.Typer(
    no_args_is_help=True, help="Show the analyses, cancel them, and have failed ones tried again."
)

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]

out = Console()


@app.command("list")
def list_jobs(data_dir: DataDir = None) -> None:
    """Print how many analyses there are in each state and queue, what waits, the workers, and what has no result."""
    with _opened(data_dir) as acts:
        found = acts.overview(agent=AGENT)
    counts = found.counts
    out.print(", ".join(f"{count} {state}" for state, count in counts.by_state.items()), highlight=False)
    for (state, queue), count in counts.by_queue.items():
        if state is JobState.QUEUED:
            out.print(f"{count} wait in the queue {queue}", highlight=False)
    if counts.oldest_waiting_s is not None:
        out.print(f"the oldest has waited {counts.oldest_waiting_s:.0f} s", highlight=False)
    out.print(_workers(found))
    if found.under_way:
        out.print(_under_way(found))
    out.print(_without_result(found))


def _workers(found: "JobOverview") -> Table:
    table = Table("worker", "queues", "threads", "device", "version", "since", "state")
    for one in found.workers:
        state = "stopping" if one.is_stopping else "working"
        since, queues = _moment(one.started_at), ", ".join(one.queues)
        table.add_row(one.name, queues, str(one.threads), one.device, one.version, since, state)
    return table


def _under_way(found: "JobOverview") -> Table:
    table = Table("id", "EHR", "state", "priority", "queue", "asked for", "attempts", "not before", "code")
    for job in found.under_way:
        then = "" if job.next_attempt_at is None else _moment(job.next_attempt_at)
        row = (job.id, job.ehr_id, job.state, job.priority, job.queue, _moment(job.created_at))
        table.add_row(*row, str(job.attempts), then, job.code)
    return table


def _without_result(found: "JobOverview") -> Table:
    table = Table("id", "EHR", "state", "code", "attempts", "ended", "request", "retry")
    for job in found.jobs:
        may = "yes" if job.may_retry else ""
        row = (job.id, job.ehr_id, job.state, job.code, str(job.attempts), _moment(job.ended_at))
        table.add_row(*row, job.request_id, "by its id" if may and job.state in _BY_ID else may)
    return table


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


@app.command("cancel")
def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the jobs.")],
    *,
    data_dir: DataDir = None,
) -> None:
    """Cancel analyses that wait or are in progress; a worker that has one in hand stops, and writes nothing."""
    with _opened(data_dir) as acts:
        for id_ in job_ids:
            acts.cancel(id_, agent=AGENT)
    out.print(f"{len(job_ids)} cancelled", highlight=False)


@app.command("retry")
def retry(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the jobs.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All that failed for a passing reason.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Queue failed analyses again; a running service takes them up within seconds.

    Those that ended the process which analysed them, and cancelled ones, are only tried again by their id.
    """
    if every == bool(job_ids):
        raise InvalidRequest("name the jobs, or --all", code="jobs_not_named")
    with _opened(data_dir) as acts:
        ids = job_ids or ()
        jobs = acts.retry_all(agent=AGENT) if every else [acts.retry(id_, agent=AGENT) for id_ in ids]
    out.print(f"{len(jobs)} queued again", highlight=False)


@contextmanager
def _opened(data_dir: Path | None) -> "Iterator[JobActs]":
    from rayhook.deploy.maintenance import Installation
    from rayhook.deploy.storage_settings import StorageSettings
    from rayhook.smart_app.job_acts import JobActs

    settings = StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)
    with Installation.opened(settings) as installation:
        yield JobActs(installation.database.sessions, installation.keyring, installation.audit)
