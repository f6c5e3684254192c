"""The check of what leaves: fhir.resources' models, and what those models let pass.

Kept apart from `rayhook.fhir.r4`, which imports it at first use: fhir.resources takes half a second.
"""

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast

import msgspec
from fhir.resources.R4B import get_fhir_model_class
from pydantic import BaseModel, ValidationError

from rayhook.fhir.codes import (
    AuditEventAction,
    AuditEventOutcome,
    AuditNetworkType,
    DiagnosticReportStatus,
    IssueType,
    ObservationStatus,
    QuantityComparator,
    UDIEntryType,
)
from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.r4 import encode_json
from rayhook.fhir.references import parse_reference

# The required bindings that the models leave out or cut off. The others are in the models' own field metadata.
_BINDINGS: Mapping[tuple[str, str], frozenset[str]] = {
    ("AuditEvent", "action"): frozenset(AuditEventAction),
    ("AuditEvent", "outcome"): frozenset(AuditEventOutcome),
    ("AuditEventAgentNetwork", "type"): frozenset(AuditNetworkType),
    ("DeviceUdiCarrier", "entryType"): frozenset(UDIEntryType),
    ("DiagnosticReport", "status"): frozenset(DiagnosticReportStatus),
    ("Observation", "status"): frozenset(ObservationStatus),
    ("OperationOutcomeIssue", "code"): frozenset(IssueType),
    ("Quantity", "comparator"): frozenset(QuantityComparator),
}
# R4 allows fewer subjects than R4B does.
_SUBJECTS = frozenset({"Device", "Group", "Location", "Patient"})
_TARGETS: Mapping[tuple[str, str], frozenset[str]] = {
    ("DiagnosticReport", "subject"): _SUBJECTS,
    ("Observation", "subject"): _SUBJECTS,
}
_MEDIA_TYPE_FIELDS = frozenset({("Attachment", "contentType"), ("Endpoint", "payloadMimeType")})
_MEDIA_TYPE = re.compile(r"[a-z]+/[A-Za-z0-9!#$&^_.+-]+(?:\s*;.*)?")
_TYPE_BEFORE_QUERY = re.compile(r"([A-Z][A-Za-z]+)\?.+")
_WITH_REQUEST = frozenset({"batch", "history", "transaction"})
_MAX_DECIMALS = 8


def check(resource: Mapping[str, Any]) -> None:
    """Do what `rayhook.fhir.r4.validate` promises."""
    try:
        raw = msgspec.json.decode(encode_json(resource))
        root = str(raw.get("resourceType"))
        _refuse_empty(raw, root)
        model = _parse(raw, root)
        _Walk(_bundled(raw)).resource(model, raw, root)
    except (TypeError, UnicodeError, OverflowError, RecursionError) as error:
        raise InvalidRequest("the resource has no JSON form", code="invalid_resource") from error


