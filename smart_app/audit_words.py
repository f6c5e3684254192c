"""What an event says, in words for a reader who never saw its JSON."""

from collections.abc import Mapping, Sequence
from typing import Final

from rayhook.audit.disclosures import Disclosed
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.review import AuditRecord
from rayhook.audit.unusual import ReviewState
from rayhook.audit.watch import Rule
from rayhook.fhir.text import translatable
from rayhook.smart_app.i18n import gettext as _

STAFF: Final = "urn:rayhook:staff:"

SENTENCES: Final[Mapping[AuditKind, str]] = {
    AuditKind.APPLICATION_STARTED: translatable("The service started"),
    AuditKind.APPLICATION_STOPPED: translatable("The service stopped"),
    AuditKind.AUDIT_CHAIN_VERIFIED: translatable("%(who)s verified the audit trail"),
    AuditKind.AUDIT_DELIVERY_INTERRUPTED: translatable("A receiver outside stopped taking the audit trail"),
    AuditKind.AUDIT_DELIVERY_RESUMED: translatable("A receiver outside takes the audit trail again"),
    AuditKind.AUDIT_DISCLOSURE_READ: translatable("%(who)s made a report of who had a patient's data"),
    AuditKind.AUDIT_HOLD_PLACED: translatable("%(who)s placed a legal hold"),
    AuditKind.AUDIT_HOLD_RELEASED: translatable("%(who)s released a legal hold"),
    AuditKind.AUDIT_KEY_ROTATED: translatable("%(who)s changed the key that signs the audit trail"),
    AuditKind.AUDIT_LOG_EXPORTED: translatable("%(who)s exported events of the audit trail"),
    AuditKind.AUDIT_LOG_PURGED: translatable("%(who)s purged events past their retention"),
    AuditKind.AUDIT_LOG_READ: translatable("%(who)s read the audit trail"),
    AuditKind.AUDIT_PROOF_MADE: translatable("%(who)s made the proof of an event"),
    AuditKind.AUDIT_REVIEW_CHANGED: translatable("%(who)s worked on a review of unusual access"),
    AuditKind.AUDIT_REVIEW_RAISED: translatable("A rule found unusual access to be reviewed"),
    AuditKind.AUTH_ACCOUNT_CREATED: translatable("%(who)s created an account of the staff"),
    AuditKind.AUTH_ACCOUNT_DISABLED: translatable("%(who)s closed an account of the staff"),
    AuditKind.AUTH_ACCOUNT_ENABLED: translatable("%(who)s opened an account of the staff again"),
    AuditKind.AUTH_ACCOUNT_ENROLLED: translatable("%(who)s set up their account"),
    AuditKind.AUTH_ACCOUNT_LISTED: translatable("%(who)s looked at the list of accounts"),
    AuditKind.AUTH_ACCOUNT_LOCKED_OUT: translatable("Wrong attempts closed an account for a while"),
    AuditKind.AUTH_ACCOUNT_RESET: translatable("%(who)s reset an account of the staff"),
    AuditKind.AUTH_BACKEND_AUTHORIZED: translatable("An EHR gave the service a token of its own"),
    AuditKind.AUTH_CLIENT_KEYS_ROTATED: translatable("%(who)s rotated the keys that EHRs know us by"),
    AuditKind.AUTH_DECRYPTION_FAILED: translatable("A stored value could not be decrypted"),
    AuditKind.AUTH_ENCRYPTION_KEY_CHANGED: translatable(
        "%(who)s changed a key that stored values are sealed by"
    ),
    AuditKind.AUTH_ERASURE_LISTED: translatable("%(who)s looked at the erasures of patients"),
    AuditKind.AUTH_ERASURE_REFUSED: translatable("%(who)s was refused the erasure of a patient"),
    AuditKind.AUTH_ERASURE_REQUESTED: translatable("%(who)s asked for the erasure of a patient"),
    AuditKind.AUTH_ERASURE_WITHDRAWN: translatable("%(who)s withdrew the erasure of a patient"),
    AuditKind.AUTH_KEYRING_WRAPPED: translatable("%(who)s changed what the keyring itself is kept under"),
    AuditKind.AUTH_PATIENT_KEY_DESTROYED: translatable("%(who)s erased a patient"),
    AuditKind.AUTH_PROOF_ACCEPTED: translatable("%(who)s showed the second factor again"),
    AuditKind.AUTH_PROOF_REFUSED: translatable("%(who)s showed a wrong second factor"),
    AuditKind.AUTH_ROLE_CHANGED: translatable("%(who)s changed the roles of an account"),
    AuditKind.AUTH_SIGN_IN_ACCEPTED: translatable("%(who)s signed in"),
    AuditKind.AUTH_SIGN_IN_ENDED: translatable("%(who)s signed out"),
    AuditKind.AUTH_SIGN_IN_REFUSED: translatable("A sign-in of the staff was refused"),
    AuditKind.CDS_HOOKS_CARD_RETURNED: translatable("%(who)s was answered with cards"),
    AuditKind.CDS_HOOKS_CLIENT_REFUSED: translatable("A call of an unproven client was refused"),
    AuditKind.CDS_HOOKS_FEEDBACK_RECEIVED: translatable("%(who)s told what became of a card"),
    AuditKind.CDS_HOOKS_PREFETCH_FETCHED: translatable("%(who)s read from the EHR what a call did not bring"),
    AuditKind.CDS_HOOKS_REQUEST_REFUSED: translatable("A call of %(who)s was refused"),
    AuditKind.CDS_HOOKS_SERVICE_CALLED: translatable("%(who)s asked for decision support on a patient"),
    AuditKind.DEPLOY_CONFIGURATION_CHANGED: translatable("The configuration was changed"),
    AuditKind.DEPLOY_SETTINGS_READ: translatable("%(who)s looked at the settings of the service"),
    AuditKind.DICOMWEB_INSTANCES_RECEIVED: translatable("%(who)s stored images here"),
    AuditKind.DICOMWEB_INSTANCES_REFUSED: translatable(
        "Images that %(who)s wanted to store here were refused"
    ),
    AuditKind.DICOMWEB_RESULT_FAILED: translatable("A result could not be stored in the image archive"),
    AuditKind.DICOMWEB_RESULT_STORED: translatable("%(who)s stored a result in the image archive"),
    AuditKind.DICOMWEB_STUDIES_SEARCHED: translatable("%(who)s found new studies in the image archive"),
    AuditKind.DICOMWEB_STUDY_FAILED: translatable("The images of a study could not be retrieved"),
    AuditKind.DICOMWEB_STUDY_RETRIEVED: translatable("%(who)s retrieved the images of a study"),
    AuditKind.FHIR_NOTIFICATION_RECEIVED: translatable("%(who)s told of new studies"),
    AuditKind.FHIR_NOTIFICATION_REFUSED: translatable("A notification of an EHR was refused"),
    AuditKind.FHIR_RESOURCE_READ: translatable("%(who)s read a resource from the EHR"),
    AuditKind.FHIR_RESOURCE_SEARCHED: translatable("%(who)s searched the EHR for studies"),
    AuditKind.FHIR_RESULT_WRITE_REFUSED: translatable("A result was not written to the EHR"),
    AuditKind.FHIR_RESULT_WRITTEN: translatable("%(who)s wrote a result to the EHR"),
    AuditKind.FHIR_SUBSCRIPTION_CHANGED: translatable("%(who)s changed a subscription at the EHR"),
    AuditKind.INFERENCE_ARRIVAL_GIVEN_UP: translatable("Nobody could be asked about a study that arrived"),
    AuditKind.INFERENCE_JOB_CANCELLED: translatable("An analysis was cancelled"),
    AuditKind.INFERENCE_JOB_ENQUEUED: translatable("A study was queued for analysis"),
    AuditKind.INFERENCE_JOB_FAILED: translatable("An analysis ended without an answer"),
    AuditKind.INFERENCE_JOB_LISTED: translatable("%(who)s looked at the list of analyses"),
    AuditKind.INFERENCE_JOB_POSTPONED: translatable("An analysis was put off, to be tried again by itself"),
    AuditKind.INFERENCE_JOB_RETRIED: translatable("%(who)s had a failed analysis tried again"),
    AuditKind.INFERENCE_PERFORMANCE_READ: translatable("%(who)s read how the models perform"),
    AuditKind.INFERENCE_RESULT_REUSED: translatable(
        "Images that a model had analysed before were not analysed again"
    ),
    AuditKind.INFERENCE_STUDY_ABSTAINED: translatable("A model declined to answer on a study"),
    AuditKind.INFERENCE_STUDY_ANALYSED: translatable("A model analysed a study"),
    AuditKind.INFERENCE_STUDY_OUT_OF_SCOPE: translatable("No model is meant for a study"),
    AuditKind.INFERENCE_STUDY_REFUSED: translatable("The images of a study were refused"),
    AuditKind.SMART_APP_ACCESS_DENIED: translatable("%(who)s was denied access"),
    AuditKind.SMART_APP_EMERGENCY_STARTED: translatable("%(who)s opened a patient's data in an emergency"),
    AuditKind.SMART_APP_FHIR_READ: translatable("%(who)s read a result through the FHIR API"),
    AuditKind.SMART_APP_FHIR_SEARCHED: translatable("%(who)s searched results through the FHIR API"),
    AuditKind.SMART_APP_FINDING_ANSWERED: translatable("%(who)s answered a finding of a model"),
    AuditKind.SMART_APP_IMAGE_VIEWED: translatable("%(who)s looked at images"),
    AuditKind.SMART_APP_LAUNCH_REFUSED: translatable("A launch from an EHR was refused"),
    AuditKind.SMART_APP_LAUNCH_STARTED: translatable("A launch from an EHR began"),
    AuditKind.SMART_APP_REPORT_CHANGED: translatable("%(who)s changed a signed report"),
    AuditKind.SMART_APP_REPORT_SIGNED: translatable("%(who)s signed a report"),
    AuditKind.SMART_APP_REPORT_WITHDRAWN: translatable("%(who)s withdrew a report"),
    AuditKind.SMART_APP_RESULT_VIEWED: translatable("%(who)s looked at a result"),
    AuditKind.SMART_APP_SERIES_OPENED: translatable("%(who)s opened a series of images"),
    AuditKind.SMART_APP_SESSION_CLOSED: translatable("A session of %(who)s ended"),
    AuditKind.SMART_APP_SESSION_CREATED: translatable("%(who)s opened the app from the EHR"),
    AuditKind.SMART_APP_SESSION_REFRESHED: translatable("The session of %(who)s was renewed"),
    AuditKind.SMART_APP_STUDY_OPENED: translatable("%(who)s opened a study"),
    AuditKind.TRANSPORT_ADDRESS_REFUSED: translatable(
        "An address that is not on the allow list was not called"
    ),
}

