import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rayhook.inference.model import build_resnet50, weights_of
from rayhook.inference.training.package import package
from rayhook.inference.training.recipe import RECIPES
from rayhook.inference.training.train import BEST, HISTORY, STATE, train

RUN = (
    "import sys; from rayhook.inference.training.commands import app; "
    "app(['run', '--recipe', sys.argv[1], '--dataset', sys.argv[2], '--output', sys.argv[3], "
    "'--imagenet-weights', sys.argv[4]])"
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    text = (RECIPES / "mri_flair_tumour.toml").read_text()
    for before, after in {
        "input_size = 128": "input_size = 32",
        "epochs = 12": "epochs = 2",
        "batch = 32": "batch = 8",
        "dev_share = 0.2": "dev_share = 0.5",
        "in_distribution = 0.99": "in_distribution = 0.9",
    }.items():
        text = text.replace(before, after)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """Weights to start from, as the ImageNet file has them."""
    path = tmp_path_factory.mktemp("start") / "start.npz"
    np.savez(path, **{k: v for k, v in weights_of(build_resnet50(32, 1)).items() if k[:4] != "head"})
    return path


@pytest.fixture(scope="module")
def finished(recipe, start, labelled_folder, tmp_path_factory) -> Path:
    """A run that went through without a stop."""
    folder = tmp_path_factory.mktemp("run")
    state = train(recipe, labelled_folder, folder, start)
    assert [epoch.epoch for epoch in state.history] == [0, 1]
    return folder


@pytest.fixture(scope="module")
def built(finished, recipe, labelled_folder, tmp_path_factory):
    """The package of the finished run."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return package(recipe, finished, labelled_folder, folder, cache_dir=tmp_path_factory.mktemp("cache"))


def test_a_killed_run_resumes_exactly(finished, recipe, start, labelled_folder, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", RUN, recipe, labelled_folder, tmp_path, start])
    while not (tmp_path / HISTORY).exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = train(recipe, labelled_folder, tmp_path, start)
    assert len(state.history) == 2
    through, resumed = load_file(finished / STATE), load_file(tmp_path / STATE)
    for name, array in through.items():
        np.testing.assert_allclose(resumed[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_run_of_another_recipe_is_not_resumed(finished, recipe, start, labelled_folder, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text().replace("learning_rate = 1e-4", "learning_rate = 2e-4"))
    with pytest.raises(ValueError, match="another recipe"):
        train(other, labelled_folder, finished, start)


def test_a_finished_run_is_left_as_it_is(finished, recipe, start, labelled_folder):
    written = (finished / BEST).stat().st_mtime_ns
    assert len(train(recipe, labelled_folder, finished, start).history) == 2
    assert (finished / BEST).stat().st_mtime_ns == written


def test_package_verifies_and_carries_figures_of_the_held_out_patients(built):
    built.verify()
    slices = built.manifest.evaluations[0]
    assert (slices.patients, slices.count, slices.positives) == (2, 8, 4)
    assert 0 < built.manifest.labels[0].threshold < 1


def test_package_says_what_quantisation_changed(built):
    assert built.manifest.quantisation.max_logit_difference < 0.5


def test_package_declines_constant_images(built):
    rates = {abstention.images: abstention.rate for abstention in built.manifest.abstentions}
    assert rates["constant"] == 1.0
