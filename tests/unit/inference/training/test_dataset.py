import csv
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rayhook.inference.preprocess import BrainSlice
from rayhook.inference.training.dataset import (
    UNRATED,
    DatasetRefused,
    find_dataset,
    load_cohort,
    patients_by_stratum,
    read_samples,
    refuse_overlap,
    refuse_shared_patients,
    split_fit_dev,
)
from rayhook.inference.training.recipe import Data, SoftTarget

CT = Data(dataset="ct", exclude=("-1",), group="nodule", spacing="pixel_mm")
SOFT = replace(CT, target=SoftTarget("malignancy", low=1, high=5, excluded_rows=True))
ROW = {
    "path": "a.png",
    "label": "1",
    "patient_id": "p",
    "split": "train",
    "nodule": "n",
    "pixel_mm": "0.7",
    "malignancy": "4",
}


def _folder(path, *changes):
    rows = [{**ROW, "path": f"{i}.png", **change} for i, change in enumerate(changes)]
    with (path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_rows_are_read(labelled_folder):
    samples = read_samples(labelled_folder)
    assert len(samples) == 40
    assert sum(sample.label for sample in samples) == 20
    assert all((sample.mask is not None) == (sample.label == 1) for sample in samples)


def test_columns_are_those_of_the_recipe(tmp_path):
    (sample,) = read_samples(_folder(tmp_path, {}), CT)
    assert (sample.group, sample.spacing_mm, sample.site, sample.mask) == ("n", 0.7, "", None)
    assert sample.attributes["malignancy"] == "4"


def test_rows_for_training_leave_their_attributes(tmp_path):
    (sample,) = read_samples(_folder(tmp_path, {}), CT, for_training=True)
    assert dict(sample.attributes) == {}


def test_without_a_label_column_a_mask_is_a_positive(tmp_path):
    folder = _folder(tmp_path, {"mask": "m.png"}, {"mask": ""})
    assert [s.label for s in read_samples(folder, replace(CT, label=""))] == [1, 0]


def test_excluded_labels_are_left_out(tmp_path):
    folder = _folder(tmp_path, {"label": "-1"}, {"label": "0"})
    assert [s.label for s in read_samples(folder, CT)] == [0]


@pytest.mark.parametrize(("data", "labels"), [(SOFT, [UNRATED, 0]), (CT, [0])])
def test_excluded_labels_train_with_a_soft_target_alone(tmp_path, data, labels):
    folder = _folder(tmp_path, {"label": "-1"}, {"label": "0"})
    assert [s.label for s in read_samples(folder, data, for_training=True)] == labels


@pytest.mark.parametrize(("value", "target"), [("0.5", 0.0), ("2", 0.25), ("9", 1.0)])
def test_a_soft_target_is_clipped_between_low_and_high(tmp_path, value, target):
    (sample,) = read_samples(_folder(tmp_path, {"malignancy": value}), SOFT)
    assert sample.target == target


@pytest.mark.parametrize(
    ("change", "data", "rule"),
    [
        ({"label": "2"}, CT, "binary-label"),
        ({"pixel_mm": ""}, CT, "positive-spacing"),
        ({"pixel_mm": "-1"}, CT, "positive-spacing"),
        ({"malignancy": "high"}, SOFT, "numeric-target"),
        ({}, replace(CT, site="hospital"), "named-columns: labels.csv lacks hospital"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_by_its_rule(tmp_path, change, data, rule):
    with pytest.raises(DatasetRefused, match=rule):
        read_samples(_folder(tmp_path, change), data)


def test_a_patient_in_two_splits_is_refused(labelled_folder):
    samples = read_samples(labelled_folder)
    moved = (replace(samples[0], split="val"), *samples[1:])
    with pytest.raises(DatasetRefused, match="one-patient-one-split: 1 patients"):
        refuse_shared_patients(moved)


def test_a_folder_with_a_shared_patient_is_refused_on_reading(labelled_folder, tmp_path):
    text = (labelled_folder / "labels.csv").read_text().replace("p0,A,0,train", "p0,A,0,val")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DatasetRefused, match="one-patient-one-split"):
        read_samples(tmp_path)


def test_a_patient_on_both_sides_is_refused(labelled_folder):
    samples = read_samples(labelled_folder)
    with pytest.raises(DatasetRefused, match="one-patient-one-split"):
        refuse_overlap(samples[:2], samples[2:])


def test_fit_and_dev_share_no_patient_and_each_site_is_in_both(labelled_folder):
    samples = [s for s in read_samples(labelled_folder) if s.split == "train"]
    fit, dev = split_fit_dev(samples, dev_share=0.25, seed=1)
    assert {s.patient_id for s in fit}.isdisjoint(s.patient_id for s in dev)
    assert {s.site for s in fit} == {s.site for s in dev} == {"A", "B"}
    assert len(fit) + len(dev) == len(samples)


def test_patients_with_and_without_a_positive_are_in_both(labelled_folder):
    (first, *_), other = read_samples(labelled_folder), replace
    samples = [other(first, patient_id=f"q{i}", label=int(i % 4 == 0), site="") for i in range(40)]
    _, dev = split_fit_dev(samples, dev_share=0.2, seed=3)
    assert Counter(s.label for s in dev) == {0: 6, 1: 2}


def test_unrated_rows_neither_develop_nor_change_the_split(labelled_folder):
    samples = read_samples(labelled_folder)
    unrated = [replace(s, label=UNRATED, path=f"u{s.path}") for s in samples[::3]]
    fit, dev = split_fit_dev(samples, dev_share=0.25, seed=1)
    more, same = split_fit_dev([*samples, *unrated], dev_share=0.25, seed=1)
    assert same == dev
    assert [s for s in more if s.label != UNRATED] == list(fit)
    assert {s.patient_id for s in more}.isdisjoint(s.patient_id for s in dev)


def test_strata_are_site_and_whether_a_row_is_positive(labelled_folder):
    strata = patients_by_stratum(read_samples(labelled_folder))
    assert {key: len(patients) for key, patients in strata.items()} == {("A", True): 5, ("B", True): 5}


def test_the_split_is_that_of_its_seed(labelled_folder):
    samples = read_samples(labelled_folder)
    assert split_fit_dev(samples, dev_share=0.25, seed=1) == split_fit_dev(samples, dev_share=0.25, seed=1)


def test_a_data_set_is_found_as_a_folder(labelled_folder, tmp_path):
    assert find_dataset("labelled", labelled_folder.parent, tmp_path) == labelled_folder


def test_a_data_set_is_unpacked_from_its_tar_once(labelled_folder, tmp_path):
    with tarfile.open(tmp_path / "labelled.tar", "w") as tar:
        tar.add(labelled_folder, arcname="labelled")
    first = find_dataset("labelled", tmp_path, tmp_path / "cache")
    (first / "touched").touch()
    again = find_dataset("labelled", tmp_path, tmp_path / "cache")
    assert (len(read_samples(again)), (again / "touched").exists()) == (40, True)


def test_an_absent_data_set_is_refused(tmp_path):
    with pytest.raises(DatasetRefused, match="dataset-exists"):
        find_dataset("none", tmp_path, tmp_path)


def test_masks_follow_the_geometry_of_the_planes(labelled_folder):
    samples = read_samples(labelled_folder)
    cohort = load_cohort(samples, labelled_folder, BrainSlice(input_size=32))
    assert cohort.planes.shape == cohort.masks.shape == (40, 32, 32)
    lesion = cohort.labels == 1
    inside = np.array(
        [p[m > 0.5].mean() for p, m in zip(cohort.planes[lesion], cohort.masks[lesion], strict=True)]
    )
    assert inside.min() > 0.5
    assert not cohort.masks[~lesion].any()


def test_a_missing_image_is_refused(labelled_folder):
    sample = replace(read_samples(labelled_folder)[0], path="images/none.png")
    with pytest.raises(DatasetRefused, match="readable-image"):
        load_cohort([sample], labelled_folder, BrainSlice(input_size=32))
