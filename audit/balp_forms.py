"""Which FHIR AuditEvent each kind of event is: type, subtype, action, and who is client and who is server.

Spec: IHE BALP 1.1.3; DICOM PS3.15 A.5.3; https://hl7.org/fhir/R4/auditevent.html
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Final

from rayhook.audit.events import AuditKind

DCM: Final = "http://dicom.nema.org/resources/ontology/DCM"
REST: Final = "http://hl7.org/fhir/restful-interaction"
EVENT_TYPE: Final = "http://terminology.hl7.org/CodeSystem/audit-event-type"
AUTHZ: Final = "https://profiles.ihe.net/ITI/BALP/CodeSystem/AuthZsubType"
_PROFILE: Final = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."


class Way(Enum):
    """Who asked whom: we were asked, we asked another, or we acted by ourselves."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"
    WITHIN = "within"


@dataclass(frozen=True, slots=True)
class Coding:
    system: str
    code: str
    display: str | None = None

    def as_json(self) -> dict[str, str]:
        named = {"system": self.system, "code": self.code}
        return named if self.display is None else named | {"display": self.display}


SOURCE: Final = Coding(DCM, "110153", "Source Role ID")
DESTINATION: Final = Coding(DCM, "110152", "Destination Role ID")
APPLICATION: Final = Coding(DCM, "110150", "Application")


@dataclass(frozen=True, slots=True)
class Form:
    """`profile` is claimed for an outcome of success with a patient; `data_role` is that of the entities touched.

    `client` and `server` are the roles in which the two ends of the wire take part.
    """

    type: Coding
    subtype: Coding | None
    action: str
    way: Way
    profile: str | None = None
    data_role: Coding = Coding("http://terminology.hl7.org/CodeSystem/object-role", "4", "Domain Resource")
    client: Coding = SOURCE
    server: Coding = DESTINATION
    is_query: bool = False


_REST = Coding(EVENT_TYPE, "rest", "RESTful Operation")
_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
_REPORT = Coding(_ROLE, "3", "Report")
_JOB = Coding(_ROLE, "20", "Job")
_SECURITY_USER = Coding(_ROLE, "11", "Security User Entity")
_AUDIT_LOG = Coding(_ROLE, "13", "Security Resource")


def _read(way: Way, role: Coding = _REPORT) -> Form:
    subtype = Coding(REST, "read", "read")
    return Form(_REST, subtype, "R", way, _PROFILE + "PatientRead", role, DESTINATION, SOURCE)


def _write(code: str, action: str, way: Way, profile: str) -> Form:
    return Form(_REST, Coding(REST, code, code), action, way, _PROFILE + profile, _REPORT)


def _search(way: Way) -> Form:
    subtype = Coding(REST, "search-type", "search-type")
    return Form(_REST, subtype, "E", way, _PROFILE + "PatientQuery", is_query=True)


def _operation(way: Way, role: Coding = _JOB) -> Form:
    return Form(_REST, Coding(REST, "operation", "operation"), "E", way, data_role=role)


def _dicom(code: str, display: str, action: str, way: Way, subtype: Coding | None = None) -> Form:
    is_read = action == "R"
    client, server = (DESTINATION, SOURCE) if is_read else (SOURCE, DESTINATION)
    return Form(
        Coding(DCM, code, display), subtype, action, way, data_role=_REPORT, client=client, server=server
    )


def _application(subtype: Coding, role: Coding = _JOB) -> Form:
    type_ = Coding(DCM, "110100", "Application Activity")
    return Form(type_, subtype, "E", Way.WITHIN, data_role=role, client=APPLICATION)


def _security(code: str, display: str, action: str = "E", role: Coding = _SECURITY_USER) -> Form:
    type_ = Coding(DCM, "110113", "Security Alert")
    return Form(type_, Coding(DCM, code, display), action, Way.INBOUND, data_role=role, client=APPLICATION)


def _sign_in(code: str, display: str) -> Form:
    type_ = Coding(DCM, "110114", "User Authentication")
    return Form(
        type_, Coding(DCM, code, display), "E", Way.INBOUND, data_role=_SECURITY_USER, client=APPLICATION
    )


def _audit_log(way: Way = Way.INBOUND) -> Form:
    return Form(
        Coding(DCM, "110101", "Audit Log Used"), None, "R", way, data_role=_AUDIT_LOG, client=APPLICATION
    )


_LOGIN = _sign_in("110122", "Login")
_TOKEN = replace(_LOGIN, way=Way.OUTBOUND)
_LOGOUT = _sign_in("110123", "Logout")
_ANALYSIS = _application(Coding(DCM, "110120", "Application Start"))
_ACCESS_DENIED = Form(
    Coding(DCM, "110113", "Security Alert"),
    Coding(AUTHZ, "AuthZ-Role"),
    "E",
    Way.INBOUND,
    client=APPLICATION,
)
_ATTRIBUTES = _security("110137", "User security Attributes Changed", "U")
_RESTRICTED = _security("110132", "Use of Restricted Function", "E")
_CONFIGURATION = _security("110131", "Software Configuration", "U", _AUDIT_LOG)
_INSTANCES_VIEWED = _dicom("110103", "DICOM Instances Accessed", "R", Way.INBOUND)
_EXPORT = _dicom("110106", "Export", "R", Way.INBOUND)

