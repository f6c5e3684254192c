"""Handing a finished report to the EHR, as far as the granted scope allows; told, never raised."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rayhook.auth.registry import EHR
from rayhook.auth.scopes import ScopeSet
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import InvalidRequest, RayhookError, UpstreamRefused, UpstreamUnauthorized
from rayhook.fhir.references import parse_reference
from rayhook.fhir.transport import Transport
from rayhook.inference.authority import Authority
from rayhook.inference.job_table import Authorization
from rayhook.inference.outbox import LEASE_S
from rayhook.inference.report import may_write, transaction
from rayhook.inference.results import DeliveryState, StoredResult
from rayhook.inference.study import AnalysisStatus, StudyReference, StudyResult

DEADLINE_S = 10.0
FOR_WANT_OF_A_TOKEN = frozenset({"no_authorization", "scope_not_granted"})
_TOLD = frozenset({AnalysisStatus.ABSTAINED, AnalysisStatus.ANALYSED})


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of the report at the EHR; `written` are the EHR's own references to it."""

    state: DeliveryState
    detail: str | None = None
    written: tuple[str, ...] = ()


def deliver(
    transport: Transport,
    ehr: EHR,
    reference: StudyReference,
    authorization: Authorization | None,
    *,
    result: StudyResult,
    resources: Sequence[dict[str, Any]],
    authority: Authority | None = None,
) -> Delivery:
    """Write the resources as one transaction of conditional creates, so that doing it twice does it once.

    authorization: the hook's; `authority` may have another where it does not suffice.
    Studies that no model answered or tried are not written: a chart is not the place for what was not done.
    """
    if result.status not in _TOLD:
        return Delivery(DeliveryState.NOT_PERMITTED, "no_model_answered")
    authority = authority or Authority()
    try:
        answer = authority.call(
            ehr,
            authorization,
            may_write,
            lambda chosen: _write(transport, ehr, reference, chosen, resources=resources),
        )
    except UpstreamRefused as error:
        lacks_token = error.code in FOR_WANT_OF_A_TOKEN or isinstance(error, UpstreamUnauthorized)
        trouble = authority.trouble(ehr) if lacks_token else None
        if trouble is not None:
            return Delivery(DeliveryState.FAILED, trouble)
        return Delivery(DeliveryState.NOT_PERMITTED, error.code)
    except RayhookError as error:
        return Delivery(DeliveryState.FAILED, error.code)
    return Delivery(DeliveryState.DELIVERED, written=tuple(_locations(answer)))


def _write(
    transport: Transport,
    ehr: EHR,
    reference: StudyReference,
    authorization: Authorization | None,
    *,
    resources: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    if authorization is None:
        raise UpstreamRefused("there is no token to write with", code="no_authorization")
    if not may_write(ScopeSet.parse(authorization.scope)):
        raise UpstreamRefused("the token's scope does not allow to write", code="scope_not_granted")
    client = FHIRClient(
        transport,
        reference.fhir_base_url,
        allowed_origins=ehr.fhir_origins,
        access_token=authorization.access_token,
    )
    return client.transaction(transaction(resources), deadline_s=DEADLINE_S)


def awaits_delivery(stored: StoredResult, *, now: float) -> bool:
    """Return whether the EHR still lacks the report, and another token could bring it there.

    A delivery that began long ago and has no end was cut off with its process.
    """
    if stored.delivery is DeliveryState.PENDING:
        return now - stored.created_at > LEASE_S
    if stored.delivery is DeliveryState.NOT_PERMITTED:
        return stored.delivery_detail in FOR_WANT_OF_A_TOKEN
    return stored.delivery is DeliveryState.FAILED


def _locations(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield `Type/id` of each resource, as far as the EHR says where it went.

    Spec: FHIR R4 http.html#transaction-response
    """
    for entry in answer["entry"]:
        with suppress(InvalidRequest):
            found = parse_reference(str(entry["response"].get("location")))
            yield f"{found.type}/{found.id}"
