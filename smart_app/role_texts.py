"""Roles and permissions in the words that people and the documentation use."""

from collections.abc import Mapping
from typing import Final

from rayhook.auth.roles import Permission, Role
from rayhook.fhir.text import translatable

ROLE_NAMES: Final[Mapping[Role, str]] = {
    Role.ADMINISTRATOR: translatable("Administrator"),
    Role.CLINICIAN: translatable("Clinician"),
    Role.COMPLIANCE_OFFICER: translatable("Compliance officer"),
    Role.MODEL_MANAGER: translatable("Model manager"),
    Role.RADIOLOGIST: translatable("Radiologist"),
    Role.SERVICE: translatable("Service"),
}

PERMISSION_TEXTS: Final[Mapping[Permission, str]] = {
    Permission.AUDIT_DISCLOSURE_READ: translatable("Account for a patient's disclosures"),
    Permission.AUDIT_HOLD_MANAGE: translatable("Set and lift legal holds"),
    Permission.AUDIT_LOG_EXPORT: translatable("Export the audit trail"),
    Permission.AUDIT_LOG_READ: translatable("Search and read the audit trail"),
    Permission.AUDIT_LOG_VERIFY: translatable("Verify the audit trail"),
    Permission.AUDIT_REVIEW_MANAGE: translatable("Work through what the audit wants reviewed"),
    Permission.AUTH_ACCOUNT_MANAGE: translatable("Create, disable and reset accounts, and give them roles"),
    Permission.AUTH_PATIENT_ERASE: translatable("Ask for a patient's erasure, and confirm another's"),
    Permission.AUTH_ROLE_READ: translatable("Read which role allows what"),
    Permission.DEPLOY_SETTINGS_READ: translatable("Read the settings of the service"),
    Permission.INFERENCE_JOB_CANCEL: translatable("Cancel an analysis that waits or is in progress"),
    Permission.INFERENCE_JOB_READ: translatable("See which analyses wait, run or failed"),
    Permission.INFERENCE_JOB_RETRY: translatable("Have a failed analysis tried again"),
    Permission.INFERENCE_MODEL_MANAGE: translatable("Choose which models run"),
    Permission.INFERENCE_MODEL_READ: translatable("Read the model cards"),
    Permission.INFERENCE_PERFORMANCE_READ: translatable("See how the models perform"),
    Permission.SMART_APP_ANALYSIS_START: translatable("Ask for the analysis of a study"),
    Permission.SMART_APP_FHIR_READ: translatable("Read results through the FHIR API"),
    Permission.SMART_APP_FINDING_ANSWER: translatable("Accept, edit or reject findings"),
    Permission.SMART_APP_IMAGE_READ: translatable("See the patient's images"),
    Permission.SMART_APP_REPORT_SIGN: translatable("Sign reports"),
    Permission.SMART_APP_RESULT_READ: translatable("See the patient's results"),
    Permission.SMART_APP_STUDY_READ: translatable("See the list of the patient's studies"),
}
