import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import validate_file_meta
from typer.testing import CliRunner

from rayhook.deploy.cli import app
from rayhook.deploy.dicomize import MARKER, plan_dicomization
from rayhook.deploy.labelled_images import Kind
from rayhook.fhir.errors import InvalidRequest
from rayhook.inference.decode import Decoder

MRI = {"path": "images/a.png", "patient_id": "P_1", "slice": "4", "brain_frac": "0.2", "label": "1"}
CT = {
    "path": "images/a.png",
    "patient_id": "L-1",
    "nodule_id": "L-1/nodule-2",
    "slice": "5",
    "pixel_mm": "0.703125",
    "slice_mm": "2.5",
    "label": "0",
}
NIH = {
    "path": "images/a.jpg",
    "patient_id": "nih1",
    "finding": "pneumonia",
    "source_px": "1024",
    "label": "1",
}
JSRT = {"path": "images/a.png", "patient_id": "J1", "label_nodule": "1", "age": "53", "gender": "Male"}
MIAS = {
    "path": "images/a.jpg",
    "patient_id": "m1",
    "index_parity": "R",
    "abnormality": "CIRC",
    "label": "0",
}
ROWS = {
    Kind.MRI_LGG: MRI,
    Kind.CT_LIDC: CT,
    Kind.CXR_NIH: NIH,
    Kind.CXR_JSRT: JSRT,
    Kind.MG_MIAS: MIAS,
}

# Spec: DICOM PS3.3, the modules of A.2, A.3, A.4 and A.27: what must be there, what may be empty.
COMMON_TYPE_1 = (
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality SamplesPerPixel Rows Columns "
    "PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation PixelData"
)
COMMON_TYPE_2 = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
    "ReferringPhysicianName SeriesNumber Manufacturer InstanceNumber"
)
SLICE_TYPE_1 = "ImageType ImageOrientationPatient ImagePositionPatient PixelSpacing FrameOfReferenceUID"
SLICE_TYPE_2 = "PatientPosition PositionReferenceIndicator SliceThickness AcquisitionNumber"
TYPE_1 = {
    Kind.MRI_LGG: f"{SLICE_TYPE_1} ScanningSequence SequenceVariant",
    Kind.CT_LIDC: f"{SLICE_TYPE_1} RescaleIntercept RescaleSlope RescaleType",
    Kind.CXR_NIH: "",
    Kind.CXR_JSRT: "",
    Kind.MG_MIAS: "ImageType PresentationIntentType ImageLaterality AnatomicRegionSequence ViewCodeSequence "
    "PositionerType PixelIntensityRelationship PixelIntensityRelationshipSign RescaleIntercept RescaleSlope "
    "RescaleType PresentationLUTShape LossyImageCompression BurnedInAnnotation ImagerPixelSpacing OrganExposed "
    "WindowCenter WindowWidth PatientOrientation",
}
TYPE_2 = {
    Kind.MRI_LGG: f"{SLICE_TYPE_2} ScanOptions MRAcquisitionType EchoTime EchoTrainLength RepetitionTime "
    "InversionTime",
    Kind.CT_LIDC: f"{SLICE_TYPE_2} KVP",
    Kind.CXR_NIH: "BodyPartExamined ViewPosition PatientOrientation",
    Kind.CXR_JSRT: "BodyPartExamined ViewPosition PatientOrientation",
    Kind.MG_MIAS: "DetectorType AcquisitionContextSequence",
}


def picture(seed: int = 1, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)


def write_dataset(folder: Path, *rows: dict[str, str]) -> Path:
    for number, row in enumerate(rows):
        path = folder / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(number))
    write_labels(folder, *rows)
    return folder


def write_labels(folder: Path, *rows: dict[str, str]) -> None:
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def dicomize(folder: Path, out: Path, **options) -> list[Path]:
    return [instance.path for instance in plan_dicomization(folder, out, **options).write()]


def wrapped(tmp_path: Path, row: dict[str, str], **options) -> pydicom.Dataset:
    (path,) = dicomize(write_dataset(tmp_path / "in", row), tmp_path / "out", **options)
    return pydicom.dcmread(path)


