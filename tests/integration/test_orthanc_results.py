"""Results as DICOM objects in a real Orthanc."""

from collections.abc import Callable, Iterable, Iterator
from io import BytesIO

import httpx
import pytest
from pydicom import Dataset, dcmread

from rayhook.fhir.transport import Transport
from rayhook.inference.dicom_results import DICOMObject
from rayhook.inference.dicom_table import StoreState
from rayhook.inference.dicomweb import RetrievalLimits, retrieve_study
from rayhook.inference.dicomweb_store import Storable, StoreOutcome, store_instances
from rayhook.inference.registry import Manifest
from rayhook.inference.study import StudyResult
from tests.integration.conftest import Orthanc
from tests.unit.inference.dicom_objects import analysed, objects_of, radiograph, rated_points
from tests.unit.inference.samples import STUDY_UID, reference
from tests.unit.inference.test_rejection_note import notes

pytestmark = pytest.mark.orthanc


@pytest.fixture(scope="module")
def transport() -> Iterator[Transport]:
    made = Transport(allow_loopback_http=True)
    yield made
    made.close()


def store(
    transport: Transport, orthanc: Orthanc, objects: Iterable[DICOMObject], study: str = STUDY_UID
) -> dict[str, StoreOutcome]:
    return store_instances(
        transport,
        orthanc.dicomweb_url,
        study,
        [Storable(one.sop_instance_uid, one.data) for one in objects],
        allowed_origins=frozenset({orthanc.origin}),
        access_token=None,
    )


def instances(orthanc: Orthanc) -> list[str]:
    found = httpx.get(f"{orthanc.dicomweb_url}/studies/{STUDY_UID}/instances", timeout=30).json()
    return sorted(one["00080018"]["Value"][0] for one in found)


def fetch(transport: Transport, orthanc: Orthanc) -> dict[str, Dataset]:
    asked = reference(dicomweb_url=orthanc.dicomweb_url, token_required=False)
    files = retrieve_study(
        transport,
        asked,
        allowed_origins=frozenset({orthanc.origin}),
        access_token=None,
        limits=RetrievalLimits(),
    )
    return {str(told.SOPInstanceUID): told for told in map(dcmread, map(BytesIO, files))}


@pytest.mark.parametrize("study", [analysed, radiograph, rated_points])
def test_every_kind_comes_back_as_it_was_and_a_second_run_adds_nothing(
    orthanc: Orthanc, transport: Transport, study: Callable[[], tuple[StudyResult, Manifest]]
) -> None:
    result, manifest = study()
    objects = objects_of(result, manifest)
    assert {one.state for one in store(transport, orthanc, objects.values()).values()} == {StoreState.STORED}
    held, before = fetch(transport, orthanc), instances(orthanc)
    for one in objects.values():
        assert held[one.sop_instance_uid] == dcmread(BytesIO(one.data)), one.kind
    again = store(transport, orthanc, objects_of(result, manifest).values())
    assert {one.state for one in again.values()} == {StoreState.STORED}
    assert instances(orthanc) == before


def test_orthanc_keeps_the_note_that_takes_a_report_back(orthanc: Orthanc, transport: Transport) -> None:
    study = analysed()
    store(transport, orthanc, objects_of(*study).values())
    (note,) = notes(*study)
    (outcome,) = store(transport, orthanc, [note]).values()
    assert outcome.state is StoreState.STORED
    assert fetch(transport, orthanc)[note.sop_instance_uid] == dcmread(BytesIO(note.data))


def test_an_object_of_another_study_is_not_stored(orthanc: Orthanc, transport: Transport) -> None:
    objects = list(objects_of(*analysed()).values())[:1]
    (outcome,) = store(transport, orthanc, objects, "1.2.3.4").values()
    assert outcome.state is not StoreState.STORED
