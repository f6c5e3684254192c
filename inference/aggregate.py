"""From slices to a series: order, a median over neighbours, the maximum, and the slice that carried it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rayhook.inference.study import InstanceAttributes

MAX_OF_MEDIAN3 = "max_of_median3"
MEAN_OF_CENTRAL = "mean_logit_of_4_slices"
MAX_UNUSABLE_SHARE = 0.2

_WINDOW = 3


@dataclass(frozen=True, slots=True)
class SeriesPeak:
    """The series-level probability, and the index in slice order of the slice that shows it best."""

    probability: float
    index: int


def slice_order(attributes: Sequence[InstanceAttributes]) -> list[int]:
    """Return the indices that put the slices of one series in anatomical order.

    By position where every slice states one, else by instance number, else by SOP Instance UID: the
    order has to be the same whatever order the images arrive in.
    Spec: DICOM PS3.3 C.7.6.2.1.1 (position and orientation), C.7.6.1 (Instance Number)
    """
    indices = range(len(attributes))
    if all(a.slice_location_mm is not None for a in attributes):
        return sorted(
            indices, key=lambda i: (attributes[i].slice_location_mm, attributes[i].sop_instance_uid)
        )
    if all(a.instance_number is not None for a in attributes):
        return sorted(indices, key=lambda i: (attributes[i].instance_number, attributes[i].sop_instance_uid))
    return sorted(indices, key=lambda i: attributes[i].sop_instance_uid)


def max_of_median3(probabilities: Sequence[float]) -> SeriesPeak:
    """Return the largest median over three adjacent slices, which a single odd slice cannot raise.

    Series of one or two slices have one window. The index is that of the most probable slice in the
    first of the largest windows.  Raises ValueError if there are no probabilities.
    """
    width = min(_WINDOW, len(probabilities))
    if width == 0:
        raise ValueError("a series needs at least one probability")
    starts = range(len(probabilities) - width + 1)
    medians = [median(probabilities[start : start + width]) for start in starts]
    best = max(starts, key=medians.__getitem__)
    index = max(range(best, best + width), key=probabilities.__getitem__)
    return SeriesPeak(probability=medians[best], index=index)


def too_few_usable(*, usable: int, unusable: int) -> bool:
    """Return whether so many images gave no probability that a low series value would mean nothing."""
    return usable == 0 or unusable > MAX_UNUSABLE_SHARE * (usable + unusable)
