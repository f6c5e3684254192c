"""Which permission every route asks for, read off the routes themselves: a new one that says nothing stands out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute

from rayhook.auth.roles import Permission
from rayhook.fhir.text import translatable

_PUBLIC: Final = translatable("anybody: nothing of a patient or of the staff is in it")
_CDS_CLIENT: Final = translatable("a CDS client's signed call")
_LAUNCH: Final = translatable("an EHR's launch, or the end of a session")
_SIGN_IN: Final = translatable("who is about to sign in or out, within limits")
_STAFF: Final = translatable("anybody of the staff who is signed in")

# The routes that ask for no permission, and what they ask for instead. All others have a dependency that says it.
OPEN: Final[Mapping[str, str]] = {
    "/.well-known/jwks.json": _PUBLIC,
    "/cds-services": _PUBLIC,
    "/cds-services/documentation": _PUBLIC,
    "/cds-services/{service_id}": _CDS_CLIENT,
    "/cds-services/{service_id}/feedback": _CDS_CLIENT,
    "/fhir/metadata": _PUBLIC,
    "/health/live": _PUBLIC,
    "/health/ready": _PUBLIC,
    "/health/startup": _PUBLIC,
    "/openapi.json": _PUBLIC,
    "/sign-in": _SIGN_IN,
    "/sign-in/confirm": _SIGN_IN,
    "/sign-in/enrol/{token}": _SIGN_IN,
    "/sign-in/oidc/callback": _SIGN_IN,
    "/sign-in/oidc/{provider_id}": _SIGN_IN,
    "/sign-out": _SIGN_IN,
    "/smart/callback": _LAUNCH,
    "/smart/language": _PUBLIC,
    "/smart/launch": _LAUNCH,
    "/smart/logout": _LAUNCH,
    "/smart/static/{name}": _PUBLIC,
    "/staff": _STAFF,
}


@dataclass(frozen=True, slots=True)
class RouteAccess:
    """`permission` is what the route asks for; where it is None, `instead` says what, and None that nothing does."""

    method: str
    path: str
    permission: Permission | None
    instead: str | None
    fresh: bool = False
    kind: str = "open"


def route_accesses(routes: Iterable[BaseRoute]) -> list[RouteAccess]:
    """Return one line a method and route, by path. Preflights are no access: they carry nothing of anybody."""
    found = [access for route in iter_route_contexts(list(routes)) for access in _of(route)]
    return sorted(found, key=lambda one: (one.path, one.method))


def _of(route: Any) -> Iterator[RouteAccess]:
    asked = _asked(getattr(route, "dependant", None))
    permission = getattr(asked, "permission", None)
    for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"}):
        yield RouteAccess(
            method=method,
            path=route.path,
            permission=permission,
            instead=None if permission else OPEN.get(route.path),
            fresh=bool(getattr(asked, "fresh", False)),
            kind="open" if asked is None else type(asked).__name__,
        )


def _asked(dependant: Dependant | None) -> object | None:
    """Return the dependency that asks for a permission: an object that names it, or a method of one."""
    for one in () if dependant is None else dependant.dependencies:
        for holder in (one.call, getattr(one.call, "__self__", None)):
            if hasattr(holder, "permission"):
                return holder
        nested = _asked(one)
        if nested is not None:
            return nested
    return None
