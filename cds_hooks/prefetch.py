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

from msgspec import Struct

from rayhook.cds_hooks.models import HookRequest, JSONObject, PatientViewContext, read
from rayhook.cds_hooks.services import IMAGING_STUDIES, PATIENT, Service
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

_TOKEN = re.compile(r"\{\{\s*([^{}\s]+)\s*\}\}")
_TYPES = {PATIENT: "Patient", IMAGING_STUDIES: "Bundle"}
# Beyond what a template may ask of every EHR: with the Endpoints at hand no second round is needed.
_EXTRA = {IMAGING_STUDIES: "&_include=ImagingStudy:endpoint"}


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

    complete: False where the list of studies goes on in a page that could not be read.
    """

    patient: JSONObject | None
    studies: tuple[JSONObject, ...]
    endpoints: tuple[JSONObject, ...]
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
        return quote(tokens[match[1]], safe="")

    return _TOKEN.sub(value, template)


def tokens_of(context: PatientViewContext) -> dict[str, str]:
    """Spec: CDS Hooks 2.0.1, "Prefetch tokens": root-level context fields, and the user's id by type."""
    user_type, user_id = context.user_id.split("/")
    tokens = {
        "context.userId": context.user_id,
        "context.patientId": context.patient_id,
        f"user{user_type}Id": user_id,
    }
    return tokens if context.encounter_id is None else {**tokens, "context.encounterId": context.encounter_id}


def gather(
    service: Service,
    request: HookRequest,
    context: PatientViewContext,
    fetcher: Fetcher | None,
    *,
    enough: int,
) -> Prefetched:
    """Return the data of every key of `service`; pages of studies are followed until there are `enough`.

    Raises PrefetchUnavailable if a key was neither sent nor can be fetched, InvalidRequest for one of a wrong form.
    """
    sent = request.prefetch or {}
    missing = [key for key in service.prefetch if not _is_given(sent, key)]
    fetched = _fetch(service, missing, tokens_of(context), fetcher)
    data: dict[str, JSONObject | None] = {key: fetched.get(key) or sent.get(key) for key in service.prefetch}
    bundles, complete = _pages(data[IMAGING_STUDIES], fetcher, enough)
    return Prefetched(
        patient=data[PATIENT],
        studies=_resources(bundles, "ImagingStudy"),
        endpoints=_resources(bundles, "Endpoint"),
        fetched=tuple(missing),
        complete=complete,
    )


def _is_given(sent: Mapping[str, object], key: str) -> bool:
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
    if value["resourceType"] != _TYPES[key]:
        raise InvalidRequest(f"prefetch.{key} must be a {_TYPES[key]}", expression=f"prefetch.{key}")
    return True


def _tells_of_failure(resource: JSONObject, key: str) -> bool:
    """Raise InvalidRequest for what has not the form of a resource or Bundle."""
    if read(resource, _Resource, under=f"prefetch.{key}").resource_type == "Bundle":
        read(resource, _Bundle, under=f"prefetch.{key}")
    return operation_outcome_in(resource)


def _fetch(
    service: Service, missing: Iterable[str], tokens: Mapping[str, str], fetcher: Fetcher | None
) -> dict[str, JSONObject]:
    queries = {key: fill(service.prefetch[key], tokens) + _EXTRA.get(key, "") for key in missing}
    if queries and fetcher is None:
        key = next(iter(queries))
        raise PrefetchUnavailable(
            f"prefetch.{key} was not provided, and there is no fhirAuthorization to fetch it with",
            expression=f"prefetch.{key}",
        )
    outcomes = {} if fetcher is None else fetcher.fetch(queries)
    return {key: _had(outcome, key) for key, outcome in outcomes.items()}


def _had(outcome: JSONObject | RayhookError, key: str) -> JSONObject:
    path = f"prefetch.{key}"
    if isinstance(outcome, NotFound) and key == PATIENT:
        message = "the FHIR server does not know the patient of context.patientId"
        raise PrefetchUnavailable(
            message, code="unknown_patient", expression="context.patientId"
        ) from outcome
    if isinstance(outcome, RayhookError):
        message = f"{path} was not provided, and could not be fetched: {outcome.code}"
        raise PrefetchUnavailable(message, code=outcome.code, expression=path) from outcome
    if not _is_sound(outcome, key):
        message = f"{path} was not provided, and the FHIR server answered without it"
        raise PrefetchUnavailable(message, expression=path)
    return outcome


def _is_sound(resource: JSONObject, key: str) -> bool:
    try:
        return not _tells_of_failure(resource, key) and resource["resourceType"] == _TYPES[key]
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
    if isinstance(outcome, RayhookError) or not _is_sound(outcome, IMAGING_STUDIES):
        return None
    return outcome


def _next(bundle: JSONObject) -> str | None:
    return next((link.url for link in read(bundle, _Bundle).link if link.relation == "next"), None)


def _resources(bundles: Iterable[JSONObject], resource_type: str) -> tuple[JSONObject, ...]:
    return tuple(resource for bundle in bundles for resource in bundle_resources(bundle, resource_type))
