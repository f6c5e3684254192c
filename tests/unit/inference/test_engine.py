import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayhook.deploy.health_checks import engine_check
from rayhook.fhir.errors import EngineUnavailable, ModelIntegrityError
from rayhook.inference.engine import (
    ENGINE_ENDED,
    Engine,
    LocalEngine,
    OnDemandEngine,
    export_all,
    export_litert,
)
from rayhook.inference.litert import _is_whole, golden_input
from rayhook.inference.registry import ModelPackage

TIMEOUT_S = 60.0


@pytest.fixture
def engine(flair, engine_cache):
    engine = Engine.start(flair, engine_cache)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def images(flair):
    size = flair.manifest.input_size
    return np.random.default_rng(0).normal(size=(6, size, size, 3)).astype(np.float32)


def test_export_is_made_once_and_without_tensorflow_in_this_process(flair, engine_cache):
    before = "tensorflow" in sys.modules
    path = export_litert(flair, engine_cache)
    made = path.stat().st_mtime_ns
    assert export_litert(flair, engine_cache) == path
    assert path.stat().st_mtime_ns == made
    assert ("tensorflow" in sys.modules) is before


def test_own_process_gives_the_same_numbers_as_this_one(engine, local_engine, images):
    expected, output = local_engine.run(images, TIMEOUT_S), engine.run(images, TIMEOUT_S)
    np.testing.assert_array_equal(output.logits, expected.logits)
    np.testing.assert_array_equal(output.features, expected.features)
    np.testing.assert_array_equal(output.cam, expected.cam)


def test_output_has_its_shapes_and_the_map_averages_to_the_logit(local_engine, images, flair):
    output = local_engine.run(images, TIMEOUT_S)
    side = flair.manifest.input_size // flair.manifest.output_stride
    assert output.logits.shape == (6, 1)
    assert output.features.shape == (6, 2048)
    assert output.cam.shape == (6, side, side, 1)
    np.testing.assert_allclose(output.cam.mean(axis=(1, 2)), output.logits, atol=1e-3)


def test_an_images_result_does_not_depend_on_its_neighbours(local_engine, images):
    together = local_engine.run(images, TIMEOUT_S).logits
    alone = np.concatenate([local_engine.run(image[np.newaxis], TIMEOUT_S).logits for image in images])
    np.testing.assert_array_equal(together, alone)


def test_many_threads_get_their_own_answers(engine, local_engine, images):
    expected = local_engine.run(images, TIMEOUT_S).logits
    order = [index for index in range(len(images)) for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: engine.run(images[i][np.newaxis], TIMEOUT_S).logits[0], order))
    np.testing.assert_array_equal(np.stack(answers), expected[order])


def test_more_images_than_slots_all_get_answers(engine, local_engine, images):
    many = np.repeat(images[:1], 40, axis=0)
    np.testing.assert_array_equal(
        engine.run(many, TIMEOUT_S).logits,
        np.repeat(local_engine.run(images[:1], TIMEOUT_S).logits, 40, axis=0),
    )


def test_ready_after_the_self_test(engine):
    engine.wait_ready(TIMEOUT_S)
    assert engine.ready


def test_killed_engine_fails_the_calls_under_way_and_serves_the_next(engine, images):
    engine.wait_ready(TIMEOUT_S)
    first = engine.pid
    caught = []

    def call():
        try:
            engine.run(np.repeat(images, 20, axis=0), TIMEOUT_S)
        except EngineUnavailable as error:
            caught.append(error)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    time.sleep(0.3)
    os.kill(first, signal.SIGKILL)
    for caller in callers:
        caller.join(TIMEOUT_S)
    assert len(caught) == 2
    assert all(error.retryable for error in caught)
    assert ENGINE_ENDED in {
        error.code for error in caught
    }  # the other may have had none of its images in yet
    assert engine.run(images[:1], TIMEOUT_S).logits.shape == (1, 1)
    assert engine.pid != first


def test_a_call_ends_at_its_deadline(engine, images):
    engine.wait_ready(TIMEOUT_S)
    started = time.monotonic()
    with pytest.raises(EngineUnavailable):
        engine.run(np.repeat(images, 50, axis=0), 0.2)
    assert time.monotonic() - started < 2.0


def test_closed_engine_answers_no_more(flair, engine_cache, images):
    engine = Engine.start(flair, engine_cache)
    engine.close()
    assert not engine.ready
    with pytest.raises(EngineUnavailable, match="closed"):
        engine.run(images, TIMEOUT_S)


@pytest.mark.parametrize("suffix", [".tflite", ".sha256"])
def test_damaged_export_counts_as_none(flair, engine_cache, tmp_path, suffix):
    made = export_litert(flair, engine_cache)
    for part in (".tflite", ".sha256"):
        shutil.copy(made.with_suffix(part), tmp_path)
    path = tmp_path / made.name
    assert _is_whole(path)
    with path.with_suffix(suffix).open("r+b") as file:
        file.truncate(10)
    assert not _is_whole(path)


def test_another_answer_to_the_golden_input_is_refused(flair, engine_cache, images):
    wrong = replace(flair.manifest, golden_logits=tuple(v + 0.01 for v in flair.manifest.golden_logits))
    package = ModelPackage(folder=flair.folder, manifest=wrong)
    with pytest.raises(ModelIntegrityError, match="golden"):
        LocalEngine(package, engine_cache)
    engine = Engine.start(package, engine_cache)
    for _ in range(2):
        with pytest.raises(ModelIntegrityError, match="golden"):
            engine.run(images[:1], TIMEOUT_S)
    assert not engine.ready
    engine.close()


def test_golden_input_is_the_same_everywhere():
    image = golden_input(128)
    assert image.shape == (128, 128, 3)
    assert float(image[17, 31, 1]) == pytest.approx(np.sin(2 * np.pi * (2 * 17 + 3 * 31) / 128), abs=1e-6)


def test_an_engine_on_demand_is_not_made_before_it_is_asked(flair, tmp_path):
    engine = OnDemandEngine(flair, tmp_path / "none")
    assert (engine.ready, (tmp_path / "none").exists()) == (False, False)


def test_an_engine_on_demand_answers_as_any_other(flair, engine_cache, local_engine, images):
    engine = OnDemandEngine(flair, engine_cache)
    np.testing.assert_array_equal(
        engine.run(images, TIMEOUT_S).logits, local_engine.run(images, TIMEOUT_S).logits
    )
    engine.close()


def test_all_exports_are_made_and_told(flair, engine_cache):
    told: list[ModelPackage] = []
    export_all([flair], engine_cache, done=told.append)
    assert told == [flair]


def test_an_export_that_fails_fails_them_all(flair, tmp_path):
    damaged = ModelPackage(tmp_path, flair.manifest)
    with pytest.raises(ModelIntegrityError):
        export_all([damaged], tmp_path)


def test_asking_whether_it_is_well_brings_a_killed_engine_back(engine):
    first = engine.pid
    os.kill(first, signal.SIGKILL)
    check = engine_check([engine])
    deadline = time.monotonic() + TIMEOUT_S
    while engine.ready:
        assert time.monotonic() < deadline
    assert not check.ask()
    while not check.ask():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert engine.pid != first


def test_images_are_in_memory_that_has_a_name_on_no_disk(engine):
    engine.wait_ready(60)
    mapped = Path(f"/proc/{engine.pid}/maps").read_text()
    assert "/memfd:rayhook-engine" in mapped
    assert "pym-" not in mapped  # what multiprocessing calls its own files
