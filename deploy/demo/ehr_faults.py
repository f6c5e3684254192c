"""What may go wrong at the demo EHR, switched on by a test while it runs."""

from dataclasses import dataclass


@dataclass(slots=True)
class EHRFaults:
    """`fhir_status` answers every FHIR request with that status; times are in seconds.

    `drip_s` is the pause after each byte of a FHIR answer, `fail_share` of them are a 503.
    `lost_notifications` is how many of the next ones are not sent, `no_events_operation` refuses to tell them again.
    `wrong_patient` makes every ImagingStudy name another patient than the one asked for.
    """

    fhir_status: int | None = None
    slow_s: float = 0.0
    drip_s: float = 0.0
    fail_share: float = 0.0
    no_prefetch: bool = False
    no_write_scope: bool = False
    wrong_patient: bool = False
    lost_notifications: int = 0
    no_events_operation: bool = False
