"""The contexts of the hooks that are answered here.

Spec: CDS Hooks Library 1.0.1; the fields of 2.0.1 and 3.0.0-ballot clients are the same.
"""

from typing import Annotated

from msgspec import Meta, Struct

from rayhook.cds_hooks.models import Id, JSONObject, UserReference

RelativeReference = Annotated[
    str, Meta(pattern=r"^[A-Z][A-Za-z]{1,63}/(?!\.{1,2}\Z)[A-Za-z0-9.-]{1,64}\Z", max_length=128)
]
_MAX_REFERENCES = 200


class Context(Struct, frozen=True, kw_only=True, rename="camel"):
    """What every hook tells; a hook that a machine fires has no user."""

    patient_id: Id
    encounter_id: Id | None = None
    user_id: UserReference | None = None


class UserContext(Context, frozen=True, kw_only=True, rename="camel"):
    user_id: UserReference


class PatientViewContext(UserContext, frozen=True, kw_only=True, rename="camel"):
    """Spec: CDS Hooks Library, patient-view 1.0."""


class EncounterStartContext(UserContext, frozen=True, kw_only=True, rename="camel"):
    """Spec: CDS Hooks Library, encounter-start 1.0."""

    encounter_id: Id


class OrderSignContext(UserContext, frozen=True, kw_only=True, rename="camel"):
    """Spec: CDS Hooks Library, order-sign 1.0."""

    draft_orders: JSONObject


class OrderSelectContext(OrderSignContext, frozen=True, kw_only=True, rename="camel"):
    """`selections` name those of the drafts that were just chosen. Spec: CDS Hooks Library, order-select 1.0."""

    selections: Annotated[tuple[RelativeReference, ...], Meta(max_length=_MAX_REFERENCES)]


class OrderDispatchContext(Context, frozen=True, kw_only=True, rename="camel"):
    """Names the orders without their content. Spec: CDS Hooks Library, order-dispatch 1.1."""

    dispatched_orders: Annotated[
        tuple[RelativeReference, ...], Meta(min_length=1, max_length=_MAX_REFERENCES)
    ]
    performer: RelativeReference
    fulfillment_tasks: tuple[JSONObject, ...] = ()


class AppointmentBookContext(UserContext, frozen=True, kw_only=True, rename="camel"):
    """A Bundle by the table of the definition, a bare list by its examples. Spec: CDS Hooks Library, appointment-book 1.0."""

    appointments: JSONObject | list[JSONObject]


class ImagingResultContext(UserContext, frozen=True, kw_only=True, rename="camel"):
    """Our own hook: images of `imaging_study_id`, or a result on them, have become available."""

    imaging_study_id: Id
