"""What can be said in the audit: closed lists, so that a reader knows every word.

Spec: IHE BALP 1.1.3 names the REST events; the tags are ours, `package:subject:action`, alphabetical.
"""

from enum import IntEnum, StrEnum


class AuditKind(StrEnum):
    """Every kind of event. A tag, once written to a log, keeps its meaning for ever."""

    APPLICATION_STARTED = "application:process:started"
    APPLICATION_STOPPED = "application:process:stopped"
    AUDIT_CHAIN_VERIFIED = "audit:chain:verified"
    AUDIT_DELIVERY_INTERRUPTED = "audit:delivery:interrupted"
    AUDIT_DELIVERY_RESUMED = "audit:delivery:resumed"
    AUDIT_DISCLOSURE_READ = "audit:disclosure:read"
    AUDIT_HOLD_PLACED = "audit:hold:placed"
    AUDIT_HOLD_RELEASED = "audit:hold:released"
    AUDIT_KEY_ROTATED = "audit:key:rotated"
    AUDIT_LOG_EXPORTED = "audit:log:exported"
    AUDIT_LOG_PURGED = "audit:log:purged"
    AUDIT_LOG_READ = "audit:log:read"
    AUDIT_PROOF_MADE = "audit:proof:made"
    AUDIT_REVIEW_CHANGED = "audit:review:changed"
    AUDIT_REVIEW_RAISED = "audit:review:raised"
    AUTH_ACCOUNT_CREATED = "auth:account:created"
    AUTH_ACCOUNT_DISABLED = "auth:account:disabled"
    AUTH_ACCOUNT_ENABLED = "auth:account:enabled"
    AUTH_ACCOUNT_ENROLLED = "auth:account:enrolled"
    AUTH_ACCOUNT_LISTED = "auth:account:listed"
    AUTH_ACCOUNT_LOCKED_OUT = "auth:account:locked_out"
    AUTH_ACCOUNT_RESET = "auth:account:reset"
    AUTH_BACKEND_AUTHORIZED = "auth:backend:authorized"
    AUTH_CLIENT_KEYS_ROTATED = "auth:client_keys:rotated"
    AUTH_DECRYPTION_FAILED = "auth:decryption:failed"
    AUTH_ENCRYPTION_KEY_CHANGED = "auth:encryption_key:changed"
    AUTH_KEYRING_WRAPPED = "auth:keyring:wrapped"
    AUTH_PROOF_ACCEPTED = "auth:proof:accepted"
    AUTH_PROOF_REFUSED = "auth:proof:refused"
    AUTH_ROLE_CHANGED = "auth:role:changed"
    AUTH_SIGN_IN_ACCEPTED = "auth:sign_in:accepted"
    AUTH_SIGN_IN_ENDED = "auth:sign_in:ended"
    AUTH_SIGN_IN_REFUSED = "auth:sign_in:refused"
    CDS_HOOKS_CARD_RETURNED = "cds_hooks:card:returned"
    CDS_HOOKS_CLIENT_REFUSED = "cds_hooks:client:refused"
    CDS_HOOKS_FEEDBACK_RECEIVED = "cds_hooks:feedback:received"
    CDS_HOOKS_PREFETCH_FETCHED = "cds_hooks:prefetch:fetched"
    CDS_HOOKS_REQUEST_REFUSED = "cds_hooks:request:refused"
    CDS_HOOKS_SERVICE_CALLED = "cds_hooks:service:called"
    DEPLOY_CONFIGURATION_CHANGED = "deploy:configuration:changed"
    DEPLOY_SETTINGS_READ = "deploy:settings:read"
    DICOMWEB_RESULT_FAILED = "dicomweb:result:failed"
    DICOMWEB_RESULT_STORED = "dicomweb:result:stored"
    DICOMWEB_STUDY_FAILED = "dicomweb:study:failed"
    DICOMWEB_STUDY_RETRIEVED = "dicomweb:study:retrieved"
    FHIR_RESOURCE_READ = "fhir:resource:read"
    FHIR_RESULT_WRITE_REFUSED = "fhir:result:write_refused"
    FHIR_RESULT_WRITTEN = "fhir:result:written"
    INFERENCE_JOB_ENQUEUED = "inference:job:enqueued"
    INFERENCE_JOB_FAILED = "inference:job:failed"
    INFERENCE_JOB_LISTED = "inference:job:listed"
    INFERENCE_JOB_RETRIED = "inference:job:retried"
    INFERENCE_PERFORMANCE_READ = "inference:performance:read"
    INFERENCE_STUDY_ABSTAINED = "inference:study:abstained"
    INFERENCE_STUDY_ANALYSED = "inference:study:analysed"
    INFERENCE_STUDY_OUT_OF_SCOPE = "inference:study:out_of_scope"
    INFERENCE_STUDY_REFUSED = "inference:study:refused"
    SMART_APP_ACCESS_DENIED = "smart_app:access:denied"
    SMART_APP_EMERGENCY_STARTED = "smart_app:emergency:started"
    SMART_APP_FHIR_READ = "smart_app:fhir:read"
    SMART_APP_FHIR_SEARCHED = "smart_app:fhir:searched"
    SMART_APP_FINDING_ANSWERED = "smart_app:finding:answered"
    SMART_APP_IMAGE_VIEWED = "smart_app:image:viewed"
    SMART_APP_LAUNCH_REFUSED = "smart_app:launch:refused"
    SMART_APP_LAUNCH_STARTED = "smart_app:launch:started"
    SMART_APP_REPORT_CHANGED = "smart_app:report:changed"
    SMART_APP_REPORT_SIGNED = "smart_app:report:signed"
    SMART_APP_REPORT_WITHDRAWN = "smart_app:report:withdrawn"
    SMART_APP_RESULT_VIEWED = "smart_app:result:viewed"
    SMART_APP_SERIES_OPENED = "smart_app:series:opened"
    SMART_APP_SESSION_CLOSED = "smart_app:session:closed"
    SMART_APP_SESSION_CREATED = "smart_app:session:created"
    SMART_APP_SESSION_REFRESHED = "smart_app:session:refreshed"
    SMART_APP_STUDY_OPENED = "smart_app:study:opened"
    TRANSPORT_ADDRESS_REFUSED = "transport:address:refused"


class Outcome(IntEnum):
    """How the act ended.

    Spec: FHIR R4 AuditEvent.outcome, http://terminology.hl7.org/CodeSystem/audit-event-outcome
    """

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12