def labels(out: Path) -> list[dict[str, str]]:
    with (out / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(folder: Path, out: Path, **options) -> str:
    with pytest.raises(InvalidRequest) as caught:
        dicomize(folder, out, **options)
    return caught.value.message


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as made:
        yield made


@pytest.mark.parametrize(
    ("row", "sop_class", "modality", "body_part"),
    [
        (MRI, uid.MRImageStorage, "MR", "BRAIN"),
        (CT, uid.CTImageStorage, "CT", "CHEST"),
        (NIH, uid.ComputedRadiographyImageStorage, "CR", "CHEST"),
        (JSRT, uid.ComputedRadiographyImageStorage, "CR", "CHEST"),
        (MIAS, uid.DigitalMammographyXRayImageStorageForPresentation, "MG", "BREAST"),
    ],
)
def test_the_columns_tell_the_object(tmp_path, row, sop_class, modality, body_part):
    made = wrapped(tmp_path, row)
    assert (made.SOPClassUID, made.Modality, made.BodyPartExamined) == (sop_class, modality, body_part)


@pytest.mark.parametrize("kind", Kind)
def test_what_must_have_a_value_has_one(tmp_path, kind):
    made = wrapped(tmp_path, ROWS[kind])
    needed = f"{COMMON_TYPE_1} {TYPE_1[kind]}".split()
    assert [keyword for keyword in needed if keyword not in made or made[keyword].is_empty] == []


@pytest.mark.parametrize("kind", Kind)
def test_what_must_be_there_is_there(tmp_path, kind):
    made = wrapped(tmp_path, ROWS[kind])
    needed = f"{COMMON_TYPE_2} {TYPE_2[kind]}".split()
    assert [keyword for keyword in needed if keyword not in made] == []


@pytest.mark.parametrize("kind", Kind)
def test_the_file_meta_information_is_whole(tmp_path, kind):
    made = wrapped(tmp_path, ROWS[kind])
    meta = made.file_meta
    validate_file_meta(meta)
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID) == (
        made.SOPClassUID,
        made.SOPInstanceUID,
        uid.ExplicitVRLittleEndian,
    )


@pytest.mark.parametrize("kind", Kind)
def test_no_date_is_invented(tmp_path, kind):
    made = wrapped(tmp_path, ROWS[kind])
    assert [element.keyword for element in made if element.VR in ("DA", "TM", "DT") and element.value] == []


@pytest.mark.parametrize("kind", Kind)
def test_an_image_says_that_it_is_derived_and_how(tmp_path, kind):
    made = wrapped(tmp_path, ROWS[kind])
    assert (made.ImageType[0], bool(made.DerivationDescription)) == ("DERIVED", True)


@pytest.mark.parametrize("kind", Kind)
def test_our_decoder_gives_back_the_image(tmp_path, kind, decoder):
    row = ROWS[kind]
    wrapped(tmp_path, row)
    (entry,) = labels(tmp_path / "out")
    decoded = decoder.decode((tmp_path / "out" / entry["path"]).read_bytes())
    source = cv2.imread(str(tmp_path / "in" / row["path"]), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded.pixels[0], source)


def test_an_odd_number_of_bytes_is_padded(tmp_path):
    folder = write_dataset(tmp_path / "in", JSRT)
    cv2.imwrite(str(folder / JSRT["path"]), picture(side=33))
    (path,) = dicomize(folder, tmp_path / "out")
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, picture(side=33))


def test_a_patient_is_named_by_the_pseudonym(tmp_path):
    made = wrapped(tmp_path, MRI)
    assert (made.PatientID, str(made.PatientName)) == ("P_1", "DATASET^P_1")


def test_a_ct_crop_has_the_spacing_of_its_row(tmp_path):
    made = wrapped(tmp_path, CT)
    assert (made.PixelSpacing, made.SliceThickness) == ([0.703125, 0.703125], 2.5)


def test_a_ct_crop_lies_where_its_slice_says(tmp_path):
    made = wrapped(tmp_path, CT)
    assert (made.ImagePositionPatient[2], made.InstanceNumber) == (5 * 2.5, 5)


def test_a_ct_crop_claims_no_hounsfield_units(tmp_path):
    made = wrapped(tmp_path, CT)
    assert (made.RescaleSlope, made.RescaleIntercept, made.RescaleType) == (1, 0, "US")


def test_a_ct_crop_has_the_bits_that_a_ct_image_needs(tmp_path):
    made = wrapped(tmp_path, CT)
    assert (made.BitsAllocated, made.BitsStored) == (16, 12)


def test_the_slices_of_a_nodule_are_one_series(tmp_path):
    other = CT | {"path": "images/b.png", "slice": "6"}
    paths = dicomize(write_dataset(tmp_path / "in", CT, other), tmp_path / "out")
    assert len({pydicom.dcmread(path).SeriesInstanceUID for path in paths}) == 1


