import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pytest

from rayhook.fhir.errors import EngineUnavailable, IdentityConflict
from rayhook.inference.analysis import BATCH, Analyser
from rayhook.inference.decode import Decoder
from rayhook.inference.registry import ModelPackage
from rayhook.inference.statement import incomplete
from rayhook.inference.study import AnalysisStatus
from tests.unit.inference.images import (
    CT,
    SpotEngine,
    dicom_slice,
    encoded,
    package,
    truncated,
    without_pixels,
)
from tests.unit.inference.samples import SERIES_UID, STUDY_UID

OTHER_SERIES = "1.2.826.0.1.3680043.8.498.1.2"
HEALTHY = [dicom_slice(n) for n in range(1, 9)]
WITH_LESION = [dicom_slice(n, lesion=3 <= n <= 5) for n in range(1, 9)]
ENHANCED_SR = "1.2.840.10008.5.1.4.1.1.88.22"


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


@pytest.fixture
def engine():
    return SpotEngine()


@pytest.fixture
def analyser(decoder, engine, tmp_path):
    model = package(tmp_path)
    return Analyser((model,), {model.manifest.id: engine}, decoder)


def second_series(data_of=dicom_slice, **changes):
    return [
        data_of(n, SeriesInstanceUID=OTHER_SERIES, SOPInstanceUID=f"{OTHER_SERIES}.{n}", **changes)
        for n in range(1, 9)
    ]


@pytest.mark.parametrize(("lesion", "positive"), [(True, True), (False, False)])
def test_an_instance_is_analysed(analyser, lesion, positive):
    result = analyser.instance(dicom_slice(lesion=lesion))
    assert (result.status, result.findings[0].positive) == (AnalysisStatus.ANALYSED, positive)


def test_an_analysed_instance_names_the_model(analyser):
    assert analyser.instance(dicom_slice()).model == analyser.identities[0]


def test_an_analysed_instance_has_no_reason(analyser):
    result = analyser.instance(dicom_slice())
    assert (result.reason, result.error_code) == (None, None)


@pytest.mark.parametrize(
    "data",
    [dicom_slice(), dicom_slice(noise=True), dicom_slice(**CT), b"not dicom"],
    ids=["analysed", "abstained", "out of scope", "refused"],
)
def test_every_result_has_the_digest_of_its_file(analyser, data):
    assert analyser.instance(data).sha256 == hashlib.sha256(data).hexdigest()


def test_an_instance_unlike_the_training_images_has_no_findings(analyser):
    result = analyser.instance(dicom_slice(noise=True))
    assert (result.status, result.findings) == (AnalysisStatus.ABSTAINED, ())
    assert result.error_code == "out_of_distribution"


def test_an_instance_out_of_scope_says_why(analyser):
    result = analyser.instance(dicom_slice(**CT))
    assert result.status is AnalysisStatus.OUT_OF_SCOPE
    assert result.reason


def test_an_instance_out_of_scope_keeps_its_uids(analyser):
    result = analyser.instance(dicom_slice(**CT))
    assert (result.study_instance_uid, result.series_instance_uid) == (STUDY_UID, SERIES_UID)


@pytest.mark.parametrize("data", [b"", b"not dicom", truncated(dicom_slice())], ids=["empty", "text", "half"])
def test_an_unreadable_instance_is_refused_with_a_code(analyser, data):
    result = analyser.instance(data)
    assert result.status is AnalysisStatus.REFUSED
    assert result.error_code


def test_an_unreadable_image_keeps_its_uids(analyser):
    result = analyser.instance(truncated(dicom_slice()))
    assert (result.sop_instance_uid, result.study_instance_uid) == (f"{SERIES_UID}.1", STUDY_UID)


def test_an_image_without_its_pixels_is_refused(analyser):
    assert analyser.instance(without_pixels()).status is AnalysisStatus.REFUSED


def test_an_object_that_is_no_image_is_out_of_scope(analyser):
    result = analyser.instance(without_pixels(SOPClassUID=ENHANCED_SR, Modality="SR"))
    assert (result.status, result.error_code) == (AnalysisStatus.OUT_OF_SCOPE, "not_an_image")


def test_a_report_in_the_study_does_not_make_it_incomplete(analyser):
    report = without_pixels(99, SOPClassUID=ENHANCED_SR, Modality="SR")
    assert incomplete(analyser.study([*HEALTHY, report]).instances) is None


