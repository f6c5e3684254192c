"""What an integrator has to know, told by the code itself: the page at /cds-services/documentation.

Spec: CDS Hooks 3.0.0-ballot, "Capability Documentation"
"""

import inspect
import json
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
from markdown_it import MarkdownIt

from rayhook.auth.registry import ANALYSES_PER_MINUTE, CALLS_PER_MINUTE
from rayhook.auth.tokens import ALGORITHMS, MAX_LIFE_S, SKEW_S
from rayhook.cds_hooks.answers import Topic
from rayhook.cds_hooks.contexts import Context, ImagingResultContext
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.guidelines import (
    DUPLICATE_DAYS,
    GUIDELINES,
    PREVIOUS_EXPOSURE,
    PREVIOUS_IMAGES,
    Citation,
)
from rayhook.cds_hooks.json_body import MAX_BODY_BYTES, MAX_DEPTH
from rayhook.cds_hooks.override_reasons import SYSTEM, reasons_for
from rayhook.cds_hooks.prefetch import MAX_PAGES
from rayhook.cds_hooks.services import IMAGING_RESULT_AVAILABLE, SERVICES, SPECIFICATION_VERSION
from rayhook.cds_hooks.studies import MAX_STUDIES
from rayhook.fhir.errors import RayhookError
from rayhook.inference.statement import INVESTIGATIONAL

PLACEHOLDER = "https://rayhook.example.org"

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;width:100%}td,th{border:1px solid #d0d7de;padding:.3rem .6rem;text-align:left;"
    "vertical-align:top}pre,code{background:#f3f5f7;font-size:.9em}pre{padding:.8rem;overflow:auto}"
)
# What a call can be refused with; the others of the tree belong to other parts of Rayhook.
_ERRORS = ("InvalidRequest", "Unauthenticated", "Forbidden", "NotFound", "PrefetchUnavailable", "PayloadTooLarge",
           "IdentityConflict", "RateLimited", "ServiceUnavailable", "AuditUnavailable")  # fmt: skip
_TOPICS = {
    Topic.ABSTAINED: "the model declined to answer",
    Topic.CANCELLED: "the analysis was cancelled",
    Topic.DUPLICATE_IMAGING: "rule 1 on orders",
    Topic.FAILED: "the analysis ended in an error",
    Topic.FINDING: "a finding reached its threshold",
    Topic.FOLLOW_UP_DUE: "rule 2 on orders",
    Topic.GIVEN_UP: "each attempt ended the process that analyses the images; no further one is made",
    Topic.IN_PROGRESS: "the images are being analysed; call again",
    Topic.INCOMPLETE: "the list of studies could not be read to its end",
    Topic.MODALITY: "rule 3 on orders",
    Topic.NO_FINDING: "no finding reached its threshold",
    Topic.NOT_BEGUN: "too many studies wait already; call again later",
    Topic.NOTHING_TO_RATE: "no point of the images was like what the model rates",
    Topic.OUT_OF_SCOPE: "no model is meant for these images",
    Topic.REFUSED: "the images could not be read faithfully",
    Topic.UNREACHABLE: "the images cannot be reached",
    Topic.WITHDRAWN: "a radiologist took the model's report back, or accepted nothing of it",
}


