"""Preprocessed planes and masks on disk, read by row: memory stays flat however many there are."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rayhook.inference.preprocess import Float, Preprocessing
from rayhook.inference.training.dataset import Sample, load_sample

INDEX = "index.json"

_FORMAT = 1
_ROWS = 4096
_PLANE = np.dtype("<f2")
_OPAQUE = 255


@dataclass(frozen=True, slots=True)
class Shards:
    """A folder of files of fixed records: a plane as float16, then its mask as uint8, both (size, size).

    index.json names count, size and rows (records a file); file k holds records from k * rows on.
    """

    folder: Path
    count: int
    size: int
    rows: int

    @property
    def record_bytes(self) -> int:
        """Return the length of a record."""
        return self.size**2 * (_PLANE.itemsize + 1)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[Float, Float]:
        """Return planes and masks of those records, each (n, size, size) float32 in 0..1.

        Raises IndexError on a record that is not there, EOFError on a file that was cut off.
        """
        records = np.empty((len(indices), self.record_bytes), np.uint8)
        for place, index in enumerate(indices):
            records[place] = np.frombuffer(self._record(int(index)), np.uint8)
        shape = (len(indices), self.size, self.size)
        edge = self.size**2 * _PLANE.itemsize
        planes = np.ascontiguousarray(records[:, :edge]).view(_PLANE).reshape(shape)
        masks = records[:, edge:].reshape(shape)
        return planes.astype(np.float32), masks.astype(np.float32) / np.float32(_OPAQUE)

    def _record(self, index: int) -> bytes:
        if not 0 <= index < self.count:
            raise IndexError(f"record {index} of {self.count}")
        shard, row = divmod(index, self.rows)
        file = os.open(self.folder / _name(shard), os.O_RDONLY)
        try:
            data = os.pread(file, self.record_bytes, row * self.record_bytes)
        finally:
            os.close(file)
        if len(data) < self.record_bytes:
            raise EOFError(f"{_name(shard)} ends inside record {index}")
        return data


def open_shards(folder: Path) -> Shards:
    """Return the shards of a folder; raises FileNotFoundError if they were not written to the end."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return Shards(folder, count=index["count"], size=index["size"], rows=index["rows"])


def write_shards(folder: Path, records: Iterable[tuple[Float, Float]], *, size: int) -> Shards:
    """Write planes and masks to a folder, its index last, and return the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    count, rest = 0, iter(records)
    while count % _ROWS == 0 and (written := _write_shard(folder / _name(count // _ROWS), rest)):
        count += written
    text = json.dumps({"format": _FORMAT, "count": count, "size": size, "rows": _ROWS})
    (folder / INDEX).write_text(text, encoding="utf-8")
    return open_shards(folder)


def _write_shard(path: Path, records: Iterator[tuple[Float, Float]]) -> int:
    """Write up to _ROWS records and return how many there were."""
    written = 0
    with path.open("wb") as file:
        for plane, mask in islice(records, _ROWS):
            file.write(plane.astype(_PLANE).tobytes())
            file.write(np.rint(mask * _OPAQUE).astype(np.uint8).tobytes())
            written += 1
    return written


def cached_shards(
    samples: Sequence[Sample],
    folder: Path,
    preprocessing: Preprocessing,
    cache: Path,
    *,
    advance: Callable[[], Any] = lambda: None,
) -> Shards:
    """Return the shards of the samples, record k of sample k, written if the cache lacks them.

    advance: called for each sample that is preprocessed.
    """
    target = cache / f"{folder.name}-{data_digest(samples, folder, preprocessing)[:24]}"
    if (target / INDEX).exists():
        return open_shards(target)

    def records() -> Iterable[tuple[Float, Float]]:
        for sample in samples:
            yield load_sample(sample, folder, preprocessing)
            advance()

    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    write_shards(partial, records(), size=preprocessing.input_size)
    try:
        partial.replace(target)
    except OSError:  # another process was faster
        shutil.rmtree(partial)
    return open_shards(target)


def data_digest(samples: Sequence[Sample], folder: Path, preprocessing: Preprocessing) -> str:
    """Return the SHA-256 of all that decides the shards: files, scale, and preprocessing."""
    document = {
        "format": _FORMAT,
        "preprocessing": msgspec.to_builtins(preprocessing),
        "rows": [
            (s.path, _digest(folder / s.path), s.mask and _digest(folder / s.mask), s.spacing_mm)
            for s in samples
        ],
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""  # load_sample refuses it by its name


def _name(shard: int) -> str:
    return f"{shard:06}.shard"
