import pytest

from rayhook.inference.training.recipe import RECIPES, read_recipe

RECIPE = RECIPES / "mri_flair_tumour.toml"


def test_bundled_recipe_is_read():
    recipe = read_recipe(RECIPE)
    assert recipe.preprocessing.input_size == 128
    assert recipe.labels == 1


def test_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.read_text().replace("averaging =", "avreaging ="))
    with pytest.raises(TypeError, match="avreaging"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("before", "after", "same"), [("epochs = 12", "epochs = 13", False), ("FLAIR slice", "slice", True)]
)
def test_digest_is_of_what_changes_the_weights(tmp_path, before, after, same):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.read_text().replace(before, after))
    assert (read_recipe(path).sha256 == read_recipe(RECIPE).sha256) is same
