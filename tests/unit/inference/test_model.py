import numpy as np
import pytest

from rayhook.fhir.errors import ModelIntegrityError
from rayhook.inference.model import (
    assign_weights,
    build_resnet50,
    dequantise,
    load_weights,
    quantise,
    save_weights,
    weights_of,
)


@pytest.fixture(scope="module")
def model():
    return build_resnet50(64, 2, output_stride=16)


def _weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "conv.kernel": (random.standard_t(3, (3, 3, 20, 7)) / 50).astype(np.float32),
        "conv.bias": random.normal(size=7).astype(np.float32),
    }


def test_outputs_have_their_shapes(model):
    shapes = {name: tuple(tensor.shape) for name, tensor in model.output.items()}
    assert shapes == {
        "logits": (None, 2),
        "features": (None, 2048),
        "early": (None, 1792),
        "cam": (None, 4, 4, 2),
        "feature_map": (None, 4, 4, 2048),
    }


def test_weights_are_those_of_resnet50(model):
    weights = weights_of(model)
    assert (
        sum(array.size for name, array in weights.items() if not name.startswith("head"))
        == 23_454_912 + 26_560  # kernels, biases
    )
    assert weights["layer3.5.conv2.kernel"].shape == (3, 3, 256, 256)


def test_average_of_the_activation_map_is_the_logit(model):
    image = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    output = model(image, training=False)
    cam = np.asarray(output["cam"]).mean(axis=(1, 2))
    np.testing.assert_allclose(cam, np.asarray(output["logits"]), rtol=1e-4, atol=1e-4)


def test_assigning_refuses_a_missing_weight(model):
    weights = weights_of(model)
    del weights["layer2.0.conv1.bias"]
    with pytest.raises(ModelIntegrityError, match=r"layer2\.0\.conv1\.bias"):
        assign_weights(model, weights)


def test_quantised_weights_are_within_half_a_step():
    weights = _weights()
    packed = quantise(weights)
    assert packed["conv.kernel"].dtype == np.int8
    error = np.abs(dequantise(packed)["conv.kernel"] - weights["conv.kernel"])
    assert error.max() <= packed["conv.kernel.scale"].max() / 2 * 1.001
    np.testing.assert_array_equal(packed["conv.bias"], weights["conv.bias"])


def test_quantising_twice_changes_nothing():
    once = dequantise(quantise(_weights()))
    np.testing.assert_allclose(dequantise(quantise(once))["conv.kernel"], once["conv.kernel"], rtol=1e-5)


def test_a_scale_of_another_shape_is_refused():
    packed = quantise(_weights())
    packed["conv.kernel.scale"] = packed["conv.kernel.scale"][:1]
    with pytest.raises(ModelIntegrityError):
        dequantise(packed)


def test_weights_come_back_from_disk(tmp_path):
    path = tmp_path / "weights.safetensors"
    digest = save_weights(path, quantise(_weights()))
    loaded = load_weights(path, sha256=digest)
    np.testing.assert_array_equal(loaded["conv.kernel"], dequantise(quantise(_weights()))["conv.kernel"])
    assert not list(tmp_path.glob(".*partial"))


def test_altered_weights_are_refused_before_parsing(tmp_path):
    path = tmp_path / "weights.safetensors"
    digest = save_weights(path, _weights())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelIntegrityError, match="SHA-256"):
        load_weights(path, sha256=digest)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 64)
    digest = "8667e718294e9e0df1d30600ba3eeb201f764aad2dad72748643e4a285e1d1f7"
    with pytest.raises(ModelIntegrityError, match="not safetensors"):
        load_weights(path, sha256=digest)


def test_a_network_of_fewer_stages_ends_with_them():
    shapes = {
        name: tuple(t.shape) for name, t in build_resnet50(96, 1, output_stride=8, stages=2).output.items()
    }
    assert (shapes["cam"], shapes["features"], shapes["early"]) == (
        (None, 12, 12, 1),
        (None, 512),
        (None, 256),
    )
