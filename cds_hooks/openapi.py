"""The forms of the bodies for the OpenAPI document, from the types that read them."""

from typing import Any

import msgspec

from rayhook.cds_hooks.contexts import Context
from rayhook.cds_hooks.feedback import Feedback
from rayhook.cds_hooks.models import HookRequest
from rayhook.cds_hooks.services import SERVICES


def call_operation() -> dict[str, Any]:
    """Spec: OpenAPI 3.1, "Operation Object"."""
    contexts: list[type[Context]] = [service.context for service in SERVICES]
    (request,), components = _schemas(HookRequest)
    shapes, more = _schemas(*contexts)
    hooks = {"enum": sorted({service.hook for service in SERVICES})}
    told = {"type": "object", "properties": {"context": {"anyOf": shapes}, "hook": hooks}}
    whole = {"allOf": [request, told]}
    return _operation(whole, components | more)


def feedback_operation() -> dict[str, Any]:
    (feedback,), components = _schemas(Feedback)
    return _operation(feedback, components)


def _schemas(*types: type[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    shapes, components = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    return list(shapes), components


def _operation(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """Definitions are written in place: FastAPI keeps a document's components to itself."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _inlined(schema, components)}},
        },
        "responses": {
            status: {"description": description}
            for status, description in (
                ("400", "OperationOutcome: malformed"),
                ("401", "OperationOutcome: the JWT was not accepted"),
                ("404", "OperationOutcome: no such service or card"),
                ("412", "OperationOutcome: data are missing"),
                ("413", "OperationOutcome: the body is too long"),
                ("422", "OperationOutcome: data of two patients"),
                ("429", "OperationOutcome: too many calls"),
                ("503", "OperationOutcome: not now"),
            )
        },
    }


def _inlined(value: Any, components: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(components[value["$ref"].rsplit("/", 1)[1]], components)
        return {name: _inlined(inner, components) for name, inner in value.items()}
    if isinstance(value, str):
        # The end of the text, as ECMA-262 spells it.
        return value.replace("\\Z", "$")
    return [_inlined(inner, components) for inner in value] if isinstance(value, list) else value