def test_the_nodules_of_a_patient_are_series_of_one_study(tmp_path):
    other = CT | {"path": "images/b.png", "nodule_id": "L-1/nodule-3"}
    paths = dicomize(write_dataset(tmp_path / "in", CT, other), tmp_path / "out")
    headers = [pydicom.dcmread(path) for path in paths]
    assert (
        len({header.StudyInstanceUID for header in headers}),
        len({header.SeriesInstanceUID for header in headers}),
        len({header.FrameOfReferenceUID for header in headers}),
    ) == (1, 2, 2)


def test_each_film_of_a_patient_is_a_study(tmp_path):
    other = NIH | {"path": "images/b.jpg"}
    paths = dicomize(write_dataset(tmp_path / "in", NIH, other), tmp_path / "out")
    assert len({pydicom.dcmread(path).StudyInstanceUID for path in paths}) == 2


@pytest.mark.parametrize("row", [NIH, JSRT])
def test_a_chest_film_says_that_it_is_frontal(tmp_path, row):
    assert "chest frontal" in wrapped(tmp_path, row).SeriesDescription


def test_a_film_of_unknown_spacing_and_view_tells_neither(tmp_path):
    made = wrapped(tmp_path, NIH)
    assert ("ImagerPixelSpacing" in made, made.ViewPosition) == (False, "")


def test_a_smaller_film_has_larger_pixels(tmp_path):
    made = wrapped(tmp_path, JSRT)
    assert [float(value) for value in made.ImagerPixelSpacing] == [0.175 * 2048 / 32] * 2


def test_sex_and_age_are_those_of_the_labels(tmp_path):
    made = wrapped(tmp_path, JSRT)
    assert (made.PatientSex, made.PatientAge) == ("M", "053Y")


def test_an_unknown_age_is_left_out(tmp_path):
    assert "PatientAge" not in wrapped(tmp_path, JSRT | {"age": "?"})


@pytest.mark.parametrize(("side", "hung"), [("L", ["A", "FR"]), ("R", ["P", "FL"])])
def test_a_mammogram_has_the_side_of_its_row(tmp_path, side, hung):
    made = wrapped(tmp_path, MIAS | {"index_parity": side})
    assert (made.ImageLaterality, list(made.PatientOrientation)) == (side, hung)


