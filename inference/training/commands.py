"""The commands of `rayhook train`, and `rayhook crossval`."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from rayhook.inference.model import write_atomically
from rayhook.inference.registry import Evaluation
from rayhook.inference.training.places import Places, StrategyName
from rayhook.inference.training.recipe import RECIPES, find_recipe, read_recipe

if TYPE_CHECKING:
    from rayhook.inference.training.crossval import CrossValidation

DEFAULT_RECIPE = RECIPES / "mri_flair_tumour.toml"
RUNS = Path("var/train")

_BY_RECIPE = "RECIPE"
_WEIGHTS = "imagenet_resnet50"


class RecipeGroup(TyperGroup):
    """A group whose first word may be a recipe instead of a command: `train RECIPE` trains by it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_BY_RECIPE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RecipeGroup,
    no_args_is_help=True,
    help="Train by a recipe: `rayhook train RECIPE`, where RECIPE is a TOML file or the name of a bundled one. "
    "`rayhook train RECIPE --help` lists its options; the other commands work on recipes and finished runs.",
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Training recipe: a TOML file or the name of a bundled one.")
]
DatasetsDir = Annotated[
    Path,
    typer.Option(
        envvar="RAYHOOK_DATASETS",
        exists=True,
        file_okay=False,
        help="Folder of the data sets, each a folder with labels.csv or a NAME.tar of one.",
    ),
]
ImageNetWeights = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help=f"ResNet-50 npz to start from; by default the one in DATASETS/{_WEIGHTS}.",
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help=f"Folder of the run, which resumes what it holds; by default {RUNS}/ID of the recipe.",
    ),
]
CacheDir = Annotated[
    Path, typer.Option("--cache", file_okay=False, help="Folder for unpacked data sets and shards.")
]
Strategy = Annotated[
    StrategyName,
    typer.Option(help="One device, all of this machine, or the machines that TF_CONFIG names."),
]
Devices = Annotated[
    int, typer.Option(min=0, help="Logical CPU devices for --strategy mirrored; 0: the devices there are.")
]
Tracking = Annotated[
    str,
    typer.Option(
        envvar="MLFLOW_TRACKING_URI", help="MLflow server or store; by default a database beside the run."
    ),
]


@app.command(_BY_RECIPE)
def by_recipe(
    recipe: RecipeName,
    datasets: DatasetsDir,
    *,
    imagenet_weights: ImageNetWeights = None,
    output: RunDir = None,
    cache: CacheDir = RUNS / "cache",
    strategy: Strategy = StrategyName.SINGLE,
    devices: Devices = 0,
    tracking: Tracking = "",
) -> None:
    """Train by a recipe; a run that was killed goes on where its last epoch ended."""
    console = Console(stderr=True)
    with refusals():
        read = read_recipe(find_recipe(recipe))
        places = Places(
            datasets=datasets,
            output=output or RUNS / read.manifest.id,
            imagenet_weights=imagenet_weights or find_weights(datasets),
            cache=cache,
            strategy=strategy,
            devices=devices,
            tracking=tracking,
        )
        from rayhook.inference.training.train import train

        state = train(read, places, console=console)
    if state.best is not None:
        console.print(f"best epoch {state.best.epoch + 1}, development score {state.best.dev_auc:.4f}")


@app.command("preview")
def preview_(
    recipe: RecipeName,
    datasets: DatasetsDir,
    *,
    output: Annotated[Path, typer.Option(dir_okay=False, help="PNG file to write.")] = Path("preview.png"),
    cache: CacheDir = RUNS / "cache",
) -> None:
    """Draw what a recipe's augmentation makes of training images, with the outline of their masks."""
    with refusals():
        read = read_recipe(find_recipe(recipe))
        from rayhook.inference.training.preview import preview
        from rayhook.inference.training.train import prepare

        places = Places(datasets=datasets, output=output, imagenet_weights=output, cache=cache)
        write_atomically(output, preview(read, prepare(read, places, console=Console(stderr=True))))


