"""`rayhook bench ...`: what a machine does in a second, and what that costs."""

import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Measure how much work this machine does, and what it costs.")

out = Console()
err = Console(stderr=True)


@app.callback()
def _bench() -> None:
    """Keep the name of the command below where it is the only one."""


@app.command("throughput")
def throughput(
    *,
    studies: Annotated[int, typer.Option(min=1, help="Studies of the smallest run.")] = 10,
    growth: Annotated[str, typer.Option(help="By what the work grows, with commas between: 1,10,100.")] = "1",
    workers: Annotated[str, typer.Option(help="Worker processes, with commas between: 1,2.")] = "1",
    repeats: Annotated[int, typer.Option(min=1, help="How often all of it is done.")] = 1,
    images: Annotated[int, typer.Option(min=1, max=12, help="Images of each study.")] = 3,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Studies that arrive in a second; all at once otherwise.")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="An empty PostgreSQL database; SQLite otherwise.", metavar="URL")
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(help="Redis that wakes workers; they look by themselves otherwise.", metavar="URL"),
    ] = None,
    price_per_vcpu_hour: Annotated[
        float | None, typer.Option(min=0.0, help="What an hour of a vCPU costs, for the cost in money.")
    ] = None,
    stalled_s: Annotated[
        float,
        typer.Option(min=10, help="Time without an ended study after which the bench gives up, in seconds."),
    ] = 120.0,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Empty folder for state, images, logs and `report.json`, which grows with every run; else a temporary one.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Drive studies of phantoms through the whole pipeline and print what it took.

    Queue, claim, retrieval from the demo's PACS, decoding, the models, reports, results to the demo's EHR and
    PACS, audit: all of it, by real `rayhook worker` processes. Settings of the workers come from RAYHOOK_* variables.
    """
    from rayhook.deploy.bench_report import report, tables
    from rayhook.deploy.bench_throughput import Plan, bench
    from rayhook.deploy.logging import configure_logging
    from rayhook.deploy.settings import LogFormat

    configure_logging(level="WARNING", log_format=LogFormat.CONSOLE)
    plan = Plan(
        studies=studies,
        growth=_numbers(growth, "--growth"),
        workers=_numbers(workers, "--workers"),
        repeats=repeats,
        images=images,
        rate=rate,
        stalled_s=stalled_s,
    )
    folder = _folder(data_dir)
    phases = []
    # What was started has to be stopped, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with bench(plan, folder, database_url=database_url, redis_url=redis_url) as ready:
        set_up = {
            "database": ready.database.engine.dialect.name,
            "redis": "no" if redis_url is None else "yes",
            "arrivals": "all at once" if rate is None else f"{rate:g} a second",
        }
        for run in plan.runs():
            phases.append(ready.measure(*run))
            told = report(phases, images=images, price=price_per_vcpu_hour, set_up=set_up)
            (folder / "report.json").write_text(json.dumps(told, indent=2))
            err.print(
                f"{run[1]} studies, {run[2]} workers: {phases[-1].studies_per_s:.2f} studies/s",
                highlight=False,
            )
    if data_dir is None:
        shutil.rmtree(folder)
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    for table in tables(phases, price_per_vcpu_hour):
        out.print(table)
    if price_per_vcpu_hour is None:
        out.print("the cost in money needs --price-per-vcpu-hour")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    from rayhook.fhir.errors import InvalidRequest

    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InvalidRequest("whole numbers from 1 with commas between them", expression=option)
    return tuple(int(part) for part in parts)


def _folder(data_dir: Path | None) -> Path:
    from rayhook.fhir.errors import Conflict

    if data_dir is None:
        return Path(tempfile.mkdtemp(prefix="rayhook-bench-"))
    data_dir.mkdir(parents=True, exist_ok=True)
    if any(data_dir.iterdir()):
        raise Conflict(
            "the folder of a bench must be empty", code="bench_folder_used", expression="--data-dir"
        )
    return data_dir
