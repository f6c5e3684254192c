"""Why a study has no answer, in the reader's language: the reasons are stored, and told to EHRs, in English."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Final

from rayhook.fhir.text import translatable
from rayhook.smart_app.i18n import gettext as _

# What the scope's rules and the images' judgement say, with the values that they put in.
TEMPLATES: Final = (
    translatable("Modality is not %(wanted)s, which the model is meant for"),
    translatable("SOPClassUID is not among those that the model is meant for"),
    translatable("BodyPartExamined is not %(wanted)s"),
    translatable("BurnedInAnnotation says that text is burned into the image"),
    translatable("EchoTime is below %(time)s ms, too short for %(name)s"),
    translatable("ImageOrientationPatient is not %(wanted)s"),
    translatable("ImageType says that the image is a localizer, a reformat, a map or a secondary image"),
    translatable("InversionTime is not %(low)s to %(high)s ms, as for %(name)s"),
    translatable("PhotometricInterpretation is not that of a grey-scale image"),
    translatable("PixelSpacing is missing, and the model needs the physical scale"),
    translatable("RescaleType says that the values are not Hounsfield units"),
    translatable("SeriesDescription says that the image is a localizer"),
    translatable("SliceThickness is above %(size)s mm"),
    translatable("ViewPosition is not %(wanted)s"),
    translatable("a description says that the series is not %(name)s"),
    translatable("a description says that the view is not %(name)s"),
    translatable("neither a description nor InversionTime and EchoTime say that the sequence is %(name)s"),
    translatable("neither BodyPartExamined nor a description says that the body part is %(wanted)s"),
    translatable("neither ImageOrientationPatient nor a description says that the plane is %(wanted)s"),
    translatable("neither ViewPosition nor a description says that the view is %(name)s"),
    translatable("no model is installed"),
    translatable("no point of these images was like what the model rates"),
    translatable("not sure: the probability is too near to the model's threshold to be an answer"),
    translatable("the study holds no images"),
)
_CODES: Final[Mapping[str, str]] = {
    "constant_image": translatable("the image is of one grey"),
    "non_finite_output": translatable("its output was not a number"),
    "not_the_intended_image": translatable("the image looks like something else than it is meant for"),
    "out_of_distribution": translatable("the image is unlike those that it was made with"),
}
_GAVE_NONE: Final = "the model gave no answer: "
_TOO_FEW: Final = "too few images could be used: "
_COUNTED: Final = re.compile(r"(.+) \((\d+) of (\d+) images\)", re.DOTALL)
_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s")


def reason_text(reason: str) -> str:
    """Return the reason in the reader's language and in words; a part that is not known stays as it is."""
    if reason.startswith(_TOO_FEW):
        return _(
            "too few images could be used: %(reasons)s", reasons=reason_text(reason.removeprefix(_TOO_FEW))
        )
    return "; ".join(map(_part, reason.split("; ")))


def _part(part: str) -> str:
    counted = _COUNTED.fullmatch(part)
    if counted is None:
        return _one(part)
    return _(
        "%(reason)s (%(count)s of %(total)s images)",
        reason=_one(counted[1]),
        count=counted[2],
        total=counted[3],
    )


def _one(reason: str) -> str:
    if reason.startswith(_GAVE_NONE):
        codes = reason.removeprefix(_GAVE_NONE).split(", ")
        return _(
            "the model gave no answer: %(reasons)s",
            reasons=", ".join(_(_CODES.get(code, code)) for code in codes),
        )
    for template, pattern in _patterns():
        found = pattern.fullmatch(reason)
        if found is not None:
            return _(template, **found.groupdict())
    return _(reason)


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((template, re.compile(_pattern(template), re.DOTALL)) for template in TEMPLATES)


def _pattern(template: str) -> str:
    return _PLACEHOLDER.sub(r"(?P<\1>.+?)", re.escape(template).replace(r"%\(", "%(").replace(r"\)s", ")s"))
