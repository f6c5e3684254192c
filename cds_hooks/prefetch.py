"""Prefetch: take what the EHR sent, fetch what it did not, and say which is missing.

Spec: CDS Hooks 2.0.1, "Prefetch Template", "Prefetch tokens", "FHIR Resource Access"
"""

import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from urllib.parse import quote

import msgspec
from msgspec import Struct

from rayhook.cds_hooks.contexts import Context
from rayhook.cds_hooks.models import HookRequest, JSONObject, read
from rayhook.cds_hooks.services import IMAGING_STUDIES, IMAGING_STUDY, ORDERS, PATIENT, Service
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import (
    InvalidRequest,
    NotFound,
    PrefetchUnavailable,
    RayhookError,
    UpstreamTimeout,
)
from rayhook.fhir.r4 import bundle_resources, operation_outcome_in

MAX_PAGES = 3

# Context fields that are `Type/id`: a template may be nothing but such a token.
_REFERENCES = frozenset({"context.performer", "context.userId"})
_TOKEN = re.compile(r"\{\{\s*([^{}\s]+)\s*\}\}")


class _Resource(Struct, frozen=True, rename="camel"):
    resource_type: str
    issue: tuple[JSONObject, ...] = ()


class _Entry(Struct, frozen=True):
    resource: _Resource | None = None


class _Link(Struct, frozen=True):
    relation: str
    url: str