def crossval(
    recipe: RecipeName,
    datasets: DatasetsDir,
    *,
    folds: Annotated[int, typer.Option(min=2, help="How many folds, by patient.")] = 5,
    by_site: Annotated[bool, typer.Option("--by-site", help="Leave one site out at a time instead.")] = False,
    all_splits: Annotated[
        bool,
        typer.Option("--all-splits", help="Let patients of every split take part, not those of train alone."),
    ] = False,
    imagenet_weights: ImageNetWeights = None,
    output: RunDir = None,
    cache: CacheDir = RUNS / "cache",
    tracking: Tracking = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Cross-validate a recipe by patient; finished folds are kept, a killed one goes on."""
    with refusals():
        read = read_recipe(find_recipe(recipe))
        places = Places(
            datasets=datasets,
            output=output or RUNS / read.manifest.id,
            imagenet_weights=imagenet_weights or find_weights(datasets),
            cache=cache,
            tracking=tracking,
        )
        from rayhook.inference.training.crossval import crossvalidate

        found = crossvalidate(read, places, folds=folds, by_site=by_site, all_splits=all_splits)
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        _show_folds(found)


@app.command()
def package(
    recipe: RecipeName,
    datasets: DatasetsDir,
    *,
    output: Annotated[
        Path, typer.Option("--output", file_okay=False, help="Folder of the package to write.")
    ],
    run_dir: Annotated[
        Path | None,
        typer.Option("--run", exists=True, file_okay=False, help=f"Folder of the run; {RUNS}/ID otherwise."),
    ] = None,
    cache: CacheDir = RUNS / "cache",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 1,
    foreign: Annotated[
        list[str] | None,
        typer.Option(help="Data set that the model is not meant for, to teach its input check; repeatable."),
    ] = None,
) -> None:
    """Quantise, calibrate, evaluate and write a run's best weights as a model package."""
    with refusals():
        read = read_recipe(find_recipe(recipe))
        from rayhook.inference.training.package import package as build

        built = build(
            read,
            run_dir or RUNS / read.manifest.id,
            datasets,
            output,
            cache_dir=cache,
            foreign=foreign or (),
            threads=threads,
            console=Console(stderr=True),
        )
    _show(built.manifest.evaluations)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a recipe or a data set that cannot be used into one line and status 2."""
    from rayhook.inference.training.dataset import DatasetRefused

    try:
        yield
    except (DatasetRefused, FileNotFoundError, TypeError, msgspec.ValidationError) as error:
        raise typer.BadParameter(str(error)) from error


def find_weights(datasets: Path) -> Path:
    """Return the only npz in the data sets' imagenet_resnet50; raises FileNotFoundError otherwise."""
    found = sorted((datasets / _WEIGHTS).glob("*.npz"))
    if len(found) != 1:
        raise FileNotFoundError(f"{datasets / _WEIGHTS} holds {len(found)} npz files, not 1")
    return found[0]


def _show_folds(found: "CrossValidation") -> None:
    table = Table("fold", "patients", "images", "positive", *found.figures)
    for fold in found.folds:
        numbers = (str(fold.patients), str(fold.count), str(fold.positives))
        table.add_row(fold.name, *numbers, *(f"{fold.figures[name]:.3f}" for name in found.figures))
    spans = (f"{i.mean:.3f} ({i.low:.3f} to {i.high:.3f})" for i in found.figures.values())
    table.add_row("mean (95 % t-interval)", "", "", "", *spans)
    Console().print(table)


def _show(evaluations: Iterable[Evaluation]) -> None:
    for evaluation in evaluations:
        title = f"{evaluation.dataset}, {evaluation.subset}: {evaluation.count} x {evaluation.unit}"
        table = Table("figure", "value", "95 % interval", title=title)
        for name, figure in evaluation.estimates.items():
            table.add_row(name, f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}")
        Console().print(table)
