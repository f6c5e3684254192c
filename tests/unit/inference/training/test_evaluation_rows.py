import csv
import tarfile

import pytest

from rayhook.inference.training.dataset import DatasetRefused
from rayhook.inference.training.evaluation_rows import (
    open_dataset,
    open_package,
    recipe_of,
    rows_to_evaluate,
)
from rayhook.inference.training.recipe import Data

DATA = Data(dataset="ct_lidc", exclude=("-1",), group="nodule_id", spacing="pixel_mm")


@pytest.fixture
def rewritten(nodules, tmp_path):
    """Return the nodules' labels.csv in a folder of its own, with other columns."""

    def rewrite(change):
        with (nodules / "labels.csv").open(newline="") as file:
            rows = [change(row) for row in csv.DictReader(file)]
        with (tmp_path / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path

    return rewrite


def test_without_a_split_all_that_does_not_train_is_evaluated(nodules):
    rows, name = rows_to_evaluate(nodules, DATA, None)
    assert ({row.split for row in rows}, name, len(rows)) == ({"test"}, "test", 36)


def test_a_split_is_evaluated_by_name(nodules):
    rows, name = rows_to_evaluate(nodules, DATA, "train")
    assert ({row.patient_id for row in rows}, name) == ({"p0"}, "train")


def test_excluded_values_are_left_out(nodules):
    assert {row.label for row in rows_to_evaluate(nodules, DATA, None)[0]} == {0, 1}


def test_an_absent_split_is_refused_and_the_others_named(nodules):
    with pytest.raises(DatasetRefused, match="split val; there are: test, train"):
        rows_to_evaluate(nodules, DATA, "val")


def test_a_folder_that_only_trains_is_refused(rewritten):
    folder = rewritten(lambda row: {**row, "split": "train"})
    with pytest.raises(DatasetRefused, match="other than train; there are: train"):
        rows_to_evaluate(folder, DATA, None)


def test_without_a_column_of_splits_all_rows_are_evaluated(rewritten):
    folder = rewritten(lambda row: {name: value for name, value in row.items() if name != "split"})
    rows, name = rows_to_evaluate(folder, DATA, None)
    assert (len(rows), name) == (40, "all")


def test_a_column_of_sites_may_be_absent(nodules):
    rows, _ = rows_to_evaluate(nodules, Data(**{**_fields(DATA), "site": "site"}), None)
    assert {row.site for row in rows} == {""}


def test_an_archive_is_opened_whatever_its_name(nodules, tmp_path):
    with tarfile.open(tmp_path / "renamed.tar", "w") as tar:
        tar.add(nodules / "labels.csv", "sealed/labels.csv")
    assert open_dataset(tmp_path / "renamed.tar", tmp_path / "cache").name == "sealed"


def test_an_archive_beside_an_absent_folder_is_opened(nodules, tmp_path):
    with tarfile.open(tmp_path / "sealed.tar", "w") as tar:
        tar.add(nodules / "labels.csv", "sealed/labels.csv")
    assert (open_dataset(tmp_path / "sealed", tmp_path / "cache") / "labels.csv").is_file()


def test_an_absent_data_set_is_refused(tmp_path):
    with pytest.raises(DatasetRefused, match="dataset-exists"):
        open_dataset(tmp_path / "nothing", tmp_path)


def test_the_recipe_is_that_of_the_model():
    assert recipe_of("cxr-nodule").data.label == "label_nodule"


def test_a_model_without_a_recipe_is_refused():
    with pytest.raises(FileNotFoundError, match="--recipe"):
        recipe_of("other")


def test_an_absent_model_is_refused_and_the_others_named(models):
    with pytest.raises(FileNotFoundError, match="ct-lung-nodule, ct-lung-nodule-finder"):
        open_package("other", models)


def _fields(data):
    return {name: getattr(data, name) for name in data.__dataclass_fields__}
