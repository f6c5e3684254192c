"""Discovery, its templates, documentation, TLS and CORS."""

import re
from collections.abc import Iterator

from rayhook.deploy.conformance.registry import check
from rayhook.deploy.conformance.target import (
    DOCUMENTATION,
    PATIENT_VIEW,
    Failed,
    Skipped,
    Target,
    expect,
    read_json,
    require,
)

_SEMVER = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?")
_TOKEN = re.compile(r"\{\{(.*?)\}\}")
_USER_TOKENS = frozenset(
    {"userPractitionerId", "userPractitionerRoleId", "userPatientId", "userRelatedPersonId"}
)
_ROOT_FIELD = re.compile(r"context\.[A-Za-z]+")
_READ = re.compile(r"[A-Z][A-Za-z]+/\{\{[^{}]+\}\}|\{\{context\.userId\}\}")
_SEARCH = re.compile(r"[A-Z][A-Za-z]+\?[^{}]*(\{\{[^{}]+\}\}[^{}]*)*")
# Spec: CDS Hooks Library; where its metadata and its change log disagree, both.
_HOOK_VERSIONS = {
    "appointment-book": {"1.0"},
    "encounter-discharge": {"1.0"},
    "encounter-start": {"1.0"},
    "order-dispatch": {"1.1"},
    "order-select": {"1.0", "1.0.2"},
    "order-sign": {"1.0", "1.1.0"},
    "patient-view": {"1.0"},
}


def templates(target: Target) -> Iterator[tuple[str, str]]:
    for service in target.services:
        for key, query in service.get("prefetch", {}).items():
            yield f"{service.get('id')}.{key}", query


@check("R1", "R80")
def discovery_is_json_over_TLS(target: Target) -> None:  # noqa: N802 - TLS is written so
    response = target.client.get("/cds-services")
    media_type = response.headers.get("content-type", "").partition(";")[0]
    require(media_type == "application/json", f"discovery is {media_type}")
    if response.url.scheme != "https":
        raise Skipped("the base URL is not https: only for development on loopback")


@check("R3", "R8", "R9")
def discovery_answers_with_services(target: Target) -> None:
    require(target.services, "no service is listed")


@check("R10")
def services_have_hook_description_and_id(target: Target) -> None:
    for service in target.services:
        for member in ("hook", "description", "id"):
            require(isinstance(service.get(member), str) and service[member], f"a service has no {member}")


@check("R11")
def services_have_a_title(target: Target) -> None:
    require(all(service.get("title") for service in target.services), "a service has no title")


@check("R12", "R17")
def templates_have_keys_and_are_text(target: Target) -> None:
    for service in target.services:
        prefetch = service.get("prefetch", {})
        require(
            isinstance(prefetch, dict) and all(prefetch),
            f"{service.get('id')}: prefetch is no object of keys",
        )
        require(
            all(isinstance(query, str) and query for query in prefetch.values()), "a template is not text"
        )
        require(isinstance(service.get("usageRequirements", ""), str), "usageRequirements is not text")


@check("R13")
def version_is_semantic(target: Target) -> None:
    for service in target.services:
        require(
            _SEMVER.fullmatch(str(service.get("version"))), f"{service.get('id')} has no semantic version"
        )


@check("R14")
def hook_version_is_the_published_one(target: Target) -> None:
    for service in target.services:
        known = _HOOK_VERSIONS.get(service["hook"], {service.get("hookVersion")})
        require(service.get("hookVersion") in known | {None}, f"hookVersion of {service['hook']}")


@check("R15")
def every_service_is_at_its_address(target: Target) -> None:
    for service in target.services:
        status = target.client.post(f"/cds-services/{service['id']}", content=b"{}").status_code
        require(status not in {404, 405}, f"/cds-services/{service['id']} answers {status}")


@check("R16")
def one_id_lists_a_hook_once(target: Target) -> None:
    pairs = [(service["id"], service["hook"]) for service in target.services]
    require(len(set(pairs)) == len(pairs), "an id is listed twice for one hook")


@check("R25")
def tokens_are_context_paths_or_user_ids(target: Target) -> None:
    for name, query in templates(target):
        for token in _TOKEN.findall(query):
            known = token in _USER_TOKENS or token.startswith("context.")
            require(known, f"{name}: {{{{{token}}}}} is no prefetch token")


@check("R26", "R27", "R28")
def tokens_are_root_level_fields(target: Target) -> None:
    for name, query in templates(target):
        for token in _TOKEN.findall(query):
            is_plain = token in _USER_TOKENS or _ROOT_FIELD.fullmatch(token)
            require(is_plain, f"{name}: {{{{{token}}}}} asks for more than 2.0 clients can do")


@check("R29")
def templates_are_reads_or_restricted_searches(target: Target) -> None:
    for name, query in templates(target):
        require(_READ.fullmatch(query) or _SEARCH.fullmatch(query), f"{name} is neither a read nor a search")
        for parameter in re.findall(r"[?&]([^=&]+)=", query):
            require(":" not in parameter or parameter.endswith(":in"), f"{name}: the modifier of {parameter}")
            require(not parameter.startswith(("_include", "_revinclude", "_has")), f"{name}: {parameter}")


@check("R7")
def documentation_is_public(target: Target) -> None:
    response = target.client.get(DOCUMENTATION)
    expect(response, 200)
    require("html" in response.headers.get("content-type", ""), "it is no page")


@check("R2")
def discovery_has_no_empty_member(target: Target) -> None:
    require_nothing_empty(target.discovery, "discovery")


@check("R24")
def extensions_have_unique_names(target: Target) -> None:
    for service in target.services:
        for name in service.get("extension", {}):
            require("." in name, f"the extension {name} is not in reverse-domain notation")


@check("R81")
def a_foreign_page_is_not_let_in(target: Target) -> None:
    for path in ("/cds-services", PATIENT_VIEW, f"{PATIENT_VIEW}/feedback"):
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        for response in (
            target.client.options(path, headers=headers),
            target.client.get(path, headers={"Origin": "https://evil.example"}),
        ):
            allowed = response.headers.get("access-control-allow-origin")
            require(allowed is None, f"{path} lets {allowed} in")
            require("access-control-allow-credentials" not in response.headers, "credentials are allowed")


@check("R6")
def errors_before_authentication_are_OperationOutcomes(target: Target) -> None:  # noqa: N802 - FHIR's word
    for response in (
        target.client.post(PATIENT_VIEW, content=b"{}"),
        target.client.get("/cds-services/no/such/path"),
        target.client.put(PATIENT_VIEW, content=b"{}"),
    ):
        require_outcome(response)


def require_outcome(response: object) -> None:
    import httpx

    assert isinstance(response, httpx.Response)
    body = read_json(response)
    if body.get("resourceType") != "OperationOutcome" or not body.get("issue"):
        raise Failed(f"the body of a {response.status_code} is no OperationOutcome")


def require_nothing_empty(value: object, path: str) -> None:
    """`cards` and `services` may be empty arrays: the specification says so."""
    if isinstance(value, dict):
        for name, inner in value.items():
            is_allowed = name in {"cards", "services"} and inner == []
            require(is_allowed or inner not in (None, "", [], {}), f"{path}.{name} is null or empty")
            require_nothing_empty(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            require_nothing_empty(inner, path)
