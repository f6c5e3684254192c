"""What the viewer asks of a PACS, asked of a real one."""

from collections.abc import Iterator

import numpy as np
import pytest
from pydicom import uid

from rayhook.fhir.errors import NotFound
from rayhook.fhir.transport import Transport
from rayhook.inference.decode import Decoder
from rayhook.inference.dicom_json import retrieve_metadata, search_series
from rayhook.inference.dicomweb import RetrievalLimits, retrieve_instance
from rayhook.inference.study import StudyReference
from rayhook.smart_app.image_series import read_series, summarise
from tests.doubles.dicom_files import STUDY, SYNTAX_NAMES, SYNTAXES, dataset, encode, picture
from tests.integration.conftest import Orthanc
from tests.unit.inference.samples import reference

pytestmark = pytest.mark.orthanc

COUNT = 5


@pytest.fixture(scope="module")
def transport() -> Iterator[Transport]:
    made = Transport(allow_loopback_http=True)
    yield made
    made.close()


def asked(orthanc: Orthanc, study: str) -> StudyReference:
    return reference(study_instance_uid=study, dicomweb_url=orthanc.dicomweb_url, token_required=False)


def rights(orthanc: Orthanc) -> dict:
    return {"allowed_origins": frozenset((orthanc.origin,)), "access_token": None}


@pytest.fixture(scope="module")
def stack(orthanc: Orthanc) -> str:
    """A series whose instance numbers run against its places."""
    study = f"{STUDY}.700"
    files = [
        encode(
            dataset(
                picture(seed=n),
                StudyInstanceUID=study,
                SeriesInstanceUID=f"{study}.1",
                SOPInstanceUID=f"{study}.1.{n}",
                SeriesNumber=4,
                SeriesDescription="AX FLAIR",
                InstanceNumber=n,
                ImagePositionPatient=[0.0, 0.0, -5.0 * n],
                ImageOrientationPatient=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            )
        )
        for n in range(1, COUNT + 1)
    ]
    assert orthanc.store(files).status_code == 200
    return study


def test_series_are_listed_with_their_counts(orthanc, transport, stack):
    found = summarise(search_series(transport, asked(orthanc, stack), deadline_s=10, **rights(orthanc)))
    assert [(s.modality, s.number, s.description, s.images) for s in found] == [("MR", 4, "AX FLAIR", COUNT)]


@pytest.mark.parametrize("whole_study", [False, True])
def test_metadata_gives_the_stack_in_order(orthanc, transport, stack, whole_study):
    told = retrieve_metadata(
        transport,
        asked(orthanc, stack),
        series_instance_uid=None if whole_study else f"{stack}.1",
        deadline_s=10,
        **rights(orthanc),
    )
    series = read_series(f"{stack}.1", told)
    assert [frame.number for frame in series.frames] == list(range(COUNT, 0, -1))
    assert series.frames[0].spacing_mm == (0.5, 0.75)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=SYNTAX_NAMES)
def test_one_instance_comes_back_as_it_was_stored(orthanc, transport, decoder: Decoder, syntax: str):
    study = f"{STUDY}.{SYNTAXES.index(syntax) + 720}"
    values = picture(seed=9).astype(np.int16) - 2048
    made = dataset(
        values, StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1", SOPInstanceUID=f"{study}.1.1"
    )
    assert orthanc.store([encode(made, syntax)]).status_code == 200
    data = retrieve_instance(
        transport,
        asked(orthanc, study),
        series_instance_uid=f"{study}.1",
        sop_instance_uid=f"{study}.1.1",
        limits=RetrievalLimits(),
        **rights(orthanc),
    )
    stored = decoder.decode_stored(data)
    assert stored.attributes.transfer_syntax_uid in {syntax, uid.ExplicitVRLittleEndian}
    np.testing.assert_array_equal(stored.pixels[0], values)


def test_a_study_that_is_not_there_is_told(orthanc, transport):
    with pytest.raises(NotFound):
        retrieve_metadata(transport, asked(orthanc, f"{STUDY}.999"), deadline_s=10, **rights(orthanc))
