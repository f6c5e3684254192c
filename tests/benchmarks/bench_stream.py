"""Rate and memory of the training stream from 1,000 to 500,000 images.

    python -m tests.benchmarks.bench_stream

For each count a labels.csv and shards of that many made-up planes are written to a temporary folder (3 KiB an
image at 32 px, 1.5 GB for all 500,000) and streamed with every augmentation of the MRI recipe by a process of its
own, in the shuffled order of an epoch, with the page cache dropped from the shards before. The rate is that of a
running epoch; what an epoch takes to start is told beside it. "read alone" is shards without augmentation, "rows MiB"
what the rows of labels.csv take of the peak, most of which is TensorFlow itself.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from rayhook.inference.preprocess import Float
from rayhook.inference.training.dataset import Sample, read_samples, split_fit_dev
from rayhook.inference.training.recipe import RECIPES, Recipe, Weighting, read_recipe
from rayhook.inference.training.shards import Shards, open_shards, write_shards

if TYPE_CHECKING:
    from rayhook.inference.training.stream import Stream

COUNTS = (1_000, 10_000, 100_000, 500_000)

_WARM_UP = 10
_POOL = 64
_ROWS_A_PATIENT = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--side", type=int, default=32, help="of the planes, in pixels")
    parser.add_argument("--seconds", type=float, default=30.0, help="to stream each count for")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(json.dumps(measure(arguments.measure, arguments.seconds)) + "\n")
        return
    table = Table("images", "images/s", "epoch's start, s", "read alone", "peak MiB", "rows MiB", "shards MB")
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as folder:
            synthesise(Path(folder), count, arguments.side)
            found = in_its_own_process(Path(folder), arguments.seconds)
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.shard")) / 1e6
        table.add_row(
            f"{count:,}",
            f"{found['rate']:.0f}",
            f"{found['start_s']:.2f}",
            f"{found['read_rate']:.0f}",
            f"{found['peak_mib']:.0f}",
            f"{found['rows_mib']:.0f}",
            f"{size:.0f}",
        )
    Console().print(table)


def synthesise(folder: Path, count: int, side: int) -> None:
    """Write labels.csv and shards of that many made-up images: discs in noise, half of them with a lesion."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side]
    lesion = ((y - side / 2) ** 2 + (x - side / 3) ** 2 < (side / 8) ** 2).astype(np.float32)
    pool = random.random((_POOL, side, side)).astype(np.float32) * 0.3

    def records() -> Iterator[tuple[Float, Float]]:
        for row in range(count):
            mask = lesion * (row % 2)
            yield pool[row % _POOL] + 0.6 * mask, mask

    write_shards(folder / "shards", records(), size=side)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient_id", "site", "split"])
        for row in range(count):
            patient = row // _ROWS_A_PATIENT
            writer.writerow([f"images/{row:07}.png", row % 2, f"p{patient:06}", f"s{patient % 5}", "train"])


def in_its_own_process(folder: Path, seconds: float) -> dict[str, float]:
    """Return what a fresh process measures, so that each peak of memory is of its own count."""
    command = [sys.executable, "-m", __spec__.name, "--measure", str(folder), "--seconds", str(seconds)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, seconds: float) -> dict[str, float]:
    """Return the rate of augmented images, of reading alone, and the peak of resident memory."""
    from rayhook.inference.training.stream import Stream, row_weights

    shards = open_shards(folder / "shards")
    forget_pages(shards)
    recipe = _recipe()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fit = _fit_rows(folder, recipe)
    stream = Stream(
        shards,
        np.array([int(sample.path[7:14]) for sample in fit], np.int64),
        targets=np.array([sample.target for sample in fit], np.float32),
        weights=row_weights(fit, Weighting.ROW),
        recipe=recipe,
    )
    rows = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    rate, start = _rates(stream, seconds)
    read_rate = _read_rate(shards, seconds / 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rate": rate,
        "start_s": start,
        "read_rate": read_rate,
        "peak_mib": peak / 1024,
        "rows_mib": rows / 1024,
    }


def forget_pages(shards: Shards) -> None:
    """Let the kernel drop the shards from its cache, so that the disk is read."""
    for path in shards.folder.glob("*.shard"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _recipe() -> Recipe:
    recipe = read_recipe(RECIPES / "mri_flair_tumour.toml")
    return replace(recipe, data=replace(recipe.data, dataset="made-up"))


def _fit_rows(folder: Path, recipe: Recipe) -> tuple[Sample, ...]:
    return split_fit_dev(read_samples(folder, recipe.data, for_training=True), dev_share=0.05, seed=0)[0]


def _rates(stream: "Stream", seconds: float) -> tuple[float, float]:
    """Return images a second once an epoch runs, over as many epochs as fit, and the median start in seconds."""
    starts, images, spent = [], 0, 0.0
    for epoch in range(10_000):
        opened = began = time.perf_counter()
        for step, batch in enumerate(stream.dataset(epoch)):
            now = time.perf_counter()
            if step == 0:
                starts.append(now - opened)
            if step <= _WARM_UP:
                began = now
                continue
            images, spent, began = images + int(batch.planes.shape[0]), spent + now - began, now
            if spent > seconds:
                break
        if spent > seconds:
            break
    return images / spent, float(np.median(starts))


def _read_rate(shards: Shards, seconds: float) -> float:
    random = np.random.default_rng(1)
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        shards.read(random.integers(0, shards.count, 32))
        images += 32
    return images / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
