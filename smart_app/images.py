"""The image proxy: a study's series, their images in order, and each image's values, for the viewer.

Addresses hold handles of ours, never a UID. Spec: DICOM PS3.18 (what is asked of the PACS in turn)
"""

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.responses import JSONResponse, Response

from rayhook.auth.roles import Permission
from rayhook.smart_app.access import Gate, Viewer
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.image_access import FramePixels, ImageAccess
from rayhook.smart_app.image_series import SeriesSummary, series_json
from rayhook.smart_app.image_study import series_handle
from rayhook.smart_app.json_route import NO_STORE, JSONErrorRoute
from rayhook.smart_app.other_studies import other_studies

Handle = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


def build_image_router(deps: SMARTDependencies, gate: Gate) -> APIRouter:
    router = APIRouter(prefix="/studies", route_class=JSONErrorRoute, include_in_schema=False)
    images = ImageAccess(deps, gate)
    seeing = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_IMAGE_READ))]

    @router.get("/{study}")
    def study(study: Handle, viewer: seeing) -> Response:
        found = images.series_list(viewer, study)
        reference = images.study(viewer, study)
        return _json(
            {
                "description": reference.description or "",
                "started": (reference.started or "")[:10],
                "series": [_series_line(one, deps) for one in found],
            }
        )

    @router.get("/{study}/others")
    def others(study: Handle, viewer: seeing) -> Response:
        return _json({"studies": other_studies(deps, images, viewer, study)})

    @router.get("/{study}/series/{series}")
    def series(study: Handle, series: Handle, viewer: seeing) -> Response:
        opened = images.series(viewer, study, series)
        return _json(series_json(opened.series, handle=series, image_handle=opened.handles.__getitem__))

    @router.get("/{study}/series/{series}/images/{image}/{frame}")
    def image(
        study: Handle, series: Handle, image: Handle, frame: Annotated[int, Path(ge=0)], viewer: seeing
    ) -> Response:
        return _octets(images.pixels(viewer, study, series, image, frame))

    return router


def _series_line(series: SeriesSummary, deps: SMARTDependencies) -> dict[str, object]:
    return {
        "handle": series_handle(deps.keyring, series.series_instance_uid),
        "modality": series.modality,
        "number": series.number,
        "description": series.description,
        "body_part": series.body_part,
        "images": series.images,
    }


def _octets(pixels: FramePixels) -> Response:
    """The values go as they are; the header says how to read them."""
    described = {
        "dtype": pixels.dtype,
        "samples": pixels.samples,
        "rows": pixels.rows,
        "columns": pixels.columns,
        "slope": pixels.slope,
        "intercept": pixels.intercept,
        "lossy": pixels.lossy,
    }
    return Response(
        pixels.data,
        media_type="application/octet-stream",
        headers={**NO_STORE, "X-Rayhook-Frame": json.dumps(described)},
    )


def _json(content: dict[str, object]) -> Response:
    return JSONResponse(content, headers=NO_STORE)
