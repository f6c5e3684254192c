from dataclasses import replace
from typing import Any

import pytest

from rayhook.fhir.errors import OutOfScope
from rayhook.inference.registry import Manifest, Role, SequenceRule, TomographyRule, ViewRule
from rayhook.inference.scope import route
from rayhook.inference.study import InstanceAttributes

MR = "1.2.840.10008.5.1.4.1.1.4"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)

IMAGE = InstanceAttributes(
    sop_instance_uid="1.2.3",
    sop_class_uid=MR,
    study_instance_uid="1.2",
    series_instance_uid="1.2.1",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    patient_id="p",
    modality="MR",
    body_part_examined="BRAIN",
    series_description="Ax T2 FLAIR",
    study_description=None,
    protocol_name=None,
    sequence_name=None,
    image_type=("ORIGINAL", "PRIMARY", "M"),
    inversion_time_ms=None,
    echo_time_ms=None,
    repetition_time_ms=None,
    pixel_spacing_mm=(1.0, 1.0),
    slice_location_mm=None,
    image_orientation=AXIAL,
    instance_number=1,
    acquisition_datetime=None,
    rows=256,
    columns=256,
    number_of_frames=1,
    photometric_interpretation="MONOCHROME2",
    burned_in_annotation=None,
    window=None,
)


def manifest(**changes: Any) -> Manifest:
    """Return the routing part of a manifest; scope reads nothing else."""
    made = object.__new__(Manifest)
    rule = SequenceRule(
        name="FLAIR",
        plane="axial",
        words=("flair", "tirm", "dark fluid"),
        excluded_words=("sag", "cor"),
        inversion_time_ms=(1500.0, 3200.0),
    )
    fields: dict[str, Any] = {
        "id": "flair",
        "modality": "MR",
        "body_parts": ("BRAIN", "HEAD"),
        "sop_class_uids": (MR,),
        "also_modalities": (),
        "role": Role.CLASSIFIER,
        "sequence": rule,
        "tomography": None,
        "view": None,
        **changes,
    }
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"series_description": "t2_tirm_tra_dark-fluid"},
        {"series_description": "AXFLAIR"},
        {"series_description": None, "protocol_name": "FLAIR long TR"},
        {"series_description": "AX", "sequence_name": "*tir2d1_flair"},
        {"series_description": None, "inversion_time_ms": 2500.0, "echo_time_ms": 120.0},
        {"inversion_time_ms": 0.0},
        {"inversion_time_ms": 2200.0, "echo_time_ms": 90.0},
        {"body_part_examined": "Head"},
        {"body_part_examined": None, "study_description": "MRI BRAIN W/O"},
        {"image_orientation": (0.99, 0.0, 0.1, 0.0, 0.93, 0.36)},
        {"image_orientation": None},
        {"series_description": "Ax FLAIR motion corrected"},
        {"photometric_interpretation": "MONOCHROME1"},
        {"burned_in_annotation": "NO"},
        {"image_type": ("DERIVED", "PRIMARY", "M", "DIS2D")},
        {"image_type": ()},
    ],
)
def test_what_the_model_is_meant_for_is_routed_to_it(changes: dict[str, Any]) -> None:
    model = manifest()
    assert route(replace(IMAGE, **changes), (model,)) is model


