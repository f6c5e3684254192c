"""Where the model looked, for the viewer: the heatmap, the points rated, and each slice's probability."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from rayhook.auth.keys import Keyring
from rayhook.auth.roles import Permission
from rayhook.fhir.errors import NotFound
from rayhook.inference.explain import render_heat_png, unpack_heat
from rayhook.inference.jobs import StoredResult
from rayhook.inference.study import AnalysisStatus, KeyImage, StudyResult
from rayhook.smart_app.access import Gate, Viewer
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.image_study import image_handle, series_handle, study_handle
from rayhook.smart_app.json_route import NO_STORE, JSONErrorRoute
from rayhook.smart_app.results import ResultViews


def overlay_json(stored: StoredResult, keyring: Keyring) -> dict[str, Any]:
    """Return what is laid over the images, which are named by their handles."""
    result = stored.result
    return {
        "study": f"/studies/{study_handle(keyring, stored.reference.study_instance_uid)}",
        "series": _series(result, keyring),
        "key_image": _key_image(stored, keyring),
        "threshold": result.findings[0].threshold if result.findings else None,
        "slices": list(_slices(result, keyring)),
        "marks": list(_marks(result, keyring)),
    }


def _series(result: StudyResult, keyring: Keyring) -> str | None:
    return None if result.series_instance_uid is None else series_handle(keyring, result.series_instance_uid)


def _key_image(stored: StoredResult, keyring: Keyring) -> Mapping[str, Any] | None:
    key = stored.result.key_image
    if key is None:
        return None
    return {
        "series": series_handle(keyring, key.series_instance_uid),
        "image": image_handle(keyring, key.sop_instance_uid),
        "rows": key.rows,
        "columns": key.columns,
        "heat": _heat(stored.id, key),
    }


def _heat(result_id: str, key: KeyImage) -> Mapping[str, Any]:
    """Older results have no heat by itself, only a picture of the image with the heat over it."""
    if key.heat is None:
        return {"picture": f"/results/{result_id}/overlay.png", "step": 1, "alone": False}
    return {"picture": f"/results/{result_id}/heat.png", "step": key.heat.step, "alone": True}


def _slices(result: StudyResult, keyring: Keyring) -> Iterator[tuple[str, float]]:
    if result.status is AnalysisStatus.ANALYSED and len(result.slice_uids) == len(result.slice_probabilities):
        for uid, probability in zip(result.slice_uids, result.slice_probabilities, strict=True):
            yield image_handle(keyring, uid), round(probability, 4)


def _marks(result: StudyResult, keyring: Keyring) -> Iterator[Mapping[str, Any]]:
    """Yield the points of the series that speaks for the study; none where the model gave no answer."""
    if result.status is not AnalysisStatus.ANALYSED:
        return
    for instance in result.instances:
        if instance.series_instance_uid != result.series_instance_uid or instance.sop_instance_uid is None:
            continue
        for mark in instance.marks:
            yield {
                "image": image_handle(keyring, instance.sop_instance_uid),
                "row": mark.row,
                "column": mark.column,
                "probability": None if mark.probability is None else round(mark.probability, 4),
                "positive": mark.positive,
            }


def build_overlay_router(deps: SMARTDependencies, gate: Gate) -> APIRouter:
    router = APIRouter(prefix="/results", route_class=JSONErrorRoute, include_in_schema=False)
    views = ResultViews(deps, gate)
    seeing = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_IMAGE_READ))]

    @router.get("/{result_id}/overlay")
    def overlay(result_id: str, viewer: seeing) -> Response:
        stored = views.result(viewer, result_id, part="overlay")
        return JSONResponse(overlay_json(stored, deps.keyring), headers=NO_STORE)

    @router.get("/{result_id}/heat.png")
    def heat(result_id: str, viewer: seeing) -> Response:
        key = views.result(viewer, result_id, part="heat").result.key_image
        if key is None or key.heat is None:
            raise NotFound("this result has no heat map of its own")
        return Response(render_heat_png(unpack_heat(key.heat)), media_type="image/png", headers=NO_STORE)

    return router
