"""From DICOM files to results: decode, check identity, route, predict, and speak for the study."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayhook.fhir.errors import ImageRefused, OutOfScope, Unprocessable
from rayhook.inference.decode import DecodeLimits, Decoder
from rayhook.inference.engine import InferenceEngine
from rayhook.inference.identity import IdentityGuard
from rayhook.inference.instance_names import InstanceNames, is_own_result
from rayhook.inference.preprocess import prepare
from rayhook.inference.reading import Reader, Reading, ReadyImage
from rayhook.inference.registry import Manifest, ModelPackage, identify
from rayhook.inference.scope import route
from rayhook.inference.series import Slice
from rayhook.inference.stages import Stage, timed
from rayhook.inference.study import (
    AnalysisStatus,
    DecodedInstance,
    InstanceResult,
    ModelIdentity,
    StudyResult,
)
from rayhook.inference.verdict import NOT_SURE, NOT_SURE_CODE, conclude

# The engine takes images one by one: a small batch lets it begin while later images are still coming in.
BATCH = 8


@dataclass(frozen=True, slots=True)
class _Answered:
    """An image that the engine has seen."""

    slice: Slice
    result: InstanceResult


class Analyser:
    """Runs the models over images; safe to share between threads.

    engines: one for each model, finders included, by model id.
    """

    def __init__(
        self,
        models: Sequence[ModelPackage],
        engines: Mapping[str, InferenceEngine],
        decoder: Decoder,
        *,
        limits: DecodeLimits | None = None,
    ) -> None:
        self.manifests: tuple[Manifest, ...] = tuple(package.manifest for package in models)
        self.identities: tuple[ModelIdentity, ...] = identify(models)
        self._identity_by_id = {identity.id: identity for identity in self.identities}
        self._reader = Reader(models, engines)
        self._decoder = decoder
        self._limits = limits or DecodeLimits()

    def manifest_of(self, identity: ModelIdentity | None) -> Manifest | None:
        """Return the manifest of a model that a result names."""
        return next((m for m in self.manifests if identity is not None and m.id == identity.id), None)

    def instance(self, data: bytes) -> InstanceResult:
        """Return what one DICOM file comes to by itself.

        Raises EngineUnavailable or ModelIntegrityError; a file at fault is told in the result.
        """
        started = time.perf_counter()
        decoded = self._decode(data, started)
        if isinstance(decoded, InstanceResult):
            return decoded
        ready = self._prepare(decoded, started)
        return ready if isinstance(ready, InstanceResult) else self._answer([ready])[0].result

    def study(
        self,
        files: Iterable[bytes],
        *,
        expected_study_uid: str | None = None,
        patient_identifiers: frozenset[str] = frozenset(),
    ) -> StudyResult:
        """Return what the files of one study come to; a bad file is told and never stops the rest.

        Raises IdentityConflict if the files are not all of that study and of one patient,
        EngineUnavailable or ModelIntegrityError, and whatever `files` raises.
        """
        started = time.perf_counter()
        guard = IdentityGuard(expected_study_uid, patient_identifiers)
        others: list[InstanceResult] = []
        answered = self._answer_while_reading(self._read(files, guard, others))
        with timed(Stage.EXPLAIN):
            return conclude(
                [*others, *(one.result for one in answered)],
                [one.slice for one in answered],
                study_instance_uid=expected_study_uid,
                elapsed_ms=_milliseconds_since(started),
            )

    def _answer_while_reading(self, images: Iterable[ReadyImage]) -> list[_Answered]:
        """Return the engine's answers; the engine works while the next images are fetched and decoded."""
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        try:
            answers = [pool.submit(copy_context().run, self._answer, batch) for batch in _batches(images)]
            return [one for answer in answers for one in answer.result()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(
        self, files: Iterable[bytes], guard: IdentityGuard, others: list[InstanceResult]
    ) -> Iterator[ReadyImage]:
        """Yield the images in scope; what became of the others is added to `others`."""
        for data in files:
            if is_own_result(data, self._limits):
                continue
            started = time.perf_counter()
            with timed(Stage.DECODE):
                decoded = self._decode(data, started)
            if isinstance(decoded, InstanceResult):
                others.append(decoded)
                continue
            if not guard.admit(decoded):
                continue
            with timed(Stage.PREPROCESS):
                ready = self._prepare(decoded, started)
            if isinstance(ready, InstanceResult):
                others.append(ready)
            else:
                yield ready

    def _decode(self, data: bytes, started: float) -> DecodedInstance | InstanceResult:
        try:
            return self._decoder.decode(data, limits=self._limits)
        except ImageRefused as error:
            names = InstanceNames.read(data, self._limits)
            sha256 = hashlib.sha256(data).hexdigest()
            if error.code == "no_pixel_data" and names.is_no_image:
                other = OutOfScope("the object is not an image", code="not_an_image")
                return _without_answer(other, names, sha256, started)
            return _without_answer(error, names, sha256, started)

    def _prepare(self, decoded: DecodedInstance, started: float) -> ReadyImage | InstanceResult:
        attributes = decoded.attributes
        try:
            manifest = route(attributes, self.manifests)
            # A copy: the decoded arrays share one mapping, which a part alone would keep in memory.
            pixels = _only_frame(decoded).copy()
            whole = None
            if manifest.finder is None:
                whole = prepare(
                    pixels, pixel_spacing_mm=attributes.pixel_spacing_mm, recipe=manifest.preprocessing
                )
        except (ImageRefused, OutOfScope) as error:
            return _without_answer(error, InstanceNames.of(attributes), decoded.sha256, started)
        return ReadyImage(
            attributes=attributes,
            pixels=pixels,
            display=decoded.display[0].copy(),
            prepared=whole,
            manifest=manifest,
            elapsed_ms=_milliseconds_since(started),
            sha256=decoded.sha256,
            source_header=decoded.source_header,
        )

    def _answer(self, batch: Sequence[ReadyImage]) -> list[_Answered]:
        """Return the engines' answers, each model's images together."""
        by_model: dict[str, list[ReadyImage]] = {}
        for ready in batch:
            by_model.setdefault(ready.manifest.id, []).append(ready)
        return [one for images in by_model.values() for one in self._run(images)]

    def _run(self, images: Sequence[ReadyImage]) -> Iterator[_Answered]:
        started = time.perf_counter()
        with timed(Stage.FORWARD):
            readings = self._reader.read(images[0].manifest, images)
        elapsed_ms = _milliseconds_since(started) / len(images)
        for ready, own in zip(images, readings, strict=True):
            identity = self._identity_by_id[ready.manifest.id]
            yield _answered(ready, own, identity, ready.elapsed_ms + elapsed_ms)


def _only_frame(decoded: DecodedInstance) -> NDArray[np.float32]:
    if len(decoded.pixels) != 1:
        raise OutOfScope("images of more than one frame are not analysed")
    frame: NDArray[np.float32] = decoded.pixels[0]
    return frame


def _answered(
    ready: ReadyImage, readings: tuple[Reading, ...], identity: ModelIdentity, elapsed_ms: float
) -> _Answered:
    attributes = ready.attributes
    one = Slice(attributes, ready.display, ready.manifest, readings, ready.source_header)
    code, reason = _no_answer(one)
    result = InstanceResult(
        sop_instance_uid=attributes.sop_instance_uid,
        study_instance_uid=attributes.study_instance_uid,
        series_instance_uid=attributes.series_instance_uid,
        status=AnalysisStatus.ANALYSED if code is None else AnalysisStatus.ABSTAINED,
        findings=one.findings if code is None else (),
        model=identity,
        error_code=code,
        reason=reason or one.reason,
        elapsed_ms=elapsed_ms,
        marks=one.marks,
        sha256=ready.sha256,
        sop_class_uid=attributes.sop_class_uid,
    )
    return _Answered(one, result)


def _no_answer(one: Slice) -> tuple[str | None, str | None]:
    """Return the code and the reason of an image that has no answer, twice None where it has one."""
    if one.is_answered:
        return (NOT_SURE_CODE, NOT_SURE) if one.is_unsure else (None, None)
    reasons = sorted({str(p.reason) for r in one.readings for p in r.predictions if p.reason is not None})
    return reasons[0], f"the model gave no answer: {', '.join(reasons)}"


def _without_answer(
    error: Unprocessable, names: InstanceNames, sha256: str, started: float
) -> InstanceResult:
    return InstanceResult(
        sop_instance_uid=names.sop_instance_uid,
        study_instance_uid=names.study_instance_uid,
        series_instance_uid=names.series_instance_uid,
        status=AnalysisStatus.OUT_OF_SCOPE if isinstance(error, OutOfScope) else AnalysisStatus.REFUSED,
        error_code=error.code,
        reason=error.message,
        elapsed_ms=_milliseconds_since(started),
        sha256=sha256,
        sop_class_uid=names.sop_class_uid,
    )


def _batches(items: Iterable[ReadyImage]) -> Iterator[list[ReadyImage]]:
    batch: list[ReadyImage] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _milliseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
