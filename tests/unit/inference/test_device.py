"""Networks on devices of TensorFlow's: the same answers, and each device its share."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from rayhook.fhir.errors import EngineUnavailable, ModelIntegrityError
from rayhook.inference.device import _ask_tensorflow, choose_devices, find_gpus
from rayhook.inference.engine import Engine
from rayhook.inference.engine_pool import EnginePool
from rayhook.inference.litert import golden_input, specify
from rayhook.inference.tensorflow_runtime import TensorFlowRuntime, open_runtime
from tests.unit.inference.images import SpotEngine

READY_S = 180.0


def test_the_processor_is_taken_where_it_is_asked_for():
    assert choose_devices("cpu") == ("cpu",)


def test_by_default_gpus_are_taken_where_there_are_any():
    assert choose_devices("auto") == (find_gpus() or ("cpu",))


def test_tensorflow_names_what_it_finds():
    assert all(name.startswith("GPU:") for name in _ask_tensorflow())


@pytest.mark.skipif(bool(find_gpus()), reason="there is one here")
def test_a_gpu_that_is_not_there_is_not_done_without():
    with pytest.raises(EngineUnavailable):
        choose_devices("gpu")


def test_an_engine_on_a_device_of_tensorflows_answers_as_the_processors(flair, engine_cache):
    on_processor = Engine.start(flair, engine_cache)
    on_device = Engine.start(flair, engine_cache, device="CPU:0")
    try:
        on_processor.wait_ready(READY_S)
        on_device.wait_ready(READY_S)
        images = np.stack([golden_input(flair.manifest.input_size) * scale for scale in (0.5, 1.0)])
        mine, theirs = (engine.run(images, READY_S) for engine in (on_processor, on_device))
    finally:
        on_processor.close()
        on_device.close()
    for name in ("logits", "features", "cam"):
        assert np.allclose(getattr(mine, name), getattr(theirs, name), atol=1e-3), name


def test_a_device_runs_the_pinned_weights_alone(flair, engine_cache):
    specification = specify(flair, engine_cache, threads=1, device="CPU:0")
    assert specification.sha256 == flair.manifest.weights_sha256
    altered = replace(specification, golden_logits=tuple(logit + 1 for logit in specification.golden_logits))
    with pytest.raises(ModelIntegrityError):
        open_runtime(altered)


def test_what_runs_where_is_told_by_the_specification(flair, engine_cache):
    assert not isinstance(open_runtime(specify(flair, engine_cache, threads=1)), TensorFlowRuntime)


class HeldEngine(SpotEngine):
    """Answers when it may."""

    def __init__(self):
        super().__init__()
        self.may_answer = threading.Event()

    def run(self, batch, timeout_s):
        assert self.may_answer.wait(timeout_s)
        return super().run(batch, timeout_s)


def test_a_batch_goes_to_the_device_with_the_fewest_in_hand():
    engines = [HeldEngine(), HeldEngine()]
    pool = EnginePool(engines)
    batch = np.zeros((1, 8, 8, 3), np.float32)
    callers = [threading.Thread(target=pool.run, args=(batch, 10.0)) for _ in range(2)]
    for caller in callers:
        caller.start()
    for engine in engines:
        engine.may_answer.set()
    for caller in callers:
        caller.join()
    assert [len(engine.batches) for engine in engines] == [1, 1]
