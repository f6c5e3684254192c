"""Which imaging orders a call is about, by its hook."""

from rayhook.cds_hooks.contexts import (
    AppointmentBookContext,
    OrderDispatchContext,
    OrderSelectContext,
    OrderSignContext,
)
from rayhook.cds_hooks.hook_call import Call
from rayhook.cds_hooks.models import JSONObject
from rayhook.cds_hooks.orders import ImagingOrder, appointments, draft_orders, imaging_orders
from rayhook.cds_hooks.prefetch import Fetcher, Prefetched
from rayhook.cds_hooks.trust import check_named_patient
from rayhook.fhir.errors import PrefetchUnavailable, RayhookError

_REQUEST = "ServiceRequest"
_PATH = "context.dispatchedOrders"


def orders_in_context(call: Call) -> tuple[ImagingOrder, ...] | None:
    """Return the imaging orders that the context itself holds; none: there is nothing to say.

    None for hooks that are about the patient alone, and for orders that are only named.
    """
    context, patient_id, base_url = call.context, call.context.patient_id, call.base_url
    if isinstance(context, OrderSignContext):
        drafts = draft_orders(context.draft_orders, patient_id=patient_id, base_url=base_url)
        if not isinstance(context, OrderSelectContext):
            return drafts
        return tuple(order for order in drafts if order.reference in context.selections)
    if isinstance(context, AppointmentBookContext):
        return appointments(context.appointments, patient_id=patient_id, base_url=base_url)
    if isinstance(context, OrderDispatchContext):
        _check_tasks(context, base_url)
        return None if _requests(context) else ()
    return None


def ordered_by(call: Call, prefetched: Prefetched) -> tuple[ImagingOrder, ...] | None:
    """Return the imaging orders that are dispatched, None for a hook that is about the patient alone.

    Raises PrefetchUnavailable for an order that neither came along nor can be read.
    """
    context = call.context
    if not isinstance(context, OrderDispatchContext):
        return None
    for order in prefetched.orders:
        check_named_patient(
            order.get("subject"),
            patient_id=context.patient_id,
            base_url=call.base_url,
            path="prefetch.serviceRequests.entry.resource.subject",
        )
    known = {f"{_REQUEST}/{order.get('id')}": order for order in prefetched.orders}
    wanted = _requests(context)
    absent = [reference for reference in wanted if reference not in known]
    known |= _read(call.fetcher, absent)
    return imaging_orders(
        [known[reference] for reference in wanted],
        patient_id=context.patient_id,
        base_url=call.base_url,
        path=_PATH,
    )


def _check_tasks(context: OrderDispatchContext, base_url: str) -> None:
    """Spec: CDS Hooks Library, order-dispatch `fulfillmentTasks`; FHIR R4 Task.for."""
    for task in context.fulfillment_tasks:
        check_named_patient(
            task.get("for"),
            patient_id=context.patient_id,
            base_url=base_url,
            path="context.fulfillmentTasks.for",
        )


def _requests(context: OrderDispatchContext) -> list[str]:
    references = dict.fromkeys(context.dispatched_orders)
    return [reference for reference in references if reference.startswith(f"{_REQUEST}/")]


def _read(fetcher: Fetcher | None, references: list[str]) -> dict[str, JSONObject]:
    if not references:
        return {}
    if fetcher is None:
        raise _unread("prefetch_unavailable")
    found: dict[str, JSONObject] = {}
    for reference, outcome in fetcher.fetch({reference: reference for reference in references}).items():
        if isinstance(outcome, RayhookError):
            raise _unread(outcome.code) from outcome
        if f"{outcome.get('resourceType')}/{outcome.get('id')}" != reference:
            raise _unread("upstream_malformed")
        found[reference] = outcome
    return found


def _unread(code: str) -> PrefetchUnavailable:
    message = "an order of context.dispatchedOrders is not in prefetch.serviceRequests and could not be read"
    return PrefetchUnavailable(message, code=code, expression=_PATH)
