import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rayhook.inference.training.train import BEST, HISTORY, STATE, train

RUN = "import sys; from rayhook.inference.training.commands import app; app(sys.argv[1:])"


@pytest.fixture(scope="module")
def finished(recipe, places, tmp_path_factory) -> Path:
    """A run that went through without a stop."""
    folder = tmp_path_factory.mktemp("through") / "run"
    state = train(recipe, places(folder))
    assert [epoch.epoch for epoch in state.history] == [0, 1]
    return folder


def test_a_killed_run_resumes_exactly(finished, recipe, recipe_path, places, tmp_path):
    there = places(tmp_path / "run")
    arguments = ["--datasets", there.datasets, "--imagenet-weights", there.imagenet_weights]
    arguments += ["--output", there.output, "--cache", there.cache, "--tracking", there.tracking]
    process = subprocess.Popen([sys.executable, "-c", RUN, recipe_path, *arguments])
    while not (there.output / HISTORY).exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = train(recipe, there)
    assert len(state.history) == 2
    through, resumed = load_file(finished / STATE), load_file(there.output / STATE)
    different = [name for name, array in through.items() if not np.array_equal(resumed[name], array)]
    assert different == []


def test_a_run_of_another_recipe_is_not_resumed(finished, recipe, places):
    with pytest.raises(ValueError, match="another recipe"):
        train(replace(recipe, sha256="other"), places(finished))


def test_a_finished_run_is_left_as_it_is(finished, recipe, places):
    written = (finished / BEST).stat().st_mtime_ns
    assert len(train(recipe, places(finished)).history) == 2
    assert (finished / BEST).stat().st_mtime_ns == written
