import pytest

from rayhook.fhir.errors import (
    AuditUnavailable,
    Conflict,
    Forbidden,
    NotFound,
    RayhookError,
    Unauthenticated,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from rayhook.smart_app.problem import SCOPE_MISSING, problem_of


@pytest.mark.parametrize(
    ("error", "title", "again"),
    [
        (Unauthenticated("why"), "Your session has ended", False),
        (Conflict("x", code="window_stale"), "Another patient was opened since", False),
        (Conflict("x"), "It has changed meanwhile", True),
        (Forbidden("x", code=SCOPE_MISSING), "Not permitted by your EHR", False),
        (Forbidden("x", code="role_insufficient"), "Your role does not allow this", False),
        (Forbidden("x"), "This could not be shown", False),
        (NotFound("x"), "There is nothing here", False),
        (UpstreamUnavailable("x"), "Your EHR or the image archive does not answer", True),
        (UpstreamTimeout("x"), "Your EHR or the image archive does not answer", True),
        (UpstreamRefused("x"), "Your EHR or the image archive gave an answer that cannot be used", True),
        (UpstreamError("x"), "Your EHR or the image archive gave an answer that cannot be used", True),
        (AuditUnavailable("x"), "Rayhook cannot do this at the moment", True),
        (RayhookError("x"), "This could not be shown", False),
    ],
)
def test_each_kind_of_error_says_what_happened(error, title, again):
    problem = problem_of(error)
    assert (problem.title, problem.again, problem.status) == (title, again, error.status)
    assert problem.advice


def test_reason_of_a_refused_session_stays_inside():
    assert problem_of(Unauthenticated("the cookie is forged")).detail == ""


def test_missing_right_is_named():
    error = Forbidden("x", code=SCOPE_MISSING, expression="patient/DiagnosticReport.r")
    assert problem_of(error).scope == "patient/DiagnosticReport.r"


def test_field_at_fault_is_not_told_as_a_right():
    assert problem_of(Forbidden("x", expression="iss")).scope == ""