class _Bundle(Struct, frozen=True):
    """The form that every Bundle has to have before anything in it is looked at."""

    entry: tuple[_Entry, ...] = ()
    link: tuple[_Link, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Reads from the EHR's FHIR server for one call, several queries at a time, until `ends_at` (monotonic)."""

    client: FHIRClient
    pool: ThreadPoolExecutor
    ends_at: float

    def fetch(self, queries: Mapping[str, str]) -> dict[str, JSONObject | RayhookError]:
        """Return for each key the resource, or the error that stands in its place."""
        futures = {
            key: self.pool.submit(copy_context().run, self._get, query) for key, query in queries.items()
        }
        return {key: self._outcome(future) for key, future in futures.items()}

    def _get(self, query: str) -> JSONObject:
        left_s = self.ends_at - time.monotonic()
        if left_s <= 0:
            raise UpstreamTimeout("the time for fetching was used up")
        return self.client.query(query, deadline_s=left_s)

    def _outcome(self, future: Future[JSONObject]) -> JSONObject | RayhookError:
        try:
            return future.result(timeout=max(0.0, self.ends_at - time.monotonic()))
        except TimeoutError:
            future.cancel()
            return UpstreamTimeout("the FHIR server did not answer in time")
        except RayhookError as error:
            return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetched:
    """What is known of the patient. `fetched` are the keys that were read from the FHIR server.

    orders: ServiceRequests, where the service asks for them.
    complete: False where the list of studies goes on in a page that could not be read.
    """

    patient: JSONObject | None
    studies: tuple[JSONObject, ...]
    endpoints: tuple[JSONObject, ...]
    orders: tuple[JSONObject, ...]
    fetched: tuple[str, ...]
    complete: bool


def fill(template: str, tokens: Mapping[str, str]) -> str:
    """Return `template` with its tokens replaced by their values, encoded so that none can leave its place.

    Raises PrefetchUnavailable for a token that has no value.
    Spec: RFC 3986, 2.1
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in tokens:
            raise PrefetchUnavailable(f"the call has no value for {match[1]}", expression=match[1])
        return quote(tokens[match[1]], safe="/" if match[1] in _REFERENCES else "")

    return _TOKEN.sub(value, template)


def tokens_of(context: Context) -> dict[str, str]:
    """Spec: CDS Hooks 2.0.1, "Prefetch tokens": root-level primitive context fields, and the user's id by type."""
    fields = msgspec.to_builtins(context)
    tokens = {f"context.{name}": value for name, value in fields.items() if isinstance(value, str)}
    if context.user_id is not None:
        user_type, user_id = context.user_id.split("/")
        tokens[f"user{user_type}Id"] = user_id
    return tokens


def gather(
    service: Service,
    request: HookRequest,
    context: Context,
    fetcher: Fetcher | None,
    *,
    enough: int,
) -> Prefetched:
    """Return the data of every key of `service`; pages of studies are followed until there are `enough`.

    Raises PrefetchUnavailable if a key was neither sent nor can be fetched, InvalidRequest for one of a wrong form.
    """
    sent = request.prefetch or {}
    missing = [key for key in service.prefetch if not _is_given(sent, key, service)]
    fetched = _fetch(service, missing, tokens_of(context), fetcher)
    data: dict[str, JSONObject | None] = {key: fetched.get(key) or sent.get(key) for key in service.prefetch}
    bundles, complete = _pages(data[IMAGING_STUDIES], fetcher, enough)
    named = [study] if (study := data.get(IMAGING_STUDY)) is not None else []
    orders = [found] if (found := data.get(ORDERS)) is not None else []
    return Prefetched(
        patient=data[PATIENT],
        studies=_resources([*bundles, *named], "ImagingStudy"),
        endpoints=_resources(bundles, "Endpoint"),
        orders=_resources(orders, "ServiceRequest"),
        fetched=tuple(missing),
        complete=complete,
    )


def _is_given(sent: Mapping[str, object], key: str, service: Service) -> bool:
    """Null is data: there is none. An OperationOutcome is not."""
    if key not in sent:
        return False
    value = sent[key]
    if value is None:
        return True
    if not isinstance(value, dict):
        raise InvalidRequest(f"prefetch.{key} must be a resource or null", expression=f"prefetch.{key}")
    if _tells_of_failure(value, key):
        return False
    wanted = service.prefetch[key].resource_type
    if value["resourceType"] != wanted:
        raise InvalidRequest(f"prefetch.{key} must be a {wanted}", expression=f"prefetch.{key}")
    return True


def _tells_of_failure(resource: JSONObject, key: str) -> bool:
    """Raise InvalidRequest for what has not the form of a resource or Bundle."""
    if read(resource, _Resource, under=f"prefetch.{key}").resource_type == "Bundle":
        read(resource, _Bundle, under=f"prefetch.{key}")
    return operation_outcome_in(resource)


def _fetch(
    service: Service, missing: Iterable[str], tokens: Mapping[str, str], fetcher: Fetcher | None
) -> dict[str, JSONObject]:
    templates = {key: service.prefetch[key] for key in missing}
    queries = {key: fill(template.query, tokens) + template.more for key, template in templates.items()}
    if queries and fetcher is None:
        key = next(iter(queries))
        raise PrefetchUnavailable(
            f"prefetch.{key} was not provided, and there is no fhirAuthorization to fetch it with",
            expression=f"prefetch.{key}",
        )
    outcomes = {} if fetcher is None else fetcher.fetch(queries)
    return {key: _had(outcome, key, templates[key].resource_type) for key, outcome in outcomes.items()}


def _had(outcome: JSONObject | RayhookError, key: str, resource_type: str) -> JSONObject:
    path = f"prefetch.{key}"
    if isinstance(outcome, NotFound) and key == PATIENT:
        message = "the FHIR server does not know the patient of context.patientId"
        raise PrefetchUnavailable(
            message, code="unknown_patient", expression="context.patientId"
        ) from outcome
    if isinstance(outcome, RayhookError):
        message = f"{path} was not provided, and could not be fetched: {outcome.code}"
        raise PrefetchUnavailable(message, code=outcome.code, expression=path) from outcome
    if not _is_sound(outcome, key, resource_type):
        message = f"{path} was not provided, and the FHIR server answered without it"
        raise PrefetchUnavailable(message, expression=path)
    return outcome


def _is_sound(resource: JSONObject, key: str, resource_type: str) -> bool:
    try:
        return not _tells_of_failure(resource, key) and resource["resourceType"] == resource_type
    except InvalidRequest:
        return False


def _pages(first: JSONObject | None, fetcher: Fetcher | None, enough: int) -> tuple[list[JSONObject], bool]:
    """Return the pages read, and whether they are all that is needed.

    The studies come newest first: pages after `enough` of them would hold only older ones.
    """
    if first is None:
        return [], True
    pages = [first]
    while len(_resources(pages, "ImagingStudy")) < enough and (next_url := _next(pages[-1])) is not None:
        page = None if fetcher is None or len(pages) >= MAX_PAGES else _page(fetcher, next_url)
        if page is None:
            return pages, False
        pages.append(page)
    return pages, True


def _page(fetcher: Fetcher, url: str) -> JSONObject | None:
    """Return the page at `url`; None unless it lies on the very server that the token is for."""
    base = fetcher.client.base_url
    if not url.startswith((f"{base}/", f"{base}?")):
        return None
    outcome = fetcher.fetch({"next": url.removeprefix(base).removeprefix("/")})["next"]
    if isinstance(outcome, RayhookError) or not _is_sound(outcome, IMAGING_STUDIES, "Bundle"):
        return None
    return outcome


def _next(bundle: JSONObject) -> str | None:
    return next((link.url for link in read(bundle, _Bundle).link if link.relation == "next"), None)


def _resources(bundles: Iterable[JSONObject], resource_type: str) -> tuple[JSONObject, ...]:
    return tuple(resource for bundle in bundles for resource in bundle_resources(bundle, resource_type))
