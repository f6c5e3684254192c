"""The patient's other studies, to lay beside the one that is open: those of the same body part first."""

from dataclasses import dataclass

from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.smart_app.access import Viewer
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.image_access import ImageAccess
from rayhook.smart_app.image_study import study_handle

# Spec: FHIR R4 ImagingStudy.status: no images yet, or not any more.
_WITHOUT_IMAGES = frozenset({"cancelled", "entered-in-error", "registered"})


@dataclass(frozen=True, slots=True)
class OtherStudy:
    handle: str
    description: str
    started: str
    modalities: tuple[str, ...]
    is_comparable: bool
    is_earlier: bool


def other_studies(
    deps: SMARTDependencies, images: ImageAccess, viewer: Viewer, handle: str
) -> list[dict[str, object]]:
    """Return what the viewer offers for comparison, the most comparable and then the newest first."""
    listed = [one for one in images.listed(viewer) if one.study_instance_uid]
    by_handle = {study_handle(deps.keyring, one.study_instance_uid or ""): one for one in listed}
    current = by_handle.get(handle)
    started = images.study(viewer, handle).started or ""
    modalities = images.study(viewer, handle).modalities if current is None else current.modalities
    others = [
        OtherStudy(
            handle=other,
            description=one.description or "",
            started=(one.started or "")[:10],
            modalities=one.modalities,
            is_comparable=_is_comparable(one, modalities, current),
            is_earlier=(one.started or "") < started,
        )
        for other, one in by_handle.items()
        if other != handle and one.status not in _WITHOUT_IMAGES
    ]
    others.sort(key=lambda other: other.started, reverse=True)
    others.sort(key=lambda other: (not other.is_comparable, not other.is_earlier))
    return [
        {
            "study": f"/studies/{other.handle}",
            "description": other.description,
            "started": other.started,
            "modalities": other.modalities,
            "comparable": other.is_comparable,
        }
        for other in others
    ]


def _is_comparable(
    one: ImagingStudySummary, modalities: tuple[str, ...], current: ImagingStudySummary | None
) -> bool:
    same_modality = bool(set(one.modalities) & set(modalities))
    if current is None or not current.body_sites or not one.body_sites:
        return same_modality
    return same_modality and bool(set(one.body_sites) & set(current.body_sites))
