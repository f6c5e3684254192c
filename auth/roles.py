"""What each role may do: one closed list of permissions, one table, no other place that decides.

Spec: 45 CFR 164.308(a)(4), 164.312(a); IHE RBAC; OWASP ASVS 5.0.0 V8
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Role(StrEnum):
    """Who somebody is to this service. A person may have several."""

    ADMINISTRATOR = "administrator"
    CLINICIAN = "clinician"
    COMPLIANCE_OFFICER = "compliance_officer"
    MODEL_MANAGER = "model_manager"
    RADIOLOGIST = "radiologist"
    SERVICE = "service"


class Permission(StrEnum):
    """Everything that a route can ask for, `package:subject:action`."""

    AUDIT_DISCLOSURE_READ = "audit:disclosure:read"
    AUDIT_HOLD_MANAGE = "audit:hold:manage"
    AUDIT_LOG_EXPORT = "audit:log:export"
    AUDIT_LOG_READ = "audit:log:read"
    AUDIT_LOG_VERIFY = "audit:log:verify"
    AUDIT_REVIEW_MANAGE = "audit:review:manage"
    AUTH_ACCOUNT_MANAGE = "auth:account:manage"
    AUTH_PATIENT_ERASE = "auth:patient:erase"
    AUTH_ROLE_READ = "auth:role:read"
    DEPLOY_SETTINGS_READ = "deploy:settings:read"
    INFERENCE_JOB_CANCEL = "inference:job:cancel"
    INFERENCE_JOB_READ = "inference:job:read"
    INFERENCE_JOB_RETRY = "inference:job:retry"
    INFERENCE_MODEL_MANAGE = "inference:model:manage"
    INFERENCE_MODEL_READ = "inference:model:read"
    INFERENCE_PERFORMANCE_READ = "inference:performance:read"
    SMART_APP_ANALYSIS_START = "smart_app:analysis:start"
    SMART_APP_FHIR_READ = "smart_app:fhir:read"
    SMART_APP_FINDING_ANSWER = "smart_app:finding:answer"
    SMART_APP_IMAGE_READ = "smart_app:image:read"
    SMART_APP_REPORT_SIGN = "smart_app:report:sign"
    SMART_APP_RESULT_READ = "smart_app:result:read"
    SMART_APP_STUDY_READ = "smart_app:study:read"


# Who signs in here, rather than through an EHR: what they see is not of one EHR, let alone one patient.
STAFF_ROLES: Final = frozenset({Role.ADMINISTRATOR, Role.COMPLIANCE_OFFICER, Role.MODEL_MANAGER})

_READS = frozenset(
    {
        Permission.INFERENCE_MODEL_READ,
        Permission.SMART_APP_FHIR_READ,
        Permission.SMART_APP_IMAGE_READ,
        Permission.SMART_APP_RESULT_READ,
        Permission.SMART_APP_STUDY_READ,
    }
)

# What an emergency opens to who has no role here: to read, and nothing else.
EMERGENCY: Final = _READS - {Permission.SMART_APP_FHIR_READ}

PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = MappingProxyType(
    {
        Role.ADMINISTRATOR: frozenset(
            {
                Permission.AUTH_ACCOUNT_MANAGE,
                Permission.AUTH_PATIENT_ERASE,
                Permission.AUTH_ROLE_READ,
                Permission.DEPLOY_SETTINGS_READ,
                Permission.INFERENCE_JOB_CANCEL,
                Permission.INFERENCE_JOB_READ,
                Permission.INFERENCE_JOB_RETRY,
                Permission.INFERENCE_MODEL_READ,
            }
        ),
        Role.CLINICIAN: _READS | {Permission.SMART_APP_ANALYSIS_START, Permission.SMART_APP_FINDING_ANSWER},
        Role.COMPLIANCE_OFFICER: frozenset(
            {
                Permission.AUDIT_DISCLOSURE_READ,
                Permission.AUDIT_HOLD_MANAGE,
                Permission.AUDIT_LOG_EXPORT,
                Permission.AUDIT_LOG_READ,
                Permission.AUDIT_LOG_VERIFY,
                Permission.AUDIT_REVIEW_MANAGE,
                Permission.AUTH_PATIENT_ERASE,
                Permission.AUTH_ROLE_READ,
                Permission.INFERENCE_MODEL_READ,
                Permission.INFERENCE_PERFORMANCE_READ,
            }
        ),
        Role.MODEL_MANAGER: frozenset(
            {
                Permission.INFERENCE_JOB_READ,
                Permission.INFERENCE_MODEL_MANAGE,
                Permission.INFERENCE_MODEL_READ,
                Permission.INFERENCE_PERFORMANCE_READ,
            }
        ),
        Role.RADIOLOGIST: _READS
        | {
            Permission.SMART_APP_ANALYSIS_START,
            Permission.SMART_APP_FINDING_ANSWER,
            Permission.SMART_APP_REPORT_SIGN,
        },
        Role.SERVICE: frozenset({Permission.SMART_APP_FHIR_READ}),
    }
)


def written_roles(roles: Iterable[Role]) -> str:
    return " ".join(sorted(roles))


def read_roles(written: str) -> frozenset[Role]:
    """Return what `written_roles` wrote; a role that a later version no longer knows allows nothing."""
    return frozenset(role for role in Role if role in written.split())


def permissions_of(roles: Iterable[Role]) -> frozenset[Permission]:
    """Return what the roles together allow; without a role, nothing."""
    return frozenset().union(*(PERMISSIONS[role] for role in roles))
