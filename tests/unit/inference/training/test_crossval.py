import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rayhook.inference.training import crossval as module
from rayhook.inference.training.crossval import (
    RESULT,
    crossvalidate,
    patient_folds,
    site_folds,
    t_interval,
    t_quantile,
)
from rayhook.inference.training.dataset import DatasetRefused, read_samples
from rayhook.inference.training.train import STATE


@pytest.fixture(scope="module")
def samples(labelled_folder):
    return read_samples(labelled_folder)


@pytest.fixture(scope="module")
def validated(recipe, places, tmp_path_factory):
    """The folder and the figures of a run of two folds."""
    output = tmp_path_factory.mktemp("crossval") / "run"
    short = replace(recipe, optimisation=replace(recipe.optimisation, epochs=1))
    return output, short, crossvalidate(short, places(output), folds=2)


def test_each_patient_is_held_out_once(samples):
    held_out = Counter(p for fold in patient_folds(samples, folds=3, seed=0) for p in fold.patients)
    assert held_out == Counter({f"p{i}": 1 for i in range(10)})


def test_each_fold_has_patients_of_each_site(samples):
    sites = {s.patient_id: s.site for s in samples}
    for fold in patient_folds(samples, folds=2, seed=0):
        assert sorted(Counter(sites[p] for p in fold.patients).values()) in ([2, 3], [3, 3], [2, 2])


def test_each_fold_has_patients_with_and_without_a_positive(samples):
    lone = [replace(s, label=int(s.patient_id in {"p0", "p2"}), site="") for s in samples]
    for fold in patient_folds(lone, folds=2, seed=0):
        assert len(fold.patients & {"p0", "p2"}) == 1


def test_too_few_patients_are_refused(samples):
    with pytest.raises(DatasetRefused, match="enough-patients"):
        patient_folds(samples, folds=11, seed=0)


def test_one_site_is_left_out_at_a_time(samples):
    folds = site_folds(samples)
    assert [fold.name for fold in folds] == ["site-A", "site-B"]
    assert folds[0].patients == {"p0", "p2", "p4", "p6", "p8"}


def test_unknown_sites_are_refused(samples):
    with pytest.raises(DatasetRefused, match="sites-known"):
        site_folds([replace(s, site="") for s in samples])


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (4, 2.7764), (9, 2.2622), (30, 2.0423)])
def test_quantiles_are_those_of_the_tables(freedom, t):
    assert t_quantile(freedom) == pytest.approx(t, rel=2e-4)


def test_the_interval_is_that_of_the_mean_over_folds():
    found = t_interval([0.8, 0.9, 1.0])
    half = 4.3027 * 0.1 / 3**0.5
    assert (found.mean, found.high) == pytest.approx((0.9, 0.9 + half), rel=1e-4)


def test_a_fold_without_the_figure_is_left_out():
    assert t_interval([0.8, float("nan"), 0.9]).mean == pytest.approx(0.85)


def test_only_training_patients_take_part(validated):
    _, _, found = validated
    assert sum(fold.patients for fold in found.folds) == 8


def test_figures_are_the_mean_over_folds(validated):
    _, _, found = validated
    assert found.figures["auc"].mean == pytest.approx(np.mean([f.figures["auc"] for f in found.folds]))


def test_a_finished_fold_is_not_run_again(validated, places, monkeypatch):
    output, recipe, found = validated
    monkeypatch.setattr(module, "Trainer", None)
    assert crossvalidate(recipe, places(output), folds=2) == found


def test_a_finished_fold_leaves_no_state_behind(validated):
    output, _, _ = validated
    folders = [path.parent for path in output.rglob(RESULT)]
    assert len(folders) == 2
    assert not any((folder / STATE).exists() for folder in folders)


def test_a_fold_of_other_patients_is_refused(validated, places):
    output, recipe, _ = validated
    path = output / "crossval" / "patient-2" / "fold-1" / RESULT
    text = path.read_text()
    path.write_text(json.dumps({**json.loads(text), "held_out": ["p1"]}))
    with pytest.raises(ValueError, match="other patients"):
        crossvalidate(recipe, places(output), folds=2)
    path.write_text(text)
