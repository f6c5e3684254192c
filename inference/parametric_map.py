"""The heatmap as numbers, in the key image's own space.

A heatmap says where the evidence lies; it is no outline, and so no Segmentation is made of it.

Spec: DICOM PS3.3 A.75 (Parametric Map IOD), C.8.23; PS3.16 CID 7180
"""

import numpy as np
from highdicom import (
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
    VOILUTTransformation,
)
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from rayhook.inference.dicom_identity import (
    ResultSource,
    name_source_class,
    plain,
    settle,
    tell_body_part,
)
from rayhook.inference.dicom_uid import ObjectKind
from rayhook.inference.explain import unpack_heat
from rayhook.inference.study import HeatMap

_PLANE = ("FrameOfReferenceUID", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")


def build_parametric_map(source: ResultSource, heat: HeatMap) -> Dataset | None:
    """Return the map, None over a radiograph: the IOD asks for a place in space, which that has not."""
    if any(keyword not in source.header for keyword in _PLANE):
        return None
    made = ParametricMap(
        source_images=[_reference(source.header, heat)],
        pixel_array=unpack_heat(heat)[np.newaxis],
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping()],
        voi_lut_transformations=[VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="AI_HEATMAP",
        content_description="Where the model's evidence lies; no outline of anything",
        content_qualification="RESEARCH",
        derived_pixel_contrast="QUANTITY",
        pixel_measures=_measures(source.header, heat.step),
        plane_orientation=PlaneOrientationSequence("PATIENT", source.header.ImageOrientationPatient),
        plane_positions=[PlanePositionSequence("PATIENT", _first_cell(source.header, heat.step))],
        **source.arguments(ObjectKind.PARAMETRIC_MAP),
    )
    _name_dimensions(made, source)
    name_source_class(made, source.header)
    tell_body_part(made, source)
    return settle(made, source)


def _reference(header: Dataset, heat: HeatMap) -> Dataset:
    """Return the key image as highdicom has to see it: one plane, on the map's grid."""
    reference = plain(header)
    reference.Rows, reference.Columns = heat.rows, heat.columns
    reference.SliceThickness = header.get("SliceThickness") or 1
    return reference


def _first_cell(header: Dataset, step: int) -> list[float]:
    """Return where the centre of the first cell lies, which is that of the first step x step pixels."""
    orientation = np.array([float(value) for value in header.ImageOrientationPatient])
    between_rows, between_columns = (float(value) for value in header.PixelSpacing)
    first = np.array([float(value) for value in header.ImagePositionPatient])
    shift = (step - 1) / 2 * (orientation[:3] * between_columns + orientation[3:] * between_rows)
    return [float(value) for value in first + shift]


def _measures(header: Dataset, step: int) -> PixelMeasuresSequence:
    thickness = float(header.get("SliceThickness") or 1.0)
    return PixelMeasuresSequence([float(value) * step for value in header.PixelSpacing], thickness)


def _mapping() -> RealWorldValueMapping:
    """Return what a value means: the share of the model's full evidence, without a unit."""
    return RealWorldValueMapping(
        lut_label="EVIDENCE",
        lut_explanation="Share of the model's full evidence, 0 to 1",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.VisualExplanation,
    )


def _name_dimensions(made: Dataset, source: ResultSource) -> None:
    """Give the dimensions a UID that is not by chance."""
    uid = source.uid(ObjectKind.PARAMETRIC_MAP, "dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
