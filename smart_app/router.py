"""All routes of the SMART app and of our own FHIR endpoint."""

from fastapi import APIRouter

from rayhook.smart_app.access import Gate
from rayhook.smart_app.answers import build_answer_router
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.emergency import build_emergency_router
from rayhook.smart_app.fhir_api import build_fhir_router
from rayhook.smart_app.images import build_image_router
from rayhook.smart_app.language import build_language_router
from rayhook.smart_app.launch import build_launch_router
from rayhook.smart_app.model_card import build_model_router, build_staff_model_router
from rayhook.smart_app.notifications import build_notification_router
from rayhook.smart_app.overlay import build_overlay_router
from rayhook.smart_app.pages import Pages
from rayhook.smart_app.performance import build_performance_router
from rayhook.smart_app.results import build_result_router
from rayhook.smart_app.session_routes import build_session_router
from rayhook.smart_app.staff_router import build_staff_routers
from rayhook.smart_app.viewer import ViewerFiles, build_viewer_router
from rayhook.smart_app.worklist_pages import build_worklist_router

__all__ = ["SMARTDependencies", "build_router"]


def build_router(deps: SMARTDependencies) -> APIRouter:
    pages = Pages(deps.registry)
    gate = Gate(deps)
    viewer_files = ViewerFiles()
    router = APIRouter()
    router.include_router(build_launch_router(deps, pages))
    router.include_router(build_session_router(deps, pages))
    router.include_router(build_language_router(deps, pages))
    router.include_router(build_worklist_router(deps, pages, gate))
    router.include_router(build_emergency_router(deps, pages, gate))
    router.include_router(build_result_router(deps, pages, gate, viewer_files))
    router.include_router(build_answer_router(deps, pages, gate))
    router.include_router(build_model_router(deps, pages, gate))
    router.include_router(build_staff_model_router(deps, pages, gate))
    router.include_router(build_performance_router(deps, pages, gate))
    router.include_router(build_image_router(deps, gate))
    router.include_router(build_overlay_router(deps, gate))
    router.include_router(build_viewer_router(viewer_files))
    router.include_router(build_notification_router(deps))
    router.include_router(build_fhir_router(deps, gate))
    router.include_router(build_staff_routers(deps, pages, gate.of_staff))
    return router
