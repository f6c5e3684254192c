"""The network, a ResNet-50 without batch normalisation, and its weights on disk.

Spec: He et al. 2015, arXiv:1512.03385; bottlenecks with the stride in the first 1x1 convolution.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rayhook.fhir.errors import ModelIntegrityError

Arrays = dict[str, NDArray[Any]]

_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
_INT8_MAX = 127
_SCALE = ".scale"
_BLOCK = 32


def feature_count(stages: int) -> int:
    """Return the number of channels after so many stages: 2048 after all four."""
    return 4 * _STAGES[stages - 1][1]


def early_count(stages: int) -> int:
    """Return the number of channels of the stages before the last: 1792 with all four."""
    return sum(4 * width for _, width in _STAGES[: stages - 1])


def build_resnet50(input_size: int, labels: int, *, output_stride: int = 32, stages: int = 4) -> Any:
    """Return a Keras model: (n, s, s, 3) to logits, features, early, cam and feature_map.

    logits: (n, labels).  features: (n, feature_count), the average of feature_map.
    early: (n, early_count), the averages of the stages before the last, in order.
    cam: (n, h, w, labels), the linear head on each cell of the map: its average is the logit, and up
    to a constant it is the Grad-CAM of this network before the rectifier, without a gradient.
    stages: how many of the four are kept.  output_stride: 4, 8, 16 or 32, at most what the stages come
    to (2 ** (stages + 1)): the later ones lose their stride.
    Source: Selvaraju et al. 2017, arXiv:1610.02391, section 3.1 (CAM as a special case)
    """
    import keras

    image = keras.Input((input_size, input_size, 3), name="image")
    x = keras.layers.ZeroPadding2D(3, name="conv1_pad")(image)
    x = keras.layers.Conv2D(64, 7, strides=2, activation="relu", name="conv1")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, padding="same", name="pool1")(x)
    ends = []
    for stage, (blocks, width) in enumerate(_STAGES[:stages], start=1):
        for block in range(blocks):
            flat = stage == 1 or block > 0 or 2 ** (stage + 1) > output_stride
            x = _bottleneck(x, width, stride=1 if flat else 2, name=f"layer{stage}.{block}", first=block == 0)
        ends.append(x)
    features = keras.layers.GlobalAveragePooling2D(name="features")(x)
    head = keras.layers.Dense(labels, name="head")
    outputs = {"logits": head(features), "features": features, "cam": head(x), "feature_map": x}
    early = [keras.layers.GlobalAveragePooling2D(name=f"early{k}")(end) for k, end in enumerate(ends[:-1])]
    outputs["early"] = keras.layers.Concatenate(name="early")(early)
    return keras.Model(image, outputs, name="resnet50")


def serving_model(model: Any) -> Any:
    """Return the same network without feature_map among its outputs: what an engine runs."""
    import keras

    outputs = {name: model.output[name] for name in ("logits", "features", "early", "cam")}
    return keras.Model(model.input, outputs, name="resnet50_serving")


def _bottleneck(x: Any, width: int, *, stride: int, name: str, first: bool) -> Any:
    """Return one residual block; the first of a stage projects its shortcut."""
    from keras.layers import Activation, Add, Conv2D

    shortcut = Conv2D(4 * width, 1, strides=stride, name=f"{name}.downsample.0")(x) if first else x
    y = Conv2D(width, 1, strides=stride, activation="relu", name=f"{name}.conv1")(x)
    y = Conv2D(width, 3, padding="same", activation="relu", name=f"{name}.conv2")(y)
    y = Conv2D(4 * width, 1, name=f"{name}.conv3")(y)
    return Activation("relu", name=f"{name}.out")(Add(name=f"{name}.add")([y, shortcut]))


def weights_of(model: Any) -> Arrays:
    """Return the weights as '<layer>.kernel' (height, width, in, out) and '<layer>.bias'."""
    return {name: variable.numpy() for name, variable in _variables(model)}


def assign_weights(model: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Set every weight of the model; raises ModelIntegrityError on a missing one or another shape."""
    for name, variable in _variables(model):
        array = arrays.get(name)
        if array is None or array.shape != tuple(variable.shape):
            raise ModelIntegrityError(f"weight {name} is missing or has another shape than the model")
        variable.assign(array.astype(np.float32))


def import_imagenet(model: Any, npz: Path) -> None:
    """Set all layers but the head from ImageNet weights with batch normalisation folded in.

    Raises ModelIntegrityError if the file lacks a layer of the model.
    """
    with np.load(npz, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    head = {name: array for name, array in weights_of(model).items() if name.startswith("head.")}
    assign_weights(model, arrays | head)


def quantise(arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return kernels and matrices as int8, vectors (biases) as float32.

    One float32 scale for each last-axis channel and block of _BLOCK weights within it: fine-tuned
    weights have long tails, and one scale a channel would round most of them away.
    """
    packed: Arrays = {}
    for name, array in arrays.items():
        if array.ndim == 1:
            packed[name] = array.astype(np.float32)
            continue
        rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
        starts = np.arange(0, len(rows), _BLOCK)
        peak = np.maximum.reduceat(np.abs(rows), starts, axis=0)
        scale = np.where(peak > 0, peak / _INT8_MAX, 1.0).astype(np.float32)
        packed[name] = np.rint(rows / _spread(scale, len(rows))).astype(np.int8).reshape(array.shape)
        packed[name + _SCALE] = scale
    return packed


def dequantise(packed: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return the float32 weights of a quantised set; a float set comes back as it is.

    Raises ModelIntegrityError if a scale does not fit its weights.
    """
    arrays: Arrays = {}
    for name, array in packed.items():
        if name.endswith(_SCALE):
            continue
        arrays[name] = array.astype(np.float32)
        if name + _SCALE in packed:
            rows = arrays[name].reshape(-1, array.shape[-1])
            scale = packed[name + _SCALE]
            if scale.shape != (-(-len(rows) // _BLOCK), rows.shape[1]):
                raise ModelIntegrityError(f"scale of weight {name} has another shape than the weight")
            arrays[name] = (rows * _spread(scale, len(rows))).reshape(array.shape)
    return arrays


def _spread(scale: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """Return block scales (blocks, channels) as one scale a weight (rows, channels)."""
    return np.repeat(scale, _BLOCK, axis=0)[:rows]


def save_weights(
    path: Path, arrays: Mapping[str, NDArray[Any]], *, metadata: dict[str, str] | None = None
) -> str:
    """Write a safetensors file atomically and return its SHA-256."""
    data = save({k: np.asarray(v, order="C") for k, v in arrays.items()}, metadata=metadata)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def load_weights(path: Path, *, sha256: str, prefix: str = "") -> Arrays:
    """Return the float32 weights whose names have the prefix; the digest is checked before parsing.

    Raises ModelIntegrityError if the file is unreadable, altered or not safetensors.
    """
    data = read_verified(path, sha256=sha256)
    try:
        packed = load(data)
    except SafetensorError as error:
        raise ModelIntegrityError(f"weights file {path.name} is not safetensors") from error
    return dequantise({name: array for name, array in packed.items() if name.startswith(prefix)})


def read_verified(path: Path, *, sha256: str) -> bytes:
    """Return a file's bytes; raises ModelIntegrityError if it is unreadable or has another digest."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelIntegrityError(f"weights file {path.name} cannot be read") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelIntegrityError(f"weights file {path.name} has another SHA-256 than the manifest")
    return data


def write_atomically(path: Path, data: bytes) -> None:
    """Write and sync a file so that a reader sees the old one or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _variables(model: Any) -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        for variable in layer.weights:
            yield f"{layer.name}.{variable.name}", variable
