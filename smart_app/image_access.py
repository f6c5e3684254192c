"""Images for one viewer: of the launched patient only, fetched with that viewer's own right, told to the audit.

What was fetched is kept for the same person and patient, in memory, for a while: a stack is looked through
more than once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.fhir.errors import (
    EgressDenied,
    Forbidden,
    IdentityConflict,
    NotFound,
    Overloaded,
    RayhookError,
    UpstreamError,
    UpstreamRefused,
)
from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.fhir.references import oid_uri
from rayhook.inference.decode import DecodeLimits
from rayhook.inference.dicom_json import retrieve_metadata, search_series
from rayhook.inference.dicomweb import RetrievalLimits, retrieve_instance
from rayhook.inference.jobs import jobs_for_patient
from rayhook.inference.study import StoredInstance, StudyReference
from rayhook.smart_app.access import Gate, Viewer, agent_of
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.image_cache import RecentlyUsed
from rayhook.smart_app.image_series import ImageFrame, ImageSeries, SeriesSummary, read_series, summarise
from rayhook.smart_app.image_study import find_study, image_handle, locate_images, series_handle
from rayhook.smart_app.patient import EHRReader

_MIB = 1 << 20
_KEPT_S = 15 * 60.0
_KEPT_STUDIES = 1_000
_KEPT_FRAMES = 100_000
_KEPT_BYTES = 256 * _MIB
# One event tells of all the images that the same person looks at in one series within this time.
_AUDIT_WINDOW_S = 60.0
_METADATA_DEADLINE_S = 30.0
_IMAGE_LIMITS = RetrievalLimits(max_instances=1, max_bytes=512 * _MIB, deadline_s=30.0)
_DECODE_LIMITS = DecodeLimits(timeout_s=15.0)

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class FramePixels:
    """One image's values as acquired, little-endian, and how they become values with a meaning."""

    data: bytes
    dtype: str
    samples: int
    rows: int
    columns: int
    slope: float
    intercept: float
    lossy: bool


@dataclass(frozen=True, slots=True)
class OpenedSeries:
    """handles: of each image, by its SOP Instance UID; frames: by handle and number of the frame."""

    series: ImageSeries
    handles: Mapping[str, str]
    frames: Mapping[tuple[str, int], ImageFrame]


