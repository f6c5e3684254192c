"""What a model card has to say: the source attributes of a predictive intervention, in the regulation's words.

Spec: 45 CFR 170.315(b)(11)(iv)(B), paragraphs (1) to (9)
"""

from dataclasses import dataclass
from typing import Final

from rayhook.fhir.text import translatable


@dataclass(frozen=True, slots=True)
class Required:
    """One attribute: its number from 1, its paragraph, and the regulation's own words."""

    number: int
    paragraph: str
    text: str


@dataclass(frozen=True, slots=True)
class Group:
    """One of the nine paragraphs, with its attributes."""

    title: str
    attributes: tuple[Required, ...]


_PARAGRAPHS = (
    (
        translatable("Details and output of the intervention"),
        (
            "Name and contact information for the intervention developer",
            "Funding source of the technical implementation for the intervention(s) development",
            "Description of value that the intervention produces as an output",
            (
                "Whether the intervention output is a prediction, classification, recommendation, evaluation, "
                "analysis, or other type of output"
            ),
        ),
    ),
    (
        translatable("Purpose of the intervention"),
        (
            "Intended use of the intervention",
            "Intended patient population(s) for the intervention's use",
            "Intended user(s)",
            (
                "Intended decision-making role for which the intervention was designed to be used/for (e.g., "
                "informs, augments, replaces clinical management)"
            ),
        ),
    ),
    (
        translatable("Cautioned out-of-scope use of the intervention"),
        (
            (
                "Description of tasks, situations, or populations where a user is cautioned against applying the "
                "intervention"
            ),
            "Known risks, inappropriate settings, inappropriate uses, or known limitations",
        ),
    ),
    (
        translatable("Intervention development details and input features"),
        (
            "Exclusion and inclusion criteria that influenced the training data set",
            "Use of variables in paragraph (b)(11)(iv)(A)(5)-(13) as input features",
            (
                "Description of demographic representativeness according to variables in paragraph "
                "(b)(11)(iv)(A)(5)-(13) including, at a minimum, those used as input features in the intervention"
            ),
            "Description of relevance of training data to intended deployed setting",
        ),
    ),
    (
        translatable("Process used to ensure fairness in development of the intervention"),
        (
            (
                "Description of the approach the intervention developer has taken to ensure that the "
                "intervention's output is fair"
            ),
            "Description of approaches to manage, reduce, or eliminate bias",
        ),
    ),
    (
        translatable("External validation process"),
        (
            (
                "Description of the data source, clinical setting, or environment where an intervention's validity "
                "and fairness has been assessed, other than the source of training and testing data"
            ),
            "Party that conducted the external testing",
            (
                "Description of demographic representativeness of external data according to variables in paragraph "
                "(b)(11)(iv)(A)(5)-(13) including, at a minimum, those used as input features in the intervention"
            ),
            "Description of external validation process",
        ),
    ),
    (
        translatable("Quantitative measures of performance"),
        (
            "Validity of intervention in test data derived from the same source as the initial training data",
            "Fairness of intervention in test data derived from the same source as the initial training data",
            (
                "Validity of intervention in data external to or from a different source than the initial training "
                "data"
            ),
            (
                "Fairness of intervention in data external to or from a different source than the initial training "
                "data"
            ),
            (
                "References to evaluation of use of the intervention on outcomes, including, bibliographic citations "
                "or hyperlinks to evaluations of how well the intervention reduced morbidity, mortality, length of "
                "stay, or other outcomes"
            ),
        ),
    ),
    (
        translatable("Ongoing maintenance of intervention implementation and use"),
        (
            "Description of process and frequency by which the intervention's validity is monitored over time",
            "Validity of intervention in local data",
            (
                "Description of the process and frequency by which the intervention's fairness is monitored over "
                "time"
            ),
            "Fairness of intervention in local data",
        ),
    ),
    (
        translatable("Update and continued validation or fairness assessment schedule"),
        (
            "Description of process and frequency by which the intervention is updated",
            (
                "Description of frequency by which the intervention's performance is corrected when risks related "
                "to validity and fairness are identified"
            ),
        ),
    ),
)
_ROMAN = ("i", "ii", "iii", "iv", "v")


def _groups() -> tuple[Group, ...]:
    groups, number = [], 0
    for paragraph, (title, texts) in enumerate(_PARAGRAPHS, 1):
        attributes = tuple(
            Required(number + place, f"(B)({paragraph})({_ROMAN[place - 1]})", text)
            for place, text in enumerate(texts, 1)
        )
        groups.append(Group(title, attributes))
        number += len(attributes)
    return tuple(groups)


SOURCE_ATTRIBUTES: Final = _groups()
