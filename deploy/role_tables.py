"""Who may do what, as tables: of the permissions of each role, and of what each route asks for."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import FastAPI

from rayhook.auth.registry import EHRRegistry
from rayhook.auth.roles import PERMISSIONS, Permission, Role
from rayhook.deploy.app import mount
from rayhook.deploy.health import Health
from rayhook.deploy.health import build_router as health_router
from rayhook.deploy.middleware import RequestContext
from rayhook.deploy.problems import install_problem_handlers
from rayhook.deploy.service import Service, build_service
from rayhook.deploy.settings import Environment, Settings
from rayhook.smart_app.role_texts import PERMISSION_TEXTS, ROLE_NAMES
from rayhook.smart_app.routes_access import RouteAccess, route_accesses


@contextmanager
def bare_app(
    folder: Path,
    registry: EHRRegistry,
    *,
    public_base_url: str = "http://127.0.0.1:8000",
    database_url: str | None = None,
) -> Iterator[tuple[FastAPI, Service]]:
    """Yield the whole web application over the installation in `folder`, empty if new, with no model running."""
    settings = Settings(
        environment=Environment.DEVELOPMENT,
        data_dir=folder,
        database_url=database_url,
        public_base_url=public_base_url,
    )
    app = FastAPI(docs_url=None, redoc_url=None)
    app.add_middleware(RequestContext, https=False)
    install_problem_handlers(app)
    health = Health()
    app.include_router(health_router(health))
    with build_service(settings, registry, installed=(), running=()) as service:
        mount(app, service)
        health.begin(service.checks)
        yield app, service


def routes() -> list[RouteAccess]:
    with TemporaryDirectory() as folder, bare_app(Path(folder), EHRRegistry()) as (app, _):
        return route_accesses(app.routes)


def markdown(accesses: Iterable[RouteAccess]) -> str:
    """Return both tables in Markdown, as deploy/docs/roles.md has them."""
    return f"{permission_table()}\n\n{route_table(accesses)}\n"


def permission_table() -> str:
    head = ("permission", "allows to", *(ROLE_NAMES[role].lower() for role in Role))
    rows = [_permission_row(permission) for permission in Permission]
    return _table(head, rows)


def route_table(accesses: Iterable[RouteAccess]) -> str:
    return _table(("route", "asks for"), [(f"`{one.method} {one.path}`", _asks(one)) for one in accesses])


def _permission_row(permission: Permission) -> tuple[str, ...]:
    marks = ("yes" if permission in PERMISSIONS[role] else "" for role in Role)
    text = PERMISSION_TEXTS[permission]
    return f"`{permission}`", f"{text[:1].lower()}{text[1:]}", *marks


def _asks(access: RouteAccess) -> str:
    if access.permission is None:
        return access.instead or "nothing: not classified"
    return f"`{access.permission}`{', and a code not older than ten minutes' if access.fresh else ''}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