def page(base_url: str) -> bytes:
    """Return the documentation as HTML; it loads nothing and runs nothing."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown(base_url))
    head = f'<meta charset="utf-8"><title>Rayhook: CDS Hooks</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'.encode()


def markdown(base_url: str = PLACEHOLDER) -> str:
    sections = (
        _introduction(base_url),
        _register(),
        _services(),
        _own_hook(),
        _token(base_url),
        _request(base_url),
        _prefetch(),
        _cards(),
        _rules(),
        _feedback(base_url),
        _refusals(),
        _limits(),
        _verify(base_url),
        _decisions(),
    )
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _introduction(base_url: str) -> Iterator[str]:
    yield "# Rayhook: CDS Hooks for integrators\n"
    yield (
        f"Written by the code that answers. CDS Hooks {SPECIFICATION_VERSION} and 3.0.0-ballot clients are served by the "
        f"same endpoints; discovery is at `{base_url}/cds-services`.\n"
    )
    yield f"**{INVESTIGATIONAL}**"


def _register() -> Iterator[str]:
    yield "## What to register\n"
    yield "With us, for each client (`rayhook registry check` reads the file as the service does):\n"
    yield "- `issuer`: the exact `iss` of your tokens, and `jwks_url` or `jwks`: your public keys"
    yield "- `tenants`, where your tokens name any: the only ones let in"
    yield "- `fhir_base_urls`: the exact `fhirServer` of your calls"
    yield "- `dicomweb_origins`: where your Endpoints' addresses lie"
    yield "- `cors_origins`: origins of pages that call us from a browser"
    yield f"- `calls_per_minute`: {CALLS_PER_MINUTE} where nothing is said"
    yield f"- `analyses_per_minute`: {ANALYSES_PER_MINUTE} studies that calls may begin, where nothing is said\n"
    yield "With your authorization server: our client, with the scopes that `usageRequirements` of discovery names."


def _services() -> Iterator[str]:
    yield "## Services\n"
    yield "| hook | version | id | context | prefetch keys |"
    yield "| --- | --- | --- | --- | --- |"
    for service in SERVICES:
        keys = ", ".join(f"`{key}`" for key in service.prefetch)
        yield f"| `{service.hook}` | {service.hook_version} | `{service.id}` | {_fields(service.context)} | {keys} |"
    yield "\nRequired fields are in bold. Where an id is listed for two hooks, the later hook's cards replace the earlier's."


def _fields(context: type[Context]) -> str:
    told = []
    for field in msgspec.structs.fields(context):
        name = f"`{field.encode_name}`"
        told.append(f"**{name}**" if field.required else name)
    return ", ".join(told)


def _own_hook() -> Iterator[str]:
    yield f"## Our own hook: `{IMAGING_RESULT_AVAILABLE}`\n"
    yield (
        "For EHRs that want to know when there is something new. It fires when images of a study, or a result on them, "
        "have become available and a user who is concerned can be told. The answer stands in for that of `patient-view`, "
        "with the study that is named first.\n"
    )
    yield "| field | optionality | prefetch token | type | description |"
    yield "| --- | --- | --- | --- | --- |"
    described = {
        "userId": "The user who is to be told: `Practitioner/123`",
        "patientId": "`Patient.id` of the patient of the study",
        "encounterId": "`Encounter.id`, where there is one",
        "imagingStudyId": "`ImagingStudy.id` of the study that has become available",
    }
    for field in msgspec.structs.fields(ImagingResultContext):
        required = "REQUIRED" if field.required else "OPTIONAL"
        yield f"| `{field.encode_name}` | {required} | Yes | *string* | {described[field.encode_name]} |"


def _token(base_url: str) -> Iterator[str]:
    yield "## The JWT\n"
    yield "Every call and every feedback carries `Authorization: Bearer <JWT>`; discovery needs none.\n"
    yield f"- header: `alg` one of {', '.join(ALGORITHMS)}, `kid`, `typ` = `JWT`; `jku` may only be the registered URL"
    yield f"- `aud`: the URL that is called and no other, such as `{base_url}/cds-services/{SERVICES[1].id}`"
    yield f"- `exp`: ahead of now, at most {MAX_LIFE_S:.0f} s after `iat`; no leeway. A clock may be {SKEW_S:.0f} s ahead of ours"
    yield "- `jti`: used once, whatever became of the call; the memory outlasts restarts and is shared by processes"
    yield "- `tenant`: one of those registered, where there are any\n"
    yield "Whatever is wrong, the answer is the same bare 401; the reason is in our audit."


def _request(base_url: str) -> Iterator[str]:
    yield "## An example\n"
    yield f"`POST {base_url}/cds-services/{SERVICES[1].id}`\n"
    yield "```json"
    yield json.dumps(EXAMPLE, indent=2)
    yield "```"


EXAMPLE: dict[str, Any] = {
    "hook": "patient-view",
    "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
    "fhirServer": "https://fhir.general.example/r4",
    "fhirAuthorization": {
        "access_token": "opaque",
        "token_type": "Bearer",
        "expires_in": 300,
        "scope": "patient/Patient.r patient/ImagingStudy.rs patient/Endpoint.r",
        "subject": "rayhook",
        "patient": "1288992",
    },
    "context": {"userId": "Practitioner/example", "patientId": "1288992"},
    "prefetch": {
        "patient": {"resourceType": "Patient", "id": "1288992"},
        "imagingStudies": {
            "resourceType": "Bundle",
            "type": "searchset",
            "entry": [
                {
                    "resource": {
                        "resourceType": "ImagingStudy",
                        "id": "study-1",
                        "status": "available",
                        "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}],
                        "subject": {"reference": "Patient/1288992"},
                        "started": "2026-03-12T10:15:00Z",
                        "endpoint": [{"reference": "Endpoint/pacs"}],
                    }
                }
            ],
        },
    },
}


def _prefetch() -> Iterator[str]:
    yield "## Prefetch\n"
    yield "| key | template |"
    yield "| --- | --- |"
    templates = {key: template.query for service in SERVICES for key, template in service.prefetch.items()}
    for key, query in templates.items():
        yield f"| `{key}` | `{query}` |"
    yield "\n- What is missing is fetched from `fhirServer` with the lent token, all keys side by side."
    yield "- `null` is data: there is none. An OperationOutcome, alone or in a Bundle, is not; the key is fetched then."
    yield f"- Of a Bundle in pages, up to {MAX_PAGES} are read, and only at addresses below `fhirServer`."
    yield "- What neither came nor can be fetched is told as 412."
    yield (
        "- Patient of token, context, prefetch, studies, orders and appointments have to be one: 422 otherwise, and an "
        "entry in the audit."
    )


def _cards() -> Iterator[str]:
    yield "## Cards\n"
    yield f"At most {MAX_STUDIES} studies are spoken of, the newest. `source.topic.code` tells what a card is about:\n"
    yield "| topic | meaning |"
    yield "| --- | --- |"
    for topic in sorted(_TOPICS):
        yield f"| `{topic.value}` | {_TOPICS[topic]} |"
    yield "\nOnly a validated model may ask for more than `info`. No topic but `no-finding` says that nothing was found."
    yield (
        "Suggestions are drafts (`ServiceRequest`, `intent` `proposal`); there are no `systemActions` and nothing launches "
        "by itself. A card that a user has overridden is not shown to that user again for the same result; a newer result "
        "is shown, and colleagues still see it."
    )


def _rules() -> Iterator[str]:
    yield "## Rules on imaging orders\n"
    yield (
        f"1. **Duplicate imaging.** Same modality and part of the body within {DUPLICATE_DAYS} days (the length is our own "
        f"choice). Sources: {_cited(PREVIOUS_IMAGES)}; for ionising radiation {_cited(PREVIOUS_EXPOSURE)}."
    )
    yield "2. **Follow-up due.** A finding whose guideline asks for a next study that was neither made nor is being ordered."
    yield "3. **Modality.** The order is for the finding's part of the body, but by another modality than the guideline names.\n"
    yield "| finding (SNOMED CT) | next study | from day | source |"
    yield "| --- | --- | --- | --- |"
    for one in GUIDELINES:
        codes = ", ".join(sorted(code for _, code in one.findings))
        yield f"| {codes} | {one.procedure.text}: {one.advice} | {one.earliest_days} | {_cited(one.citation)} |"
    yield "\nAn order that names neither modality nor part of the body in a way that is plain is compared with nothing."


def _cited(citation: Citation) -> str:
    return f"[{citation.title}]({citation.url})"


def _feedback(base_url: str) -> Iterator[str]:
    yield "## Feedback\n"
    yield (
        f"`POST {base_url}/cds-services/{{id}}/feedback`, with a JWT whose `aud` is that URL. The same said twice is stored "
        "once; a card of another client is refused with 403, one that never was with 404. Reasons that cards offer are of "
        f"`{SYSTEM}`:\n"
    )
    offered = {
        reason.code: reason.display
        for topic in (Topic.FINDING, Topic.MODALITY)
        for reason in reasons_for(topic)
    }
    for code, display in sorted(offered.items()):
        yield f"- `{code}`: {display.replace('*', '')}"


def _refusals() -> Iterator[str]:
    yield "## Refusals\n"
    yield "Every answer that is not 2xx carries an OperationOutcome; `issue.details.coding.code` is a stable word.\n"
    yield "| status | issue type | when |"
    yield "| --- | --- | --- |"
    for error in _refusals_of(RayhookError):
        yield f"| {error.status} | `{error.issue_type}` | {_WHEN[error.__name__]} |"
    yield "\nA 429 says in `Retry-After` how many seconds to wait. `X-Request-Id` of a call comes back, and joins all it caused."


_WHEN = {
    "AuditUnavailable": "the audit cannot be written: no audit, no access",
    "Forbidden": "feedback on a card that another client got",
    "IdentityConflict": "data of two patients in one call",
    "InvalidRequest": "malformed JSON, a member of a wrong form, a foreign `fhirServer`",
    "NotFound": "no service or card of that id",
    "PayloadTooLarge": "the body is too long",
    "PrefetchUnavailable": "data are missing and cannot be fetched",
    "RateLimited": "too many calls",
    "ServiceUnavailable": "the service cannot answer now",
    "Unauthenticated": "whatever is wrong with the JWT",
}


def _refusals_of(error: type[RayhookError]) -> list[type[RayhookError]]:
    found = [error] if error.__name__ in _ERRORS else []
    for below in error.__subclasses__():
        if below.__module__ == RayhookError.__module__:
            found += _refusals_of(below)
    return sorted(found, key=lambda one: one.status)


def _limits() -> Iterator[str]:
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(CDSDependencies).parameters.items()
    }
    yield "## Limits\n"
    yield f"- Body: {MAX_BODY_BYTES} bytes, {MAX_DEPTH} levels deep; a member named twice is refused."
    yield (
        f"- Time: fetching ends {defaults['fetch_s'] * 1000:.0f} ms after the call came, waiting for an analysis after "
        f"{defaults['wait_s'] * 1000:.0f} ms; what is not done by then is told as such and goes on behind."
    )
    yield f"- Rate: {CALLS_PER_MINUTE} calls a minute and client, where its registration says nothing else."


def _verify(base_url: str) -> Iterator[str]:
    yield "## Verify it yourself\n"
    yield "```"
    yield f"rayhook conformance cds --base-url {base_url} --issuer https://your.test.client --key client.jwk.json"
    yield "```\n"
    yield (
        "It sends forged, skewed, incomplete and replayed tokens, malformed bodies and missing prefetch, and prints the "
        "result for every requirement; `--json` for machines, `--request BODY.json` for cards on a patient of yours."
    )


def _decisions() -> Iterator[str]:
    yield "## Where the texts leave a choice\n"
    yield "- `services[].version` is a semantic version, as the narrative says."
    yield "- `hookVersion` is that of the metadata table of the hook's page."
    yield "- An empty search may be `null` (2.0) or a Bundle without entries (3.0)."
    yield "- `aud` of feedback is the feedback URL; of an array only the one-element form is taken."
    yield "- A repeated `hookInstance` is answered again: the text does not tell a service to refuse it."
    yield "- `appointments` may be a Bundle, or the bare list of the definition's examples."


if __name__ == "__main__":
    sys.stdout.write(markdown())
