import csv
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from rayhook.deploy.demo.catalogue import Catalogue, build_catalogue
from rayhook.fhir.errors import InvalidRequest
from rayhook.inference.decode import Decoder
from tests.doubles.dicom_files import dataset, encode, picture

FHIR_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pacs")


@pytest.fixture(scope="module")
def catalogue(work_dir: Path) -> Catalogue:
    return build_catalogue(work_dir, None)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as made:
        yield made


def test_phantoms_say_that_they_are(catalogue: Catalogue) -> None:
    phantoms = [study for study in catalogue.studies if study.is_phantom]
    assert [study.modality for study in phantoms] == ["MR", "MR", "CT", "MR", "MR"]
    for study in phantoms:
        name = pydicom.dcmread(study.instances[0].path, stop_before_pixels=True).PatientName
        assert str(name).startswith("PHANTOM^")


def test_a_package_s_test_files_are_no_phantoms(catalogue: Catalogue) -> None:
    others = [study for study in catalogue.studies if not study.is_phantom]
    assert len(others) == 5
    assert all("test file" in study.patient_display for study in others)


def test_ids_are_fhir_ids_and_of_one_patient_each(catalogue: Catalogue) -> None:
    ids = [study.patient_id for study in catalogue.studies]
    assert all(FHIR_ID.fullmatch(patient_id) for patient_id in ids)
    assert len({study.study_instance_uid for study in catalogue.studies}) == len(ids)


def test_every_file_is_what_the_catalogue_says(catalogue: Catalogue, decoder: Decoder) -> None:
    for study in catalogue.studies:
        for instance in study.instances:
            attributes = decoder.decode(instance.path.read_bytes()).attributes
            assert attributes.sop_instance_uid == instance.sop_instance_uid
            assert attributes.sop_class_uid == instance.sop_class_uid
            assert attributes.series_instance_uid == instance.series_instance_uid
            assert attributes.study_instance_uid == study.study_instance_uid
            assert (attributes.patient_id or "") == study.dicom_patient_id


def test_the_same_uids_come_on_every_run(catalogue: Catalogue, tmp_path: Path) -> None:
    again = build_catalogue(tmp_path, None)
    assert [study.study_instance_uid for study in again.studies] == [
        study.study_instance_uid for study in catalogue.studies
    ]


def test_what_is_there_is_not_written_again(catalogue: Catalogue, work_dir: Path) -> None:
    path = catalogue.studies[0].instances[0].path
    written = path.stat().st_mtime_ns
    build_catalogue(work_dir, None)
    assert path.stat().st_mtime_ns == written


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Eight patients of two slices, the last two held out."""
    folder = tmp_path / "labelled"
    (folder / "images").mkdir(parents=True)
    rows = []
    for patient in range(8):
        for number in range(2):
            path = f"images/P_{patient}_{number}.png"
            cv2.imwrite(str(folder / path), (picture(16, 16, seed=patient) >> 5).astype(np.uint8) + number)
            split = "val" if patient >= 6 else "train"
            row = {"path": path, "patient_id": f"P_{patient}", "slice": str(number), "split": split}
            rows.append(row | {"brain_frac": "0.2"})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(reversed(rows))
    return folder


def test_labelled_images_become_studies_of_held_out_patients_first(labelled: Path, work_dir: Path) -> None:
    studies = build_catalogue(work_dir / "a", labelled).studies[-6:]
    assert [study.dicom_patient_id for study in studies] == ["P_6", "P_7", "P_0", "P_1", "P_2", "P_3"]


def test_labelled_images_keep_their_grey_values(labelled: Path, work_dir: Path, decoder: Decoder) -> None:
    study = build_catalogue(work_dir / "b", labelled).studies[-6]
    decoded = decoder.decode(study.instances[1].path.read_bytes())
    np.testing.assert_array_equal(decoded.pixels[0], (picture(16, 16, seed=6) >> 5) + 1)


@pytest.mark.dataset
@pytest.mark.parametrize(
    ("name", "modality"), [("ct_lidc", "CT"), ("cxr_nih", "CR"), ("cxr_jsrt", "CR"), ("mg_mias", "MG")]
)
def test_every_kind_of_labelled_images_becomes_studies(name, modality, request, work_dir, decoder):
    folder = request.getfixturevalue(name)
    studies = [
        s for s in build_catalogue(work_dir / name, folder).studies if "(data set)" in s.patient_display
    ]
    assert {study.modality for study in studies} == {modality}
    assert len({study.patient_id for study in studies}) == 6
    for study in studies:
        attributes = decoder.decode(study.instances[0].path.read_bytes()).attributes
        assert attributes.study_instance_uid == study.study_instance_uid


def test_a_folder_of_dicom_files_is_served_from_where_it_lies(tmp_path: Path, work_dir: Path) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "a.dcm"
    path.write_bytes(encode(dataset(picture())))
    (tmp_path / "notes.txt").write_text("no image")
    study = build_catalogue(work_dir, tmp_path).studies[-1]
    assert (study.dicom_patient_id, study.instances[0].path) == ("P1", path)


def test_a_folder_of_neither_is_refused(tmp_path: Path, work_dir: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InvalidRequest, match="neither"):
        build_catalogue(work_dir, tmp_path)


def test_labels_without_the_columns_are_refused(tmp_path: Path, work_dir: Path) -> None:
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InvalidRequest, match="columns"):
        build_catalogue(work_dir, tmp_path)
