"""The `rayhook` command. Each command imports what it needs, so that `--help` answers at once."""

import json
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table

from rayhook.deploy.account_commands import app as account
from rayhook.deploy.audit_commands import app as audit
from rayhook.deploy.bench_commands import app as bench
from rayhook.deploy.conformance.command import app as conformance
from rayhook.deploy.database_commands import app as database
from rayhook.deploy.job_commands import app as jobs
from rayhook.deploy.key_commands import app as keys
from rayhook.deploy.labelled_images import Kind
from rayhook.deploy.patient_commands import app as patient
from rayhook.deploy.performance_command import performance
from rayhook.deploy.subscription_commands import app as subscription
from rayhook.fhir.errors import RayhookError
from rayhook.inference.statement import EXPERIMENTAL, INVESTIGATIONAL_SHORT, probability_text
from rayhook.inference.training.commands import app as train
from rayhook.inference.training.commands import crossval
from rayhook.inference.training.evaluation_command import evaluate

if TYPE_CHECKING:
    from rayhook.deploy.storage_settings import StorageSettings

app = typer.Typer(
    name="rayhook",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Clinical decision support for medical imaging over CDS Hooks, FHIR and DICOMweb.\n\n"
    f"[yellow]{INVESTIGATIONAL_SHORT}[/yellow]",
)
model = typer.Typer(no_args_is_help=True, help="List, verify and prepare the bundled models.")
registry = typer.Typer(no_args_is_help=True, help="Check the file that registers the EHRs.")
app.add_typer(account, name="account")
app.add_typer(audit, name="audit")
app.add_typer(bench, name="bench")
app.add_typer(conformance, name="conformance")
app.add_typer(database, name="database")
app.add_typer(jobs, name="jobs")
app.add_typer(keys, name="keys")
app.add_typer(model, name="model")
app.add_typer(patient, name="patient")
app.add_typer(registry, name="registry")
app.add_typer(subscription, name="subscription")
app.add_typer(train, name="train")
app.command("crossval")(crossval)
model.command("performance")(performance)
app.command("evaluate")(evaluate)

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="ID",
        help="Run this model, be it on by default or not; may be repeated. RAYHOOK_MODELS otherwise.",
    ),
]

out = Console()
err = Console(stderr=True)


def main() -> None:
    """Run the command; a known error ends it with one line and status 2, without a stack trace."""
    # A core file would hold what is in memory, of this process and its children: names, images, keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        app()
    except RayhookError as error:
        err.print(f"[red]rayhook: {error.code}:[/red] {error.message}", soft_wrap=True)
        raise SystemExit(2) from error


@app.command()
def serve() -> None:
    """Run the service: CDS Hooks, SMART app, FHIR read API and the analysis pipeline.

    Settings come from RAYHOOK_* variables (see deploy/docs/settings.md).
    """
    from rayhook.deploy.app import create_app
    from rayhook.deploy.health import Health
    from rayhook.deploy.logging import configure_logging
    from rayhook.deploy.server import run
    from rayhook.deploy.settings import load_settings

    settings = load_settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    health = Health()
    run(create_app(settings, health), settings, health)


@app.command()
def check() -> None:
    """Say which settings production would not start with, each with its rule. Exit status 1 if there are any.

    The settings are those of the environment, as `rayhook serve` and `rayhook worker` read them.
    """
    from rayhook.auth.registry import load_registry
    from rayhook.deploy.production import findings
    from rayhook.deploy.settings import load_settings

    settings = load_settings()
    found = findings(settings)
    for one in found:
        out.print(f"[red]refused[/red]  {one.setting}: {one.rule}", soft_wrap=True, highlight=False)
    load_registry(settings.ehr_registry, development=False)
    if not found:
        out.print("[green]production starts with these settings[/green]")
    raise typer.Exit(1 if found else 0)


@app.command()
def worker() -> None:
    """Run a worker: it analyses what `rayhook serve` queues, on this machine or another.

    Settings as for `serve`; RAYHOOK_WORKER_QUEUES says which queues it works on.
    """
    from rayhook.deploy.logging import configure_logging
    from rayhook.deploy.settings import load_settings
    from rayhook.deploy.worker import run_worker

    settings = load_settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    run_worker(settings)


@app.command()
def demo(
    dataset: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="A labelled image folder (labels.csv and images/) or a folder of DICOM files to add to the demo PACS.",
        ),
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Folder for the demo's database, keys and images.")] = Path(
        "var/demo"
    ),
    port: Annotated[
        int, typer.Option(min=0, max=65533, help="Rayhook's port; EHR and PACS take the next two.")
    ] = 8000,
) -> None:
    """Run Rayhook together with a demo EHR and a demo PACS on this machine, and print the URLs to open."""
    from rayhook.deploy.demo.run import run_demo

    run_demo(dataset=dataset, data_dir=data_dir, port=port, console=out)


@app.command()
def roles() -> None:
    """Print which role has which permission, and what every route asks for, as Markdown tables."""
    from rayhook.deploy.logging import configure_logging
    from rayhook.deploy.role_tables import markdown, routes
    from rayhook.deploy.settings import LogFormat

    configure_logging(level="WARNING", log_format=LogFormat.CONSOLE)
    sys.stdout.write(markdown(routes()))


