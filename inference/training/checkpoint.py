"""The state of a run on disk: one atomic file an epoch, from which a killed run goes on exactly."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from rayhook.inference.model import save_weights, write_atomically

STATE = "state.safetensors"
BEST = "best.safetensors"
HISTORY = "history.json"


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over the fit patients gave; dev_* are of the averaged weights.

    dev_auc: of the images; for a recipe that trains the label's head on the cells of the masks, the
    average precision of the cells.
    """

    epoch: int
    loss: float
    dev_loss: float
    dev_auc: float


@dataclass(frozen=True, slots=True)
class RunState:
    """How far a run has come; history is one entry an epoch.  data: digest of its images."""

    recipe_sha256: str
    data: str = ""
    history: tuple[Epoch, ...] = field(default=())

    @property
    def best(self) -> Epoch | None:
        """Return the epoch with the highest development score, the earlier of equals."""
        return max(self.history, key=lambda e: (e.dev_auc, -e.epoch), default=None)

    def is_over(self, *, epochs: int, patience: int) -> bool:
        """Return whether all epochs are done or the best one is too long ago."""
        done = len(self.history)
        return done >= epochs or (self.best is not None and done - 1 - self.best.epoch >= patience)


Variables = Mapping[str, Sequence[Any]]


def save_state(folder: Path, state: RunState, variables: Variables) -> None:
    """Write the state with all its variables, by group, in one atomic file; then the history to read."""
    arrays = {name: np.asarray(variable.numpy()) for name, variable in _named(variables)}
    save_weights(folder / STATE, arrays, metadata={"run": json.dumps(asdict(state))})
    write_atomically(folder / HISTORY, json.dumps(asdict(state), indent=1).encode())


def restore_state(folder: Path, fresh: RunState, variables: Variables) -> RunState:
    """Return the state kept in a folder, with all variables set from it, or the fresh one.

    Raises ValueError if the folder holds a run of another recipe or of other images.
    """
    path = folder / STATE
    if not path.exists():
        return fresh
    with safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()["run"])
        for key, what in (("recipe_sha256", "of another recipe"), ("data", "on other images")):
            if document[key] != getattr(fresh, key):
                raise ValueError(f"{folder} holds a run {what}")
        for name, variable in _named(variables):
            variable.assign(file.get_tensor(name))
    history = tuple(Epoch(**entry) for entry in document["history"])
    return RunState(document["recipe_sha256"], document["data"], history)


def _named(variables: Variables) -> Iterator[tuple[str, Any]]:
    for group, members in variables.items():
        for index, variable in enumerate(members):
            yield f"{group}.{index}", variable
