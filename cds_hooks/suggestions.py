"""What a clinician can accept with one click: whole resources, as drafts that still have to be signed.

Spec: CDS Hooks 2.0.1, "Suggestion", "Action"; FHIR R4 ServiceRequest
"""

import uuid
from datetime import UTC, datetime

from rayhook.cds_hooks.contexts import Context
from rayhook.cds_hooks.models import Action, JSONObject, Suggestion
from rayhook.cds_hooks.rules import Duplicate, FollowUp, Misfit
from rayhook.fhir.codes import SNOMED, Coding
from rayhook.inference.statement import INVESTIGATIONAL_SHORT

_IMAGING = Coding(SNOMED, "363679005", "Imaging")
_REQUESTERS = ("Practitioner/", "PractitionerRole/")


def draft_follow_up(follow_up: FollowUp, context: Context, *, now: datetime) -> Suggestion:
    text = follow_up.guideline.procedure.text
    return _suggestion(f"Draft an order: {text}", _create(follow_up, context, now))


def order_instead(misfit: Misfit, context: Context, *, now: datetime) -> Suggestion:
    """Both actions or none: the draft goes where it has an id to name it by."""
    create = _create(misfit.follow_up, context, now)
    text = misfit.follow_up.guideline.procedure.text
    if not misfit.order.is_request or misfit.order.reference is None:
        return _suggestion(f"Draft an order: {text}", create)
    return _suggestion(f"Order instead: {text}", _delete(misfit.order.reference), create)


def remove_draft(duplicate: Duplicate) -> Suggestion | None:
    """None where there is no draft that could be named: appointments are not ours to cancel."""
    if not duplicate.order.is_request or duplicate.order.reference is None:
        return None
    return _suggestion("Remove the draft order", _delete(duplicate.order.reference))


def _suggestion(label: str, *actions: Action) -> Suggestion:
    return Suggestion(label=label, uuid=str(uuid.uuid4()), actions=actions)


def _delete(reference: str) -> Action:
    return Action(type="delete", description="Remove the draft imaging order", resource_id=reference)


def _create(follow_up: FollowUp, context: Context, now: datetime) -> Action:
    procedure = follow_up.guideline.procedure
    return Action(
        type="create",
        description=f"Create a draft order: {procedure.text}",
        resource=service_request(follow_up, context, now=now),
    )


def service_request(follow_up: FollowUp, context: Context, *, now: datetime) -> JSONObject:
    """Return the draft order for what the guideline asks for next; a proposal, which authorises nothing.

    Spec: FHIR R4 ServiceRequest; request-intent "proposal"
    """
    guideline, finding = follow_up.guideline, follow_up.finding
    procedure = guideline.procedure
    reason = Coding(finding.system, finding.code, finding.display)
    resource: JSONObject = {
        "resourceType": "ServiceRequest",
        "status": "draft",
        "intent": "proposal",
        "category": [_IMAGING.concept()],
        "priority": "routine",
        "code": procedure.code.concept(procedure.text),
        "subject": {"reference": f"Patient/{context.patient_id}"},
        "occurrenceDateTime": f"{max(follow_up.due, now).astimezone(UTC):%Y-%m-%d}",
        "authoredOn": f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "reasonCode": [reason.concept(f"Possible {finding.display}, told by software")],
        "bodySite": [procedure.body_site.concept()],
        "supportingInfo": [{"reference": f"ImagingStudy/{follow_up.answer.study.id}"}],
        "note": [
            {
                "text": f"Proposed by Rayhook after {guideline.citation.title} ({guideline.citation.url}). "
                f"{INVESTIGATIONAL_SHORT}"
            }
        ],
    }
    if context.encounter_id is not None:
        resource["encounter"] = {"reference": f"Encounter/{context.encounter_id}"}
    if context.user_id is not None and context.user_id.startswith(_REQUESTERS):
        resource["requester"] = {"reference": context.user_id}
    return resource
