"""What a bench measured, as one JSON object and as a table."""

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import psutil
from rich.table import Table

from rayhook.inference.stages import Stage

_THOUSAND: Final = 1000
_HOUR_S: Final = 3600.0
_DOUBLES: Final = frozenset({"EHR and PACS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One run: `studies` queued at once, or at `rate` a second, and done by `workers`.

    elapsed_s: from the first that was queued to the last that was written.  waits_s: of each in the queue.
    stages_s: seconds of each study, by stage.  cpu_s: by kind of process, of all studies together.
    resident_bytes: the most seen, by kind.  table_rows, table_bytes: by which the tables grew.
    load: of the machine as it began, in processes that could run.
    """

    studies: int
    workers: int
    repeat: int
    done: int
    elapsed_s: float
    waits_s: tuple[float, ...]
    stages_s: Mapping[Stage, tuple[float, ...]]
    cpu_s: Mapping[str, float]
    resident_bytes: Mapping[str, int]
    table_rows: Mapping[str, int]
    table_bytes: Mapping[str, int]
    load: float

    @property
    def name(self) -> str:
        return f"{self.studies}, {self.workers} w, #{self.repeat}"

    @property
    def studies_per_s(self) -> float:
        return self.done / self.elapsed_s

    @property
    def own_cpu_s(self) -> float:
        """Return the CPU seconds of the product: the EHR and the PACS of the bench are not of it."""
        return sum(used for kind, used in self.cpu_s.items() if kind not in _DOUBLES)

    @property
    def cpu_h_per_thousand(self) -> float:
        return self.own_cpu_s / self.done * _THOUSAND / _HOUR_S

    def as_json(self, price: float | None) -> dict[str, Any]:
        return {
            "studies": self.studies,
            "workers": self.workers,
            "repeat": self.repeat,
            "done": self.done,
            "elapsed_s": round(self.elapsed_s, 3),
            "studies_per_s": round(self.studies_per_s, 3),
            "queue_wait_s": _percentiles(self.waits_s),
            "stage_s": {
                stage.value: {"mean": round(fmean(times), 4), **_percentiles(times)}
                for stage, times in self.stages_s.items()
                if times
            },
            "cpu_s_per_study": {
                kind: round(used / self.done, 4) for kind, used in sorted(self.cpu_s.items())
            },
            "resident_mib": {kind: size >> 20 for kind, size in sorted(self.resident_bytes.items())},
            "rows_per_study": _each(self.table_rows, self.done),
            "bytes_per_study": _each(self.table_bytes, self.done),
            "cost_per_1000_studies": {
                "vcpu_hours": round(self.cpu_h_per_thousand, 4),
                "money": None if price is None else round(self.cpu_h_per_thousand * price, 4),
            },
            "load_at_start": self.load,
        }


def _each(grown: Mapping[str, int], count: int) -> dict[str, float]:
    return {table: round(by / count, 2) for table, by in sorted(grown.items()) if by}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": round(percentile(values, share), 4) for share in (50, 95, 99)}


def percentile(values: Iterable[float], share: float) -> float:
    """Return the nearest rank: a value that was measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


def report(
    phases: Sequence[Phase], *, images: int, price: float | None, set_up: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "machine": machine(),
        "set_up": dict(set_up),
        "images_per_study": images,
        "price_per_vcpu_hour": price,
        "phases": [phase.as_json(price) for phase in phases],
    }


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "memory_mib": psutil.virtual_memory().total >> 20,
        "processor": _processor(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def tables(phases: Sequence[Phase], price: float | None) -> tuple[Table, Table, Table]:
    return _speed(phases, price), _stages(phases), _use(phases)


def _table(*headings: str) -> Table:
    """Return one that fits into 80 columns, which is what a pipe or a log has."""
    return Table(*headings, box=None, padding=(0, 1, 0, 0))


def _speed(phases: Sequence[Phase], price: float | None) -> Table:
    table = _table("run", "studies/s", "wait p50 s", "p95 s", "p99 s", "vCPU-h/1000", "money/1000", "load")
    for one in phases:
        waits = (f"{percentile(one.waits_s, share):.2f}" for share in (50, 95, 99))
        hours = one.cpu_h_per_thousand
        cost = (f"{hours:.3f}", "" if price is None else f"{hours * price:.4f}")
        table.add_row(one.name, f"{one.studies_per_s:.2f}", *waits, *cost, f"{one.load:.1f}")
    return table


def _stages(phases: Sequence[Phase]) -> Table:
    """Means: what lies under them is in the JSON."""
    table = _table("mean ms of", *(one.name for one in phases))
    for stage in Stage:
        if stage is not Stage.QUEUE:
            times = (one.stages_s.get(stage) for one in phases)
            table.add_row(stage.value, *(f"{fmean(each) * 1000:.0f}" if each else "" for each in times))
    return table


def _use(phases: Sequence[Phase]) -> Table:
    table = _table("CPU ms/study, most MiB", *(one.name for one in phases))
    for kind in sorted({kind for one in phases for kind in one.cpu_s}):
        used = (
            f"{one.cpu_s.get(kind, 0.0) / one.done * 1000:.0f}, {one.resident_bytes.get(kind, 0) >> 20}"
            for one in phases
        )
        table.add_row(kind, *used)
    return table
