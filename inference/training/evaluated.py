"""An evaluation as a whole: its report, its pictures, and the folder that holds both."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rayhook.inference.model import write_atomically
from rayhook.inference.registry import Estimate, Evaluation, Manifest
from rayhook.inference.training.evaluation_report import EvaluationReport
from rayhook.inference.training.model_card import model_card
from rayhook.inference.training.report_page import Picture, render_page

REPORT = "report.json"
PAGE = "report.html"
CARD = "MODEL_CARD.md"

_TOLD_BY_SUBGROUP = ("site", "sites", "diameter", "lesion")
_NOT_TOLD = ("average_precision", "youden", "accuracy", "iou", "declined", "unsure")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A report and what draws its pictures, by the name of their file; drawn when they are asked for."""

    report: EvaluationReport
    draw: Callable[[], Mapping[str, Picture]]


def write_evaluation(found: Evaluated, manifest: Manifest, folder: Path) -> None:
    """Write report, page, card and pictures to a folder."""
    pictures = found.draw()
    write_atomically(folder / REPORT, found.report.to_json())
    write_atomically(folder / PAGE, render_page(found.report, tuple(pictures.values())).encode())
    write_atomically(folder / CARD, model_card(manifest, found.report).encode())
    for name, picture in pictures.items():
        write_atomically(folder / f"{name}.png", picture.png)


def to_evaluations(report: EvaluationReport) -> tuple[Evaluation, ...]:
    """Return what a manifest says of a report: its first unit, its subgroups of place and size, its other units."""
    parts = [part for part in report.subgroups if part.name in _TOLD_BY_SUBGROUP and part.estimates]
    dataset, limits = f"{report.dataset}, split {report.split}", " ".join(report.limits)
    whole = Evaluation(
        dataset=dataset,
        subset="all",
        unit=report.unit,
        patients=report.patients,
        count=report.count,
        positives=report.positives,
        estimates=_told(report.estimates),
        limits=limits,
    )
    within = tuple(
        Evaluation(
            dataset=dataset,
            subset=f"{part.name} {part.value}",
            unit=report.unit,
            patients=part.patients,
            count=part.count,
            positives=part.positives,
            estimates=_told(part.estimates),
            limits=limits,
        )
        for part in parts
    )
    others = tuple(
        Evaluation(
            dataset=dataset,
            subset="all",
            unit=other.unit,
            patients=other.patients,
            count=other.count,
            positives=other.positives,
            estimates=_told(other.estimates),
            limits=other.limits,
        )
        for other in report.other_units
    )
    return (whole, *within, *others)


def _told(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {name: found for name, found in estimates.items() if name not in _NOT_TOLD}


@contextmanager
def step(console: Console | None, text: str, total: int | None = None) -> Iterator[Callable[[], Any]]:
    """Show a step's progress on the console, if there is one, and yield what moves it on by one."""
    if console is None:
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)