@pytest.mark.parametrize("row", [NIH, MIAS, MRI | {"path": "images/a.jpg"}])
def test_a_jpeg_s_loss_is_told(tmp_path, row):
    made = wrapped(tmp_path, row)
    ratio = 32 * 32 / (tmp_path / "in" / row["path"]).stat().st_size
    assert (made.LossyImageCompression, made.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert float(made.LossyImageCompressionRatio) == pytest.approx(ratio, abs=0.01)


def test_no_loss_is_claimed_where_none_is_known(tmp_path):
    assert "LossyImageCompression" not in wrapped(tmp_path, CT)


def test_the_same_images_give_the_same_bytes(tmp_path):
    folder = write_dataset(tmp_path / "in", MRI)
    first, second = (dicomize(folder, tmp_path / name)[0].read_bytes() for name in ("a", "b"))
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


def test_another_image_gets_another_uid(tmp_path):
    first = wrapped(tmp_path, MRI)
    cv2.imwrite(str(tmp_path / "in" / MRI["path"]), picture(9))
    (path,) = dicomize(tmp_path / "in", tmp_path / "out")
    assert pydicom.dcmread(path).SOPInstanceUID != first.SOPInstanceUID


def test_the_labels_name_the_file_and_keep_every_column(tmp_path):
    made = wrapped(tmp_path, MRI)
    assert labels(tmp_path / "out") == [
        MRI
        | {
            "path": "P_1/head/flair/004.dcm",
            "source_path": "images/a.png",
            "sop_instance_uid": made.SOPInstanceUID,
            "series_instance_uid": made.SeriesInstanceUID,
            "study_instance_uid": made.StudyInstanceUID,
        }
    ]


def test_the_labels_still_find_the_mask(tmp_path):
    row = MRI | {"mask": "images/a.png"}
    wrapped(tmp_path, row)
    (entry,) = labels(tmp_path / "out")
    assert (tmp_path / "out" / entry["mask"]).samefile(tmp_path / "in" / row["mask"])


def test_one_split_is_written(tmp_path):
    rows = (MRI | {"split": "train"}, MRI | {"split": "val", "slice": "5", "path": "images/b.png"})
    dicomize(write_dataset(tmp_path / "in", *rows), tmp_path / "out", split="val")
    assert [row["source_path"] for row in labels(tmp_path / "out")] == ["images/b.png"]


def test_a_limit_takes_the_first_rows(tmp_path):
    rows = (MRI, MRI | {"slice": "5", "path": "images/b.png"})
    assert len(dicomize(write_dataset(tmp_path / "in", *rows), tmp_path / "out", limit=1)) == 1


def test_a_split_without_rows_is_refused(tmp_path):
    folder = write_dataset(tmp_path / "in", MRI | {"split": "train"})
    assert "no rows of that split" in refusal(folder, tmp_path / "out", split="val")


def test_columns_of_no_kind_are_refused(tmp_path):
    folder = write_dataset(tmp_path / "in", {"path": "a.png", "patient_id": "P", "label": "1"})
    assert "--kind" in refusal(folder, tmp_path / "out")


def test_columns_of_two_kinds_are_refused(tmp_path):
    assert "more than one kind" in refusal(write_dataset(tmp_path / "in", NIH | MIAS), tmp_path / "out")


def test_a_named_kind_needs_its_columns_only(tmp_path):
    row = {"path": "a.png", "patient_id": "P", "label": "1"}
    assert wrapped(tmp_path, row, kind=Kind.CXR_NIH).Modality == "CR"


def test_a_named_kind_without_its_columns_is_refused(tmp_path):
    folder = write_dataset(tmp_path / "in", NIH)
    assert "needs the columns slice" in refusal(folder, tmp_path / "out", kind=Kind.MRI_LGG)


@pytest.mark.parametrize(
    ("row", "changed", "rule"),
    [
        (MRI, {"slice": "-1"}, "slice must be a whole number"),
        (MRI, {"slice": "x"}, "slice must be a whole number"),
        (MRI, {"patient_id": ""}, "patient_id must be"),
        (MRI, {"patient_id": "../up"}, "patient_id must be"),
        (MRI, {"patient_id": "a^b"}, "patient_id must be"),
        (MRI, {"patient_id": "a" * 57}, "patient_id must be"),
        (MRI, {"path": ""}, "path must name a file"),
        (MRI, {"path": "/etc/hostname"}, "path must name a file"),
        (MRI, {"path": "../in/images/b.png"}, "path must name a file"),
        (MRI, {"path": "images/none.png"}, "path names no file"),
        (MRI | {"mask": ""}, {"mask": "none.png"}, "mask names no file"),
        (MRI, {}, "same image of the same series as row 2"),
        (CT, {"pixel_mm": "0"}, "pixel_mm must be more than 0"),
        (CT, {"pixel_mm": "nan"}, "pixel_mm must be more than 0"),
        (CT, {"slice_mm": ""}, "slice_mm must be a number"),
        (CT, {"nodule_id": "L-2/nodule-1"}, "nodule_id must be"),
        (CT, {"nodule_id": "L-1/.."}, "nodule_id must be"),
        (JSRT, {"gender": "x"}, "gender must be"),
        (JSRT, {"age": "old"}, "age must be"),
        (MIAS, {"index_parity": "B"}, "index_parity must be"),
    ],
)
def test_a_bad_row_is_told_by_number_and_rule(tmp_path, row, changed, rule):
    other = {"slice": "9", "index_parity": "L", "patient_id": "Q_2", "nodule_id": "Q_2/nodule-0"}
    good = row | {"path": "images/b.png"} | {name: value for name, value in other.items() if name in row}
    folder = write_dataset(tmp_path / "in", good, row)
    write_labels(folder, good, (good if not changed else row) | changed)
    message = refusal(folder, tmp_path / "out")
    assert "row 3: " in message
    assert rule in message


def test_a_row_of_too_few_values_is_told(tmp_path):
    folder = write_dataset(tmp_path / "in", MRI)
    with (folder / "labels.csv").open("a") as file:
        file.write("images/a.png,P_1\n")
    assert "row 3: must have one value a column" in refusal(folder, tmp_path / "out")


def test_a_bad_row_leaves_nothing_behind(tmp_path):
    folder = write_dataset(tmp_path / "in", MRI | {"slice": "x"})
    refusal(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_value_is_told(tmp_path):
    folder = write_dataset(tmp_path / "in", MRI | {"patient_id": "Jane^Doe"})
    assert "Jane" not in refusal(folder, tmp_path / "out")


def _spoil(folder: Path, data: bytes) -> None:
    (folder / "images" / "b.png").write_bytes(data)


@pytest.fixture
def two_slices(tmp_path):
    return write_dataset(tmp_path / "in", MRI, MRI | {"slice": "5", "path": "images/b.png"})


def jpeg() -> bytes:
    return cv2.imencode(".jpg", picture())[1].tobytes()


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "is no image"),
        (b"text", "is no image"),
        (jpeg()[:-200], "is cut off"),
        (cv2.imencode(".png", picture())[1].tobytes()[:-300], "is no image"),
        (cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes(), "must be 8-bit grey-scale"),
        (cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes(), "must be 8-bit grey-scale"),
    ],
)
def test_a_bad_image_is_told_by_its_row(tmp_path, two_slices, data, rule):
    _spoil(two_slices, data)
    message = refusal(two_slices, tmp_path / "out")
    assert "row 3" in message
    assert rule in message


