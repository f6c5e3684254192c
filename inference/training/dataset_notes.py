"""What each labelled data set is asked, and what it cannot show: the one place where that stands."""

from dataclasses import dataclass

import numpy as np

from rayhook.inference.training.trivial import Trivial, black_share, by_column, by_image, foreground_mean


@dataclass(frozen=True, slots=True)
class DatasetNotes:
    """Questions to a data set, by the name that recipes know it by, and its limits.

    limits: of every figure.  joined_limits: of those by the larger or smaller unit beside the first.
    prevalences: at which predictive values are told.  specificities: at which sensitivity is.
    baselines: trivial scores.  known_sites: seen in training.
    """

    limits: tuple[str, ...]
    joined_limits: str = ""
    prevalences: tuple[float, ...] = (0.01, 0.05, 0.1, 0.3)
    specificities: tuple[float, ...] = (0.9,)
    baselines: tuple[Trivial, ...] = ()
    known_sites: frozenset[str] = frozenset()


_BLACK = by_image("share of black pixels", black_share)

_NOTES = {
    "mri_lgg": DatasetNotes(
        limits=(
            "Every patient has a low-grade glioma: specificity is that of tumour-free slices of patients with a tumour, and nothing is known of people without one.",
            "Labels are one published segmentation, without a second reader.",
            "8-bit images of a few institutions; where a site was seen in training the figure says less of new ones.",
        ),
        joined_limits="Sensitivity only: every series shows a tumour, so specificity by series is not evaluated.",
        prevalences=(0.1, 0.37),
        specificities=(0.96,),
        baselines=(
            by_image("mean intensity of the image", np.mean),
            by_image("mean intensity of the head", foreground_mean),
        ),
        known_sites=frozenset({"DU", "FG", "HT"}),
    ),
    "ct_lidc": DatasetNotes(
        limits=(
            "Labels are radiologists' opinion on the images (mean malignancy of at least 3.5 against at most 2.5), not pathology; nodules between the two are in no figure of suspicion.",
            "Readers drew the nodules: the figures are for a nodule whose middle is known.",
            "One collection of research CT, of 2000 to 2010; crops of 128 pixels whose grey levels were scaled one by one, so that Hounsfield units are lost.",
        ),
        joined_limits="Crops of one nodule share its label and are alike.",
        prevalences=(0.01, 0.05, 0.2),
        specificities=(0.85,),
        baselines=(by_column("diameter, median of the readers", "diameter_mm_median"),),
    ),
    "cxr_nih": DatasetNotes(
        limits=(
            "Labels were mined from the text of reports and are noisy: no reader looked at the films for them.",
            "Pneumonia against films without any finding: other abnormalities are in no figure.",
            "One institution; part of what separates the classes may be how the very ill are filmed.",
        ),
        joined_limits="A patient counts as having the finding if one film is labelled so.",
        prevalences=(0.05, 0.2),
        specificities=(0.9,),
        baselines=(_BLACK,),
    ),
    "cxr_jsrt": DatasetNotes(
        limits=(
            "Few films of one collection; most nodules are a few pixels wide at this size.",
            "Black pixels alone separate the classes: the model may see the film and not the nodule.",
            "Nodules were proven and chosen by subtlety, so their mix is none that a clinic has.",
        ),
        prevalences=(0.01, 0.05),
        specificities=(0.9,),
        baselines=(_BLACK,),
    ),
    "mg_mias": DatasetNotes(
        limits=("52 cancers in all, on digitised film of one collection of 1994.",),
        prevalences=(0.01, 0.05),
        specificities=(0.9,),
        baselines=(_BLACK,),
    ),
}
_UNKNOWN = DatasetNotes(limits=("Nothing is noted about what this data set cannot show.",))


def notes_on(dataset: str) -> DatasetNotes:
    """Return the notes on a data set by its name in recipes; general ones for a set that has none."""
    return _NOTES.get(dataset, _UNKNOWN)
