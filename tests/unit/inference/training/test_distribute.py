"""Two devices and two processes end where one device ends: up to the order of float32 sums."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from rayhook.inference.training import distribute
from rayhook.inference.training.distribute import choose_precision
from rayhook.inference.training.recipe import Precision
from rayhook.inference.training.train import BEST, HISTORY
from tests.ports import free_port

RUN = "import sys; from rayhook.inference.training.commands import app; app(sys.argv[1:])"


@pytest.fixture(scope="module")
def started(recipe_path, places, tmp_path_factory):
    """Start training processes with an output of their own and return the output when they are done."""
    path = tmp_path_factory.mktemp("float32") / "float32.toml"
    path.write_text('precision = "float32"\n' + recipe_path.read_text())

    def run(*options, configs=(None,)):
        there = places(tmp_path_factory.mktemp("distributed") / "run")
        arguments = ["--datasets", there.datasets, "--imagenet-weights", there.imagenet_weights]
        arguments += ["--output", there.output, "--cache", there.cache, "--tracking", there.tracking]
        command = [sys.executable, "-c", RUN, path, *arguments, *options]
        processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **({"TF_CONFIG": config} if config else {})},
                stderr=subprocess.PIPE,
            )
            for config in configs
        ]
        errors = [process.communicate(timeout=240)[1].decode() for process in processes]
        assert [process.returncode for process in processes] == [0] * len(configs), errors[0][-3000:]
        return there.output

    return run


@pytest.fixture(scope="module")
def single(started):
    return started()


@pytest.fixture(scope="module")
def mirrored(started):
    return started("--strategy", "mirrored", "--devices", "2")


@pytest.fixture(scope="module")
def multiworker(started):
    cluster = {"worker": [f"127.0.0.1:{free_port()}" for _ in range(2)]}
    configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)]
    return started("--strategy", "multiworker", configs=configs)


def _losses(output):
    return [(e["loss"], e["dev_loss"]) for e in json.loads((output / HISTORY).read_text())["history"]]


@pytest.mark.parametrize("shared", ["mirrored", "multiworker"])
def test_the_losses_are_those_of_one_device(single, shared, request):
    np.testing.assert_allclose(_losses(request.getfixturevalue(shared)), _losses(single), rtol=1e-4)


@pytest.mark.parametrize("shared", ["mirrored", "multiworker"])
def test_the_weights_are_those_of_one_device(single, shared, request):
    one, other = load_file(single / BEST), load_file(request.getfixturevalue(shared) / BEST)
    furthest = max(float(np.abs(one[name] - other[name]).max()) for name in one)
    assert furthest < 2e-5


@pytest.mark.parametrize(
    ("flags", "precision"),
    [({"avx512_bf16"}, Precision.MIXED_BFLOAT16), ({"avx2"}, Precision.FLOAT32), (set(), Precision.FLOAT32)],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, flags, precision):
    monkeypatch.setattr(distribute, "_cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(distribute.tf.config, "list_physical_devices", lambda _: [])
    assert choose_precision(Precision.AUTO) is precision


@pytest.mark.parametrize(
    ("capability", "precision"), [((8, 0), Precision.MIXED_BFLOAT16), ((7, 5), Precision.MIXED_FLOAT16)]
)
def test_a_gpu_computes_in_sixteen_bits(monkeypatch, capability, precision):
    config = distribute.tf.config
    monkeypatch.setattr(config, "list_physical_devices", lambda _: ["gpu"])
    monkeypatch.setattr(
        config.experimental, "get_device_details", lambda _: {"compute_capability": capability}
    )
    assert choose_precision(Precision.AUTO) is precision


def test_a_stated_precision_is_taken():
    assert choose_precision(Precision.FLOAT32) is Precision.FLOAT32
