import json

import pytest
from typer.testing import CliRunner

from rayhook.deploy.cli import app

RUNNER = CliRunner()


@pytest.fixture
def call(recipe_path, places, tmp_path):
    """Call `rayhook` with the recipe and where its data are."""
    there = places(tmp_path / "run")

    def run(*words, datasets=there.datasets):
        places_ = ["--datasets", datasets, "--cache", there.cache]
        return RUNNER.invoke(app, [*map(str, words), *map(str, places_)], env={"COLUMNS": "200"})

    return run


def test_a_recipe_in_place_of_a_command_trains(call, recipe_path, start, tmp_path):
    options = [
        "--imagenet-weights",
        start,
        "--output",
        tmp_path / "run",
        "--tracking",
        f"sqlite:///{tmp_path}/m.db",
    ]
    done = call("train", recipe_path, *options)
    assert (done.exit_code, "best epoch" in done.output) == (0, True)


@pytest.mark.parametrize("words", [["--help"], ["mri_flair_tumour", "--help"], ["preview", "--help"]])
def test_each_way_has_help(words):
    assert RUNNER.invoke(app, ["train", *words]).exit_code == 0


def test_an_unknown_recipe_is_one_line_that_names_the_bundled_ones(call):
    done = call("train", "unknown")
    assert (done.exit_code, "mri_flair_tumour" in done.output) == (2, True)


def test_absent_weights_are_one_line(call, recipe_path):
    done = call("train", recipe_path)
    assert (done.exit_code, "0 npz files" in done.output) == (2, True)


def test_a_patient_in_two_splits_is_refused_before_anything_is_trained(
    call, recipe_path, start, labelled_folder, tmp_path
):
    folder = tmp_path / "datasets" / "labelled"
    folder.mkdir(parents=True)
    text = (labelled_folder / "labels.csv").read_text().replace("p0,A,0,train", "p0,A,0,val")
    (folder / "labels.csv").write_text(text)
    done = call("train", recipe_path, "--imagenet-weights", start, datasets=folder.parent)
    assert (done.exit_code, "one-patient-one-split" in done.output) == (2, True)


def test_preview_writes_a_png(call, recipe_path, tmp_path):
    assert call("train", "preview", recipe_path, "--output", tmp_path / "p.png").exit_code == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_crossval_prints_one_json_object(call, recipe_path, start, tmp_path):
    options = ["--imagenet-weights", start, "--output", tmp_path / "run", "--folds", 2, "--json"]
    done = call("crossval", recipe_path, *options)
    found = json.loads(done.stdout)
    assert (done.exit_code, len(found["folds"]), set(found["figures"]["auc"])) == (
        0,
        2,
        {"mean", "low", "high"},
    )
