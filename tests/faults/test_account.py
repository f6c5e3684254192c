"""The account finds a loss, a double and a standstill in ledgers that have one: else its zeros would say nothing."""

from dataclasses import replace

import pytest

from rayhook.deploy.demo.ledger import Act, Entry, Outcome
from tests.faults.account import reclaims, recovery_s, settle

KINDS = ("Device", "Observation", "DiagnosticReport", "Provenance")


def asked(patient="a", at=0.0, outcome=Outcome.CREATED):
    return Entry(at=at, act=Act.ASKED, outcome=outcome, what="patient-view", subject=f"Patient/{patient}")


def fetched(study="1.2", at=1.0, request_id="r"):
    return Entry(
        at=at, act=Act.RETRIEVED, outcome=Outcome.SENT, what="study", study=study, request_id=request_id
    )


def written(patient="a", *, key="k", at=2.0, outcome=Outcome.CREATED, kinds=KINDS, request_id="r"):
    return [
        Entry(
            at=at,
            act=Act.WRITTEN,
            outcome=outcome,
            what=kind,
            identifier=f"{key}.{kind.lower()}" if kind != "Device" else "model:1",
            subject="" if kind in {"Device", "Provenance"} else f"Patient/{patient}",
            request_id=request_id,
            conditional=True,
        )
        for kind in kinds
    ]


def test_a_study_with_one_whole_report_is_settled():
    account = settle([asked(), fetched(), *written()])
    assert account.is_settled
    assert account.asked == 1


def test_a_study_without_a_report_is_lost():
    assert settle([asked(), asked("b"), *written()]).lost == ("Patient/b",)


@pytest.mark.parametrize("missing", ["Observation", "DiagnosticReport", "Provenance"])
def test_a_report_that_is_not_whole_is_lost(missing):
    kinds = tuple(kind for kind in KINDS if kind != missing)
    assert settle([asked(), *written(kinds=kinds)]).lost == ("Patient/a",)


def test_a_study_that_was_never_taken_on_is_not_lost():
    assert settle([asked(outcome=Outcome.REFUSED)]).is_settled


def test_the_same_write_again_changes_nothing_and_is_counted():
    account = settle([asked(), *written(), *written(outcome=Outcome.EXISTING)])
    assert (account.is_settled, account.repeated) == (True, 1)


def test_the_same_resource_created_twice_is_doubled():
    assert settle([asked(), *written(), *written()]).doubled == ("Patient/a",)


def test_two_reports_of_one_study_are_doubled():
    assert settle([asked(), *written(), *written(key="other")]).doubled == ("Patient/a",)


def test_a_create_without_a_condition_is_strange():
    (report,) = written(kinds=("DiagnosticReport",))
    assert settle([asked(), replace(report, conditional=False)]).strange


def test_a_report_that_nobody_asked_for_is_strange():
    assert settle(written()).strange == ("Patient/a: nobody asked",)


def test_a_reclaim_lasts_from_the_kill_to_the_next_fetch():
    assert reclaims([fetched(at=1.0), fetched(at=9.0)], [2.0]) == [7.0]


def test_a_study_that_was_written_before_the_kill_needs_no_reclaim():
    assert reclaims([fetched(at=1.0), *written(at=1.5), fetched(at=9.0)], [2.0]) == []


def test_a_fetch_that_failed_with_its_server_is_no_reclaim():
    assert reclaims([fetched(at=10.0), fetched(at=19.0)], [12.0], [(9.0, 11.0)]) == []
    assert reclaims([fetched(at=10.0), fetched(at=19.0)], [12.0], [(15.0, 18.0)]) == []
    assert reclaims([fetched(at=10.0), fetched(at=19.0)], [12.0], [(30.0, 31.0)]) == [7.0]


def test_a_fetch_that_no_kill_came_between_is_no_reclaim():
    assert reclaims([fetched(at=1.0), fetched(at=9.0)], [10.0]) == []


def test_a_recovery_lasts_until_something_is_fetched_or_written():
    assert recovery_s([asked(at=6.0), fetched(at=4.0), fetched(at=8.0)], 5.0) == 3.0


def test_no_work_after_the_fault_is_no_recovery():
    assert recovery_s([fetched(at=4.0), asked(at=6.0)], 5.0) is None