def test_frames_are_never_left_out_silently(analyser):
    frames = np.full((3, 64, 64), 300, np.uint16)
    result = analyser.instance(encoded(frames, 1, NumberOfFrames=3))
    assert result.status in {AnalysisStatus.OUT_OF_SCOPE, AnalysisStatus.REFUSED}


@pytest.mark.parametrize(("files", "positive"), [(WITH_LESION, True), (HEALTHY, False)])
def test_a_study_is_analysed(analyser, files, positive):
    result = analyser.study(files)
    assert (result.status, result.findings[0].positive) == (AnalysisStatus.ANALYSED, positive)


def test_a_study_does_not_depend_on_the_order_of_its_files(analyser):
    forward, backward = analyser.study(WITH_LESION), analyser.study(WITH_LESION[::-1])
    assert forward.slice_probabilities == backward.slice_probabilities
    assert forward.key_image.sop_instance_uid == backward.key_image.sop_instance_uid


def test_a_single_odd_slice_is_not_a_finding(analyser):
    files = [dicom_slice(n, lesion=n == 4) for n in range(1, 9)]
    assert not analyser.study(files).findings[0].positive


def test_the_key_image_shows_the_finding(analyser):
    uids = {f"{SERIES_UID}.{n}" for n in (3, 4, 5)}
    assert analyser.study(WITH_LESION).key_image.sop_instance_uid in uids


