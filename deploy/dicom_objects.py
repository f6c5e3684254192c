"""What each kind of image object says beyond what all of them say: MR and CT slices, films, mammograms.

Spec: DICOM PS3.3 A.2 (CR Image IOD), A.3 (CT), A.4 (MR), A.27 (Digital Mammography X-Ray Image IOD)
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    MRImageStorage,
)
from pydicom.valuerep import DSfloat

# Twelve unsigned bits hold -1024 to 3071 Hounsfield units.
HU_INTERCEPT = -1024
_SNOMED = "SCT"
_BREAST = ("76752008", "Breast")
# The chest wall of a right breast is at the right edge of the image, that of a left one at the left edge.
_AS_HUNG = {"L": ["A", "FR"], "R": ["P", "FL"]}
_MEDIO_LATERAL_OBLIQUE = ("399368009", "medio-lateral oblique")


@dataclass(frozen=True, slots=True)
class Grid:
    """Where axial slices lie, in mm: the middle of the image is at x = y = 0, slice number n at n thicknesses.

    `patient_position` is empty where nobody told it.
    Spec: DICOM PS3.3 C.7.6.2 (Image Plane), C.7.4.1 (Frame of Reference), C.7.3.1.1.2 (Patient Position)
    """

    spacing_mm: float
    thickness_mm: float
    patient_position: Literal["", "HFS"] = ""

    def place(self, dataset: Dataset, number: int) -> None:
        """Set the place of slice `number`, whose rows and columns are set already."""
        depth = decimal(number * self.thickness_mm)
        left, top = (-(side - 1) / 2 * self.spacing_mm for side in (dataset.Columns, dataset.Rows))
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [decimal(left), decimal(top), depth]
        dataset.SliceLocation = depth
        dataset.SliceThickness = decimal(self.thickness_mm)
        dataset.PixelSpacing = [decimal(self.spacing_mm)] * 2
        dataset.PatientPosition = self.patient_position
        dataset.PositionReferenceIndicator = ""


@dataclass(frozen=True, slots=True)
class FlairSlices:
    """Axial FLAIR slices. `timing_ms`: repetition, echo and inversion, where they are known.

    Spec: DICOM PS3.3 C.8.3.1 (MR Image)
    """

    modality: ClassVar = "MR"
    sop_class_uid: ClassVar = MRImageStorage
    bits_allocated: ClassVar = 16
    kind_of_image: ClassVar = ("OTHER",)

    grid: Grid
    timing_ms: tuple[float, float, float] | None = None

    def describe(self, dataset: Dataset, number: int) -> None:
        self.grid.place(dataset, number)
        dataset.ScanningSequence, dataset.SequenceVariant = ["SE", "IR"], "SK"
        dataset.ScanOptions, dataset.EchoTrainLength = "", None
        dataset.MRAcquisitionType = "" if self.timing_ms is None else "2D"
        repetition, echo, inversion = self.timing_ms or (None, None, None)
        dataset.RepetitionTime, dataset.EchoTime, dataset.InversionTime = repetition, echo, inversion
        dataset.AcquisitionNumber = None


@dataclass(frozen=True, slots=True)
class CTSlices:
    """Axial CT slices. Stored values plus `intercept` are Hounsfield units, or of no known unit ("US").

    Spec: DICOM PS3.3 C.8.2.1 (CT Image), C.11.1.1.2 (Rescale Type)
    """

    modality: ClassVar = "CT"
    sop_class_uid: ClassVar = CTImageStorage
    bits_allocated: ClassVar = 16
    kind_of_image: ClassVar = ("AXIAL",)

    grid: Grid
    intercept: int
    unit: Literal["HU", "US"]

    def describe(self, dataset: Dataset, number: int) -> None:
        self.grid.place(dataset, number)
        dataset.KVP = dataset.AcquisitionNumber = None
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = self.intercept, 1, self.unit


@dataclass(frozen=True, slots=True)
class ChestFilm:
    """A frontal chest film. `view_position` is empty where nobody told PA from AP.

    side_mm: of the square image receptor, where it is known.
    Computed Radiography, because a Digital X-Ray object must tell the detector's pixel spacing.
    Spec: DICOM PS3.3 C.8.1.1 (CR Series), C.8.1.2 (CR Image)
    """

    modality: ClassVar = "CR"
    sop_class_uid: ClassVar = ComputedRadiographyImageStorage
    bits_allocated: ClassVar = 8
    kind_of_image: ClassVar = ()

    view_position: Literal["", "PA"]
    side_mm: float | None = None

    def describe(self, dataset: Dataset, number: int) -> None:  # noqa: ARG002 (a film is no slice)
        dataset.ViewPosition, dataset.PatientOrientation = self.view_position, None
        if self.side_mm is not None:
            dataset.ImagerPixelSpacing = [decimal(self.side_mm / dataset.Columns)] * 2


@dataclass(frozen=True, slots=True)
class Mammogram:
    """A scanned medio-lateral oblique film, bright where few X-rays came through.

    side_mm: of the square film, hung as films are: its top is the patient's.
    Spec: DICOM PS3.3 C.8.11.1 (DX Series), C.8.11.3 (DX Image), C.8.11.4 (DX Detector), C.8.11.7 (Mammography)
    """

    modality: ClassVar = "MG"
    sop_class_uid: ClassVar = DigitalMammographyXRayImageStorageForPresentation
    bits_allocated: ClassVar = 8
    kind_of_image: ClassVar = ()

    laterality: Literal["L", "R"]
    side_mm: float

    def describe(self, dataset: Dataset, number: int) -> None:  # noqa: ARG002 (a film is no slice)
        dataset.PresentationIntentType = "FOR PRESENTATION"
        dataset.PatientOrientation = _AS_HUNG[self.laterality]
        dataset.ImageLaterality, dataset.OrganExposed = self.laterality, "BREAST"
        dataset.AnatomicRegionSequence = Sequence([_code(*_BREAST)])
        view = _code(*_MEDIO_LATERAL_OBLIQUE)
        view.ViewModifierCodeSequence = Sequence()
        dataset.ViewCodeSequence = Sequence([view])
        dataset.PositionerType = "MAMMOGRAPHIC"
        dataset.DetectorType = "FILM"
        dataset.ImagerPixelSpacing = [decimal(self.side_mm / dataset.Columns)] * 2
        dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
        dataset.PresentationLUTShape = "IDENTITY"
        dataset.LossyImageCompression = "00"
        dataset.AcquisitionContextSequence = Sequence()


ImageObject = FlairSlices | CTSlices | ChestFilm | Mammogram


def decimal(value: float) -> DSfloat:
    """Return the value as the at most 16 characters of a DS. Spec: DICOM PS3.5 6.2."""
    return DSfloat(value, auto_format=True)


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, _SNOMED, meaning
    return item