PACKAGES: Final[Mapping[str, str]] = {
    "application": translatable("The service itself"),
    "audit": translatable("The audit trail"),
    "auth": translatable("Accounts, sign-in and keys"),
    "cds_hooks": translatable("Decision support in the EHR"),
    "deploy": translatable("Configuration"),
    "dicomweb": translatable("Image archive"),
    "fhir": translatable("Reading from and writing to the EHR"),
    "inference": translatable("Analysis"),
    "smart_app": translatable("What people saw and did"),
    "transport": translatable("Network"),
}

OUTCOMES: Final[Mapping[Outcome, str]] = {
    Outcome.SUCCESS: translatable("Succeeded"),
    Outcome.MINOR_FAILURE: translatable("Not done"),
    Outcome.SERIOUS_FAILURE: translatable("Refused or failed"),
    Outcome.MAJOR_FAILURE: translatable("Serious alarm"),
}

DISCLOSED: Final[Mapping[Disclosed, str]] = {
    Disclosed.ANALYSED: translatable("analysed by a model of this service"),
    Disclosed.ANSWERED: translatable("told to the clinician's system as a card"),
    Disclosed.EXPORTED: translatable("written to a file"),
    Disclosed.NOTHING: "",
    Disclosed.READ: translatable("read from the hospital's record system by this service"),
    Disclosed.RETRIEVED: translatable("images retrieved from the hospital's archive by this service"),
    Disclosed.SEEN: translatable("seen"),
    Disclosed.SENT: translatable("written to the hospital's own systems"),
    Disclosed.SIGNED: translatable("answered or signed"),
}

