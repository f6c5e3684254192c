"""The network as LiteRT runs it: exported from the pinned weights, checked, self-tested."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from rayhook.fhir.errors import EngineUnavailable, ModelIntegrityError
from rayhook.inference.device import PROCESSOR
from rayhook.inference.model import (
    assign_weights,
    build_resnet50,
    early_count,
    feature_count,
    serving_model,
    write_atomically,
)
from rayhook.inference.preprocess import Float
from rayhook.inference.registry import Manifest, ModelPackage

_EXPORT_VERSION = 2
_EXPORT_TIMEOUT_S = 300.0
_GOLDEN_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """logits: (n, labels).  features: (n, feature_count).  early: (n, early_count).

    cam: (n, h, w, labels), its average is the logit.
    """

    logits: Float
    features: Float
    early: Float
    cam: Float


@dataclass(frozen=True, slots=True)
class EngineSpecification:
    """All that a process needs to run one network: exported, on the processor, or on a device of TensorFlow's.

    device: `cpu`, or TensorFlow's name of a device, as `GPU:0`; then `package` has the weights.
    """

    path: Path
    sha256: str
    input_size: int
    map_side: int
    labels: int
    features: int
    early: int
    golden_logits: tuple[float, ...]
    threads: int
    device: str = PROCESSOR
    package: ModelPackage | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.input_size, self.input_size, 3)

    @property
    def output_length(self) -> int:
        """Return the number of floats of one image's logits, features, early features and map."""
        return self.labels + self.features + self.early + self.map_side**2 * self.labels

    def unpack(self, flat: Float) -> EngineOutput:
        """Return rows of output_length floats (n, …) as the engine's output."""
        ends = np.cumsum([self.labels, self.features, self.early])
        logits, features, early, cam = np.split(flat, ends, axis=1)
        shaped = cam.reshape(-1, self.map_side, self.map_side, self.labels)
        return EngineOutput(logits=logits, features=features, early=early, cam=shaped)


def golden_input(input_size: int) -> Float:
    """Return the synthetic image (s, s, 3) whose logits a manifest pins: waves, the same on any machine."""
    axis = np.arange(input_size, dtype=np.float64) / input_size
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    waves = [np.sin(2 * np.pi * (k * rows + (5 - k) * columns)) for k in (1, 2, 3)]
    return np.stack(waves, axis=-1).astype(np.float32)


def export_litert(package: ModelPackage, cache_dir: Path) -> Path:
    """Return the package's network as a LiteRT file, converted once and then taken from cache_dir.

    The conversion runs in a process of its own, so TensorFlow never enters this one. The file is
    checked against the digest beside it, and converted again if it is not whole.
    Raises ModelIntegrityError if the weights are not those pinned, EngineUnavailable if the
    conversion fails.
    """
    manifest = package.manifest
    parts = (
        _EXPORT_VERSION,
        manifest.weights_sha256,
        manifest.input_size,
        manifest.output_stride,
        manifest.stages,
    )
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    path = cache_dir / f"{manifest.id}-{key}.tflite"
    if _is_whole(path):
        return path
    package.verify()
    cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = get_context("spawn").Process(target=_convert, args=(package, path))
    process.start()
    process.join(_EXPORT_TIMEOUT_S)
    if process.is_alive():
        process.kill()
    process.join()
    if process.exitcode != 0 or not _is_whole(path):
        raise EngineUnavailable("the network could not be converted for the engine")
    return path


def export_all(
    packages: Iterable[ModelPackage], cache_dir: Path, *, done: Callable[[ModelPackage], Any] = lambda _: None
) -> None:
    """Export what the cache lacks, one conversion a core at a time; done is called after each.

    Raises what export_litert does.
    """

    def export(package: ModelPackage) -> None:
        export_litert(package, cache_dir)
        done(package)

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="export") as pool:
        list(pool.map(export, packages))


class Runtime:
    """The LiteRT interpreter on one verified file, self-tested."""

    def __init__(self, specification: EngineSpecification) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.specification = specification
        if _digest(specification.path) != specification.sha256:
            raise ModelIntegrityError("the engine's file has another SHA-256 than when it was exported")
        interpreter = Interpreter(str(specification.path), num_threads=specification.threads)
        self._run = interpreter.get_signature_runner()
        logits = self.infer(golden_input(specification.input_size))[: specification.labels]
        if not np.allclose(logits, specification.golden_logits, rtol=0.0, atol=_GOLDEN_TOLERANCE):
            raise ModelIntegrityError("the engine's answer to the golden input is not the manifest's")

    def infer(self, image: Float) -> Float:
        """Return one image's outputs, flat (output_length,)."""
        output = self._run(image=image[np.newaxis])
        return np.concatenate([output[name].ravel() for name in ("logits", "features", "early", "cam")])


def specify(
    package: ModelPackage, cache_dir: Path, *, threads: int, device: str = PROCESSOR
) -> EngineSpecification:
    """Return what a process needs to run the package's network; exports it first if need be."""
    manifest = package.manifest
    is_exported = device == PROCESSOR
    path = export_litert(package, cache_dir) if is_exported else package.weights_path
    return EngineSpecification(
        path=path,
        sha256=_sidecar(path).read_text(encoding="ascii") if is_exported else manifest.weights_sha256,
        input_size=manifest.input_size,
        map_side=manifest.map_side,
        labels=len(manifest.labels),
        features=feature_count(manifest.stages),
        early=early_count(manifest.stages),
        golden_logits=manifest.golden_logits,
        threads=threads,
        device=device,
        package=None if is_exported else package,
    )


def build_network(manifest: Manifest) -> Any:
    """Return the Keras model that a manifest describes, without its weights."""
    return build_resnet50(
        manifest.input_size,
        len(manifest.labels),
        output_stride=manifest.output_stride,
        stages=manifest.stages,
    )


def _convert(package: ModelPackage, path: Path) -> None:
    """Write the LiteRT file and its digest; runs in a process of its own."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    manifest = package.manifest
    model = build_network(manifest)
    assign_weights(model, package.weights())
    with contextlib.redirect_stdout(io.StringIO()):  # the converter prints every tensor it captures
        data: bytes = tf.lite.TFLiteConverter.from_keras_model(serving_model(model)).convert()
    write_atomically(path, data)
    write_atomically(_sidecar(path), hashlib.sha256(data).hexdigest().encode())


def _is_whole(path: Path) -> bool:
    try:
        return _digest(path) == _sidecar(path).read_text(encoding="ascii")
    except FileNotFoundError:
        return False


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
