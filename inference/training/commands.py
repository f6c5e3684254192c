"""The commands of `rayhook train`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rayhook.inference.registry import Evaluation
from rayhook.inference.training.recipe import RECIPES

app = typer.Typer(help="Train, evaluate and package a model.", no_args_is_help=True)

RecipePath = Annotated[
    Path, typer.Option("--recipe", exists=True, dir_okay=False, help="Training recipe, TOML.")
]
DatasetDir = Annotated[
    Path, typer.Option("--dataset", exists=True, file_okay=False, help="Folder with labels.csv.")
]
RunDir = Annotated[
    Path, typer.Option("--output", file_okay=False, help="Folder of the run; resumes what it holds.")
]
CacheDir = Annotated[Path, typer.Option("--cache", file_okay=False, help="Folder for the engine's exports.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the engine.")]

DEFAULT_RECIPE = RECIPES / "mri_flair_tumour.toml"


@app.command()
def run(
    dataset: DatasetDir,
    output: RunDir,
    imagenet_weights: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="ResNet-50 npz to start from.")
    ],
    recipe: RecipePath = DEFAULT_RECIPE,
) -> None:
    """Train by a recipe; a run that was killed goes on where its last epoch ended."""
    from rayhook.inference.training.train import train

    console = Console(stderr=True)
    state = train(recipe, dataset, output, imagenet_weights, console=console)
    if state.best is not None:
        console.print(f"best epoch {state.best.epoch + 1}, development AUC {state.best.dev_auc:.4f}")


@app.command()
def package(
    dataset: DatasetDir,
    *,
    run_dir: Annotated[
        Path, typer.Option("--run", exists=True, file_okay=False, help="Folder of a finished run.")
    ],
    output: Annotated[
        Path, typer.Option("--output", file_okay=False, help="Folder of the package to write.")
    ],
    cache: CacheDir,
    recipe: RecipePath = DEFAULT_RECIPE,
    threads: Threads = 1,
    foreign: Annotated[
        list[Path] | None, typer.Option(help="Folder of images the model is not meant for.")
    ] = None,
) -> None:
    """Quantise, calibrate, evaluate and write a run's best weights as a model package."""
    from rayhook.inference.training.package import package as build

    folders = {folder.name: folder for folder in foreign or []}
    built = build(recipe, run_dir, dataset, output, cache_dir=cache, foreign=folders, threads=threads)
    _show(built.manifest.evaluations)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Id of a bundled model.")],
    dataset: DatasetDir,
    cache: CacheDir,
    threads: Threads = 1,
    split: Annotated[str, typer.Option(help="Value of column split.")] = "val",
) -> None:
    """Print a bundled model's figures on labelled images, with confidence intervals over patients."""
    from rayhook.inference.registry import find_model, load_models
    from rayhook.inference.training.evaluate import evaluate as measure

    found = find_model(load_models(), model)
    if found is None:
        raise typer.BadParameter(f"no bundled model has the id {model}")
    _show(measure(found, dataset, split, cache_dir=cache, threads=threads))


def _show(evaluations: Iterable[Evaluation]) -> None:
    for evaluation in evaluations:
        title = f"{evaluation.dataset}, {evaluation.subset}: {evaluation.count} x {evaluation.unit}"
        table = Table("figure", "value", "95 % interval", title=title)
        for name, figure in evaluation.estimates.items():
            table.add_row(name, f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}")
        Console().print(table)
