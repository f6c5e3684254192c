"""What published guidance says on the next imaging, as far as the rules of this service go by it.

Nothing is here without a source that can be looked up; what is this service's own choice is called so.
"""

from dataclasses import dataclass

from rayhook.fhir.codes import LOINC, SNOMED, Coding
from rayhook.inference.anatomy import Region


@dataclass(frozen=True, slots=True)
class Citation:
    title: str
    url: str


@dataclass(frozen=True, slots=True)
class Procedure:
    """An examination as it is ordered: in words, and as LOINC codes it."""

    text: str
    code: Coding
    modality: str
    region: Region
    body_site: Coding


@dataclass(frozen=True, slots=True, kw_only=True)
class Guideline:
    """What to do about a finding.

    `procedure` is what a suggested order asks for; studies and orders of any of `modalities` count as that.
    earliest_days after the finding's study is when the next one is first meant to be; `advice` says it in full.
    """

    findings: frozenset[tuple[str, str]]
    procedure: Procedure
    modalities: frozenset[str]
    earliest_days: int
    advice: str
    citation: Citation


_BRAIN = Coding(SNOMED, "12738006", "Brain structure")
_CHEST = Coding(SNOMED, "51185008", "Thoracic structure")
_MR_BRAIN = Procedure("MR of the brain", Coding(LOINC, "24590-2", "MR Brain"), "MR", Region.HEAD, _BRAIN)
_CT_CHEST = Procedure("CT of the chest", Coding(LOINC, "24627-2", "CT Chest"), "CT", Region.CHEST, _CHEST)
_CHEST_FILM = Procedure(
    "Chest radiograph", Coding(LOINC, "30745-4", "XR Chest Views"), "DX", Region.CHEST, _CHEST
)

GUIDELINES = (
    Guideline(
        # Neoplasm of brain, Glioma
        findings=frozenset({(SNOMED, "126952004"), (SNOMED, "393564001")}),
        procedure=_MR_BRAIN,
        modalities=frozenset({"MR"}),
        earliest_days=0,
        advice=(
            "where glioma is suspected, standard structural MRI (T2, FLAIR, diffusion, T1 before and after contrast) is "
            "the first diagnostic test, unless MRI is contraindicated"
        ),
        citation=Citation(
            "NICE guideline NG99, recommendation 1.1.1", "https://www.nice.org.uk/guidance/ng99"
        ),
    ),
    Guideline(
        # Suspected lung cancer, as the model of nodules on CT tells it
        findings=frozenset({(SNOMED, "162573006")}),
        procedure=_CT_CHEST,
        modalities=frozenset({"CT", "PT"}),
        earliest_days=90,
        advice=(
            "a solid nodule above 8 mm: consider CT at 3 months, PET/CT or tissue sampling; 6 to 8 mm: CT at 6 to 12 "
            "months. Size and kind of the nodule, which decide, are for the radiologist to say. It does not apply "
            "below 35 years, to known cancer or to immunosuppression"
        ),
        citation=Citation(
            "Fleischner Society 2017, incidental pulmonary nodules on CT",
            "https://doi.org/10.1148/radiol.2017161659",
        ),
    ),
    Guideline(
        # Solitary nodule of lung, on a chest film
        findings=frozenset({(SNOMED, "427359005")}),
        procedure=_CT_CHEST,
        modalities=frozenset({"CT", "PT"}),
        earliest_days=0,
        advice=(
            "an indeterminate nodule met by chance on a chest radiograph is next looked at by CT of the chest without "
            "contrast"
        ),
        citation=Citation(
            "ACR Appropriateness Criteria, Incidentally Detected Indeterminate Pulmonary Nodule (2023)",
            "https://doi.org/10.1016/j.jacr.2023.08.024",
        ),
    ),
    Guideline(
        # Pneumonia
        findings=frozenset({(SNOMED, "233604007")}),
        procedure=_CHEST_FILM,
        modalities=frozenset({"DX", "CT"}),
        earliest_days=42,
        advice=(
            "a chest radiograph after about 6 weeks where symptoms or signs persist, or the risk of malignancy is "
            "higher (smokers and people over 50 above all)"
        ),
        citation=Citation(
            "British Thoracic Society 2009, community acquired pneumonia in adults",
            "https://doi.org/10.1136/thx.2009.121434",
        ),
    ),
)

# The length is this service's own choice: neither source gives one.
DUPLICATE_DAYS = 30
PREVIOUS_IMAGES = Citation(
    "Royal College of Radiologists, iRefer: every attempt should be made to obtain previous images and reports",
    "https://www.irefer.org.uk/why-irefer/benefits",
)
PREVIOUS_EXPOSURE = Citation(
    "Directive 2013/59/Euratom, Article 55(2)(d): previous diagnostic information is sought to avoid unnecessary "
    "exposure",
    "https://eur-lex.europa.eu/eli/dir/2013/59/oj",
)
IONISING = frozenset({"CT", "DX", "MG", "NM", "PT", "RF", "XA"})


def guideline_for(system: str, code: str) -> Guideline | None:
    return next((one for one in GUIDELINES if (system, code) in one.findings), None)
