"""Which part of the body, and which way of imaging, codes and words speak of.

Only what is plain is told: an order that names neither is compared with nothing.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from rayhook.fhir.codes import DCM, SNOMED

DIAGNOSTIC_SERVICE = "http://terminology.hl7.org/CodeSystem/v2-0074"


class Region(StrEnum):
    """A part of the body as orders name it; the value is what a card calls it."""

    ABDOMEN = "abdomen"
    BREAST = "breast"
    CHEST = "chest"
    HEAD = "head"
    LIMB = "limb"
    NECK = "neck"
    PELVIS = "pelvis"
    SPINE = "spine"


# DICOM codes that orders use for one another. Spec: DICOM PS3.16 CID 29
_SAME = {"CR": "DX", "DR": "DX", "RG": "DX", "XR": "DX", "SPECT": "NM", "ST": "NM", "MRI": "MR", "PET": "PT"}
_MODALITIES = frozenset({"CT", "DX", "MG", "MR", "NM", "PT", "RF", "US", "XA"})
# Spec: HL7 v2 table 0074, "Diagnostic Service Section ID"
_SECTIONS = {
    "CT": "CT", "CUS": "US", "NMR": "MR", "NMS": "NM", "OUS": "US", "RUS": "US", "RX": "DX", "VUS": "US", "XRC": "DX",
}  # fmt: skip
# The first that is met counts: "PET/CT" is PET.
_MODALITY_WORDS = (
    ("PT", r"PET|positron"),
    ("NM", r"SPECT|scintigra\w+|nuclear medicine"),
    ("MG", r"mammogra\w+|tomosynthesis"),
    ("MR", r"MRI?|MRA|magnetic resonance"),
    ("CT", r"CTA?|CAT scan|computed tomogra\w+|computeri[sz]ed tomogra\w+"),
    ("US", r"ultraso\w+|sonogra\w+|US|echocardiogra\w+"),
    ("RF", r"fluoroscop\w+"),
    ("DX", r"x-?rays?|XR|radiogra\w+|chest film|CXR"),
)
_REGION_WORDS = (
    (Region.SPINE, r"(cervical|thoracic|lumbar|sacral)\s+spine|spine|spinal|lumbosacral|C-spine|L-spine"),
    (Region.HEAD, r"head|brain|skull|cranial|cranium|neuro|cerebral|intracranial"),
    (Region.NECK, r"neck|cervical|thyroid|carotids?"),
    (Region.CHEST, r"chest|lungs?|pulmonary|thorax|thoracic|CXR"),
    (Region.BREAST, r"breasts?|mammogra\w+"),
    (Region.ABDOMEN, r"abdomen|abdominal|liver|hepatic|kidneys?|renal|pancreas|spleen"),
    (Region.PELVIS, r"pelvis|pelvic|prostate|uterus"),
    (
        Region.LIMB,
        r"knees?|ankles?|feet|foot|hips?|shoulders?|elbows?|wrists?|hands?|femur|tibia|arms?|legs?",
    ),
)
_REGION_CODES: Mapping[str, Region] = {
    "12738006": Region.HEAD,
    "69536005": Region.HEAD,
    "45048000": Region.NECK,
    "51185008": Region.CHEST,
    "39607008": Region.CHEST,
    "76752008": Region.BREAST,
    "113345001": Region.ABDOMEN,
    "12921003": Region.PELVIS,
    "421060004": Region.SPINE,
}


def _compiled(words: Iterable[tuple[str, str]]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((key, re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE)) for key, pattern in words)


_MODALITY_PATTERNS = _compiled(_MODALITY_WORDS)
_REGION_PATTERNS = tuple((Region(key), pattern) for key, pattern in _compiled(_REGION_WORDS))
_UPPER = re.compile(r"\bUS\b")


def modality_of(codes: Iterable[tuple[str | None, str | None]], texts: Iterable[str]) -> str | None:
    """Return the DICOM code of the modality that a coded or written request asks for, None where that is open."""
    for system, code in codes:
        if system == DCM and (found := usual(code)) is not None:
            return found
        if system == DIAGNOSTIC_SERVICE and code in _SECTIONS:
            return _SECTIONS[code]
    for text in texts:
        for found, pattern in _MODALITY_PATTERNS:
            match = pattern.search(text)
            # "us" is a word.
            if match is not None and (match[0].upper() != "US" or _UPPER.search(text)):
                return found
    return None


def usual(code: str | None) -> str | None:
    """Return the one code for modalities that are the same to whoever orders: DX for CR, XR and DX."""
    found = _SAME.get(code or "", code)
    return found if found in _MODALITIES else None


def regions_of(codes: Iterable[tuple[str | None, str | None]], texts: Iterable[str]) -> frozenset[Region]:
    """Return the parts of the body that are named; "thoracic spine" is the spine alone."""
    found = {
        _REGION_CODES[code] for system, code in codes if system == SNOMED and code and code in _REGION_CODES
    }
    for text in texts:
        rest = text
        for region, pattern in _REGION_PATTERNS:
            shorter = pattern.sub(" ", rest)
            if shorter != rest:
                found.add(region)
            if region is Region.SPINE:
                rest = shorter
    return frozenset(found)
