"""Liveness, readiness and start-up: three questions, three honest answers."""

from collections.abc import Callable, Mapping

from fastapi import APIRouter
from fastapi.responses import JSONResponse

Check = Callable[[], bool]


def build_router(checks: Mapping[str, Check]) -> APIRouter:
    """Return the health routes; `checks` are what readiness asks, by name.

    `/health/live` says that the process answers; `/health/ready` and `/health/startup` are 503 until every
    check holds, and name those that do not.
    """
    router = APIRouter(prefix="/health", tags=["health"])

    @router.get("/live")
    def live() -> dict[str, str]:
        return {"status": "ok"}

    def ready() -> JSONResponse:
        states = {name: check() for name, check in checks.items()}
        whole = all(states.values())
        return JSONResponse(
            {"status": "ok" if whole else "unavailable", "checks": states}, status_code=200 if whole else 503
        )

    router.get("/ready")(ready)
    router.get("/startup")(ready)
    return router
