"""Which permission every route asks for, read off the routes themselves: a new one that says nothing stands out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute

from rayhook.auth.roles import Permission
from rayhook.fhir.text import translatable

PUBLIC: Final = translatable("anybody: nothing of a patient or of the staff is in it")
CDS_CLIENT: Final = translatable("a CDS client's signed call")
EMERGENCY: Final = translatable("a live session of a practitioner without a role, where their EHR offers it")
LAUNCH: Final = translatable("an EHR's launch, or the end of a session")
SESSION: Final = translatable("a live session, for what its page looks like and whether it lives")
EHR_NOTIFICATION: Final = translatable("an EHR's notification, with the secret of its subscription")
DICOM_SENDER: Final = translatable("a registered sender of images, by its secret or its EHR's token")
METRICS: Final = translatable("a scraper on this machine, or one that shows the token")
SIGN_IN: Final = translatable("who is about to sign in or out, within limits")
STAFF: Final = translatable("anybody of the staff who is signed in")

# The routes that ask for no permission, and what they ask for instead. All others have a dependency that says it.
OPEN: Final[Mapping[str, str]] = {
    "/.well-known/jwks.json": PUBLIC,
    "/.well-known/oauth-protected-resource/fhir/R4": PUBLIC,
    "/cds-services": PUBLIC,
    "/cds-services/documentation": PUBLIC,
    "/cds-services/{service_id}": CDS_CLIENT,
    "/cds-services/{service_id}/feedback": CDS_CLIENT,
    "/dicom-web/studies": DICOM_SENDER,
    "/dicom-web/studies/{study}": DICOM_SENDER,
    "/emergency": EMERGENCY,
    "/fhir/R4/metadata": PUBLIC,
    "/fhir/subscriptions/{ehr_id}": EHR_NOTIFICATION,
    "/health/live": PUBLIC,
    "/health/ready": PUBLIC,
    "/health/startup": PUBLIC,
    "/metrics": METRICS,
    "/openapi.json": PUBLIC,
    "/sign-in": SIGN_IN,
    "/sign-in/confirm": SIGN_IN,
    "/sign-in/enrol/{token}": SIGN_IN,
    "/sign-in/oidc/callback": SIGN_IN,
    "/sign-in/oidc/{provider_id}": SIGN_IN,
    "/sign-out": SIGN_IN,
    "/smart/callback": LAUNCH,
    "/smart/language": PUBLIC,
    "/smart/launch": LAUNCH,
    "/smart/logout": LAUNCH,
    "/smart/standalone": LAUNCH,
    "/smart/static/viewer/{name:path}": PUBLIC,
    "/smart/static/{name}": PUBLIC,
    "/smart/style.css": SESSION,
    "/smart/window": SESSION,
    "/staff": STAFF,
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
