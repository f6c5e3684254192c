"""The reasons that a clinician may give for setting a card aside.

Spec: CDS Hooks 3.0.0-ballot, "Reasons for rejecting a card", CodeSystem non-adherence-reason-codes
"""

from rayhook.cds_hooks.answers import Topic
from rayhook.cds_hooks.models import ReasonCoding

SYSTEM = "http://terminology.hl7.org/CodeSystem/non-adherence-reason-codes"

_DISPLAYS = {
    "action-completed": "Recommended action was already completed",
    "inappropriate-recipient": "PC CDS delivered to inappropriate recipient/role",
    "indication-order-exists": "Patient has indication/order for intended action",
    "need-more-info": (
        "Could not address recommended action due to need for more information/pending results/pending consult"
    ),
    "patient-contraindication": "Patient has contraindication to recommended action",
    "patient-ineligible": "Patient does not meet eligibility for recommended action",
    "patient-refuses": "Patient refuses/declines (no context given)*",
    "recipient-does-not-trust": "Recipient does not agree with or trust the recommended action",
    "service-not-available": "Treatment or service is not practically available",
    "wrong-time-workflow": "PC CDS delivered at wrong time in workflow or patient lifecycle",
}
_OF_RESULTS = (
    "action-completed",
    "recipient-does-not-trust",
    "patient-ineligible",
    "need-more-info",
    "wrong-time-workflow",
    "inappropriate-recipient",
)
_OF_ORDERS = (
    "indication-order-exists",
    "action-completed",
    "patient-contraindication",
    "patient-ineligible",
    "patient-refuses",
    "service-not-available",
    "recipient-does-not-trust",
    "wrong-time-workflow",
)
_ORDER_TOPICS = frozenset({Topic.DUPLICATE_IMAGING, Topic.FOLLOW_UP_DUE, Topic.MODALITY})


def _codings(codes: tuple[str, ...]) -> tuple[ReasonCoding, ...]:
    return tuple(ReasonCoding(code=code, system=SYSTEM, display=_DISPLAYS[code]) for code in codes)


_RESULT_REASONS, _ORDER_REASONS = _codings(_OF_RESULTS), _codings(_OF_ORDERS)


def reasons_for(topic: Topic) -> tuple[ReasonCoding, ...]:
    return _ORDER_REASONS if topic in _ORDER_TOPICS else _RESULT_REASONS