PURPOSES: Final[Mapping[str, str]] = {
    "BTG": translatable("an emergency"),
    "HLEGAL": translatable("a legal reason"),
    "HOPERAT": translatable("the hospital's operations"),
    "HRESCH": translatable("research"),
    "HSYSADMIN": translatable("running the system"),
    "PATRQT": translatable("a request of the patient"),
    "TREAT": translatable("treatment"),
}

REVIEW_STATES: Final[Mapping[ReviewState, str]] = {
    ReviewState.OPEN: translatable("Open"),
    ReviewState.UNDER_REVIEW: translatable("Under review"),
    ReviewState.CLOSED: translatable("Closed"),
}

RULES: Final[Mapping[Rule, str]] = {
    Rule.BREAK_GLASS: translatable("Emergency access"),
    Rule.MANY_PATIENTS: translatable("Many patients in a short time"),
    Rule.NIGHT_EXPORT: translatable("Export at night"),
    Rule.OWN_RECORD: translatable("Own record"),
    Rule.REPEATED_DENIALS: translatable("Repeated denials"),
    Rule.VIP: translatable("Specially protected patient"),
}


def who_text(agent: str | None) -> str:
    if agent is None:
        return _("Somebody unknown")
    return _("The service") if agent == "rayhook" else agent.removeprefix(STAFF)


