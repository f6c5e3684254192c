"""The codes that we emit: closed enums for elements of type code, Codings for the rest.

Displays are the terminologies' own, as validators compare them.
"""

from dataclasses import dataclass
from enum import StrEnum

DCM = "http://dicom.nema.org/resources/ontology/DCM"
LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
UCUM = "http://unitsofmeasure.org"
_AI = "http://hl7.org/fhir/uv/aitransparency"
_THO = "http://terminology.hl7.org/CodeSystem"


@dataclass(frozen=True, slots=True)
class Coding:
    """Spec: FHIR R4, 2.24.0.5 "Coding"."""

    system: str
    code: str
    display: str

    def json(self) -> dict[str, str]:
        return {"system": self.system, "code": self.code, "display": self.display}

    def concept(self, text: str | None = None) -> dict[str, object]:
        """Return a CodeableConcept of this one coding."""
        concept: dict[str, object] = {"coding": [self.json()]}
        return concept if text is None else concept | {"text": text}

    def fixed(self) -> dict[str, object]:
        """Return the concept without its display, as profiles fix it whose value has none."""
        return {"coding": [{"system": self.system, "code": self.code}]}


# Spec: https://hl7.org/fhir/R4/valueset-diagnostic-report-status.html
class DiagnosticReportStatus(StrEnum):
    AMENDED = "amended"
    APPENDED = "appended"
    CANCELLED = "cancelled"
    CORRECTED = "corrected"
    ENTERED_IN_ERROR = "entered-in-error"
    FINAL = "final"
    PARTIAL = "partial"
    PRELIMINARY = "preliminary"
    REGISTERED = "registered"
    UNKNOWN = "unknown"


# Spec: https://hl7.org/fhir/R4/valueset-observation-status.html
class ObservationStatus(StrEnum):
    AMENDED = "amended"
    CANCELLED = "cancelled"
    CORRECTED = "corrected"
    ENTERED_IN_ERROR = "entered-in-error"
    FINAL = "final"
    PRELIMINARY = "preliminary"
    REGISTERED = "registered"
    UNKNOWN = "unknown"


# Spec: https://hl7.org/fhir/R4/valueset-imagingstudy-status.html
class ImagingStudyStatus(StrEnum):
    AVAILABLE = "available"
    CANCELLED = "cancelled"
    ENTERED_IN_ERROR = "entered-in-error"
    REGISTERED = "registered"
    UNKNOWN = "unknown"


# Spec: https://hl7.org/fhir/R4/valueset-device-status.html
class DeviceStatus(StrEnum):
    ACTIVE = "active"
    ENTERED_IN_ERROR = "entered-in-error"
    INACTIVE = "inactive"
    UNKNOWN = "unknown"


# Spec: https://hl7.org/fhir/R4/valueset-device-nametype.html
class DeviceNameType(StrEnum):
    MANUFACTURER_NAME = "manufacturer-name"
    MODEL_NAME = "model-name"
    OTHER = "other"
    PATIENT_REPORTED_NAME = "patient-reported-name"
    UDI_LABEL_NAME = "udi-label-name"
    USER_FRIENDLY_NAME = "user-friendly-name"


# Spec: https://hl7.org/fhir/R4/valueset-udi-entry-type.html
class UDIEntryType(StrEnum):
    BARCODE = "barcode"
    CARD = "card"
    MANUAL = "manual"
    RFID = "rfid"
    SELF_REPORTED = "self-reported"
    UNKNOWN = "unknown"


# Spec: https://hl7.org/fhir/R4/valueset-provenance-entity-role.html
class ProvenanceEntityRole(StrEnum):
    DERIVATION = "derivation"
    QUOTATION = "quotation"
    REMOVAL = "removal"
    REVISION = "revision"
    SOURCE = "source"


# Spec: https://hl7.org/fhir/R4/valueset-document-reference-status.html
class DocumentReferenceStatus(StrEnum):
    CURRENT = "current"
    ENTERED_IN_ERROR = "entered-in-error"
    SUPERSEDED = "superseded"


# Spec: https://hl7.org/fhir/R4/valueset-bundle-type.html
class BundleType(StrEnum):
    BATCH = "batch"
    BATCH_RESPONSE = "batch-response"
    COLLECTION = "collection"
    DOCUMENT = "document"
    HISTORY = "history"
    MESSAGE = "message"
    SEARCHSET = "searchset"
    TRANSACTION = "transaction"
    TRANSACTION_RESPONSE = "transaction-response"