def test_the_key_image_is_what_a_person_would_see(analyser):
    image = analyser.study(WITH_LESION).key_image
    decoded = cv2.imdecode(np.frombuffer(image.image_png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.shape == (image.rows, image.columns)


def test_the_overlay_is_as_large_as_the_image(analyser):
    image = analyser.study(WITH_LESION).key_image
    decoded = cv2.imdecode(np.frombuffer(image.overlay_png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.shape == (image.rows, image.columns, 3)


def test_there_is_a_probability_for_each_slice(analyser):
    assert len(analyser.study(WITH_LESION).slice_probabilities) == 8


def test_the_slices_of_a_study_are_named_in_anatomical_order(analyser):
    assert analyser.study(WITH_LESION[::-1]).slice_uids == tuple(f"{SERIES_UID}.{n}" for n in range(1, 9))


def test_the_engine_gets_batches(analyser, engine):
    analyser.study(dicom_slice(n) for n in range(1, BATCH + 4))
    assert engine.batches == [BATCH, 3]


def test_a_bad_file_does_not_stop_the_rest(analyser):
    result = analyser.study([*WITH_LESION, b"not dicom"])
    assert result.status is AnalysisStatus.ANALYSED
    assert [i.status for i in result.instances].count(AnalysisStatus.REFUSED) == 1


def test_a_negative_study_with_many_unread_images_has_no_answer(analyser):
    result = analyser.study([*HEALTHY[:6], *(truncated(one) for one in HEALTHY[6:])])
    assert (result.status, result.findings) == (AnalysisStatus.ABSTAINED, ())
    assert "too few images" in result.reason


def test_a_positive_study_with_many_unread_images_stands(analyser):
    result = analyser.study([*WITH_LESION[:6], *(truncated(one) for one in WITH_LESION[6:])])
    assert result.status is AnalysisStatus.ANALYSED


def test_a_study_of_unread_images_is_refused(analyser):
    result = analyser.study([truncated(one) for one in HEALTHY])
    assert (result.status, result.key_image, result.findings) == (AnalysisStatus.REFUSED, None, ())


def test_a_study_without_images_is_refused(analyser):
    result = analyser.study([], expected_study_uid=STUDY_UID)
    assert (result.status, result.reason) == (AnalysisStatus.REFUSED, "the study holds no images")


def test_a_study_out_of_scope_says_so(analyser):
    result = analyser.study([dicom_slice(n, **CT) for n in range(1, 4)])
    assert (result.status, result.model) == (AnalysisStatus.OUT_OF_SCOPE, None)


def test_out_of_scope_and_unread_images_make_a_refused_study(analyser):
    assert analyser.study([dicom_slice(**CT), truncated(dicom_slice(2))]).status is AnalysisStatus.REFUSED


def test_a_study_unlike_the_training_images_has_no_answer(analyser):
    result = analyser.study([dicom_slice(n, noise=True) for n in range(1, 4)])
    assert (result.status, result.findings) == (AnalysisStatus.ABSTAINED, ())
    assert result.model == analyser.identities[0]


def test_the_series_in_scope_is_analysed_beside_others(analyser):
    result = analyser.study([*WITH_LESION, *second_series(**CT)])
    assert (result.status, result.series_instance_uid) == (AnalysisStatus.ANALYSED, SERIES_UID)


def test_of_several_series_the_highest_is_reported(analyser):
    result = analyser.study([*HEALTHY, *second_series(lesion=True)])
    assert (result.series_instance_uid, result.findings[0].positive) == (OTHER_SERIES, True)


def test_slices_of_two_series_are_not_neighbours(analyser):
    first = [dicom_slice(n, lesion=n == 8) for n in range(1, 9)]
    second = [
        dicom_slice(n, lesion=n == 1, SeriesInstanceUID=OTHER_SERIES, SOPInstanceUID=f"{OTHER_SERIES}.{n}")
        for n in range(1, 9)
    ]
    assert not analyser.study([*first, *second]).findings[0].positive


def test_a_second_copy_of_an_image_counts_once(analyser):
    assert len(analyser.study([*HEALTHY, HEALTHY[0]]).instances) == 8


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        (dicom_slice(9, PatientID="MRN-2"), "patient_mismatch"),
        (dicom_slice(9, PatientID="MRN-2", **CT), "patient_mismatch"),
        (dicom_slice(9, StudyInstanceUID="1.2.3"), "study_mismatch"),
        (dicom_slice(8, lesion=True), "duplicate_instance"),
    ],
    ids=["other patient", "other patient out of scope", "other study", "same UID"],
)
def test_an_image_that_does_not_belong_stops_the_study(analyser, odd, code):
    with pytest.raises(IdentityConflict) as raised:
        analyser.study([*HEALTHY, odd])
    assert raised.value.code == code


def test_another_study_than_the_one_asked_for_stops_it(analyser):
    with pytest.raises(IdentityConflict):
        analyser.study(HEALTHY, expected_study_uid="1.2.3")


def test_another_patient_than_the_one_in_context_stops_it(analyser):
    with pytest.raises(IdentityConflict):
        analyser.study(HEALTHY, patient_identifiers=frozenset({"MRN-2"}))


def test_one_of_the_patients_identifiers_is_enough(analyser):
    result = analyser.study(HEALTHY, patient_identifiers=frozenset({"national-id", "MRN-1"}))
    assert result.status is AnalysisStatus.ANALYSED


def test_an_engine_that_is_away_is_not_a_result(decoder, tmp_path):
    class Away(SpotEngine):
        def run(self, batch, timeout_s):
            raise EngineUnavailable("the inference engine is closed")

    model = package(tmp_path)
    with pytest.raises(EngineUnavailable):
        Analyser((model,), {model.manifest.id: Away()}, decoder).study(HEALTHY)


def unsure_analyser(decoder, tmp_path):
    """An analyser whose model is never sure of what it marks: every answer above its threshold."""
    model = package(tmp_path)
    label = replace(model.manifest.labels[0], unsure=(model.manifest.labels[0].threshold, 1.0))
    model = ModelPackage(model.folder, replace(model.manifest, labels=(label,)))
    return Analyser((model,), {model.manifest.id: SpotEngine()}, decoder)


def test_an_instance_near_the_threshold_is_not_answered(decoder, tmp_path):
    result = unsure_analyser(decoder, tmp_path).instance(dicom_slice(lesion=True))
    assert (result.status, result.error_code, result.findings) == (AnalysisStatus.ABSTAINED, "not_sure", ())


def test_a_study_near_the_threshold_is_not_answered(decoder, tmp_path):
    result = unsure_analyser(decoder, tmp_path).study(WITH_LESION)
    assert (result.status, result.findings) == (AnalysisStatus.ABSTAINED, ())
    assert "not sure" in result.reason


def test_slices_that_are_unsure_by_themselves_do_not_silence_the_series(decoder, tmp_path):
    files = [dicom_slice(n, lesion=n in {2, 5, 8}) for n in range(1, 9)]
    assert unsure_analyser(decoder, tmp_path).study(files).status is AnalysisStatus.ANALYSED
