from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO

import pytest
from highdicom.sr import srread
from pydicom import dcmread

from rayhook.fhir.errors import Unprocessable
from rayhook.inference.dicom_results import build_objects, build_verified
from rayhook.inference.dicom_table import ObjectNames
from rayhook.inference.structured_report import MAX_MARKS, Review
from rayhook.inference.study import AnalysisStatus
from tests.unit.inference.dicom_objects import (
    analysed,
    complaints,
    datasets_of,
    errors,
    find,
    objects_of,
    radiograph,
    rated_points,
    with_header,
)
from tests.unit.inference.samples import STUDY_UID, unanswered

DEVICE_UID = "(0x0018,0x1002) UI Device UID"
EXTENDED = "Standard Extended SOP Class"
BEFORE = ObjectNames("1.2.840.10008.5.1.4.1.1.88.34", "2.25.11", "2.25.12", STUDY_UID, "https://pacs.example")
REVIEW = Review(
    name="Dr. Ada^Bell=\\x",
    organization="Demo hospital",
    at=datetime(2026, 3, 12, 11, 0, tzinfo=UTC),
    version=2,
    answers={"126952004": False},
    sentences=("Reviewed and signed by Dr. Ada Bell.",),
)


@pytest.fixture(scope="module")
def report():
    return datasets_of(*analysed())["sr"]


def verified(**changes):
    result, manifest = analysed()
    (made,) = build_verified(
        result.source_header,
        result,
        manifest,
        organization="Demo hospital",
        review=replace(REVIEW, **changes),
        predecessor=BEFORE,
    )
    return made


@pytest.mark.parametrize("study", [analysed, radiograph, rated_points, lambda: analysed(noise=True)])
def test_dciodvfy_finds_no_error(study, tmp_path):
    assert errors(objects_of(*study())["sr"].data, tmp_path) == []


def test_dciodvfy_warns_of_the_device_uid_alone(tmp_path):
    told = complaints(objects_of(*analysed())["sr"].data, tmp_path)
    assert [line for line in told if DEVICE_UID not in line and EXTENDED not in line] == []


def test_highdicom_reads_it_back(report):
    buffer = BytesIO()
    report.save_as(buffer)
    buffer.seek(0)
    (group,) = srread(buffer).content.get_image_measurement_groups()
    assert group.finding_type.meaning == "Neoplasm of brain"


def test_it_is_a_measurement_report_of_its_template(report):
    assert report.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"


def test_it_is_unverified_and_preliminary(report):
    flags = (report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlag)
    assert flags == ("UNVERIFIED", "PRELIMINARY", "COMPLETE")


def test_it_is_in_the_study_of_the_images_and_of_their_patient(report):
    told = (report.StudyInstanceUID, report.PatientID, str(report.PatientName), report.AccessionNumber)
    assert told == (STUDY_UID, "MRN-1", "PHANTOM^TEST", "A1")


def test_the_procedure_is_the_imaging(report):
    (procedure,) = find(report, "Procedure reported")
    assert procedure.ConceptCodeSequence[0].CodeMeaning == "MR Brain"


def test_the_procedure_is_that_of_the_header_where_it_names_one():
    result, manifest = analysed()
    code = dcmread(BytesIO(b""), force=True)
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "24587-8", "LN", "MR Brain WO and W"
    named = with_header(result, ProcedureCodeSequence=[code])
    (procedure,) = find(datasets_of(named, manifest)["sr"], "Procedure reported")
    assert procedure.ConceptCodeSequence[0].CodeValue == "24587-8"


def test_a_finding_has_probability_threshold_and_answer(report):
    result, _ = analysed()
    (probability,) = find(report, "Probability")
    (threshold,) = find(report, "Threshold Value")
    (answer,) = find(report, "Has interpretation")
    assert probability.MeasuredValueSequence[0].NumericValue == pytest.approx(
        result.findings[0].probability, abs=1e-6
    )
    assert threshold.MeasuredValueSequence[0].NumericValue == pytest.approx(0.4)
    assert answer.ConceptCodeSequence[0].CodeMeaning == "Positive"


def test_values_have_no_unit(report):
    (probability,) = find(report, "Probability")
    assert probability.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "1"


def test_the_algorithm_is_named_with_version_and_parameters(report):
    _, manifest = analysed()
    assert [item.TextValue for item in find(report, "Algorithm Version")] == [manifest.version]
    parameters = [item.TextValue for item in find(report, "Algorithm Parameters")]
    assert any("threshold=0.400000" in one for one in parameters)
    assert any("calibration=Platt" in one for one in parameters)
    assert any(manifest.weights_sha256 in one for one in parameters)


def test_the_whole_study_has_an_answer_and_the_caution(report):
    (container,) = find(report, "Qualitative Evaluations")
    answers = {
        i.ConceptNameCodeSequence[0].CodeMeaning for i in container.ContentSequence if i.ValueType == "CODE"
    }
    text = " ".join(item.TextValue for item in find(container, "Comment"))
    assert answers == {"Neoplasm of brain"}
    assert "Investigational software" in text


def test_the_evidence_is_every_image_that_the_model_saw(report):
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    named = {
        i.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for i in s.ReferencedSOPSequence
    }
    assert named == {i.sop_instance_uid for i in analysed()[0].instances}


