from dataclasses import replace

import numpy as np
import pytest

from rayhook.inference.preprocess import BrainSlice
from rayhook.inference.training.dataset import (
    DatasetRefused,
    load_cohort,
    read_samples,
    refuse_shared_patients,
    split_fit_dev,
)


def test_rows_are_read(labelled_folder):
    samples = read_samples(labelled_folder)
    assert len(samples) == 40
    assert sum(sample.label for sample in samples) == 20
    assert all((sample.mask is not None) == (sample.label == 1) for sample in samples)


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


def test_a_label_that_is_not_binary_is_refused(labelled_folder, tmp_path):
    text = (labelled_folder / "labels.csv").read_text().replace(",1,p1", ",-1,p1")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DatasetRefused, match="binary-label"):
        read_samples(tmp_path)


def test_fit_and_dev_share_no_patient_and_each_site_is_in_both(labelled_folder):
    samples = [s for s in read_samples(labelled_folder) if s.split == "train"]
    fit, dev = split_fit_dev(samples, dev_share=0.25, seed=1)
    assert {s.patient_id for s in fit}.isdisjoint(s.patient_id for s in dev)
    assert {s.site for s in fit} == {s.site for s in dev} == {"A", "B"}
    assert len(fit) + len(dev) == len(samples)


def test_the_split_is_that_of_its_seed(labelled_folder):
    samples = read_samples(labelled_folder)
    assert split_fit_dev(samples, dev_share=0.25, seed=1) == split_fit_dev(samples, dev_share=0.25, seed=1)


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
