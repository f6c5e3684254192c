"""What is evaluated: a package, the recipe that tells how its data set is read, and the rows that count."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rayhook.inference.registry import ModelPackage, find_model, load_models
from rayhook.inference.training.dataset import LABELS, DatasetRefused, Sample, find_dataset, read_samples
from rayhook.inference.training.recipe import RECIPES, Data, Recipe, read_recipe

TRAIN = "train"
ALL = "all"


def open_package(model_id: str, folder: Path | None = None) -> ModelPackage:
    """Return the package of that id in a folder of packages, by default the bundled ones.

    Raises FileNotFoundError naming those that are there.
    """
    packages = load_models(folder)
    found = find_model(packages, model_id)
    if found is None:
        known = ", ".join(package.manifest.id for package in packages) or "none"
        raise FileNotFoundError(f"no model {model_id} is installed; there are: {known}")
    return found


def recipe_of(model_id: str) -> Recipe:
    """Return the bundled recipe that makes a model of that id; raises FileNotFoundError if none does."""
    for path in sorted(RECIPES.glob("*.toml")):
        recipe = read_recipe(path)
        if recipe.manifest.id == model_id:
            return recipe
    raise FileNotFoundError(f"no bundled recipe makes {model_id}: name one with --recipe")


def open_dataset(path: Path, cache: Path) -> Path:
    """Return a labelled folder: the path itself, or what PATH.tar or the archive PATH holds.

    Raises DatasetRefused if there is none.
    """
    if (path / LABELS).is_file():
        return path
    bare = path.with_suffix("") if path.suffix == ".tar" else path
    found = find_dataset(bare.name, bare.parent, cache)
    inside = [found, *sorted(labels.parent for labels in found.parent.glob(f"*/{LABELS}"))]
    folder = next((one for one in inside if (one / LABELS).is_file()), None)
    if folder is None:
        raise DatasetRefused(f"rule dataset-exists: {bare.name}.tar holds no folder with {LABELS}")
    return folder


def rows_to_evaluate(folder: Path, data: Data, split: str | None) -> tuple[tuple[Sample, ...], str]:
    """Return the rows of one split, and its name; without one, all rows that are not of split train.

    Where labels.csv has no column of splits all rows count.  Rows without a rating never do.
    Raises DatasetRefused if no row is left, or as read_samples does.
    """
    columns = _columns(folder)
    read = replace(data, target=None, site=data.site if data.site in columns else "")
    samples = read_samples(folder, read, needs_split=split is not None)
    if split is not None:
        chosen = tuple(sample for sample in samples if sample.split == split)
    else:
        chosen = tuple(sample for sample in samples if sample.split != TRAIN)
    if not chosen:
        wanted = "other than train" if split is None else split
        known = ", ".join(sorted({sample.split for sample in samples})) or "none"
        raise DatasetRefused(f"rule split-exists: no rated row of a split {wanted}; there are: {known}")
    return chosen, split or _names(chosen)


def _names(samples: Sequence[Sample]) -> str:
    return " and ".join(sorted({sample.split for sample in samples})) or ALL


def _columns(folder: Path) -> set[str]:
    with (folder / LABELS).open(newline="", encoding="utf-8") as file:
        return set(next(csv.reader(file), ()))