OTHER: Final = _application(Coding(DCM, "110120", "Application Start"))

FORMS: Final[Mapping[AuditKind, Form]] = MappingProxyType(
    {
        AuditKind.APPLICATION_STARTED: _application(Coding(DCM, "110120", "Application Start")),
        AuditKind.APPLICATION_STOPPED: _application(Coding(DCM, "110121", "Application Stop")),
        AuditKind.AUDIT_CHAIN_VERIFIED: _audit_log(Way.WITHIN),
        AuditKind.AUDIT_DELIVERY_INTERRUPTED: _security("110126", "Node Authentication", role=_AUDIT_LOG),
        AuditKind.AUDIT_DELIVERY_RESUMED: _security("110126", "Node Authentication", role=_AUDIT_LOG),
        AuditKind.AUDIT_DISCLOSURE_READ: _audit_log(),
        AuditKind.AUDIT_HOLD_PLACED: _security("110132", "Use of Restricted Function", role=_AUDIT_LOG),
        AuditKind.AUDIT_HOLD_RELEASED: _security("110132", "Use of Restricted Function", role=_AUDIT_LOG),
        AuditKind.AUDIT_KEY_ROTATED: _CONFIGURATION,
        AuditKind.AUDIT_LOG_EXPORTED: _EXPORT,
        AuditKind.AUDIT_LOG_PURGED: _security("110132", "Use of Restricted Function", "D", _AUDIT_LOG),
        AuditKind.AUDIT_LOG_READ: _audit_log(),
        AuditKind.AUDIT_PROOF_MADE: _audit_log(),
        AuditKind.AUDIT_REVIEW_CHANGED: _security("110132", "Use of Restricted Function", "U", _AUDIT_LOG),
        AuditKind.AUDIT_REVIEW_RAISED: _security("110132", "Use of Restricted Function", "C", _AUDIT_LOG),
        AuditKind.AUTH_ACCOUNT_CREATED: _ATTRIBUTES,
        AuditKind.AUTH_ACCOUNT_DISABLED: _ATTRIBUTES,
        AuditKind.AUTH_ACCOUNT_ENABLED: _ATTRIBUTES,
        AuditKind.AUTH_ACCOUNT_ENROLLED: _ATTRIBUTES,
        AuditKind.AUTH_ACCOUNT_LISTED: _security("110132", "Use of Restricted Function", "R"),
        AuditKind.AUTH_ACCOUNT_LOCKED_OUT: _ATTRIBUTES,
        AuditKind.AUTH_ACCOUNT_RESET: _ATTRIBUTES,
        AuditKind.AUTH_BACKEND_AUTHORIZED: _TOKEN,
        AuditKind.AUTH_CLIENT_KEYS_ROTATED: _CONFIGURATION,
        AuditKind.AUTH_DECRYPTION_FAILED: _security("110132", "Use of Restricted Function", "R"),
        AuditKind.AUTH_ENCRYPTION_KEY_CHANGED: _CONFIGURATION,
        AuditKind.AUTH_ERASURE_LISTED: _security("110132", "Use of Restricted Function", "R"),
        AuditKind.AUTH_ERASURE_REFUSED: _RESTRICTED,
        AuditKind.AUTH_ERASURE_REQUESTED: _RESTRICTED,
        AuditKind.AUTH_ERASURE_WITHDRAWN: _RESTRICTED,
        AuditKind.AUTH_KEYRING_WRAPPED: _CONFIGURATION,
        AuditKind.AUTH_PATIENT_KEY_DESTROYED: _security("110132", "Use of Restricted Function", "D"),
        AuditKind.AUTH_PROOF_ACCEPTED: _LOGIN,
        AuditKind.AUTH_PROOF_REFUSED: _LOGIN,
        AuditKind.AUTH_ROLE_CHANGED: _security("110136", "Security Roles Changed", "U"),
        AuditKind.AUTH_SIGN_IN_ACCEPTED: _LOGIN,
        AuditKind.AUTH_SIGN_IN_ENDED: _LOGOUT,
        AuditKind.AUTH_SIGN_IN_REFUSED: _LOGIN,
        AuditKind.CDS_HOOKS_CARD_RETURNED: _operation(Way.INBOUND, _REPORT),
        AuditKind.CDS_HOOKS_CLIENT_REFUSED: _security("110126", "Node Authentication"),
        AuditKind.CDS_HOOKS_FEEDBACK_RECEIVED: _operation(Way.INBOUND, _REPORT),
        AuditKind.CDS_HOOKS_PREFETCH_FETCHED: _read(Way.OUTBOUND),
        AuditKind.CDS_HOOKS_REQUEST_REFUSED: _operation(Way.INBOUND, _REPORT),
        AuditKind.CDS_HOOKS_SERVICE_CALLED: _operation(Way.INBOUND, _REPORT),
        AuditKind.DEPLOY_CONFIGURATION_CHANGED: _CONFIGURATION,
        AuditKind.DEPLOY_SETTINGS_READ: _security("110132", "Use of Restricted Function", "R"),
        AuditKind.DICOMWEB_INSTANCES_RECEIVED: _dicom(
            "110104", "DICOM Instances Transferred", "C", Way.INBOUND
        ),
        AuditKind.DICOMWEB_INSTANCES_REFUSED: _dicom(
            "110104", "DICOM Instances Transferred", "C", Way.INBOUND
        ),
        AuditKind.DICOMWEB_RESULT_FAILED: _dicom("110104", "DICOM Instances Transferred", "C", Way.OUTBOUND),
        AuditKind.DICOMWEB_RESULT_STORED: _dicom("110104", "DICOM Instances Transferred", "C", Way.OUTBOUND),
        AuditKind.DICOMWEB_STUDIES_SEARCHED: _search(Way.OUTBOUND),
        AuditKind.DICOMWEB_STUDY_FAILED: _dicom("110104", "DICOM Instances Transferred", "R", Way.OUTBOUND),
        AuditKind.DICOMWEB_STUDY_RETRIEVED: _dicom(
            "110104", "DICOM Instances Transferred", "R", Way.OUTBOUND
        ),
        AuditKind.FHIR_NOTIFICATION_RECEIVED: _operation(Way.INBOUND, _REPORT),
        AuditKind.FHIR_NOTIFICATION_REFUSED: _security("110126", "Node Authentication"),
        AuditKind.FHIR_RESOURCE_READ: _read(Way.OUTBOUND),
        AuditKind.FHIR_RESOURCE_SEARCHED: _search(Way.OUTBOUND),
        AuditKind.FHIR_RESULT_WRITE_REFUSED: _write("create", "C", Way.OUTBOUND, "PatientCreate"),
        AuditKind.FHIR_RESULT_WRITTEN: _write("create", "C", Way.OUTBOUND, "PatientCreate"),
        AuditKind.FHIR_SUBSCRIPTION_CHANGED: _CONFIGURATION,
        AuditKind.INFERENCE_ARRIVAL_GIVEN_UP: _ANALYSIS,
        AuditKind.INFERENCE_JOB_CANCELLED: _ANALYSIS,
        AuditKind.INFERENCE_JOB_ENQUEUED: _ANALYSIS,
        AuditKind.INFERENCE_JOB_FAILED: _ANALYSIS,
        AuditKind.INFERENCE_JOB_LISTED: _security("110132", "Use of Restricted Function", "R"),
        AuditKind.INFERENCE_JOB_POSTPONED: _ANALYSIS,
        AuditKind.INFERENCE_JOB_RETRIED: _security("110132", "Use of Restricted Function", "E"),
        AuditKind.INFERENCE_PERFORMANCE_READ: _operation(Way.INBOUND, _REPORT),
        AuditKind.INFERENCE_RESULT_REUSED: _ANALYSIS,
        AuditKind.INFERENCE_STUDY_ABSTAINED: _ANALYSIS,
        AuditKind.INFERENCE_STUDY_ANALYSED: _ANALYSIS,
        AuditKind.INFERENCE_STUDY_OUT_OF_SCOPE: _ANALYSIS,
        AuditKind.INFERENCE_STUDY_REFUSED: _ANALYSIS,
        AuditKind.SMART_APP_ACCESS_DENIED: _ACCESS_DENIED,
        AuditKind.SMART_APP_EMERGENCY_STARTED: _security(
            "110127", "Emergency Override Started", "E", _REPORT
        ),
        AuditKind.SMART_APP_FHIR_READ: _read(Way.INBOUND),
        AuditKind.SMART_APP_FHIR_SEARCHED: _search(Way.INBOUND),
        AuditKind.SMART_APP_FINDING_ANSWERED: _write("update", "U", Way.INBOUND, "PatientUpdate"),
        AuditKind.SMART_APP_IMAGE_VIEWED: _INSTANCES_VIEWED,
        AuditKind.SMART_APP_LAUNCH_REFUSED: _LOGIN,
        AuditKind.SMART_APP_LAUNCH_STARTED: _LOGIN,
        AuditKind.SMART_APP_REPORT_CHANGED: _write("update", "U", Way.INBOUND, "PatientUpdate"),
        AuditKind.SMART_APP_REPORT_SIGNED: _write("update", "U", Way.INBOUND, "PatientUpdate"),
        AuditKind.SMART_APP_REPORT_WITHDRAWN: _write("update", "U", Way.INBOUND, "PatientUpdate"),
        AuditKind.SMART_APP_RESULT_VIEWED: _read(Way.INBOUND),
        AuditKind.SMART_APP_SERIES_OPENED: _INSTANCES_VIEWED,
        AuditKind.SMART_APP_SESSION_CLOSED: _LOGOUT,
        AuditKind.SMART_APP_SESSION_CREATED: _LOGIN,
        AuditKind.SMART_APP_SESSION_REFRESHED: _LOGIN,
        AuditKind.SMART_APP_STUDY_OPENED: _INSTANCES_VIEWED,
        AuditKind.TRANSPORT_ADDRESS_REFUSED: _security("110126", "Node Authentication"),
    }
)
