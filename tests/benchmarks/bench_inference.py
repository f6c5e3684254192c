"""One image from DICOM bytes to a probability, beside the bare forward pass of the same network.

    python -m tests.benchmarks.bench_inference

The forward pass runs in TensorFlow (tf.function, this process) and in LiteRT (bare invoke, this process); the
whole way goes through the decoder's child process, the preprocessing and the engine's process. All of them take
turns in one run with the same number of threads, and ratios are medians over the rounds.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from rich.console import Console
from rich.table import Table

from rayhook.inference.decode import Decoder
from rayhook.inference.engine import Engine, export_litert
from rayhook.inference.model import assign_weights, build_resnet50, serving_model
from rayhook.inference.predict import Prediction, predict
from rayhook.inference.preprocess import prepare
from rayhook.inference.registry import ModelPackage, load_models

_SIDE = 256
_TIMEOUT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="folder of the engine's exports; a new one if absent")
    arguments = parser.parse_args()
    package = load_models()[0]
    with contextlib.ExitStack() as stack:
        cache = arguments.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run(package, cache, rounds=arguments.rounds, threads=arguments.threads)


def run(package: ModelPackage, cache: Path, *, rounds: int, threads: int) -> None:
    """Measure and print."""
    started = time.perf_counter()
    path = export_litert(package, cache)
    exported = time.perf_counter() - started
    started = time.perf_counter()
    engine = Engine.start(package, cache, threads=threads)
    engine.wait_ready(_TIMEOUT_S)
    ready = time.perf_counter() - started
    data = mr_dicom()
    with contextlib.closing(engine), Decoder() as decoder:
        calls = {
            "DICOM bytes to probability": lambda: from_dicom(data, decoder, package, engine),
            "LiteRT invoke": litert_forward(path, threads),
            "TensorFlow tf.function": tensorflow_forward(package, threads),
        }
        times = alternate(calls, rounds)
    show(times, exported_s=exported, ready_s=ready)


def from_dicom(data: bytes, decoder: Decoder, package: ModelPackage, engine: Engine) -> list[Prediction]:
    """Return the answer for one DICOM file, the whole way as the service goes it."""
    decoded = decoder.decode(data)
    prepared = prepare(
        decoded.pixels[0],
        pixel_spacing_mm=decoded.attributes.pixel_spacing_mm,
        recipe=package.manifest.preprocessing,
    )
    return predict(package, engine, prepared.image, timeout_s=_TIMEOUT_S)


def litert_forward(path: Path, threads: int) -> Callable[[], Any]:
    """Return a bare invoke on a fixed image."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    detail = interpreter.get_input_details()[0]
    interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], np.float32))
    return interpreter.invoke


def tensorflow_forward(package: ModelPackage, threads: int) -> Callable[[], Any]:
    """Return a bare forward pass of the Keras model in a tf.function."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    manifest = package.manifest
    model = build_resnet50(manifest.input_size, len(manifest.labels), output_stride=manifest.output_stride)
    assign_weights(model, package.weights())
    forward = tf.function(serving_model(model))
    image = tf.zeros((1, manifest.input_size, manifest.input_size, 3))

    def call() -> Any:
        return forward(image)["logits"].numpy()

    return call


def alternate(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each call, which take turns, after five rounds of warming up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 5):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= 5:
                times[name].append((time.perf_counter() - started) * 1e3)
    return times


def show(times: dict[str, list[float]], *, exported_s: float, ready_s: float) -> None:
    whole = np.array(next(iter(times.values())))
    table = Table("what", "median ms", "fastest ms", "the whole way is so many times it")
    for name, values in times.items():
        ratio = float(np.median(whole / np.array(values)))
        table.add_row(name, f"{np.median(values):.1f}", f"{min(values):.1f}", f"{ratio:.2f}")
    console = Console()
    console.print(table)
    console.print(f"export {exported_s:.1f} s (0 if cached), engine ready after {ready_s:.2f} s")


def mr_dicom() -> bytes:
    """Return an MR file of 256 x 256 pixels of 16 bits: an ellipse of tissue in noise."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE]
    tissue = (y - 128) ** 2 / 100**2 + (x - 128) ** 2 / 80**2 < 1
    noise = np.random.default_rng(0).integers(0, 60, (_SIDE, _SIDE))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = MRImageStorage
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(dataset, keyword, generate_uid())
    dataset.Modality = "MR"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.Rows = dataset.Columns = _SIDE
    dataset.PixelSpacing = [0.9, 0.9]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    dataset.PixelData = (tissue * 900 + noise).astype("<u2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