@app.command()
def analyze(
    paths: Annotated[list[Path], typer.Argument(exists=True, help="DICOM files, or folders of them.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line per instance.")
    ] = False,
    models: Models = None,
    dicom_out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Also write each study's results as DICOM objects to this folder, as a PACS would get them.",
        ),
    ] = None,
) -> None:
    """Analyse DICOM files without any EHR. Exit status 1 if any file was refused."""
    from rayhook.deploy.local import local_analyser
    from rayhook.inference.local import analyze_paths, write_objects

    refused = 0
    is_experimental = False
    table = Table("file", "status", "finding", "probability", "marks", "model", "reason")
    with local_analyser(_chosen(models)) as analyser, _progress() as progress:
        task = progress.add_task("analysing", total=None)
        for line in analyze_paths(paths, analyser):
            refused += line["status"] == "refused"
            is_experimental |= (line["model"] or {}).get("status") == "experimental"
            progress.advance(task)
            if as_json:
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
            else:
                table.add_row(*_row(line))
        if dicom_out is not None:
            for written in write_objects(paths, analyser, dicom_out, organization="Rayhook, local files"):
                err.print(f"written: {written}", soft_wrap=True, highlight=False)
    if not as_json:
        out.print(table)
        if is_experimental:
            out.print(f"[yellow]{EXPERIMENTAL}[/yellow]")
        out.print(f"[yellow]{INVESTIGATIONAL_SHORT}[/yellow]")
    raise typer.Exit(1 if refused else 0)


@app.command()
def dicomize(
    dataset: Annotated[
        Path,
        typer.Argument(exists=True, file_okay=False, help="Folder with labels.csv and the images it names."),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", file_okay=False, help="Folder to write: new, empty or an earlier run's."
        ),
    ],
    kind: Annotated[
        Kind | None, typer.Option(help="What the images are; told by the columns otherwise.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only the rows of this split.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of labels.csv.")] = None,
) -> None:
    """Wrap a labelled image folder into DICOM files, with a labels.csv that names them."""
    from rayhook.deploy.dicomize import plan_dicomization

    planned = plan_dicomization(dataset, output, kind=kind, split=split, limit=limit)
    with _progress() as progress:
        done = 0
        try:
            for _ in progress.track(planned.write(), total=len(planned.images), description="wrapping"):
                done += 1
        except KeyboardInterrupt:
            err.print(f"rayhook: interrupted; {planned.unfinished(done)}", soft_wrap=True)
            raise
    out.print(f"{len(planned.images)} DICOM files and labels.csv are in {output}", soft_wrap=True)


@model.command("list")
def model_list(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON array, with labels, thresholds and figures.")
    ] = False,
) -> None:
    """Print the installed models: which are experimental, which run, and what they look for."""
    from rayhook.inference.inventory import describe_model
    from rayhook.inference.registry import load_models

    models = [describe_model(package) for package in load_models()]
    if as_json:
        sys.stdout.write(json.dumps(models, indent=2) + "\n")
        return
    told_whole = (Column(name, no_wrap=True) for name in ("id", "version", "status", "modality"))
    table = Table(*told_whole, "runs", "looks for")
    for one in models:
        runs = "by default" if one["enabled"] else "when asked for"
        if one["role"] == "finder":
            runs = "with its rater"
        table.add_row(one["id"], one["version"], one["status"], one["modality"], runs, one["title"])
    out.print(table)


@model.command("prepare")
def model_prepare(models: Models = None) -> None:
    """Verify the weights and make the engines' exports, so that the first start is quick."""
    from rayhook.deploy.settings import default_engine_cache
    from rayhook.inference.engine import export_all
    from rayhook.inference.registry import load_models, select_models

    packages = select_models(load_models(), _chosen(models))
    with _progress() as progress:
        task = progress.add_task("preparing", total=len(packages))
        export_all(packages, default_engine_cache(), done=lambda _: progress.advance(task))
    out.print("[green]ready[/green]")


@registry.command("check")
def registry_check(
    path: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="The TOML file that registers the EHRs.")
    ],
    development: Annotated[bool, typer.Option(help="Allow http on loopback.")] = False,
) -> None:
    """Check an EHR registry file and print what it registers."""
    from rayhook.auth.registry import load_registry

    table = Table("id", "name", "FHIR base URLs", "CDS client issuer")
    for ehr in load_registry(path, development=development).ehrs:
        table.add_row(ehr.id, ehr.name, "\n".join(ehr.fhir_base_urls), ehr.cds_client.issuer)
    out.print(table)


def _chosen(models: list[str] | None) -> tuple[str, ...]:
    from rayhook.deploy.settings import load_model_settings

    return tuple(models) if models else load_model_settings().models


def _storage(data_dir: Path | None) -> "StorageSettings":
    from rayhook.deploy.storage_settings import StorageSettings

    return StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )


def _row(line: dict[str, Any]) -> tuple[str, ...]:
    error, model = line["error"] or {}, line["model"] or {}
    finding: dict[str, Any] = max(
        line["findings"], key=lambda f: (f["positive"], f["probability"]), default={}
    )
    nothing_to_rate = line["status"] == "analysed" and not line["findings"]
    return (
        line["path"],
        line["status"],
        finding.get("display", "") if finding.get("positive") else "",
        probability_text(finding["probability"]) if finding else "",
        str(len(line["marks"]) or ""),
        f"{model['id']} ({model['status']})" if model else "",
        "nothing was found to rate" if nothing_to_rate else error.get("message", ""),
    )


if __name__ == "__main__":
    main()
