"""What a run did, told to MLflow; a run goes on when nobody listens."""

import json
import logging
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from rayhook.inference.model import write_atomically
from rayhook.inference.training.checkpoint import BEST, Epoch, RunState
from rayhook.inference.training.metrics import operating_points
from rayhook.inference.training.plots import DPI, MUTED, png
from rayhook.inference.training.recipe import Recipe

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "candidate"
EXPERIMENT = "rayhook"

_RUN = "tracking.json"
_SQLITE = "sqlite:///"
_LIBRARIES = ("keras", "numpy", "opencv-python-headless", "tensorflow")
# Retries with growing pauses would hold a training run up for minutes; nothing leaves for anyone else.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class Tracker:
    """One MLflow run for one output folder, gone on with when the training is.

    What could not be told is told with the next epoch; the first failure is shown, the others are not.
    """

    def __init__(
        self, recipe: Recipe, output: Path, uri: str, *, console: Console, fold: str | None = None
    ) -> None:
        """Track to an MLflow URI, "" for a database beside the output.

        fold: of a cross-validation, whose weights are not registered.
        """
        self._recipe, self._output, self._console = recipe, output.resolve(), console
        self._uri = uri or f"sqlite:///{self._output.parent / 'mlflow.db'}"
        self._fold = fold
        self._run_id: str | None = None
        self._told = 0
        self._warned = False
        self._facts: dict[str, str] = {}

    def start(self, state: RunState, **facts: Any) -> None:
        """Begin or go on; facts are told as tags beside the recipe, the commit and the versions."""
        self._facts = {"data": state.data, **{name: str(value) for name, value in facts.items()}}
        self._attempt(self._begin)

    def log(self, state: RunState, *, labels: Sequence[int], logits: NDArray[np.float64]) -> None:
        """Tell the epochs that were not told yet, and the development patients' ROC curve of the last."""
        self._attempt(lambda: self._tell(state, np.asarray(labels, np.int64), logits))

    def finish(self, state: RunState) -> None:
        """End the run; store its best weights and register them as the model's candidate, unless of a fold."""
        self._attempt(lambda: self._end(state))

    def _attempt(self, act: Callable[[], None]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MLflow's about its own use of SQLAlchemy
                act()
        except (MlflowException, OSError, SQLAlchemyError) as error:
            if not self._warned:
                self._console.log(
                    f"[yellow]tracking failed, the run goes on without:[/yellow] {_first_line(error)}"
                )
            self._warned = True

    @cached_property
    def _client(self) -> "MlflowClient":
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._output.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def _begin(self) -> None:
        """Take up the run that the output folder names, or make one."""
        if self._run_id is not None:
            return
        known = self._known_run()
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            told = self._client.get_metric_history(known, "loss")
            self._told = max((metric.step + 1 for metric in told), default=0)
            self._run_id = known
            return
        run = self._client.create_run(
            self._experiment(), run_name=self._recipe.manifest.id, tags=self._tags()
        )
        for name, value in _flat(msgspec.to_builtins(self._recipe)):
            if not name.startswith("manifest."):
                self._client.log_param(run.info.run_id, name, value)
        self._client.log_dict(run.info.run_id, msgspec.to_builtins(self._recipe), "recipe.json")
        document = json.dumps({"uri": self._uri, "run_id": run.info.run_id})
        write_atomically(self._output / _RUN, document.encode())
        self._run_id = run.info.run_id

    def _known_run(self) -> str | None:
        path = self._output / _RUN
        if not path.exists():
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        return str(document["run_id"]) if document["uri"] == self._uri else None

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        path = self._uri.removeprefix(_SQLITE)
        place = None if path == self._uri else (Path(path).resolve().parent / "mlartifacts").as_uri()
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=place))

    def _tags(self) -> dict[str, str]:
        return {
            "recipe_sha256": self._recipe.sha256,
            "git_commit": git_commit(),
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            **{name: version(name) for name in _LIBRARIES},
            **self._facts,
        }

    def _tell(self, state: RunState, labels: NDArray[np.int64], logits: NDArray[np.float64]) -> None:
        self._begin()
        for epoch in state.history[self._told :]:
            for name, value in _metrics(epoch).items():
                self._client.log_metric(str(self._run_id), name, value, step=epoch.epoch)
            self._told = epoch.epoch + 1
        if state.best is state.history[-1]:
            write_atomically(self._output / "dev_roc.png", roc_plot(labels, logits))
            self._client.log_artifact(str(self._run_id), str(self._output / "dev_roc.png"))

    def _end(self, state: RunState) -> None:
        self._begin()
        run_id = str(self._run_id)
        if state.best is not None:
            self._client.log_metric(run_id, "best_epoch", state.best.epoch)
            if self._fold is None and not self._client.search_model_versions(f"run_id = '{run_id}'"):
                self._register(run_id)
        self._client.set_terminated(run_id)

    def _register(self, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        name = self._recipe.manifest.id
        self._client.log_artifact(run_id, str(self._output / BEST))
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{BEST}"
        made = self._client.create_model_version(name, source, run_id=run_id)
        self._client.set_registered_model_alias(name, ALIAS, made.version)


def git_commit() -> str:
    """Return the commit of the code, with `+changes` where files differ from it; "" outside a repository."""
    git = shutil.which("git")
    if git is None:
        return ""
    here = Path(__file__).parent

    def ask(*arguments: str) -> str:
        call = [str(git), "-C", str(here), *arguments]
        done = subprocess.run(call, capture_output=True, text=True, check=False)  # noqa: S603  # fixed words
        return done.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and ask("status", "--porcelain", "--", ".") else commit


@png
def roc_plot(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> Figure:
    """Return the ROC curve."""
    points = operating_points(labels, scores)
    figure = Figure(figsize=(5, 5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], linestyle=":", color=MUTED)
    axes.plot(points.false_positive_rate[0], points.sensitivity[0])
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC curve, development patients")
    return figure


def _metrics(epoch: Epoch) -> Mapping[str, float]:
    return {"loss": epoch.loss, "dev_loss": epoch.dev_loss, "dev_auc": epoch.dev_auc}


def _flat(table: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested tables with dotted names."""
    if not isinstance(table, dict):
        return [(prefix.removesuffix("."), table)]
    return [leaf for key, value in table.items() for leaf in _flat(value, f"{prefix}{key}.")]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
