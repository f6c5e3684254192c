"""Whatever is done with a report, in whatever order: only a person's signature makes it final."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhook.fhir.codes import DiagnosticReportStatus as Report
from rayhook.fhir.codes import ObservationStatus as Observed
from rayhook.fhir.errors import Conflict
from rayhook.inference.signature import SignAct, acts_on, next_status, observation_status

ISSUED = {Report.FINAL, Report.AMENDED, Report.CORRECTED}
acts = st.lists(st.tuples(st.sampled_from(SignAct), st.booleans()), max_size=12)


def played(steps):
    """Yield (before, act, after) of every act that was possible."""
    status = Report.PRELIMINARY
    for act, rejected in steps:
        try:
            after = next_status(status, act, rejected=rejected)
        except Conflict:
            continue
        yield status, act, after
        status = after


@given(acts)
def test_nothing_is_issued_before_somebody_signed(steps):
    signed = False
    for _, act, after in played(steps):
        signed = signed or act is SignAct.SIGN
        assert signed or after not in ISSUED


@given(acts)
def test_final_comes_of_signing_alone(steps):
    assert all(act is SignAct.SIGN for _, act, after in played(steps) if after is Report.FINAL)


@given(acts)
def test_what_was_issued_is_never_preliminary_or_cancelled_again(steps):
    after_issue = itertools.dropwhile(lambda step: step[2] not in ISSUED, played(steps))
    assert not [s for s in after_issue if s[2] in {Report.PRELIMINARY, Report.CANCELLED}]


@given(acts)
def test_nothing_follows_on_a_withdrawal_in_error(steps):
    assert not [s for s in played(steps) if s[0] is Report.ENTERED_IN_ERROR]


@pytest.mark.parametrize("status", [*Report])
def test_the_acts_offered_are_those_that_work(status):
    def works(act: SignAct) -> bool:
        try:
            next_status(status, act)
        except Conflict:
            return False
        return True

    assert acts_on(status) == tuple(act for act in SignAct if works(act))


@given(
    st.sampled_from([Observed.PRELIMINARY, Observed.CANCELLED, *Observed]),
    st.sampled_from(SignAct),
    st.booleans(),
    st.booleans(),
)
def test_an_observation_is_never_preliminary_after_an_act(before, act, stands, changed):
    if before is Observed.UNKNOWN:
        return
    after = observation_status(before, act, stands=stands, changed=changed)
    assert after not in {Observed.PRELIMINARY, Observed.REGISTERED}


@given(st.sampled_from(Observed), st.sampled_from(SignAct), st.booleans())
def test_a_rejected_finding_is_never_final(before, act, changed):
    after = observation_status(before, act, stands=False, changed=changed)
    assert after in {Observed.CANCELLED, Observed.ENTERED_IN_ERROR}