# Spec: https://hl7.org/fhir/R4/valueset-issue-type.html
class IssueType(StrEnum):
    BUSINESS_RULE = "business-rule"
    CODE_INVALID = "code-invalid"
    CONFLICT = "conflict"
    DELETED = "deleted"
    DUPLICATE = "duplicate"
    EXCEPTION = "exception"
    EXPIRED = "expired"
    EXTENSION = "extension"
    FORBIDDEN = "forbidden"
    INCOMPLETE = "incomplete"
    INFORMATIONAL = "informational"
    INVALID = "invalid"
    INVARIANT = "invariant"
    LOCK_ERROR = "lock-error"
    LOGIN = "login"
    MULTIPLE_MATCHES = "multiple-matches"
    NO_STORE = "no-store"
    NOT_FOUND = "not-found"
    NOT_SUPPORTED = "not-supported"
    PROCESSING = "processing"
    REQUIRED = "required"
    SECURITY = "security"
    STRUCTURE = "structure"
    SUPPRESSED = "suppressed"
    THROTTLED = "throttled"
    TIMEOUT = "timeout"
    TOO_COSTLY = "too-costly"
    TOO_LONG = "too-long"
    TRANSIENT = "transient"
    UNKNOWN = "unknown"
    VALUE = "value"


# Spec: https://hl7.org/fhir/R4/valueset-audit-event-action.html
class AuditEventAction(StrEnum):
    CREATE = "C"
    DELETE = "D"
    EXECUTE = "E"
    READ = "R"
    UPDATE = "U"


# Spec: https://hl7.org/fhir/R4/valueset-audit-event-outcome.html
class AuditEventOutcome(StrEnum):
    SUCCESS = "0"
    MINOR_FAILURE = "4"
    SERIOUS_FAILURE = "8"
    MAJOR_FAILURE = "12"


# Spec: https://hl7.org/fhir/R4/valueset-network-type.html
class AuditNetworkType(StrEnum):
    MACHINE_NAME = "1"
    IP_ADDRESS = "2"
    TELEPHONE_NUMBER = "3"
    EMAIL_ADDRESS = "4"
    URI = "5"


# Spec: https://hl7.org/fhir/R4/valueset-quantity-comparator.html
class QuantityComparator(StrEnum):
    GREATER_OR_EQUAL = ">="
    GREATER_THAN = ">"
    LESS_OR_EQUAL = "<="
    LESS_THAN = "<"


# Spec: https://hl7.org/fhir/R4/valueset-endpoint-status.html
class EndpointStatus(StrEnum):
    ACTIVE = "active"
    ENTERED_IN_ERROR = "entered-in-error"
    ERROR = "error"
    OFF = "off"
    SUSPENDED = "suspended"
    TEST = "test"


# Reports. Spec: https://terminology.hl7.org/CodeSystem-v2-0074.html, https://loinc.org,
# US Core DiagnosticReport Profile for Report and Note Exchange
RADIOLOGY_SECTION = Coding(f"{_THO}/v2-0074", "RAD", "Radiology")
RADIOLOGY = Coding(LOINC, "LP29684-5", "Radiology")
DIAGNOSTIC_IMAGING_STUDY = Coding(LOINC, "18748-4", "Diagnostic imaging study")
PROCEDURE_FINDINGS = Coding(LOINC, "59776-5", "Procedure findings Narrative")

# Observations. Spec: https://terminology.hl7.org/CodeSystem-observation-category.html, DICOM PS3.16 Annex D,
# https://terminology.hl7.org/CodeSystem-data-absent-reason.html
IMAGING = Coding(f"{_THO}/observation-category", "imaging", "Imaging")
FINDING = Coding(DCM, "121071", "Finding")
IMPRESSION = Coding(DCM, "121073", "Impression")
CERTAINTY_OF_FINDING = Coding(DCM, "111012", "Certainty of Finding")
PROBABILITY = Coding(DCM, "122157", "Probability")
PROBABILITY_OF_CANCER = Coding(DCM, "111047", "Probability of cancer")
ALGORITHM_NAME = Coding(DCM, "111001", "Algorithm Name")
ALGORITHM_PARAMETERS = Coding(DCM, "111002", "Algorithm Parameters")
ALGORITHM_VERSION = Coding(DCM, "111003", "Algorithm Version")
STUDY_INSTANCE_UID = Coding(DCM, "110180", "Study Instance UID")
SOP_CLASS_UID = Coding(DCM, "110181", "SOP Class UID")
VISUAL_EXPLANATION = Coding(DCM, "130401", "Visual explanation")
PRESENT = Coding(SNOMED, "52101004", "Present")
ABSENT = Coding(SNOMED, "2667000", "Absent")
EQUIVOCAL = Coding(SNOMED, "42425007", "Equivocal")
LATERALITY = Coding(SNOMED, "272741003", "Laterality")
LEFT = Coding(SNOMED, "7771000", "Left")
RIGHT = Coding(SNOMED, "24028007", "Right")
BILATERAL = Coding(SNOMED, "51440002", "Bilateral")
MIDLINE = Coding(SNOMED, "260528009", "Midline")
LONG_AXIS = Coding(SNOMED, "103339001", "Long axis")
BRAIN = Coding(SNOMED, "12738006", "Brain structure")
NOT_PERFORMED = Coding(f"{_THO}/data-absent-reason", "not-performed", "Not Performed")
UNSUPPORTED = Coding(f"{_THO}/data-absent-reason", "unsupported", "Unsupported")
DATA_ERROR = Coding(f"{_THO}/data-absent-reason", "error", "Error")
UNKNOWN = Coding(f"{_THO}/data-absent-reason", "unknown", "Unknown")

