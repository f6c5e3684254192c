"""A FHIR R4 server as we use it: read, search with paging, conditional create, transaction."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urljoin

import msgspec
import structlog

from rayhook.fhir.codes import IssueType
from rayhook.fhir.errors import (
    InvalidRequest,
    NotFound,
    UpstreamConflict,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnauthorized,
    UpstreamUnavailable,
)
from rayhook.fhir.r4 import bundle_resources, encode_json, operation_outcome_in
from rayhook.fhir.references import is_fhir_id, parse_reference
from rayhook.fhir.transport import Response, Transport
from rayhook.fhir.wire import parse_url

log = structlog.get_logger()

_FHIR_JSON = "application/fhir+json"
_FORM = "application/x-www-form-urlencoded"
_OK = frozenset({200, 201, 202, 204})
_UNAUTHORIZED = 401
_FORBIDDEN = 403
_THROTTLED = 429
_SERVER_ERROR = 500
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_ISSUE_TYPES = frozenset(IssueType)
_QUERY_SAFE = "/?&=%:,|$*+;@!()'-._~"
# A search by one of these goes into a body, not into a URL that servers and proxies keep in their logs.
_IDENTIFYING = frozenset(
    {"address", "birthdate", "email", "family", "given", "identifier", "name", "phone", "telecom"}
)


class _Issue(msgspec.Struct):
    code: str = ""


class _Outcome(msgspec.Struct):
    issue: list[_Issue] = []


class _Link(msgspec.Struct):
    relation: str
    url: str


class _EntryResponse(msgspec.Struct):
    status: str = ""


class _Entry(msgspec.Struct):
    response: _EntryResponse = msgspec.field(default_factory=_EntryResponse)


class _Bundle(msgspec.Struct):
    type: str = ""
    link: list[_Link] = []
    entry: list[_Entry] = []


@dataclass(frozen=True, slots=True)
class FHIRClient:
    """One FHIR base URL under one access token; every deadline is for the whole call, pages included.

    Raises UpstreamRefused for 401 and 403, NotFound for 404 and 410, UpstreamConflict for 409 and 412,
    UpstreamUnavailable for 429 and 5xx,
    UpstreamError for every other answer that is not what was asked for, and what Transport.request raises.
    """

    transport: Transport
    base_url: str
    allowed_origins: frozenset[str]
    access_token: str | None = field(default=None, repr=False)

    def read(self, type: str, id: str, *, deadline_s: float) -> dict[str, Any]:  # noqa: A002 - FHIR's words
        """Return one resource, which is what its type and id say it is."""
        self._instance(type, id)
        resource = self.query(f"{type}/{id}", deadline_s=deadline_s)
        if resource.get("resourceType") != type or resource.get("id") != id:
            raise _unexpected("another resource than the one read")
        return resource

    def search(
        self,
        type: str,  # noqa: A002 - FHIR's word
        params: Sequence[tuple[str, str]],
        *,
        deadline_s: float,
        max_pages: int = 5,
        on_truncated: Callable[[], object] | None = None,
    ) -> list[dict[str, Any]]:
        """Return the resources of all pages, `_include`d ones among them; the log tells of pages left out.

        on_truncated: is called where there were more pages, for who shows the list to people.

        Spec: FHIR R4, 3.1.1 "Search"; 3.1.0.9 "Paging"
        """
        deadline = time.monotonic() + deadline_s
        page = self._first_page(type, params, deadline_s)
        resources = _found(page)
        for _ in range(max_pages - 1):
            following = self._next(page)
            if following is None:
                return resources
            page = self._send("GET", following, deadline_s=_left_s(deadline))
            resources += _found(page)
        if self._next(page) is not None:
            log.warning("search_truncated", type=type, pages=max_pages)
            if on_truncated is not None:
                on_truncated()
        return resources

    def query(self, path_and_query: str, *, deadline_s: float) -> dict[str, Any]:
        """GET what a filled-in prefetch template names, and return the resource or the first page.

        Spec: CDS Hooks 2.0.1, "Prefetch Template"
        """
        path = path_and_query.partition("?")[0]
        if path.startswith("/") or "//" in path or ":" in path or _DOT_SEGMENT.search(f"/{path}"):
            raise InvalidRequest("a query has to be relative to the FHIR base")
        url = f"{self._base}{'/' if path else ''}{quote(path_and_query, safe=_QUERY_SAFE)}"
        return self._send("GET", url, deadline_s=deadline_s)

    def create(
        self, resource: Mapping[str, Any], *, if_none_exist: str | None, deadline_s: float
    ) -> dict[str, Any]:
        """Create, or find what was created before; returns it with the server's id.

        Spec: FHIR R4, 3.1.0.8.1 "Conditional create"
        """
        headers = {"Prefer": "return=representation"}
        if if_none_exist is not None:
            headers["If-None-Exist"] = if_none_exist
        response = self._request(
            "POST",
            f"{self._base}/{resource['resourceType']}",
            deadline_s=deadline_s,
            headers=headers | {"Content-Type": _FHIR_JSON},
            content=encode_json(resource),
        )
        return _resource(response) if response.body else dict(resource) | {"id": _located(response)}

    def update(self, resource: Mapping[str, Any], *, deadline_s: float) -> dict[str, Any]:
        """Put the resource in the place of the one that has its id.

        Spec: FHIR R4, 3.1.0.4 "update"
        """
        response = self._request(
            "PUT",
            self._instance(str(resource["resourceType"]), str(resource["id"])),
            deadline_s=deadline_s,
            headers={"Prefer": "return=representation", "Content-Type": _FHIR_JSON},
            content=encode_json(resource),
        )
        return _resource(response) if response.body else dict(resource)

    def delete(self, type: str, id: str, *, deadline_s: float) -> None:  # noqa: A002 - FHIR's words
        """Spec: FHIR R4, 3.1.0.7 "delete": what is gone already is no error."""
        try:
            self._request("DELETE", self._instance(type, id), deadline_s=deadline_s, headers={}, content=None)
        except NotFound:
            return

    def transaction(self, bundle: Mapping[str, Any], *, deadline_s: float) -> dict[str, Any]:
        """Send a transaction Bundle; every entry has succeeded where this returns.

        Spec: FHIR R4, 3.1.0.11 "batch/transaction"
        """
        answer = self._send(
            "POST",
            self._base,
            deadline_s=deadline_s,
            headers={"Content-Type": _FHIR_JSON},
            content=encode_json(bundle),
        )
        bundle_answer = _bundle(answer, "transaction-response")
        succeeded = [entry.response.status.startswith("2") for entry in bundle_answer.entry]
        if len(succeeded) != len(bundle.get("entry") or []) or not all(succeeded):
            raise _unexpected("an incomplete transaction-response")
        return answer

    def _instance(self, resource_type: str, resource_id: str) -> str:
        if not is_fhir_id(resource_id):
            raise InvalidRequest(
                "a resource id has 1 to 64 letters, digits, hyphens and dots", expression=resource_type
            )
        return f"{self._base}/{resource_type}/{resource_id}"

    @property
    def _base(self) -> str:
        return self.base_url.rstrip("/")

    def _first_page(
        self, resource_type: str, params: Sequence[tuple[str, str]], deadline_s: float
    ) -> dict[str, Any]:
        url, query = f"{self._base}/{resource_type}", urlencode(params)
        if not any(_is_identifying(name) for name, _ in params):
            return self._send("GET", f"{url}?{query}" if query else url, deadline_s=deadline_s)
        return self._send(
            "POST",
            f"{url}/_search",
            deadline_s=deadline_s,
            headers={"Content-Type": _FORM},
            content=query.encode("ascii"),
        )

    def _next(self, page: Mapping[str, Any]) -> str | None:
        """Follow a page link under our base only: the token goes with it.

        Spec: SMART App Launch 2.2.0, "Best Practices"
        """
        links = _bundle(page, "searchset").link
        url = next((link.url for link in links if link.relation == "next"), None)
        if url is None:
            return None
        absolute = _absolute(url, self._base)
        if absolute is None:
            raise UpstreamError("the next page is not at the EHR's FHIR base", code="upstream_foreign_page")
        return absolute

    def _send(
        self,
        method: str,
        url: str,
        *,
        deadline_s: float,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> dict[str, Any]:
        return _resource(
            self._request(method, url, deadline_s=deadline_s, headers=headers or {}, content=content)
        )

    def _request(
        self, method: str, url: str, *, deadline_s: float, headers: Mapping[str, str], content: bytes | None
    ) -> Response:
        fields = {"Accept": _FHIR_JSON, **headers}
        if self.access_token is not None:
            fields["Authorization"] = f"Bearer {self.access_token}"
        response = self.transport.request(
            method,
            url,
            allowed_origins=self.allowed_origins,
            deadline_s=deadline_s,
            headers=fields,
            content=content,
        )
        if response.status not in _OK:
            raise _refusal(response)
        return response


def _refusal(response: Response) -> UpstreamError | NotFound:
    """Name the status and the issue codes; an OperationOutcome's own text may speak of the patient."""
    status = response.status
    text = f"the EHR answered {status}{_issue_codes(response.body)}"
    if status == _UNAUTHORIZED:
        return UpstreamUnauthorized(text)
    if status == _FORBIDDEN:
        return UpstreamRefused(text)
    if status in {404, 410}:
        return NotFound(text)
    if status in {409, 412}:
        return UpstreamConflict(text)
    if status == _THROTTLED or status >= _SERVER_ERROR:
        return UpstreamUnavailable(text)
    return UpstreamError(text)


