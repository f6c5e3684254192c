"""Coded names in the reader's language: findings of the models that come with Rayhook, and parts of the body.

Spec: SNOMED CT: the code is what counts, the words are those of clinical usage
"""

from collections.abc import Iterable, Mapping
from typing import Final

from rayhook.fhir.text import translatable
from rayhook.inference.anatomy import Region
from rayhook.inference.study import Finding
from rayhook.smart_app.i18n import gettext as _

# As the models' manifests have them: the call puts them in the catalogues.
FINDING_DISPLAYS: Final = frozenset(
    {
        translatable("Mass"),
        translatable("Neoplasm of brain"),
        translatable("Pneumonia"),
        translatable("Solitary nodule of lung"),
        translatable("Suspected lung cancer"),
    }
)
_REGIONS: Final[Mapping[Region, str]] = {
    Region.ABDOMEN: translatable("Abdomen"),
    Region.BREAST: translatable("Breast"),
    Region.CHEST: translatable("Chest"),
    Region.HEAD: translatable("Head"),
    Region.LIMB: translatable("Limb"),
    Region.NECK: translatable("Neck"),
    Region.PELVIS: translatable("Pelvis"),
    Region.SPINE: translatable("Spine"),
}


def finding_name(finding: Finding) -> str:
    """Return the finding's name; a model of somebody else's keeps the name that its manifest gives."""
    return _(finding.display)


def region_names(regions: Iterable[Region]) -> str:
    return ", ".join(_(_REGIONS[region]) for region in sorted(regions))