def test_the_equipment_that_contributed_is_the_model(report):
    equipment, _ = report.ContributingEquipmentSequence  # the other is the library that wrote it
    _, manifest = analysed()
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Processing Algorithm"
    assert (equipment.ManufacturerModelName, equipment.SoftwareVersions[0]) == (manifest.id, manifest.version)


def test_other_weights_are_another_device():
    result, manifest = analysed()
    other = replace(result, model=replace(result.model, weights_sha256="00" * 32))
    uids = {
        datasets_of(one, manifest)["sr"].ContributingEquipmentSequence[0].DeviceUID for one in (result, other)
    }
    assert len(uids) == 2


def test_every_group_is_tracked_and_observed_under_one_uid(report):
    (group,) = find(report, "Measurement Group")
    assert group.ObservationUID == find(group, "Tracking Unique Identifier")[0].UID


def test_each_point_has_a_group_and_its_place():
    report = datasets_of(*rated_points())["sr"]
    places = [tuple(item.GraphicData) for item in find(report, "Image Region")]
    assert places == [(30.5, 20.5), (30.5, 22.5), (30.5, 21.5)]  # (column, row), the surest first


def test_a_point_without_an_answer_has_no_probability():
    report = datasets_of(*rated_points(count=2))["sr"]
    unanswered_point = find(report, "Measurement Group")[-1]
    assert find(unanswered_point, "Probability") == []
    answer = find(unanswered_point, "Has interpretation")[0].ConceptCodeSequence[0].CodeMeaning
    assert answer == "Undetermined"


def test_only_the_surest_points_are_written():
    report = datasets_of(*rated_points(count=MAX_MARKS + 20))["sr"]
    assert len(find(report, "Image Region")) == MAX_MARKS


def test_no_answer_is_undetermined_and_says_why():
    report = datasets_of(*analysed(noise=True))["sr"]
    answers = {item.ConceptCodeSequence[0].CodeMeaning for item in find(report, "Has interpretation")}
    text = " ".join(item.TextValue for item in find(report, "Comment"))
    assert answers == {"Undetermined"}
    assert "No answer" in text
    assert find(report, "Probability") == []


def test_what_no_model_saw_has_no_objects():
    result, manifest = analysed()
    header = result.source_header
    none = unanswered(AnalysisStatus.OUT_OF_SCOPE)
    assert build_objects(header, none, manifest, organization="x", kinds=("sr",)) == []


def test_a_header_that_was_not_kept_is_told():
    result, manifest = analysed()
    with pytest.raises(Unprocessable) as told:
        build_objects(b"", result, manifest, organization="x", kinds=("sr",))
    assert told.value.code == "no_source_header"


def test_a_verified_report_has_no_error(tmp_path):
    assert errors(verified().data, tmp_path) == []


def test_a_verified_report_names_who_signed_and_what_came_before():
    report = dcmread(BytesIO(verified().data))
    (observer,) = report.VerifyingObserverSequence
    (study,) = report.PredecessorDocumentsSequence
    before = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("VERIFIED", "FINAL")
    assert str(observer.VerifyingObserverName) == "Dr. Ada Bell  x^"
    assert observer.VerifyingOrganization == "Demo hospital"
    assert before == BEFORE.sop_instance_uid


def test_a_verified_report_gives_the_persons_answer():
    report = dcmread(BytesIO(verified().data))
    (container,) = find(report, "Qualitative Evaluations")
    (answer,) = (i for i in container.ContentSequence if i.ValueType == "CODE")
    assert answer.ConceptCodeSequence[0].CodeMeaning == "Negative"


def test_each_signature_is_an_instance_of_its_own():
    uids = {verified(version=n).sop_instance_uid for n in (2, 3)}
    assert len(uids | {objects_of(*analysed())["sr"].sop_instance_uid}) == 3


def test_a_verified_report_holds_no_answer_but_the_persons():
    report = dcmread(BytesIO(verified().data))
    (groups,) = find(report, "Imaging Measurements")
    answers = [i.ConceptCodeSequence[0].CodeMeaning for i in find(groups, "Has interpretation")]
    assert answers == ["Negative"]


def test_a_rejected_answer_is_undetermined_everywhere():
    report = dcmread(BytesIO(verified(answers={"126952004": None}).data))
    (groups,) = find(report, "Imaging Measurements")
    answers = [i.ConceptCodeSequence[0].CodeMeaning for i in find(groups, "Has interpretation")]
    assert answers == ["Undetermined"]


def test_the_points_of_a_verified_report_have_the_models_numbers_alone(tmp_path):
    result, manifest = rated_points()
    (made,) = build_verified(
        result.source_header,
        result,
        manifest,
        organization="Demo hospital",
        review=replace(REVIEW, answers={finding.code: False for finding in result.findings}),
        predecessor=BEFORE,
    )
    (groups,) = find(dcmread(BytesIO(made.data)), "Imaging Measurements")
    answers = {i.ConceptCodeSequence[0].CodeMeaning for i in find(groups, "Has interpretation")}
    assert (answers, errors(made.data, tmp_path)) == ({"Negative"}, [])


def test_what_another_signed_on_the_same_images_is_another_instance():
    later = verified(name="Dr. Cy Dahl").sop_instance_uid
    assert later not in {
        verified().sop_instance_uid,
        verified(at=REVIEW.at.replace(hour=12)).sop_instance_uid,
    }
