import json

import pytest
from typer.testing import CliRunner

from rayhook.deploy.cli import app

RUNNER = CliRunner()


@pytest.fixture
def call(nodules, models, engine_cache):
    """Call `rayhook evaluate` for the tiny package of nodules."""

    def run(*words, model="ct-lung-nodule", dataset=nodules):
        places = ["--dataset", dataset, "--model-folder", models, "--cache", engine_cache, "--rounds", 100]
        return RUNNER.invoke(
            app, ["evaluate", "--model", model, *map(str, [*places, *words])], env={"COLUMNS": "200"}
        )

    return run


def test_json_is_one_object_with_figures_at_its_top(call):
    done = call("--json")
    assert (done.exit_code, set(json.loads(done.stdout)["auc"])) == (0, {"value", "low", "high"})


def test_the_finders_json_has_its_figures_at_its_top(call):
    done = call("--json", model="ct-lung-nodule-finder")
    assert set(json.loads(done.stdout)["sensitivity"]) == {"value", "low", "high"}


def test_without_json_tables_are_printed(call):
    done = call("--split", "test")
    assert (done.exit_code, "by nodule" in done.stdout, "Nothing was chosen" in done.stdout) == (
        0,
        True,
        True,
    )


def test_an_output_folder_is_written(call, tmp_path):
    call("--json", "--output", tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "options", "told"),
    [
        (["--split", "absent"], {}, "split-exists"),
        ([], {"model": "absent"}, "no model absent is installed"),
        ([], {"dataset": "/nowhere/at-all"}, "dataset-exists"),
        (["--recipe", "absent"], {}, "bundled recipe"),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_one_line(call, words, options, told):
    done = call(*words, **options)
    assert (done.exit_code, told in done.output) == (2, True)
