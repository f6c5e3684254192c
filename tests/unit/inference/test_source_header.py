from io import BytesIO

import pytest
from pydicom import Dataset, Sequence, dcmread

from rayhook.fhir.errors import Unprocessable
from rayhook.inference.dicom_attributes import Attributes
from rayhook.inference.lut import FrameAttributes
from rayhook.inference.source_header import open_source_header, read_source_header
from tests.unit.inference.images import dicom_slice


def header_of(**changes) -> Dataset:
    dataset = dcmread(BytesIO(dicom_slice()), stop_before_pixels=True)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return open_source_header(read_source_header(FrameAttributes.read(Attributes(dataset), frames=1)))


def test_what_objects_need_is_kept():
    header = header_of()
    assert (header.PatientID, str(header.PatientName)) == ("MRN-1", "PHANTOM^TEST")
    assert list(header.PixelSpacing) == [1, 1]
    assert list(header.ImagePositionPatient) == [-32, -32, 5]


@pytest.mark.parametrize(
    "keyword",
    ["PatientAddress", "PatientTelephoneNumbers", "OtherPatientIDs", "InstitutionName", "OperatorsName"],
)
def test_what_they_do_not_need_is_not(keyword):
    assert keyword not in header_of(**{keyword: "secret"})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientSex", "X"),
        ("PatientBirthDate", "1970"),
        ("StudyTime", "25:99"),
        ("StudyID", "far too long for a short string"),
        ("AccessionNumber", "two\\values"),
        ("FrameOfReferenceUID", "01.2"),
        ("Laterality", "LEFT"),
    ],
)
def test_what_is_malformed_is_left_out(keyword, value):
    assert not header_of(**{keyword: value}).get(keyword)


def test_text_is_in_one_character_set():
    header = header_of(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    assert str(header.PatientName) == "Müller^Jörg"
    assert header.SpecificCharacterSet == "ISO_IR 192"


def test_an_enhanced_image_tells_its_place_in_a_functional_group():
    position, group = Dataset(), Dataset()
    position.ImagePositionPatient = [1, 2, 3]
    group.PlanePositionSequence = Sequence([position])
    header = header_of(PerFrameFunctionalGroupsSequence=Sequence([group]))
    assert list(header.ImagePositionPatient) == [1, 2, 3]


def test_codes_of_the_procedure_are_kept_without_what_is_beside_them():
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "24590-2", "LN", "MR Brain"
    code.ContextIdentifier = "4"
    (kept,) = header_of(ProcedureCodeSequence=Sequence([code])).ProcedureCodeSequence
    assert (kept.CodeValue, kept.CodeMeaning, "ContextIdentifier" in kept) == ("24590-2", "MR Brain", False)


def test_attributes_that_every_object_has_are_there_if_empty():
    header = header_of()
    assert (header.AccessionNumber, header.StudyID) == ("", "")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("data", [b"", b"no header", b"\x08\x00\x05\x00CS"])
def test_what_names_no_image_is_refused(data):
    with pytest.raises(Unprocessable):
        open_source_header(data)
