import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from rayhook.inference.training.checkpoint import BEST, Epoch, RunState
from rayhook.inference.training.tracking import ALIAS, Tracker, git_commit, roc_plot

LABELS, LOGITS = [0, 1, 1, 0], np.array([-1.0, 2.0, 0.5, 0.1])


def _state(recipe, epochs):
    return RunState(recipe.sha256, "data", tuple(Epoch(i, 1.0 / (i + 1), 0.5, 0.8) for i in range(epochs)))


def _track(recipe, folder, uri, states, **options):
    """Track one process's part of a run and return what was shown."""
    shown = io.StringIO()
    tracker = Tracker(recipe, folder, uri, console=Console(file=shown, width=400), **options)
    tracker.start(states[0], precision="float32")
    for state in states[1:]:
        tracker.log(state, labels=LABELS, logits=LOGITS)
    tracker.finish(states[-1])
    return shown.getvalue()


@pytest.fixture(scope="module")
def told(recipe, tmp_path_factory):
    """A client of the store that a run of three epochs was told to, by two processes, and the run."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("tracked") / "run"
    folder.mkdir()
    (folder / BEST).write_bytes(b"weights")
    uri = f"sqlite:///{folder.parent / 'mlflow.db'}"
    shown = _track(recipe, folder, uri, [_state(recipe, n) for n in (0, 1, 2)])
    shown += _track(recipe, folder, uri, [_state(recipe, n) for n in (2, 3)])
    assert shown == ""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("rayhook").experiment_id])
    return client, run


def test_a_resumed_run_goes_on_in_the_same_run(told):
    client, run = told
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in losses] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


@pytest.mark.parametrize("name", ["seed", "optimisation.batch", "data.dataset", "preprocessing.kind"])
def test_parameters_are_the_recipe(told, name):
    assert name in told[1].data.params


@pytest.mark.parametrize(
    "name", ["data", "git_commit", "recipe_sha256", "precision", "tensorflow", "keras", "python"]
)
def test_tags_tell_what_the_run_was_made_of(told, name):
    assert told[1].data.tags[name]


@pytest.mark.parametrize("name", ["recipe.json", "dev_roc.png", BEST])
def test_artifacts_are_stored(told, name):
    client, run = told
    assert name in [file.path for file in client.list_artifacts(run.info.run_id)]


def test_the_best_weights_are_registered_once_as_candidate(told, recipe):
    client, run = told
    version = client.get_model_version_by_alias(recipe.manifest.id, ALIAS)
    assert (str(version.version), version.run_id) == ("1", run.info.run_id)


def test_the_run_ends_when_the_training_does(told):
    assert told[1].info.status == "FINISHED"


def test_a_fold_is_not_registered(recipe, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert _track(recipe, tmp_path / "run", uri, [_state(recipe, 1)], fold="fold-1") == ""
    assert MlflowClient(tracking_uri=uri, registry_uri=uri).search_registered_models() == []


def test_a_server_that_is_down_is_told_once_and_stops_nothing(recipe, tmp_path):
    states = [_state(recipe, n) for n in (0, 1, 2)]
    shown = _track(recipe, tmp_path / "run", "http://127.0.0.1:9", states)
    assert shown.count("tracking failed, the run goes on without") == 1


def test_epochs_that_were_not_told_are_told_later(recipe, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(recipe, tmp_path / "run", uri, console=Console(file=io.StringIO()))
    with monkeypatch.context() as down:
        down.setattr(Tracker, "_begin", _refuse)
        tracker.start(_state(recipe, 0))
        tracker.log(_state(recipe, 1), labels=LABELS, logits=LOGITS)
    tracker.log(_state(recipe, 2), labels=LABELS, logits=LOGITS)
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("rayhook").experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 2


def _refuse(_):
    raise OSError("down")


def test_the_commit_is_that_of_the_code():
    assert len(git_commit().removesuffix("+changes")) in {0, 40}


def test_the_curve_is_a_png():
    assert roc_plot(np.array(LABELS), LOGITS).startswith(b"\x89PNG")


def test_best_is_the_earlier_of_equals(recipe):
    state = _state(recipe, 3)
    later = replace(state.history[2], dev_auc=0.9)
    assert state.best.epoch == 0
    assert replace(state, history=(*state.history[:2], later)).best.epoch == 2
