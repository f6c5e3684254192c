from dataclasses import replace

import numpy as np
import pytest

from rayhook.inference.training.dataset import Sample
from rayhook.inference.training.recipe import Weighting
from rayhook.inference.training.shards import write_shards
from rayhook.inference.training.stream import Stream, row_weights

COUNT = 21


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    planes = np.random.default_rng(0).random((COUNT + 4, 32, 32)).astype(np.float32)
    return write_shards(tmp_path_factory.mktemp("shards"), zip(planes, planes > 0.7, strict=True), size=32)


@pytest.fixture
def stream(stored, recipe):
    def make(**changes):
        changed = replace(recipe, optimisation=replace(recipe.optimisation, **changes))
        targets = np.linspace(0, 1, COUNT, dtype=np.float32)
        return Stream(
            stored,
            np.arange(4, COUNT + 4),
            targets=targets,
            weights=np.ones(COUNT, np.float32),
            recipe=changed,
        )

    return make


def _parts(stream, epoch, replicas=1):
    return list(stream.parts(epoch, replicas=replicas, chosen=range(replicas)))


def _batches(dataset):
    return [[np.asarray(part) for part in batch] for batch in dataset]


def test_an_epoch_has_every_row_once(stream):
    parts = _parts(stream(), 0)
    rows = np.concatenate([part.rows[part.shares > 0] for part in parts])
    assert sorted(rows) == list(range(COUNT))


def test_the_rows_beyond_the_end_weigh_nothing(stream):
    last = _parts(stream(), 0)[-1]
    assert (last.rows.size, np.count_nonzero(last.shares)) == (8, COUNT % 8)
    assert last.shares.sum() == pytest.approx(1)


def test_each_epoch_has_an_order_of_its_own_and_the_same_each_time(stream):
    first, second, again = (
        np.concatenate([part.rows for part in _parts(stream(), epoch)]) for epoch in (0, 1, 0)
    )
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_the_same_batch(stream, replicas):
    whole, shared = _parts(stream(), 3), _parts(stream(), 3, replicas)
    for step, part in enumerate(whole):
        parts = shared[step * replicas : (step + 1) * replicas]
        np.testing.assert_array_equal(np.concatenate([p.rows for p in parts]), part.rows)
        np.testing.assert_array_equal(np.concatenate([p.shares for p in parts]), part.shares)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(stream):
    with pytest.raises(ValueError, match="cannot be shared by 3"):
        next(stream().parts(0, replicas=3, chosen=[0]))


def test_workers_see_the_planes_that_one_would_see(stream):
    whole = _batches(stream().dataset(1))
    halves = [_batches(stream().dataset(1, replicas=2, chosen=[k])) for k in range(2)]
    for step, batch in enumerate(whole):
        joined = np.concatenate([half[step][0] for half in halves])
        np.testing.assert_array_equal(joined, batch[0])


def test_targets_stay_with_their_rows(stream):
    part, batch = _parts(stream(), 2)[0], _batches(stream().dataset(2))[0]
    np.testing.assert_allclose(batch[2], np.linspace(0, 1, COUNT, dtype=np.float32)[part.rows])


def test_mixed_rows_aim_between_their_targets(stream):
    mixing = stream(mixup=1.0)
    part, batch = _parts(mixing, 2)[0], _batches(mixing.dataset(2))[0]
    targets = np.linspace(0, 1, COUNT, dtype=np.float32)
    expected = part.mixes * targets[part.rows] + (1 - part.mixes) * targets[part.partners]
    np.testing.assert_allclose(batch[2], expected, atol=1e-6)


def test_groups_weigh_alike():
    groups = ["a", "a", "a", "b"]
    samples = [Sample(str(i), None, 0, "p", "", 0, "train", group=g) for i, g in enumerate(groups)]
    np.testing.assert_allclose(row_weights(samples, Weighting.GROUP), [2 / 3, 2 / 3, 2 / 3, 2])