@pytest.mark.parametrize(
    ("changes", "expression"),
    [
        ({"modality": "CT"}, "Modality"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7"}, "SOPClassUID"),
        ({"body_part_examined": "KNEE"}, "BodyPartExamined"),
        ({"body_part_examined": None}, "BodyPartExamined"),
        ({"body_part_examined": None, "study_description": "headline news"}, "BodyPartExamined"),
        ({"series_description": "Ax T1"}, "SeriesDescription"),
        ({"series_description": "Ax T1 FLAIR"}, "SeriesDescription"),
        ({"series_description": None}, "SeriesDescription"),
        ({"series_description": None, "inversion_time_ms": 2500.0}, "SeriesDescription"),
        (
            {"series_description": None, "inversion_time_ms": 150.0, "echo_time_ms": 100.0},
            "SeriesDescription",
        ),
        ({"inversion_time_ms": 860.0}, "SeriesDescription"),
        ({"echo_time_ms": 10.0}, "SeriesDescription"),
        ({"series_description": "Sag FLAIR"}, "SeriesDescription"),
        ({"series_description": "Coronal FLAIR"}, "SeriesDescription"),
        ({"study_description": "cor", "series_description": "FLAIR"}, "SeriesDescription"),
        ({"image_orientation": CORONAL}, "ImageOrientationPatient"),
        ({"image_orientation": SAGITTAL}, "ImageOrientationPatient"),
        ({"image_orientation": (0.0,) * 6}, "ImageOrientationPatient"),
        ({"image_orientation": None, "series_description": "T2 FLAIR"}, "ImageOrientationPatient"),
        ({"image_type": ("DERIVED", "PRIMARY", "MPR")}, "ImageType"),
        ({"image_type": ("DERIVED", "SECONDARY", "MPR")}, "ImageType"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "ImageType"),
        ({"series_description": "3-plane localizer FLAIR"}, "SeriesDescription"),
        ({"burned_in_annotation": "YES"}, "BurnedInAnnotation"),
        ({"photometric_interpretation": "RGB"}, "PhotometricInterpretation"),
    ],
)
def test_anything_else_is_out_of_scope_for_that_reason(changes: dict[str, Any], expression: str) -> None:
    with pytest.raises(OutOfScope) as caught:
        route(replace(IMAGE, **changes), (manifest(),))
    assert caught.value.code == "out_of_scope"
    assert caught.value.expression == expression


def test_without_models_everything_is_out_of_scope() -> None:
    with pytest.raises(OutOfScope, match="no model"):
        route(IMAGE, ())


def test_the_model_that_fits_is_found_among_others() -> None:
    fitting = manifest()
    others = (manifest(modality="CT"), manifest(body_parts=("KNEE",)))
    assert route(IMAGE, (*others, fitting)) is fitting


def test_the_reason_is_that_of_the_model_of_the_modality() -> None:
    models = (manifest(modality="CT"), manifest(body_parts=("KNEE",)))
    with pytest.raises(OutOfScope, match="KNEE"):
        route(IMAGE, models)


def test_the_reason_never_repeats_what_the_file_says() -> None:
    with pytest.raises(OutOfScope) as caught:
        route(replace(IMAGE, body_part_examined="<script>"), (manifest(),))
    assert "script" not in caught.value.message


CT = "1.2.840.10008.5.1.4.1.1.2"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
CHEST_CT = replace(
    IMAGE,
    modality="CT",
    sop_class_uid=CT,
    body_part_examined="CHEST",
    series_description="Lung 2.5 mm",
    pixel_spacing_mm=(0.7, 0.7),
    slice_thickness_mm=2.5,
    inversion_time_ms=None,
    echo_time_ms=None,
)
FILM = replace(
    IMAGE,
    modality="DX",
    sop_class_uid=DX,
    body_part_examined="CHEST",
    series_description="Chest",
    image_orientation=None,
    view_position="PA",
    inversion_time_ms=None,
    echo_time_ms=None,
)


def chest_ct_model() -> Manifest:
    rule = TomographyRule(
        name="axial chest CT", plane="axial", max_thickness_mm=5.0, excluded_words=("cor", "sag", "phantom")
    )
    return manifest(
        id="nodule",
        modality="CT",
        body_parts=("CHEST",),
        sop_class_uids=(CT,),
        sequence=None,
        tomography=rule,
    )


def film_model() -> Manifest:
    rule = ViewRule(
        name="frontal",
        positions=("AP", "PA"),
        words=("ap", "frontal", "pa"),
        excluded_words=("lateral", "lat"),
    )
    return manifest(
        id="film",
        modality="DX",
        also_modalities=("CR",),
        body_parts=("CHEST",),
        sop_class_uids=(DX,),
        sequence=None,
        view=rule,
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"slice_thickness_mm": None}, {"body_part_examined": None}, {"rescale_type": "HU"}],
)
def test_axial_chest_ct_is_routed_to_its_model(changes: dict[str, Any]) -> None:
    model = chest_ct_model()
    assert route(replace(CHEST_CT, **changes), (manifest(), model)) is model


@pytest.mark.parametrize(
    ("changes", "expression"),
    [
        ({"slice_thickness_mm": 8.0}, "SliceThickness"),
        ({"pixel_spacing_mm": None}, "PixelSpacing"),
        ({"rescale_type": "US"}, "RescaleType"),
        ({"image_orientation": CORONAL}, "ImageOrientationPatient"),
        ({"body_part_examined": "ABDOMEN"}, "BodyPartExamined"),
        ({"series_description": "PHANTOM chest"}, "SeriesDescription"),
    ],
)
def test_other_ct_is_out_of_scope_for_that_reason(changes: dict[str, Any], expression: str) -> None:
    with pytest.raises(OutOfScope) as caught:
        route(replace(CHEST_CT, **changes), (manifest(), chest_ct_model()))
    assert caught.value.expression == expression


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"modality": "CR"},
        {"view_position": "AP"},
        {"view_position": None, "series_description": "chest pa"},
    ],
)
def test_frontal_chest_films_are_routed_to_their_model(changes: dict[str, Any]) -> None:
    model = film_model()
    assert route(replace(FILM, **changes), (model,)) is model


@pytest.mark.parametrize(
    ("changes", "expression"),
    [
        ({"view_position": "LL"}, "ViewPosition"),
        ({"view_position": None}, "ViewPosition"),
        ({"series_description": "Chest lateral"}, "SeriesDescription"),
        ({"modality": "MG"}, "Modality"),
    ],
)
def test_other_films_are_out_of_scope_for_that_reason(changes: dict[str, Any], expression: str) -> None:
    with pytest.raises(OutOfScope) as caught:
        route(replace(FILM, **changes), (film_model(),))
    assert caught.value.expression == expression


def test_a_finder_is_never_routed_to() -> None:
    finder = manifest(id="finder", role=Role.FINDER)
    with pytest.raises(OutOfScope):
        route(IMAGE, (finder,))