def _refuse_empty(value: Any, path: str) -> None:
    """Spec: FHIR R4, 2.6.2 "JSON": no null, and never empty arrays, objects or strings."""
    if value is None or (isinstance(value, str | list | dict) and not value):
        raise _refusal(path, "must not be empty")
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_empty(item, f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_empty(item, f"{path}[{index}]")


def _parse(raw: dict[str, Any], root: str) -> BaseModel:
    try:
        model_class = get_fhir_model_class(root)
    except (KeyError, LookupError, ValueError):
        raise _refusal("resourceType", "must be an R4 resource type") from None
    try:
        return cast(BaseModel, model_class.model_validate(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join([root, *map(str, first["loc"])])
        # Not chained: pydantic's message repeats the value.
        raise _refusal(path, f"is not as R4 defines it ({first['type']})") from None


def _bundled(raw: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the resource type by fullUrl, None outside a Bundle.

    Spec: FHIR R4 Bundle, bdl-3, bdl-7
    """
    if raw.get("resourceType") != "Bundle":
        return None
    entries = raw.get("entry", [])
    for index, entry in enumerate(entries):
        if ("request" in entry) != (raw["type"] in _WITH_REQUEST):
            raise _refusal(
                f"Bundle.entry[{index}].request", "must be there in a transaction, batch or history only"
            )
    addressed = [entry for entry in entries if "fullUrl" in entry and "resource" in entry]
    types = {entry["fullUrl"]: str(entry["resource"].get("resourceType")) for entry in addressed}
    if len(types) != len(addressed) and raw["type"] != "history":
        raise _refusal("Bundle.entry.fullUrl", "must be unique")
    return types


@dataclass(frozen=True, slots=True)
class _Walk:
    """Goes through a model and the JSON it came from side by side.

    `bundled` is the resource type by fullUrl, `contained` that by fragment in the resource at hand.
    """

    bundled: Mapping[str, str] | None
    contained: Mapping[str, str] = field(default_factory=dict)

    def resource(self, model: BaseModel, raw: Mapping[str, Any], path: str) -> None:
        inner = raw.get("contained", ())
        if inner:
            types = {f"#{item.get('id')}": str(item.get("resourceType")) for item in inner}
            _Walk(self.bundled, types).element(model, raw, path)
        else:
            self.element(model, raw, path)

    def element(self, model: BaseModel, raw: Mapping[str, Any], path: str) -> None:
        owner = _type_name(model)
        _check_invariants(owner, raw, path)
        for name, info in type(model).model_fields.items():
            key = info.alias or name
            value = getattr(model, name)
            if value is None or key not in raw:
                continue
            rule = _Rule.of(owner, key, info.json_schema_extra)
            for item, source, place in _items(value, raw[key], f"{path}.{key}"):
                self._item(item, source, place, rule)

    def _item(self, value: Any, raw: Any, path: str, rule: "_Rule") -> None:
        if isinstance(value, BaseModel):
            if _type_name(value) == "Reference":
                self._reference(raw, path, rule.targets)
            (self.resource if "resourceType" in raw else self.element)(value, raw, path)
        else:
            _check_primitive(value, raw, path, rule)

    def _reference(self, raw: Mapping[str, Any], path: str, targets: frozenset[str]) -> None:
        named = raw.get("type")
        literal = self._literal_type(raw["reference"], path) if "reference" in raw else None
        if named is not None and literal is not None and named != literal:
            raise _refusal(f"{path}.type", "must be the type that the reference names")
        found = literal or named
        if found is not None and targets and found not in targets:
            raise _refusal(f"{path}.reference", f"must be to {', '.join(sorted(targets))}")

    def _literal_type(self, text: str, path: str) -> str | None:
        """Return the type that a literal reference is to, None where it cannot be known from here."""
        if text.startswith("#"):
            if text not in self.contained and text != "#":
                raise _refusal(f"{path}.reference", "must be to a contained resource that is there")
            return self.contained.get(text)
        if self.bundled is not None and text in self.bundled:
            return self.bundled[text]
        if text.startswith("urn:"):
            if self.bundled is not None:
                raise _refusal(f"{path}.reference", "must be to an entry of the Bundle")
            return None
        conditional = _TYPE_BEFORE_QUERY.fullmatch(text)
        return conditional[1] if conditional else _rest_type(text, path)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What the specification says of one element, beyond its type. Empty sets allow everything."""

    codes: frozenset[str]
    targets: frozenset[str]
    media_type: bool

    @classmethod
    def of(cls, owner: str, key: str, metadata: object) -> "_Rule":
        extra = metadata if isinstance(metadata, Mapping) else {}
        codes = frozenset(extra.get("enum_values") or ())
        targets = frozenset(extra.get("enum_reference_types") or ())
        return cls(
            # "+" is how the models say that the list goes on.
            codes=_BINDINGS.get((owner, key), frozenset() if "+" in codes else codes),
            targets=_TARGETS.get((owner, key), frozenset() if "Resource" in targets else targets),
            media_type=(owner, key) in _MEDIA_TYPE_FIELDS,
        )


def _items(value: Any, raw: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    if not isinstance(value, list):
        yield value, raw, path
        return
    for index, (item, source) in enumerate(zip(value, raw, strict=True)):
        yield item, source, f"{path}[{index}]"


def _type_name(model: BaseModel) -> str:
    return str(getattr(type(model), "__resource_type__", type(model).__name__))


def _check_primitive(value: Any, raw: Any, path: str, rule: _Rule) -> None:
    if isinstance(value, bool | int | float | Decimal) and isinstance(raw, str):
        raise _refusal(path, "must be a JSON number or boolean, not a string")
    if isinstance(raw, float) and _decimals(raw) > _MAX_DECIMALS:
        raise _refusal(path, f"must not have more than {_MAX_DECIMALS} decimals")
    if rule.codes and isinstance(raw, str) and raw not in rule.codes:
        raise _refusal(path, "must be a code of the required value set")
    if rule.media_type and not _MEDIA_TYPE.fullmatch(raw):
        raise _refusal(path, "must be a media type")


def _decimals(value: float) -> int:
    exponent = Decimal(repr(value)).as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0


def _rest_type(text: str, path: str) -> str | None:
    try:
        return parse_reference(text).type
    except InvalidRequest as error:
        if "://" in text:
            return None
        raise _refusal(f"{path}.reference", "must be Type/id") from error


def _check_invariants(owner: str, raw: Mapping[str, Any], path: str) -> None:
    check = _INVARIANTS.get(owner)
    if check is not None:
        check(raw, path)


def _check_attachment(raw: Mapping[str, Any], path: str) -> None:
    """Spec: FHIR R4 Attachment, att-1; primitive type base64Binary."""
    if "data" not in raw:
        return
    if "contentType" not in raw:
        raise _refusal(f"{path}.contentType", "must be there beside data (att-1)")
    try:
        base64.b64decode(raw["data"], validate=True)
    except ValueError as error:
        raise _refusal(f"{path}.data", "must be base64") from error


def _check_extension(raw: Mapping[str, Any], path: str) -> None:
    """Spec: FHIR R4 Extension, ext-1."""
    if ("extension" in raw) == any(key.startswith(("value", "_value")) for key in raw):
        raise _refusal(path, "must have either a value or extensions (ext-1)")


def _check_observation(raw: Mapping[str, Any], path: str) -> None:
    """Spec: FHIR R4 Observation, obs-6, obs-7."""
    if not any(key.startswith("value") for key in raw):
        return
    if "dataAbsentReason" in raw:
        raise _refusal(f"{path}.dataAbsentReason", "must not be beside a value (obs-6)")
    components = [coding for item in raw.get("component", ()) for coding in _codings(item["code"])]
    if any(coding in components for coding in _codings(raw["code"])):
        raise _refusal(f"{path}.component", "must not have the code of an Observation with a value (obs-7)")


def _check_quantity(raw: Mapping[str, Any], path: str) -> None:
    """Spec: FHIR R4 Quantity, qty-3."""
    if "code" in raw and "system" not in raw:
        raise _refusal(f"{path}.system", "must be there beside code (qty-3)")


_INVARIANTS: Mapping[str, Callable[[Mapping[str, Any], str], None]] = {
    "Attachment": _check_attachment,
    "Extension": _check_extension,
    "Observation": _check_observation,
    "Quantity": _check_quantity,
}


def _codings(concept: Mapping[str, Any]) -> Sequence[tuple[Any, Any]]:
    return [(coding.get("system"), coding.get("code")) for coding in concept.get("coding", ())]


def _refusal(path: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"{path} {rule}", code="invalid_resource", expression=path)
