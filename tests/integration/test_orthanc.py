"""Images that went through a real PACS come back as they were."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_files

from rayhook.fhir.errors import NotFound
from rayhook.fhir.transport import Transport
from rayhook.inference.decode import Decoder
from rayhook.inference.dicomweb import RetrievalLimits, retrieve_study
from tests.doubles.dicom_files import SERIES, STUDY, SYNTAX_NAMES, SYNTAXES, dataset, encode, picture
from tests.integration.conftest import Orthanc
from tests.unit.inference.samples import reference

pytestmark = pytest.mark.orthanc


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(allow_loopback_http=True)
    yield made
    made.close()


def retrieve(transport: Transport, orthanc: Orthanc, study_uid: str) -> list[bytes]:
    asked = reference(study_instance_uid=study_uid, dicomweb_url=orthanc.dicomweb_url, token_required=False)
    files = retrieve_study(
        transport,
        asked,
        allowed_origins=frozenset((orthanc.origin,)),
        access_token=None,
        limits=RetrievalLimits(),
    )
    return list(files)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=SYNTAX_NAMES)
def test_pixels_of_every_syntax_come_back_identical(
    orthanc: Orthanc, transport: Transport, decoder: Decoder, syntax: str
) -> None:
    study = f"{STUDY}.{SYNTAXES.index(syntax) + 50}"
    made = dataset(picture(), StudyInstanceUID=study, SOPInstanceUID=f"{study}.1.1")
    assert orthanc.store([encode(made, syntax)]).status_code == 200
    (received,) = retrieve(transport, orthanc, study)
    np.testing.assert_array_equal(decoder.decode(received).pixels[0], picture())


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "MR_small.dcm"]
)
def test_shipped_files_come_back_identical(
    orthanc: Orthanc, transport: Transport, decoder: Decoder, name: str
) -> None:
    sent = Path(get_testdata_files(name)[0]).read_bytes()
    study = str(pydicom.dcmread(Path(get_testdata_files(name)[0]), stop_before_pixels=True).StudyInstanceUID)
    orthanc.store([sent])
    received = [decoder.decode(file).pixels for file in retrieve(transport, orthanc, study)]
    expected = decoder.decode(sent).pixels
    assert any(np.array_equal(pixels, expected) for pixels in received)


def test_every_instance_of_a_study_comes_back(
    orthanc: Orthanc, transport: Transport, decoder: Decoder
) -> None:
    study = f"{STUDY}.99"
    files = [
        encode(
            dataset(
                picture(seed=n),
                StudyInstanceUID=study,
                SeriesInstanceUID=SERIES,
                SOPInstanceUID=f"{study}.{n}",
            )
        )
        for n in range(1, 13)
    ]
    orthanc.store(files)
    received = {
        decoded.attributes.sop_instance_uid: decoded.pixels
        for decoded in map(decoder.decode, retrieve(transport, orthanc, study))
    }
    assert len(received) == 12
    np.testing.assert_array_equal(received[f"{study}.7"][0], picture(seed=7))


def test_a_study_that_is_not_there_is_not_found(orthanc: Orthanc, transport: Transport) -> None:
    with pytest.raises(NotFound):
        retrieve(transport, orthanc, "1.2.3.4.5.6")


@pytest.mark.dataset
def test_a_real_ct_series_comes_back_identical(
    orthanc: Orthanc, transport: Transport, decoder: Decoder, lidc_dicom: Path
) -> None:
    paths = sorted(lidc_dicom.rglob("*.dcm"))[:20]
    sent = {
        decoded.attributes.sop_instance_uid: decoded
        for decoded in (decoder.decode(path.read_bytes()) for path in paths)
    }
    orthanc.store([path.read_bytes() for path in paths])
    study = next(iter(sent.values())).attributes.study_instance_uid
    received = [decoder.decode(file) for file in retrieve(transport, orthanc, study)]
    assert {decoded.attributes.sop_instance_uid for decoded in received} == sent.keys()
    for decoded in received:
        np.testing.assert_array_equal(decoded.pixels, sent[decoded.attributes.sop_instance_uid].pixels)
