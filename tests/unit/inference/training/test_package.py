import pytest

from rayhook.inference.training.package import package
from rayhook.inference.training.recipe import read_recipe
from rayhook.inference.training.train import train


@pytest.fixture(scope="module")
def built(recipe_path, places, labelled_folder, tmp_path_factory):
    """The package of a run of all four stages."""
    folder = tmp_path_factory.mktemp("packaged")
    text = recipe_path.read_text().replace("output_stride = 8\nstages = 2", "output_stride = 16")
    path = folder / "whole.toml"
    path.write_text(text.replace("epochs = 2", "epochs = 1"))
    train(read_recipe(path), places(folder / "run"))
    return package(path, folder / "run", labelled_folder, folder / "tiny", cache_dir=folder / "cache")


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