class ImageAccess:
    """Reads for one viewer; every failure of the PACS is told to the audit as what it was."""

    def __init__(self, deps: SMARTDependencies, gate: Gate) -> None:
        self._deps = deps
        self._gate = gate
        self._reader = EHRReader(deps.transport)
        self._studies = RecentlyUsed[StudyReference](max_size=_KEPT_STUDIES, life_s=_KEPT_S)
        self._series = RecentlyUsed[OpenedSeries](max_size=_KEPT_FRAMES, life_s=_KEPT_S)
        self._uids = RecentlyUsed[str](max_size=_KEPT_STUDIES * 10, life_s=_KEPT_S)
        self._pixels = RecentlyUsed[FramePixels](max_size=_KEPT_BYTES, life_s=_KEPT_S)
        self._told = RecentlyUsed[bool](max_size=_KEPT_STUDIES, life_s=_AUDIT_WINDOW_S)
        kept = (self._studies, self._series, self._uids, self._pixels, self._told)
        deps.forgetting.extend(cache.clear for cache in kept)

    def study(self, viewer: Viewer, handle: str) -> StudyReference:
        """Raise NotFound, told to the audit, for another patient's study as for one that does not exist."""
        if not viewer.may("ImagingStudy", "r"):
            error = Forbidden(
                "not permitted by your EHR: reading of ImagingStudy", code="images_not_permitted"
            )
            raise self._gate.refused(error, viewer.user)
        try:
            return self._studies.get_or_make((_owner(viewer), handle), lambda: self._located(viewer, handle))
        except NotFound as error:
            if error.code != "study_not_found":
                raise
            raise self._gate.refused(error, viewer.user) from error

    def _located(self, viewer: Viewer, handle: str) -> StudyReference:
        deps = self._deps
        with deps.sessions() as session:
            jobs = jobs_for_patient(session, deps.keyring, viewer.ehr.id, viewer.patient_id)
        found = find_study(
            deps.keyring,
            handle,
            analysed=[job.reference for job in jobs],
            listed=lambda: self.listed(viewer),
            viewer=viewer,
        )
        return locate_images(deps.transport, found, viewer)

    def listed(self, viewer: Viewer) -> tuple[ImagingStudySummary, ...]:
        """Return the studies that the EHR names of the patient."""
        known = self._reader.studies(viewer)
        outcome = Outcome.SUCCESS if known.notice is None else Outcome.MINOR_FAILURE
        entities = tuple(f"ImagingStudy/{study.id}" for study in known.studies)
        self._deps.tell(_entry(viewer, AuditKind.FHIR_RESOURCE_READ, *entities, outcome=outcome))
        return known.studies

    def series_list(self, viewer: Viewer, handle: str) -> tuple[SeriesSummary, ...]:
        reference = self.study(viewer, handle)
        found = self._asked(viewer, reference, lambda token: self._search(viewer, reference, token))
        for series in found:
            name = series_handle(self._deps.keyring, series.series_instance_uid)
            self._uids.put((_owner(viewer), handle, name), series.series_instance_uid)
        entry = _entry(
            viewer,
            AuditKind.SMART_APP_STUDY_OPENED,
            oid_uri(reference.study_instance_uid),
            series=str(len(found)),
        )
        self._deps.tell(entry)
        return found

    def _search(
        self, viewer: Viewer, reference: StudyReference, token: str | None
    ) -> tuple[SeriesSummary, ...]:
        """Ask for the list of series, or where a server knows no search, for the metadata of the study."""
        transport, origins = self._deps.transport, viewer.ehr.image_origins
        try:
            found = search_series(
                transport,
                reference,
                allowed_origins=origins,
                access_token=token,
                deadline_s=_METADATA_DEADLINE_S,
            )
        except (NotFound, UpstreamError) as error:
            if isinstance(error, UpstreamRefused) or error.code not in ("study_not_found", "upstream_error"):
                raise
            found = ()
        if not found:
            found = retrieve_metadata(
                transport,
                reference,
                allowed_origins=origins,
                access_token=token,
                deadline_s=_METADATA_DEADLINE_S,
            )
        return summarise(found)

    def series(self, viewer: Viewer, study: str, handle: str) -> OpenedSeries:
        """Open a series: one event of the audit tells how many images it has."""
        reference = self.study(viewer, study)
        opened = self._opened(viewer, reference, study, handle)
        series = opened.series
        entry = _entry(
            viewer,
            AuditKind.SMART_APP_SERIES_OPENED,
            oid_uri(reference.study_instance_uid),
            oid_uri(series.series_instance_uid),
            images=str(len(series.frames)),
        )
        self._deps.tell(entry)
        self._told.put((_owner(viewer), study, handle), True)
        return opened

    def _opened(self, viewer: Viewer, reference: StudyReference, study: str, handle: str) -> OpenedSeries:
        key = (_owner(viewer), study, handle)

        def read(token: str | None) -> OpenedSeries:
            uid = self._series_uid(viewer, reference, token, study, handle)
            found = retrieve_metadata(
                self._deps.transport,
                reference,
                series_instance_uid=uid,
                allowed_origins=viewer.ehr.image_origins,
                access_token=token,
                deadline_s=_METADATA_DEADLINE_S,
            )
            return self._with_handles(read_series(uid, found))

        return self._series.get_or_make(
            key, lambda: self._asked(viewer, reference, read), size=lambda opened: max(1, len(opened.frames))
        )

    def _with_handles(self, series: ImageSeries) -> OpenedSeries:
        handles = {
            uid: image_handle(self._deps.keyring, uid) for uid in {f.sop_instance_uid for f in series.frames}
        }
        frames = {(handles[frame.sop_instance_uid], frame.frame): frame for frame in series.frames}
        return OpenedSeries(series, handles, frames)

    def _series_uid(
        self, viewer: Viewer, reference: StudyReference, token: str | None, study: str, handle: str
    ) -> str:
        known = self._uids.get((_owner(viewer), study, handle))
        if known is not None:
            return known
        for series in self._search(viewer, reference, token):
            if series_handle(self._deps.keyring, series.series_instance_uid) == handle:
                return series.series_instance_uid
        raise NotFound("the study has no such series", code="series_not_found")

    def pixels(self, viewer: Viewer, study: str, series: str, image: str, frame: int) -> FramePixels:
        """Return one image's values. The audit learns of it before it is sent, once for a while of looking."""
        reference = self.study(viewer, study)
        opened = self._opened(viewer, reference, study, series)
        found = opened.frames.get((image, frame))
        if found is None:
            raise NotFound("the series has no such image", code="image_not_found")
        key = (_owner(viewer), study, series, image)

        def make() -> FramePixels:
            stored = self._asked(
                viewer, reference, lambda token: self._decoded(viewer, reference, opened.series, found, token)
            )
            made = [_frame_pixels(stored, index) for index in range(len(stored.pixels))]
            for index, other in enumerate(made):
                if index != frame:
                    self._pixels.put((*key, index), other, size=len(other.data))
            if frame >= len(made):
                raise NotFound("the image has no such frame", code="image_not_found")
            return made[frame]

        pixels = self._pixels.get_or_make((*key, frame), make, size=lambda one: len(one.data))
        self._tell_of_looking(viewer, reference, opened.series, study, series)
        return pixels

    def _decoded(
        self,
        viewer: Viewer,
        reference: StudyReference,
        series: ImageSeries,
        frame: ImageFrame,
        token: str | None,
    ) -> StoredInstance:
        data = retrieve_instance(
            self._deps.transport,
            reference,
            series_instance_uid=series.series_instance_uid,
            sop_instance_uid=frame.sop_instance_uid,
            allowed_origins=viewer.ehr.image_origins,
            access_token=token,
            limits=_IMAGE_LIMITS,
        )
        stored = self._deps.decoder.decode_stored(data, limits=_DECODE_LIMITS)
        if stored.attributes.sop_instance_uid != frame.sop_instance_uid:
            raise IdentityConflict(
                "the PACS sent another image than was asked for",
                code="identity_conflict",
                expression="SOPInstanceUID",
            )
        return stored

    def _asked(
        self, viewer: Viewer, reference: StudyReference, ask: Callable[[str | None], _Value]
    ) -> _Value:
        """Ask the PACS, with the viewer's token where it requires one, and tell the audit where that fails.

        Spec: SMART App Launch 2.2.0, extension requires-access-token
        """
        token = viewer.session.access_token if reference.token_required else None
        try:
            with self._deps.retrievals.turn(agent_of(viewer.user)):
                return ask(token)
        except Overloaded:
            raise  # nothing was asked
        except RayhookError as error:
            refused = isinstance(error, EgressDenied)
            kind = AuditKind.TRANSPORT_ADDRESS_REFUSED if refused else AuditKind.DICOMWEB_STUDY_FAILED
            entry = _entry(viewer, kind, oid_uri(reference.study_instance_uid), code=error.code)
            self._deps.tell(replace(entry, outcome=Outcome.SERIOUS_FAILURE))
            raise

    def _tell_of_looking(
        self, viewer: Viewer, reference: StudyReference, opened: ImageSeries, study: str, series: str
    ) -> None:
        key = (_owner(viewer), study, series)

        def tell() -> bool:
            entry = _entry(
                viewer,
                AuditKind.SMART_APP_IMAGE_VIEWED,
                oid_uri(reference.study_instance_uid),
                oid_uri(opened.series_instance_uid),
            )
            self._deps.tell(entry)
            return True

        self._told.get_or_make(key, tell)


def _owner(viewer: Viewer) -> tuple[str, str, str]:
    """What one person fetched of one patient is nobody else's: the PACS would have to be asked for them too."""
    return viewer.ehr.id, viewer.patient_id, agent_of(viewer.user)


def _entry(
    viewer: Viewer, kind: AuditKind, *entities: str, outcome: Outcome = Outcome.SUCCESS, **detail: str
) -> AuditEntry:
    return AuditEntry(
        kind=kind,
        outcome=outcome,
        ehr_id=viewer.ehr.id,
        agent=agent_of(viewer.user),
        client_id=viewer.user.client_id,
        patient_id=viewer.patient_id,
        entities=entities,
        detail=detail,
    )


def _frame_pixels(stored: StoredInstance, index: int) -> FramePixels:
    description, attributes = stored.description, stored.attributes
    scale = description.scales[index]
    return FramePixels(
        data=stored.pixels[index].tobytes(),
        dtype=description.dtype,
        samples=description.samples,
        rows=attributes.rows,
        columns=attributes.columns,
        slope=scale.slope,
        intercept=scale.intercept,
        lossy=description.lossy,
    )
