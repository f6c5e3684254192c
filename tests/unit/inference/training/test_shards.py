import numpy as np
import pytest

from rayhook.inference.preprocess import BrainSlice
from rayhook.inference.training import shards as module
from rayhook.inference.training.dataset import load_cohort, read_samples
from rayhook.inference.training.shards import INDEX, cached_shards, open_shards, write_shards

SMALL = BrainSlice(input_size=16)


@pytest.fixture
def samples(labelled_folder):
    return read_samples(labelled_folder)


@pytest.fixture
def planes():
    return np.random.default_rng(0).random((7, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("rows", [2, 7, 100])
def test_records_are_read_back_by_row_whatever_a_file_holds(monkeypatch, tmp_path, planes, rows):
    monkeypatch.setattr(module, "_ROWS", rows)
    written = write_shards(tmp_path, zip(planes, planes > 0.5, strict=True), size=8)
    read, masks = written.read([6, 0, 3, 3])
    np.testing.assert_allclose(read, planes[[6, 0, 3, 3]], atol=5e-4)
    np.testing.assert_array_equal(masks, planes[[6, 0, 3, 3]] > 0.5)
    assert written.count == 7


@pytest.mark.parametrize("row", [-1, 7])
def test_a_row_that_is_not_there_is_refused(tmp_path, planes, row):
    with pytest.raises(IndexError):
        write_shards(tmp_path, zip(planes, planes, strict=True), size=8).read([row])


def test_a_file_that_was_cut_off_is_told(tmp_path, planes):
    written = write_shards(tmp_path, zip(planes, planes, strict=True), size=8)
    (file,) = tmp_path.glob("*.shard")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EOFError):
        written.read([6])


def test_shards_without_their_index_are_not_opened(tmp_path, planes):
    write_shards(tmp_path, zip(planes, planes, strict=True), size=8)
    (tmp_path / INDEX).unlink()
    with pytest.raises(FileNotFoundError):
        open_shards(tmp_path)


def test_record_k_is_sample_k(samples, labelled_folder, tmp_path):
    cohort = load_cohort(samples, labelled_folder, SMALL)
    planes, masks = cached_shards(samples, labelled_folder, SMALL, tmp_path).read(range(len(samples)))
    np.testing.assert_allclose(planes, cohort.planes, atol=5e-4)
    np.testing.assert_allclose(masks, cohort.masks, atol=2e-3)


def test_samples_are_preprocessed_once(samples, labelled_folder, tmp_path):
    calls = []
    for _ in range(2):
        cached_shards(samples, labelled_folder, SMALL, tmp_path, advance=lambda: calls.append(1))
    assert len(calls) == len(samples)


@pytest.mark.parametrize("change", ["preprocessing", "rows", "file"])
def test_what_changes_the_planes_makes_other_shards(samples, labelled_folder, tmp_path, change):
    first = cached_shards(samples[:4], labelled_folder, SMALL, tmp_path)
    kind = BrainSlice(input_size=16, margin=0.2) if change == "preprocessing" else SMALL
    rows = samples[:3] if change == "rows" else samples[:4]
    image = labelled_folder / samples[0].path
    before = image.read_bytes()
    if change == "file":
        image.write_bytes((labelled_folder / samples[1].path).read_bytes())
    second = cached_shards(rows, labelled_folder, kind, tmp_path)
    image.write_bytes(before)
    assert second.folder != first.folder
