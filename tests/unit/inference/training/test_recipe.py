import msgspec
import pytest

from rayhook.inference.preprocess import Film, Patch
from rayhook.inference.training.recipe import (
    RECIPES,
    MaskHead,
    Precision,
    Weighting,
    find_recipe,
    read_recipe,
)

RECIPE = RECIPES / "mri_flair_tumour.toml"
PATCH = 'kind = "patch"\ninput_size = 96\nspacing_mm = 0.6'
BRAIN = 'kind = "brain_slice"\ninput_size = 160'


@pytest.fixture
def changed(tmp_path):
    """The bundled recipe with one text put for another."""

    def write(before, after):
        text = RECIPE.read_text()
        assert before in text
        path = tmp_path / "recipe.toml"
        path.write_text(text.replace(before, after))
        return path

    return write


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_bundled_recipe_is_read(path):
    assert read_recipe(path).labels >= 1


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("averaging =", "avreaging =", "optimisation.avreaging"),
        ("seed =", "sead = 1\nseed =", "sead"),
        ("input_size = 160", "input_size = 160\nsize = 3", "preprocessing.size"),
        ('name = "tumour"', 'name = "tumour"\ncolour = "red"', "manifest.labels.0.colour"),
    ],
)
def test_an_unknown_key_is_refused_by_its_name(changed, before, after, key):
    with pytest.raises(TypeError, match=f"unknown key {key}"):
        read_recipe(changed(before, after))


@pytest.mark.parametrize(
    ("before", "after"), [("epochs = 8", 'epochs = "12"'), ("seed = 20261123\n", ""), (BRAIN, 'kind = "x"')]
)
def test_a_value_that_does_not_fit_is_refused(changed, before, after):
    with pytest.raises(msgspec.ValidationError):
        read_recipe(changed(before, after))


@pytest.mark.parametrize(
    ("before", "after", "same"), [("epochs = 8", "epochs = 13", False), ("FLAIR slice", "slice", True)]
)
def test_digest_is_of_what_changes_the_weights(changed, before, after, same):
    assert (read_recipe(changed(before, after)).sha256 == read_recipe(RECIPE).sha256) is same


@pytest.mark.parametrize(
    ("table", "kind"),
    [(PATCH, Patch(input_size=96, spacing_mm=0.6)), ('kind = "film"\ninput_size = 224', Film(224))],
)
def test_preprocessing_is_of_its_kind(changed, table, kind):
    assert read_recipe(changed(BRAIN, table)).preprocessing == kind


def test_soft_targets_and_weights_are_read(changed):
    data = 'site = "site"\nweight = "group"\ntarget = { column = "malignancy_mean", low = 1, high = 5 }'
    read = read_recipe(changed('site = "site"', data)).data
    assert (read.weight, read.target.high, read.target.excluded_rows) == (Weighting.GROUP, 5.0, False)


def test_precision_and_mask_head_have_defaults():
    recipe = read_recipe(RECIPE)
    assert (recipe.precision, recipe.optimisation.mask_head) == (Precision.AUTO, MaskHead.OWN)


@pytest.mark.parametrize(
    "name", [str(RECIPE), "mri_flair_tumour", "mri-flair-tumour", "mri_flair_tumour.toml"]
)
def test_a_recipe_is_found_by_path_and_by_name(name):
    assert find_recipe(name).samefile(RECIPE)


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(FileNotFoundError, match="mri_flair_tumour"):
        find_recipe("unknown")
