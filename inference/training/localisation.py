"""How well a heatmap points at the lesion that a reader drew, on the same grid."""

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.training.metrics import Scores

Grids = NDArray[np.float32]

HALF_MAXIMUM = 0.5

IOU_RULE = "heat at or above half of the map's own maximum, against the reader's mask"
POINTING_RULE = "the hottest pixel lies in the reader's mask; of several hottest, the share that does"


def pointing_game(maps: Grids, masks: Grids) -> Scores:
    """Return for each map (n, rows, columns) whether its maximum lies in the mask, NaN without a mask.

    Of several maxima their share counts, so a constant map scores what chance does.
    Source: Zhang et al. 2016, arXiv:1608.00507, section 4.2, without the tolerance of 15 pixels
    """
    flat, inside = _flat(maps, masks)
    hottest = flat == flat.max(axis=1, keepdims=True)
    share = (hottest & inside).sum(axis=1) / hottest.sum(axis=1)
    return np.where(inside.any(axis=1), share, np.nan)


def heatmap_iou(maps: Grids, masks: Grids, *, fraction: float = HALF_MAXIMUM) -> Scores:
    """Return the intersection over union of each map's hot region with its mask, NaN without a mask.

    fraction: of the map's own maximum, from which a pixel is hot; a map without positive heat has none.
    """
    flat, inside = _flat(maps, masks)
    peak = flat.max(axis=1, keepdims=True)
    hot = (flat >= fraction * peak) & (peak > 0)
    return np.where(
        inside.any(axis=1), (hot & inside).sum(axis=1) / np.maximum((hot | inside).sum(axis=1), 1), np.nan
    )


def centre_hits(masks: Grids) -> Scores:
    """Return 1 where the image's centre lies in the mask, 0 where not, NaN without a mask.

    What pointing without looking would score; on crops cut around the lesion that is most of them.
    """
    rows, columns = masks.shape[1:]
    hit = (masks[:, rows // 2, columns // 2] > 0).astype(np.float64)
    return np.where((masks > 0).any(axis=(1, 2)), hit, np.nan)


def chance_hits(masks: Grids) -> Scores:
    """Return the share of each image that its mask covers, NaN without a mask: a random point's score."""
    share = (masks > 0).mean(axis=(1, 2))
    return np.where(share > 0, share, np.nan)


def _flat(maps: Grids, masks: Grids) -> tuple[Grids, NDArray[np.bool_]]:
    if maps.shape != masks.shape:
        raise ValueError(f"maps {maps.shape} and masks {masks.shape} must be on one grid")
    pixels = maps.shape[1] * maps.shape[2]  # told, because nothing can be inferred of no maps
    return maps.reshape(-1, pixels), masks.reshape(-1, pixels) > 0
