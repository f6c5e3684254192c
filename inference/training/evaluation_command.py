"""The command `rayhook evaluate`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rayhook.inference.registry import Estimate
from rayhook.inference.statement import INVESTIGATIONAL_SHORT
from rayhook.inference.training.bootstrap import ROUNDS
from rayhook.inference.training.commands import RUNS, CacheDir, refusals
from rayhook.inference.training.evaluation_report import EvaluationReport
from rayhook.inference.training.figure_text import (
    counted,
    heatmap_figures,
    interval,
    ordered,
    p_value,
    percent,
    shown,
)
from rayhook.inference.training.recipe import find_recipe, read_recipe

_BY_SUBGROUP = ("auc", "sensitivity", "specificity")


def evaluate(
    model: Annotated[str, typer.Option("--model", metavar="ID", help="The model to evaluate.")],
    dataset: Annotated[
        Path, typer.Option("--dataset", metavar="DIR", help="Folder with labels.csv, or a NAME.tar of one.")
    ],
    *,
    split: Annotated[
        str | None, typer.Option(help="The rows of this split; by default all that are not of split train.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for report, page, plots and model card."),
    ] = None,
    model_folder: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of model packages; the bundled otherwise."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe that tells how labels.csv is read; by default the bundled one of the model."
        ),
    ] = None,
    series: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="For a finder: DICOM folder in whose slices it looks as well."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=100, help="Rounds of the bootstrap over patients.")] = ROUNDS,
    cache: CacheDir = RUNS / "cache",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 2,
) -> None:
    """Measure a model as it ships on labelled images of patients held out, with intervals over patients."""
    console = Console(stderr=True)
    with refusals():
        from rayhook.inference.training.evaluate import evaluate as run
        from rayhook.inference.training.evaluated import write_evaluation
        from rayhook.inference.training.evaluation_rows import open_dataset, open_package, recipe_of

        package = open_package(model, model_folder)
        read = recipe_of(model) if recipe is None else read_recipe(find_recipe(recipe))
        folder = open_dataset(dataset, cache)
        found = run(
            package,
            read,
            folder,
            split,
            cache_dir=cache,
            threads=threads,
            console=console,
            rounds=rounds,
            series=series,
        )
    if output is not None:
        write_evaluation(found, package.manifest, output)
    if as_json:
        sys.stdout.write(found.report.to_json().decode())
    else:
        show(found.report)


def show(report: EvaluationReport, out: Console | None = None) -> None:
    """Print a report's figures as tables."""
    out = out or Console()
    out.print(f"{report.model_id} {report.model_version} ({report.model_status}): {report.label}")
    out.print(
        f"{report.dataset}, split {report.split}: {counted(report.count, report.unit)} of "
        f"{counted(report.patients, 'patient')}, {report.positives} with the finding"
    )
    out.print(f"threshold {report.threshold.value:.4f} {report.threshold.source}", soft_wrap=True)
    out.print(_figures(f"by {report.unit}", report.estimates))
    for other in report.other_units:
        told = f"by {other.unit}: {other.count} of {counted(other.patients, 'patient')}"
        out.print(_figures(told, other.estimates))
    if report.prevalence_table:
        table = Table("prevalence", "PPV", "NPV", title="at other prevalences")
        for row in report.prevalence_table:
            table.add_row(percent(row.prevalence), interval(row.ppv), interval(row.npv))
        out.print(table)
    if report.baselines:
        _show_baselines(report, out)
    if report.subgroups:
        _show_subgroups(report, out)
    if report.explanation is not None:
        table = Table("heatmap", "value (95 % interval)")
        for words, found in heatmap_figures(report.explanation):
            table.add_row(words, interval(found))
        out.print(table)
    for limit in report.limits:
        out.print(f"- {limit}", soft_wrap=True)
    out.print(f"[yellow]{INVESTIGATIONAL_SHORT}[/yellow]")


def _show_baselines(report: EvaluationReport, out: Console) -> None:
    table = Table("baseline", "its AUC", "model minus baseline", "p by patient", "p, DeLong")
    for one in report.baselines:
        tests = p_value(one.clustered_p), p_value(one.delong_p)
        table.add_row(one.name, interval(one.auc), interval(one.difference), *tests)
    out.print(table)


def _show_subgroups(report: EvaluationReport, out: Console) -> None:
    table = Table("subgroup", "patients", "count", *_BY_SUBGROUP)
    for part in report.subgroups:
        numbers = (str(part.patients), str(part.count))
        table.add_row(f"{part.name} {part.value}", *numbers, *shown(part.estimates, _BY_SUBGROUP))
    out.print(table)


def _figures(title: str, estimates: Mapping[str, Estimate]) -> Table:
    table = Table("figure", "value (95 % interval)", title=title)
    for name, found in ordered(estimates):
        table.add_row(name, interval(found))
    return table
