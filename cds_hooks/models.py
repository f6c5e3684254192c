"""What CDS Hooks puts on the wire, typed; a value of these types obeys the specification's rules.

Spec: CDS Hooks 2.0.1 and 3.0.0-ballot
"""

import re
from typing import Annotated, Any, TypeVar
from uuid import UUID as UUID_TYPE

import msgspec
from msgspec import Meta, Struct

from rayhook.fhir.errors import InvalidRequest

Id = Annotated[str, Meta(pattern=r"^(?!\.{1,2}\Z)[A-Za-z0-9.-]{1,64}\Z")]
UserReference = Annotated[
    str,
    Meta(
        pattern=r"^(Practitioner|PractitionerRole|Patient|RelatedPerson)/(?!\.{1,2}\Z)[A-Za-z0-9.-]{1,64}\Z"
    ),
]
UUID = Annotated[str, Meta(pattern=r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\Z")]
# RFC 6750, 2.1: nothing that could end the header it travels in.
BearerToken = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._~+/-]+=*\Z", max_length=16384)]
JSONObject = dict[str, Any]


class FHIRAuthorization(Struct, frozen=True, kw_only=True):
    """The token that the EHR lends for one call. Its `repr` does not show it.

    Spec: CDS Hooks 2.0.1, "Passing the Access Token to the CDS Service"
    """

    access_token: BearerToken
    token_type: Annotated[str, Meta(pattern=r"^[Bb]earer\Z")]
    expires_in: Annotated[int, Meta(gt=0)]
    scope: str
    subject: str
    patient: Id | None = None

    def __repr__(self) -> str:
        return "FHIRAuthorization(...)"


class HookRequest(Struct, frozen=True, kw_only=True, rename="camel"):
    """Spec: CDS Hooks 2.0.1, "Calling a CDS Service", HTTP Request."""

    hook: str
    hook_instance: UUID
    context: JSONObject
    fhir_server: Annotated[str, Meta(min_length=1, max_length=2048)] | None = None
    fhir_authorization: FHIRAuthorization | None = None
    prefetch: JSONObject | None = None
    extension: JSONObject | None = None


class Coding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    code: Annotated[str, Meta(pattern=r"^[^\x00-\x20]+( [^\x00-\x20]+)*\Z", max_length=255)]
    system: Annotated[str, Meta(pattern=r"^[^\x00-\x20]+\Z", max_length=2048)]
    display: str | None = None


class ReasonCoding(Struct, frozen=True, kw_only=True):
    """A reason that a clinician can choose: here `display` is not optional."""

    code: str
    system: str
    display: str

    def __post_init__(self) -> None:
        _require(bool(self.code and self.system and self.display), "card.overrideReasons")


class Source(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Spec: CDS Hooks 2.0.1, "Source"."""

    label: str
    topic: Coding
    url: str | None = None

    def __post_init__(self) -> None:
        _require(bool(self.label), "card.source.label")
        _require(self.url is None or _is_absolute(self.url), "card.source.url")


class Link(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Spec: CDS Hooks 2.0.1, "Link"; `appContext` belongs to smart links alone."""

    label: str
    url: str
    type: str
    app_context: str | None = None

    def __post_init__(self) -> None:
        _require(self.type in {"absolute", "smart"}, "link.type")
        _require(
            self.app_context is None or (self.type == "smart" and bool(self.app_context)), "link.appContext"
        )
        _require(bool(self.label), "link.label")
        _require(_is_absolute(self.url), "link.url")


class Action(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What is created comes whole, what is deleted is only named. Spec: CDS Hooks 2.0.1, "Action"."""

    type: str
    description: str
    resource: JSONObject | None = None
    resource_id: str | None = None

    def __post_init__(self) -> None:
        _require(self.type in {"create", "update", "delete"}, "action.type")
        _require(bool(self.description), "action.description")
        if self.type == "delete":
            _require(self.resource is None and bool(self.resource_id), "action.resourceId")
        else:
            _require(self.resource_id is None and "resourceType" in (self.resource or {}), "action.resource")


class Suggestion(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Its actions hold together. Spec: CDS Hooks 2.0.1, "Suggestion"."""

    label: str
    uuid: str
    actions: tuple[Action, ...]
    is_recommended: bool = False

    def __post_init__(self) -> None:
        UUID_TYPE(self.uuid)
        _require(bool(self.label), "suggestion.label")
        _require(bool(self.actions), "suggestion.actions")


class Card(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Spec: CDS Hooks 2.0.1, "Card Attributes"; 3.0.0-ballot, invariants cds-resp-1 to -6."""

    uuid: str
    summary: str
    indicator: str
    source: Source
    detail: str | None = None
    suggestions: tuple[Suggestion, ...] = ()
    selection_behavior: str | None = None
    override_reasons: tuple[ReasonCoding, ...] = ()
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        UUID_TYPE(self.uuid)
        _require(0 < len(self.summary) < SUMMARY_LIMIT, "card.summary")
        _require(self.indicator in {"info", "warning", "critical"}, "card.indicator")
        _require(self.detail is None or bool(self.detail), "card.detail")
        allowed = {"any", "at-most-one"} if self.suggestions else {None}
        _require(self.selection_behavior in allowed, "card.selectionBehavior")
        recommended = sum(suggestion.is_recommended for suggestion in self.suggestions)
        _require(self.selection_behavior == "any" or recommended <= 1, "suggestion.isRecommended")


class Response(Struct, frozen=True, kw_only=True):
    cards: tuple[Card, ...]


SUMMARY_LIMIT = 140

_Model = TypeVar("_Model", bound=Struct)
_MISSING = re.compile(r"missing required field `(\w+)`")
_AT = re.compile(r" - at `\$\.?(.*)`$")


def read(value: object, model: type[_Model], *, under: str = "") -> _Model:
    """Return `value` as a `model`.

    Raises InvalidRequest that names the member at fault, as a path below `under`.
    """
    try:
        return msgspec.convert(value, model)
    except msgspec.ValidationError as error:
        told = str(error)
        missing = _MISSING.search(told)
        at = _AT.search(told)
        path = ".".join(part for part in (under, at and at[1], missing and missing[1]) if part)
        rule = "is missing" if missing else "does not have the form that CDS Hooks gives it"
        raise InvalidRequest(f"{path or 'the body'} {rule}", expression=path or None) from error


def _is_absolute(url: str) -> bool:
    return url.startswith(("https://", "http://"))


def _require(holds: bool, member: str) -> None:
    if not holds:
        raise ValueError(f"{member} breaks a rule of CDS Hooks")
