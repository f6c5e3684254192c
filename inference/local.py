"""`rayhook analyze`: one's own DICOM files, without any EHR, one JSON object an instance."""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayhook.inference.analysis import Analyser
from rayhook.inference.decode import DecodeLimits
from rayhook.inference.dicom_results import build_objects
from rayhook.inference.instance_names import InstanceNames
from rayhook.inference.registry import ModelStatus
from rayhook.inference.study import AnalysisStatus, Finding, InstanceResult, Mark, ModelIdentity

OBJECT_KINDS = ("sr", "parametric_map", "secondary_capture")

_MAX_BYTES = DecodeLimits().max_file_bytes


def analyze_paths(paths: Iterable[Path], analyser: Analyser) -> Iterator[dict[str, Any]]:
    """Yield the JSON line of each file, folders recursively and in order; a bad file never stops the rest.

    Raises EngineUnavailable or ModelIntegrityError: without an engine nothing can be said of any file.
    """
    for path in find_files(paths):
        yield _analyze(path, analyser)


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files named, and those in the folders named, sorted within each folder tree."""
    for path in paths:
        if path.is_dir():
            yield from sorted(found for found in path.rglob("*") if found.is_file())
        else:
            yield path


def write_objects(
    paths: Iterable[Path], analyser: Analyser, folder: Path, *, organization: str
) -> Iterator[Path]:
    """Write the DICOM objects of each study among the files, and yield what was written.

    They are at `folder`/<Study Instance UID>/<kind>.dcm. A study that no model saw has none.
    Raises as analyze_paths does, Unprocessable where a study's objects cannot be made.
    """
    for study, files in _by_study(paths).items():
        result = analyser.study(_read(files), expected_study_uid=study)
        objects = build_objects(
            result.source_header,
            result,
            analyser.manifest_of(result.model),
            organization=organization,
            kinds=OBJECT_KINDS,
        )
        for one in objects:
            target = folder / study / f"{one.kind}.dcm"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(one.data)
            yield target


def _by_study(paths: Iterable[Path]) -> dict[str, list[Path]]:
    studies: dict[str, list[Path]] = {}
    for path in find_files(paths):
        with suppress(OSError):
            with path.open("rb") as file:
                names = InstanceNames.read(file.read(_MAX_BYTES + 1), DecodeLimits())
            if names.study_instance_uid is not None:
                studies.setdefault(names.study_instance_uid, []).append(path)
    return studies


def _read(files: Iterable[Path]) -> Iterator[bytes]:
    for path in files:
        yield path.read_bytes()


def _analyze(path: Path, analyser: Analyser) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        elapsed_ms = (time.perf_counter() - started) * 1000.0
        return _line(path, _unreadable(error), elapsed_ms)
    result = analyser.instance(data)
    return _line(path, result, (time.perf_counter() - started) * 1000.0)


def _unreadable(error: OSError) -> InstanceResult:
    return InstanceResult(
        sop_instance_uid=None,
        study_instance_uid=None,
        series_instance_uid=None,
        status=AnalysisStatus.REFUSED,
        error_code="unreadable_file",
        reason=f"the file cannot be read: {error.strerror}",
    )


def _line(path: Path, result: InstanceResult, elapsed_ms: float) -> dict[str, Any]:
    """Return the line's fields; `error` says why for every status but `analysed`."""
    return {
        "path": str(path),
        "sop_instance_uid": result.sop_instance_uid,
        "study_instance_uid": result.study_instance_uid,
        "status": result.status.value,
        "error": _error(result),
        "findings": [_finding(finding) for finding in result.findings],
        "marks": [_mark(mark) for mark in result.marks],
        "model": None if result.model is None else _model(result.model),
        "sha256": result.sha256,
        "elapsed_ms": round(elapsed_ms, 3),
    }


def _error(result: InstanceResult) -> dict[str, Any] | None:
    if result.status is AnalysisStatus.ANALYSED:
        return None
    return {"code": result.error_code, "message": result.reason}


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "system": finding.system,
        "display": finding.display,
        "probability": finding.probability,
        "threshold": finding.threshold,
        "positive": finding.positive,
    }


def _mark(mark: Mark) -> dict[str, Any]:
    return {
        "row": mark.row,
        "column": mark.column,
        "score": mark.score,
        "probability": mark.probability,
        "positive": mark.positive,
    }


def _model(model: ModelIdentity) -> dict[str, Any]:
    status = ModelStatus.EXPERIMENTAL if model.experimental else ModelStatus.VALIDATED
    return {
        "id": model.id,
        "version": model.version,
        "status": status.value,
        "weights_sha256": model.weights_sha256,
        "manifest_sha256": model.manifest_sha256,
        "finder": None if model.finder is None else _model(model.finder),
    }