def sentence(record: AuditRecord) -> str:
    return _(SENTENCES[record.kind], who=who_text(record.agent))


def kind_text(kind: AuditKind) -> str:
    """Return the sentence of nobody in particular, to choose from a list."""
    return _(SENTENCES[kind], who=_("Somebody"))


def purpose_text(code: str) -> str:
    return _(PURPOSES[code]) if code in PURPOSES else code


def story(record: AuditRecord, ehr_name: str | None) -> list[str]:
    """Return the event as sentences: who did what, of whom, from where, why, and how it ended."""
    told = [_("%(what)s.", what=sentence(record))]
    if record.patient_id is not None:
        told.append(
            _("It concerned patient %(patient)s of %(ehr)s.", patient=record.patient_id, ehr=ehr_name or "?")
        )
    if record.is_erased:
        told.append(_("What it said of the patient was erased."))
    if record.entities:
        told.append(
            _("What was touched: %(entities)s.", entities=", ".join(map(entity_text, record.entities)))
        )
    address = record.context.get("client_address")
    if address:
        told.append(_("The request came from the address %(address)s.", address=address))
    if record.client_id:
        told.append(_("It was asked for through %(client)s.", client=record.client_id))
    if record.patient_id is not None:
        purpose = purpose_text(record.context.get("purpose") or "TREAT")
        told.append(_("The purpose was %(purpose)s.", purpose=purpose))
    told.append(_ending(record))
    return told


def entity_text(entity: str) -> str:
    return f"DICOM {entity.removeprefix('urn:oid:')}" if entity.startswith("urn:oid:") else entity


def entities_text(entities: Sequence[str], most: int) -> str:
    """Return the first ones, and how many more there are."""
    shown = ", ".join(map(entity_text, entities[:most]))
    left = len(entities) - most
    return _("%(shown)s and %(count)s more", shown=shown, count=left) if left > 0 else shown


def _ending(record: AuditRecord) -> str:
    if record.outcome is Outcome.SUCCESS:
        return _("It succeeded.")
    code = record.detail.get("code") or record.detail.get("reason")
    return _("It did not succeed: %(code)s.", code=code) if code else _("It did not succeed.")
