"""Examples of an evaluation on one sheet: images that were right and wrong, with heat and the reader's mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rayhook.inference.training.bootstrap import Answers
from rayhook.inference.training.plots import DPI, MUTED, png

OUTCOMES = ("true positive", "false negative", "false positive", "true negative")

_OUTLINE = (60, 230, 120)
_OPACITY = 0.55
_COLUMNS = 4
_SIDE = 224
_HALF = 127


@dataclass(frozen=True, slots=True)
class Example:
    """One image of the sheet.

    plane: (rows, columns), 0..1.  heat: the same grid, 0..1.  mask: the same grid, None where no lesion is.
    """

    caption: str
    plane: NDArray[np.float32]
    heat: NDArray[np.float32]
    mask: NDArray[np.float32] | None = None


def draw_examples(answers: Answers, *, each: int = _COLUMNS, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Return rows of each outcome, drawn by lot and not by looks, at most one a patient."""
    truth = answers.labels == 1
    groups = (
        truth & answers.positive,
        truth & ~answers.positive,
        ~truth & answers.positive,
        ~truth & ~answers.positive,
    )
    random = np.random.default_rng(seed)
    drawn = {}
    for name, group in zip(OUTCOMES, groups, strict=True):
        shuffled = random.permutation(np.flatnonzero(group))
        _, first = np.unique(answers.patients[shuffled], return_index=True)
        drawn[name] = shuffled[np.sort(first)][:each]
    return drawn


@png
def contact_sheet(examples: Mapping[str, Sequence[Example]], *, columns: int = _COLUMNS) -> Figure:
    """Return one row an outcome; each example is the image beside itself with heat and mask outline."""
    kinds = [name for name in examples if examples[name]]
    figure = Figure(figsize=(2.6 * columns, 1.55 * max(len(kinds), 1)), dpi=DPI, layout="constrained")
    grid = figure.subplots(max(len(kinds), 1), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for row, kind in zip(grid, kinds, strict=False):
        for axes, example in zip(row, examples[kind], strict=False):
            _show(axes, example)
        row[0].text(
            -0.03,
            0.5,
            kind,
            transform=row[0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            fontweight="bold",
        )
    return figure


def _show(axes: Axes, example: Example) -> None:
    axes.imshow(side_by_side(example), interpolation="nearest")
    axes.set_title(example.caption, fontsize=7.5, fontweight="normal", color=MUTED)


def side_by_side(example: Example) -> NDArray[np.uint8]:
    """Return the image and, right of it, the image under heat with the mask's outline, as RGB."""
    grey = cv2.cvtColor(_enlarged(example.plane), cv2.COLOR_GRAY2RGB)
    heat = _enlarged(example.heat)
    colours = cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    alpha = (_OPACITY * np.sqrt(heat / 255))[..., np.newaxis]
    under = np.ascontiguousarray(np.rint(grey * (1 - alpha) + colours * alpha).astype(np.uint8))
    if example.mask is not None:
        whole = (_enlarged(example.mask) > _HALF).astype(np.uint8)
        outlines, _ = cv2.findContours(whole, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(under, outlines, -1, _OUTLINE, 1)
    return np.concatenate([grey, under], axis=1)


def _enlarged(grid: NDArray[np.float32]) -> NDArray[np.uint8]:
    wide = cv2.resize(np.asarray(grid, np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
    return np.rint(np.clip(wide, 0, 1) * 255).astype(np.uint8)