def test_what_is_half_written_is_said(tmp_path, two_slices):
    _spoil(two_slices, b"text")
    message = refusal(two_slices, tmp_path / "out")
    assert "1 of 2 DICOM files are in the output folder, labels.csv is not" in message


def test_a_run_that_failed_leaves_no_labels_and_is_not_complete(tmp_path, two_slices):
    _spoil(two_slices, b"text")
    refusal(two_slices, tmp_path / "out")
    complete = json.loads((tmp_path / "out" / MARKER).read_bytes())["complete"]
    assert ((tmp_path / "out" / "labels.csv").exists(), complete) == (False, False)


def test_a_run_that_failed_can_be_repeated(tmp_path, two_slices):
    _spoil(two_slices, b"text")
    refusal(two_slices, tmp_path / "out")
    cv2.imwrite(str(two_slices / "images" / "b.png"), picture(1))
    dicomize(two_slices, tmp_path / "out")
    dicomize(two_slices, tmp_path / "fresh")
    again, fresh = contents(tmp_path / "out"), contents(tmp_path / "fresh")
    assert again == fresh


def test_an_earlier_run_s_files_that_are_not_written_anew_go(tmp_path, two_slices):
    dicomize(two_slices, tmp_path / "out")
    dicomize(two_slices, tmp_path / "out", limit=1)
    assert sorted(contents(tmp_path / "out")) == ["P_1/head/flair/004.dcm", MARKER, "labels.csv"]


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, two_slices):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "not empty" in refusal(two_slices, tmp_path / "out")
    assert contents(tmp_path / "out") == {"notes.txt": b"mine"}


def test_a_file_put_among_ours_is_not_overwritten(tmp_path, two_slices):
    dicomize(two_slices, tmp_path / "out", limit=1)
    mine = tmp_path / "out" / "P_1" / "head" / "flair" / "005.dcm"
    mine.write_text("mine")
    refusal(two_slices, tmp_path / "out")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["../other.dcm", "/tmp/other.dcm", "labels.txt"])
def test_a_marker_that_names_other_files_is_refused(tmp_path, two_slices, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MARKER).write_text(json.dumps({"complete": True, "files": [name]}))
    assert MARKER in refusal(two_slices, tmp_path / "out")


def test_the_data_set_is_not_its_own_output(tmp_path, two_slices):
    assert "data set folder" in refusal(two_slices, two_slices)


def test_the_command_says_what_it_wrote(tmp_path, two_slices):
    run = CliRunner().invoke(app, ["dicomize", str(two_slices), str(tmp_path / "out"), "--limit", "1"])
    assert (run.exit_code, "1 DICOM files and labels.csv" in run.output) == (0, True)


@pytest.mark.dataset
@pytest.mark.parametrize("kind", Kind)
def test_the_real_images_come_back_as_they_were(tmp_path, kind, request, decoder):
    folder = request.getfixturevalue(kind.value)
    dicomize(folder, tmp_path, limit=12)
    for row in labels(tmp_path):
        decoded = decoder.decode((tmp_path / row["path"]).read_bytes())
        source = cv2.imread(str(folder / row["source_path"]), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(decoded.pixels[0], source)


@pytest.mark.dataset
@pytest.mark.parametrize("kind", Kind)
def test_every_real_row_keeps_the_rules(tmp_path, kind, request):
    folder = request.getfixturevalue(kind.value)
    with (folder / "labels.csv").open(newline="") as file:
        count = sum(1 for _ in csv.DictReader(file))
    assert len(plan_dicomization(folder, tmp_path).images) == count
