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
    recipe = read_recipe(path)
    train(recipe, places(folder / "run"))
    return package(
        recipe,
        folder / "run",
        labelled_folder.parent,
        folder / "tiny",
        cache_dir=folder / "cache",
        foreign=["labelled"],
    )


def test_package_verifies_and_carries_figures_of_the_held_out_patients(built):
    built.verify()
    slices = built.manifest.evaluations[0]
    assert (slices.patients, slices.count, slices.positives) == (2, 8, 4)
    assert 0 < built.manifest.labels[0].threshold < 1


def test_package_says_what_quantisation_changed(built):
    assert built.manifest.quantisation.max_logit_difference < 0.5


@pytest.fixture(scope="module")
def rates(built):
    return {abstention.images: abstention.rate for abstention in built.manifest.abstentions}


def test_package_declines_constant_images(rates):
    assert rates["constant"] == 1.0


def test_package_declines_noise(rates):
    assert rates["uniform noise"] > 0.9


def test_package_tells_how_often_it_declines_its_own_kind_of_image(rates):
    assert 0 <= rates["intended images, val"] <= 1


def test_package_names_the_kinds_that_its_input_check_learnt(built):
    assert {"upside down", "grey levels inverted", "labelled"} <= set(built.manifest.check.kinds)


def test_package_carries_its_input_check(built):
    kernel, bias = built.check
    assert (kernel.shape, bias.shape) == ((256 + 512 + 1024 + 2048,), (1,))


def test_what_is_not_sure_holds_the_threshold(built):
    label = built.manifest.labels[0]
    assert label.unsure is None or label.unsure[0] <= label.threshold <= label.unsure[1]
