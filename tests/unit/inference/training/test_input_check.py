import numpy as np
import pytest

from rayhook.inference.training.input_check import fit_input_check

CHANNELS = 12


def group(middle: float, count: int = 200, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, CHANNELS)) + middle * (np.arange(CHANNELS) < 3)).astype(np.float32)


@pytest.fixture(scope="module")
def check():
    kinds = {"far": group(6.0, seed=1), "below": group(-6.0, seed=2)[:, ::-1].copy()}
    return fit_input_check(group(0.0, seed=3), kinds, group(0.0, seed=4), share=0.95)


@pytest.mark.parametrize(("middle", "reverse"), [(6.0, False), (-6.0, True)])
def test_every_kind_it_learnt_is_told(check, middle, reverse):
    rows = group(middle, seed=9)
    told = check.values(rows[:, ::-1] if reverse else rows) > check.threshold
    assert told.mean() > 0.99


def test_the_share_of_own_images_that_is_let_through_is_the_one_asked_for(check):
    assert np.mean(check.values(group(0.0, seed=4)) <= check.threshold) == pytest.approx(0.95, abs=0.005)


def test_own_images_of_others_are_let_through_nearly_as_often(check):
    assert np.mean(check.values(group(0.0, count=2000, seed=5)) <= check.threshold) > 0.9


def test_kinds_weigh_alike_however_many_images_they_have():
    """A kind of few images is not drowned by one of many."""
    kinds = {"many": group(6.0, count=2000, seed=1), "few": group(-6.0, count=20, seed=2)[:, ::-1].copy()}
    check = fit_input_check(group(0.0, seed=3), kinds, group(0.0, seed=4), share=0.95)
    assert np.mean(check.values(group(-6.0, seed=8)[:, ::-1].copy()) > check.threshold) > 0.95


def test_a_channel_that_never_changes_does_no_harm():
    own, foreign = group(0.0, seed=3), group(6.0, seed=1)
    own[:, 5] = foreign[:, 5] = 1.0
    assert np.isfinite(fit_input_check(own, {"far": foreign}, own, share=0.9).kernel).all()