# AI labels. Spec: https://terminology.hl7.org/CodeSystem-v3-ObservationValue.html,
# HL7 AI Transparency on FHIR 1.0.0-ballot (AI-Device, AI-Provenance, AIconfidence)
AI_ASSERTED = Coding(f"{_THO}/v3-ObservationValue", "AIAST", "Artificial Intelligence asserted")
CLINICIAN_ASSERTED = Coding(f"{_THO}/v3-ObservationValue", "CLINAST", "clinician asserted")
PROCESS_INLINE_LABEL = Coding(f"{_THO}/v3-ActCode", "PROCESSINLINELABEL", "process inline security label")
ARTIFICIAL_INTELLIGENCE = Coding(
    f"{_AI}/CodeSystem/AIdeviceTypeCS", "Artificial-Intelligence", "All kinds of Artificial Intelligence"
)
DEEP_LEARNING_MODEL = Coding(
    f"{_AI}/CodeSystem/AIdeviceTypeCS", "Deep-Learning-Models", "Deep Learning Models"
)
AI_MODEL_CARD = Coding(f"{_AI}/CodeSystem/AIinputsCS", "AIModelCard", "AI Model-Card")
AI_MODEL_CARD_MARKDOWN = Coding(
    f"{_AI}/CodeSystem/AIinputsCS", "AIModelCardMarkdownFormat", "Markdown Format"
)
AI_CONFIDENCE_EXTENSION = f"{_AI}/StructureDefinition/AIconfidence"
AI_KIND_EXTENSION = f"{_AI}/StructureDefinition/aitransparency.AIKind"
AI_MODEL_CARD_EXTENSION = f"{_AI}/StructureDefinition/aitransparency.modelCardDescription"

# Provenance. Spec: https://terminology.hl7.org/CodeSystem-provenance-participant-type.html,
# https://terminology.hl7.org/CodeSystem-v3-ActReason.html, https://terminology.hl7.org/CodeSystem-v3-DataOperation.html
AUTHOR = Coding(f"{_THO}/provenance-participant-type", "author", "Author")
VERIFIER = Coding(f"{_THO}/provenance-participant-type", "verifier", "Verifier")
TREATMENT = Coding(f"{_THO}/v3-ActReason", "TREAT", "treatment")
CREATE = Coding(f"{_THO}/v3-DataOperation", "CREATE", "create")
REVISE = Coding(f"{_THO}/v3-DataOperation", "UPDATE", "revise")

# Devices. Spec: DICOM PS3.16 CID 7051; https://terminology.hl7.org/CodeSystem-v2-0203.html
SERIAL_NUMBER = Coding(f"{_THO}/v2-0203", "SNO", "Serial Number")
ACCESSION_NUMBER = Coding(f"{_THO}/v2-0203", "ACSN", "Accession ID")
MEDICAL_RECORD_NUMBER = Coding(f"{_THO}/v2-0203", "MR", "Medical record number")

# Endpoints. Spec: https://terminology.hl7.org/CodeSystem-endpoint-connection-type.html,
# HL7 SMART Imaging Access, extension requires-access-token
WADO_RS = Coding(f"{_THO}/endpoint-connection-type", "dicom-wado-rs", "DICOM WADO-RS")
STUDY_PAYLOAD = Coding(DCM, "113014", "Study")
REQUIRES_ACCESS_TOKEN_EXTENSION = (
    "http://hl7.org/fhir/smart-app-launch/StructureDefinition/requires-access-token"  # noqa: S105 - the name of an extension
)

# Audit. Spec: IHE ITI Basic Audit Log Patterns 1.1.5; DICOM PS3.15 A.5, PS3.16 CID 400 to 404
REST_OPERATION = Coding(f"{_THO}/audit-event-type", "rest", "RESTful Operation")
APPLICATION_ACTIVITY = Coding(DCM, "110100", "Application Activity")
AUDIT_LOG_USED = Coding(DCM, "110101", "Audit Log Used")
DICOM_INSTANCES_ACCESSED = Coding(DCM, "110103", "DICOM Instances Accessed")
DICOM_INSTANCES_TRANSFERRED = Coding(DCM, "110104", "DICOM Instances Transferred")
EXPORT = Coding(DCM, "110106", "Export")
IMPORT = Coding(DCM, "110107", "Import")
QUERY = Coding(DCM, "110112", "Query")
SECURITY_ALERT = Coding(DCM, "110113", "Security Alert")
USER_AUTHENTICATION = Coding(DCM, "110114", "User Authentication")
APPLICATION_START = Coding(DCM, "110120", "Application Start")
APPLICATION_STOP = Coding(DCM, "110121", "Application Stop")
LOGIN = Coding(DCM, "110122", "Login")
LOGOUT = Coding(DCM, "110123", "Logout")
APPLICATION = Coding(DCM, "110150", "Application")
DESTINATION_ROLE = Coding(DCM, "110152", "Destination Role ID")
SOURCE_ROLE = Coding(DCM, "110153", "Source Role ID")