def _issue_codes(body: bytes) -> str:
    try:
        outcome = msgspec.json.decode(body, type=_Outcome)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ""
    codes = sorted({issue.code for issue in outcome.issue if issue.code in _ISSUE_TYPES})
    return f" ({', '.join(codes)})" if codes else ""


def _resource(response: Response) -> dict[str, Any]:
    try:
        resource = msgspec.json.decode(response.body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        # Not chained: the error may quote the body.
        raise _unexpected("something that is not JSON") from None
    if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
        raise _unexpected("JSON that is not a FHIR resource")
    return resource


def _bundle(resource: Mapping[str, Any], bundle_type: str) -> _Bundle:
    try:
        bundle = msgspec.convert(resource, _Bundle)
    except msgspec.ValidationError as error:
        raise _unexpected("a malformed Bundle") from error
    if resource["resourceType"] != "Bundle" or bundle.type != bundle_type:
        raise _unexpected(f"another resource than a {bundle_type} Bundle")
    return bundle


def _found(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A search that failed in part is no answer: what it left out would be taken for what there is not."""
    _bundle(page, "searchset")
    if operation_outcome_in(page):
        raise UpstreamError("the EHR could not complete the search", code="upstream_search_incomplete")
    return [
        resource for resource in bundle_resources(page) if resource.get("resourceType") != "OperationOutcome"
    ]


def _located(response: Response) -> str:
    try:
        return parse_reference(response.headers.get("location", "")).id
    except InvalidRequest as error:
        raise _unexpected("a creation without a Location") from error


def _is_identifying(parameter: str) -> bool:
    """Chains and modifiers count: `patient.identifier`, `name:exact`."""
    return parameter.rpartition(".")[2].partition(":")[0] in _IDENTIFYING or parameter.endswith(":identifier")


def _absolute(link: str, base_url: str) -> str | None:
    """Return the link as an absolute URL, None where it is not under the base.

    Whole path segments are compared: `/fhir-other` is not under `/fhir`, nor is what `..` leads to.
    """
    try:
        absolute = urljoin(f"{base_url}/", link)
        url, base = parse_url(absolute), parse_url(base_url)
    except (InvalidRequest, ValueError):
        return None
    path, root = url.target.partition("?")[0], base.target.rstrip("/")
    inside = path == root or path.startswith(f"{root}/")
    return absolute if url.origin == base.origin and inside and not _DOT_SEGMENT.search(path) else None


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise UpstreamTimeout("the EHR's pages did not end within the deadline")
    return left_s


def _unexpected(what: str) -> UpstreamError:
    return UpstreamError(f"the EHR answered with {what}", code="upstream_malformed")
