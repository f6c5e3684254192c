"""What a model makes of images: one answer for a whole image, or one for each point that a finder proposes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rayhook.fhir.errors import ModelIntegrityError
from rayhook.inference.candidates import Candidate, find_candidates
from rayhook.inference.engine import InferenceEngine
from rayhook.inference.geometry import Float, Geometry
from rayhook.inference.predict import Prediction, predict
from rayhook.inference.preprocess import Prepared, prepare
from rayhook.inference.registry import Manifest, ModelPackage
from rayhook.inference.study import InstanceAttributes

_FIRST_ANSWER_S = 30.0
_SECONDS_PER_IMAGE = 5.0


@dataclass(frozen=True, slots=True)
class ReadyImage:
    """An image in scope, waiting for the engine.

    pixels: (rows, columns), after the Modality LUT.  display: the same, uint8, what a person would see.
    prepared: None where the model looks at points of the image.  sha256: of the file's bytes.
    """

    attributes: InstanceAttributes
    pixels: Float
    display: NDArray[np.uint8]
    prepared: Prepared | None
    manifest: Manifest
    elapsed_ms: float
    sha256: str
    source_header: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Reading:
    """One thing that the model judged, with one prediction a label: a whole image, or a point of it."""

    geometry: Geometry
    predictions: tuple[Prediction, ...]
    candidate: Candidate | None = None

    @property
    def is_answered(self) -> bool:
        """Return whether the model gave an answer on every label."""
        return not any(prediction.abstained for prediction in self.predictions)


class Reader:
    """Runs models and their finders over images. engines: one for each package, by model id."""

    def __init__(self, packages: Sequence[ModelPackage], engines: Mapping[str, InferenceEngine]) -> None:
        self._packages = {package.manifest.id: package for package in packages}
        self._engines = engines
        absent = {p.manifest.finder for p in packages if p.manifest.finder} - self._packages.keys()
        if absent:
            raise ModelIntegrityError("a model names a finder that is not installed")

    def read(self, manifest: Manifest, images: Sequence[ReadyImage]) -> list[tuple[Reading, ...]]:
        """Return what one model makes of each image.

        Raises EngineUnavailable if an engine does not answer in time, ModelIntegrityError if it or the
        weights are not what the manifest pins.
        """
        if manifest.finder is None:
            return [(one,) for one in self._whole(manifest, images)]
        return [self._points(manifest, manifest.finder, image) for image in images]

    def _whole(self, manifest: Manifest, images: Sequence[ReadyImage]) -> list[Reading]:
        return self._predict(manifest, [image.prepared for image in images if image.prepared is not None])

    def _points(self, manifest: Manifest, finder: str, image: ReadyImage) -> tuple[Reading, ...]:
        spacing = image.attributes.pixel_spacing_mm or (1.0, 1.0)  # scope asks for it
        found = find_candidates(
            image.pixels,
            pixel_spacing_mm=spacing,
            finder=self._packages[finder],
            engine=self._engines[finder],
        )
        if not found:
            return ()
        prepared = [
            prepare(
                image.pixels,
                pixel_spacing_mm=spacing,
                recipe=manifest.preprocessing,
                centre=(one.row, one.column),
            )
            for one in found
        ]
        readings = self._predict(manifest, prepared)
        return tuple(
            Reading(reading.geometry, reading.predictions, candidate)
            for reading, candidate in zip(readings, found, strict=True)
        )

    def _predict(self, manifest: Manifest, prepared: Sequence[Prepared]) -> list[Reading]:
        predictions = predict(
            self._packages[manifest.id],
            self._engines[manifest.id],
            np.stack([one.image for one in prepared]),
            timeout_s=_FIRST_ANSWER_S + _SECONDS_PER_IMAGE * len(prepared),
        )
        labels = len(manifest.labels)
        return [
            Reading(one.geometry, tuple(predictions[index * labels : (index + 1) * labels]))
            for index, one in enumerate(prepared)
        ]
