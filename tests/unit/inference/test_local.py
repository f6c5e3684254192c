import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread

from rayhook.inference.analysis import Analyser
from rayhook.inference.decode import Decoder
from rayhook.inference.local import OBJECT_KINDS, analyze_paths, write_objects
from rayhook.inference.study import Mark
from tests.unit.inference.images import CT, SpotEngine, dicom_slice, package
from tests.unit.inference.samples import ANALYZE_FIELDS, MODEL, SERIES_UID, STUDY_UID, instance


@pytest.fixture(scope="module")
def analyser(tmp_path_factory):
    model = package(tmp_path_factory.mktemp("model"))
    with Decoder() as decoder:
        yield Analyser((model,), {model.manifest.id: SpotEngine()}, decoder)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "lesion.dcm").write_bytes(dicom_slice(2, lesion=True))
    (tmp_path / "a.dcm").write_bytes(dicom_slice(1))
    (tmp_path / "c.txt").write_bytes(b"a letter")
    (tmp_path / "d.dcm").write_bytes(dicom_slice(3, **CT))
    (tmp_path / "e.dcm").write_bytes(dicom_slice(4, noise=True))
    return tmp_path


def lines(folder, analyser):
    return list(analyze_paths([folder], analyser))


def test_folders_are_walked_in_order(folder, analyser):
    paths = ["a.dcm", "b/lesion.dcm", "c.txt", "d.dcm", "e.dcm"]
    assert [line["path"] for line in lines(folder, analyser)] == [str(folder / path) for path in paths]


def test_each_file_has_its_status(folder, analyser):
    statuses = [line["status"] for line in lines(folder, analyser)]
    assert statuses == ["analysed", "analysed", "refused", "out_of_scope", "abstained"]


def test_every_line_has_the_same_fields(folder, analyser):
    assert all(line.keys() == ANALYZE_FIELDS for line in lines(folder, analyser))


def test_every_line_is_json(folder, analyser):
    for line in lines(folder, analyser):
        assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_an_analysed_line_is_complete(folder, analyser):
    line = lines(folder, analyser)[1]
    assert (line["sop_instance_uid"], line["study_instance_uid"]) == (f"{SERIES_UID}.2", STUDY_UID)
    assert line["error"] is None
    assert line["elapsed_ms"] > 0


def test_a_finding_has_the_stated_fields(folder, analyser):
    (finding,) = lines(folder, analyser)[1]["findings"]
    assert finding.keys() == {"code", "system", "display", "probability", "threshold", "positive"}


def test_the_model_is_named_with_its_weights(folder, analyser):
    model = lines(folder, analyser)[0]["model"]
    identity = analyser.identities[0]
    assert model == {
        "id": identity.id,
        "version": identity.version,
        "status": "experimental",
        "weights_sha256": identity.weights_sha256,
        "manifest_sha256": identity.manifest_sha256,
        "finder": None,
    }


def test_every_line_has_the_digest_of_its_file(folder, analyser):
    files = [folder / name for name in ("a.dcm", "b/lesion.dcm", "c.txt", "d.dcm", "e.dcm")]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert [line["sha256"] for line in lines(folder, analyser)] == digests


def test_a_model_of_whole_images_marks_nothing(folder, analyser):
    assert lines(folder, analyser)[1]["marks"] == []


class Rater:
    """Rates two points of every image, and declines on the second."""

    def instance(self, _data):
        model = replace(MODEL, experimental=False, finder=replace(MODEL, id="finder"))
        marks = (Mark(12, 34, 0.9, 0.8, positive=True), Mark(56, 7, 0.4, None, positive=False))
        return instance(1, model=model, marks=marks)


def test_the_points_rated_are_told(folder):
    (line,) = analyze_paths([folder / "a.dcm"], Rater())
    assert line["marks"] == [
        {"row": 12, "column": 34, "score": 0.9, "probability": 0.8, "positive": True},
        {"row": 56, "column": 7, "score": 0.4, "probability": None, "positive": False},
    ]


@pytest.mark.parametrize(
    ("of", "status"), [(lambda m: m, "validated"), (lambda m: m["finder"], "experimental")]
)
def test_each_model_has_its_status(folder, of, status):
    (line,) = analyze_paths([folder / "a.dcm"], Rater())
    assert of(line["model"])["status"] == status


def test_a_refused_line_has_code_and_message(folder, analyser):
    error = lines(folder, analyser)[2]["error"]
    assert error.keys() == {"code", "message"}
    assert error["code"]


@pytest.mark.parametrize("index", [2, 3, 4])
def test_a_line_without_an_answer_has_no_findings(folder, analyser, index):
    assert lines(folder, analyser)[index]["findings"] == []


def test_a_file_that_has_gone_is_refused(tmp_path, analyser):
    (line,) = analyze_paths([tmp_path / "gone.dcm"], analyser)
    assert (line["status"], line["error"]["code"]) == ("refused", "unreadable_file")


def test_a_single_file_may_be_named(folder, analyser):
    (line,) = analyze_paths([folder / "a.dcm"], analyser)
    assert line["status"] == "analysed"


def test_each_study_is_written_as_dicom_objects(tmp_path, analyser):
    study = tmp_path / "in"
    study.mkdir()
    for number in range(1, 9):
        file = dicom_slice(number, lesion=3 <= number <= 5, FrameOfReferenceUID=f"{STUDY_UID}.7")
        (study / f"{number}.dcm").write_bytes(file)
    (study / "letter.txt").write_bytes(b"a letter")
    out = tmp_path / "out"
    written = list(write_objects([study], analyser, out, organization="A hospital"))
    assert [path.relative_to(out) for path in written] == [
        Path(STUDY_UID, f"{kind}.dcm") for kind in OBJECT_KINDS
    ]
    assert all(dcmread(path).InstitutionName == "A hospital" for path in written)


def test_a_study_that_no_model_saw_has_no_objects(tmp_path, analyser):
    (tmp_path / "ct.dcm").write_bytes(dicom_slice(3, **CT))
    assert list(write_objects([tmp_path], analyser, tmp_path / "out", organization="A hospital")) == []
