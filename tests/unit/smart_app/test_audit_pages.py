"""The compliance officer's pages as a browser meets them: search, events, integrity."""

import json
import re
import time

import pytest

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.proof import Proof
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import AuditSearch, search
from rayhook.audit.watch import Rule
from rayhook.smart_app.audit_words import OUTCOMES, PACKAGES, RULES, SENTENCES

from .test_staff_sign_in import at_once, staff, words  # noqa: F401 - fixtures

PATIENT = "patient-of-the-audit"
STUDY = "1.2.3.4711"
REQUEST = "7f0e0d0c-0b0a-4000-8000-00000000000a"


def entry(kind=AuditKind.SMART_APP_IMAGE_VIEWED, **changes):
    given = {
        "ehr_id": "demo-ehr",
        "agent": "Practitioner/dr-x",
        "patient_id": PATIENT,
        "entities": (f"urn:oid:{STUDY}",),
        "request_id": REQUEST,
        "client_id": "rayhook-smart",
        "client_address": "192.0.2.7",
        "purpose": "TREAT",
        **changes,
    }
    return AuditEntry(kind, **given)


@pytest.fixture
def officer(staff):  # noqa: F811
    staff.officer.sign_in()
    return staff.officer


@pytest.fixture
def write(world):
    def write(*entries):
        audit = AuditLog(world.keyring)
        with world.database.sessions() as session:
            for one in entries:
                audit.record(session, one)
            session.commit()
        with world.database.reading() as session:
            found = search(session, world.keyring, AuditSearch(), limit=len(entries)).records
        return [record.seq for record in reversed(found)]

    return write


def ask(officer, **given):
    answer = officer.browser.post("/staff/audit", data=given)
    assert answer.status_code == 303, words(answer)
    return officer.browser.get(answer.headers["Location"])


def numbers(page) -> list[int]:
    return [int(one) for one in re.findall(r'<td><a href="/staff/audit/events/(\d+)">', page.text)]


def newest(world, kind):
    with world.database.reading() as session:
        return search(session, world.keyring, AuditSearch(kinds=(kind,)), limit=1).records[0]


def test_every_kind_outcome_and_rule_has_its_words():
    assert set(SENTENCES) == set(AuditKind)
    assert set(OUTCOMES) == set(Outcome)
    assert set(RULES) == set(Rule)
    assert {kind.value.partition(":")[0] for kind in AuditKind} == set(PACKAGES)


def test_first_page_shows_the_newest_events_and_is_itself_one(officer, world, write):
    [seq] = write(entry())
    page = officer.browser.get("/staff/audit")
    assert numbers(page)[0] == seq
    assert newest(world, AuditKind.AUDIT_LOG_READ).agent.endswith(officer.name)


@pytest.mark.parametrize(
    "given",
    [
        {"ehr": "demo-ehr", "patient": PATIENT},
        {"ehr": "demo-ehr", "person": "Practitioner/dr-x"},
        {"ehr": "demo-ehr", "study": STUDY},
        {"client": "rayhook-smart"},
        {"request_id": REQUEST},
        {"kind": "smart_app:image:viewed"},
    ],
    ids=lambda given: list(given)[-1],
)
def test_search_finds_by_each_field(officer, write, given):
    [seq, other] = write(
        entry(),
        entry(
            AuditKind.AUTH_SIGN_IN_ACCEPTED,
            ehr_id=None,
            agent="urn:rayhook:staff:other",
            patient_id=None,
            entities=(),
            request_id="another",
            client_id="another",
        ),
    )
    found = numbers(ask(officer, **given))
    assert seq in found
    assert other not in found


def test_outcome_and_days_narrow(officer, write):
    [good, bad] = write(entry(), entry(outcome=Outcome.SERIOUS_FAILURE))
    found = numbers(ask(officer, ehr="demo-ehr", patient=PATIENT, outcome="failed"))
    assert bad in found
    assert good not in found
    assert numbers(ask(officer, ehr="demo-ehr", patient=PATIENT, last_day="2020-01-01")) == []


def test_kinds_of_a_package_are_found_together(officer, write):
    write(entry())
    assert numbers(ask(officer, kind="smart_app", request_id=REQUEST))


def test_no_patient_is_in_an_address(officer, write):
    write(entry())
    answer = officer.browser.post("/staff/audit", data={"ehr": "demo-ehr", "patient": PATIENT})
    page = officer.browser.get(answer.headers["Location"])
    addresses = [answer.headers["Location"], *re.findall(r'(?:href|action)="([^"]*)"', page.text)]
    assert [one for one in addresses if PATIENT in one] == []


def test_patient_without_an_ehr_is_told_what_is_missing(officer):
    answer = officer.browser.post("/staff/audit", data={"patient": PATIENT})
    assert answer.status_code == 400
    assert "choose it" in words(answer)


@pytest.mark.parametrize(
    "given", [{"first_day": "yesterday"}, {"kind": "nothing"}, {"outcome": "9"}, {"client": "x" * 201}]
)
def test_what_is_mistyped_is_told(officer, given):
    assert officer.browser.post("/staff/audit", data=given).status_code == 400


def test_address_of_another_session_opens_nothing(officer, staff):  # noqa: F811
    location = officer.browser.post("/staff/audit", data={"client": "c"}).headers["Location"]
    officer.next_code()
    officer.browser.cookies.clear()
    officer.sign_in()
    assert officer.browser.get(location).status_code == 400


def test_pages_lead_from_the_newest_to_the_oldest(officer, write):
    seqs = write(*(entry(request_id="paged-request") for _ in range(60)))
    first = ask(officer, request_id="paged-request")
    older = re.search(r'href="([^"]+)" rel="next"', first.text)[1]
    second = officer.browser.get(older)
    assert numbers(first) + numbers(second) == list(reversed(seqs))
    assert 'rel="next"' not in second.text


def test_search_is_told_with_what_came_back(officer, world, write):
    [seq] = write(entry(request_id="told-request"))
    ask(officer, request_id="told-request")
    record = newest(world, AuditKind.AUDIT_LOG_READ)
    assert record.detail["shown"] == str(seq)


def test_search_for_a_patient_is_an_event_of_the_patient(officer, world, write):
    write(entry())
    ask(officer, ehr="demo-ehr", patient=PATIENT)
    assert newest(world, AuditKind.AUDIT_LOG_READ).patient_id == PATIENT


def test_event_is_told_in_plain_words(officer, write):
    [seq] = write(entry())
    told = " ".join(words(officer.browser.get(f"/staff/audit/events/{seq}")).split())
    assert "Practitioner/dr-x looked at images." in told
    assert f"It concerned patient {PATIENT}" in told
    assert "from the address 192.0.2.7" in told
    assert "The purpose was treatment." in told
    assert "It succeeded." in told


def test_event_shows_its_fhir_form_and_hash(officer, world, write):
    [seq] = write(entry())
    page = officer.browser.get(f"/staff/audit/events/{seq}")
    text = words(page)
    shown = json.loads(text[text.index('{\n  "resourceType"') : text.rindex("}") + 1])
    assert shown["resourceType"] == "AuditEvent"
    assert shown["id"] in text.replace(json.dumps(shown, indent=2), "")


def test_timeline_has_all_of_the_request_in_order(officer, write):
    request_id = "timeline-request"
    kinds = [
        AuditKind.CDS_HOOKS_SERVICE_CALLED,
        AuditKind.FHIR_RESOURCE_READ,
        AuditKind.DICOMWEB_STUDY_RETRIEVED,
        AuditKind.INFERENCE_STUDY_ANALYSED,
        AuditKind.FHIR_RESULT_WRITTEN,
    ]
    seqs = write(*(entry(kind, request_id=request_id) for kind in kinds))
    assert numbers(officer.browser.get(f"/staff/audit/events/{seqs[2]}")) == seqs


def test_study_has_its_whole_story_behind_a_link(officer, write):
    seqs = write(
        *(
            entry(kind, request_id=kind.value, entities=("urn:oid:1.2.9.9",))
            for kind in (AuditKind.INFERENCE_JOB_ENQUEUED, AuditKind.SMART_APP_FINDING_ANSWERED)
        )
    )
    page = officer.browser.get(f"/staff/audit/events/{seqs[0]}")
    link = re.search(r'href="([^"]+)">The whole story', page.text)[1]
    assert numbers(officer.browser.get(link)) == list(reversed(seqs))


def test_event_that_is_not_there_is_told_to_the_log(officer, world):
    assert officer.browser.get("/staff/audit/events/99999999").status_code == 404
    assert newest(world, AuditKind.AUDIT_LOG_READ).detail["event"] == "99999999"


def test_proof_holds_with_the_public_key_alone(officer, world, write):
    [seq] = write(entry())
    answer = officer.browser.get(f"/staff/audit/events/{seq}/proof")
    assert PATIENT not in answer.text
    assert Proof.from_json(answer.content).problems(world.keyring.audit_public_key) == []
    assert newest(world, AuditKind.AUDIT_PROOF_MADE).detail == {"event": str(seq)}


def verify(officer):
    assert officer.browser.post("/staff/audit/integrity").status_code == 303
    for _ in range(200):
        page = officer.browser.get("/staff/audit/integrity")
        if "Verifying" not in page.text:
            return page
        time.sleep(0.05)
    raise AssertionError("the verification does not end")


def change_outcome(world, seq, outcome):
    """Change an event as somebody with the database's own tools would."""
    with world.database.engine.begin() as connection:
        triggers = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit_event'"
        ).all()
        for name, _ in triggers:
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql("UPDATE audit_event SET outcome = ? WHERE seq = ?", (outcome, seq))
        for _, sql in triggers:
            connection.exec_driver_sql(sql)


@pytest.fixture
def tampered(world, write):
    [seq] = write(entry())
    change_outcome(world, seq, 4)
    yield seq
    change_outcome(world, seq, 0)


def test_intact_log_is_told_with_who_verified(officer, world, write):
    write(entry())
    text = words(verify(officer))
    assert "Every event is as it was written." in text, " ".join(text.split())
    assert officer.name in text
    record = newest(world, AuditKind.AUDIT_CHAIN_VERIFIED)
    assert (record.outcome, record.agent.endswith(officer.name)) == (Outcome.SUCCESS, True)


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        pytest.param({"events": "7", "sealed": "5", "problems": "0"}, "7 events, 5 of them", id="not how"),
        pytest.param({}, "? events, ? of them", id="nothing"),
    ],
)
def test_verification_is_told_that_says_less_of_itself(officer, write, detail, told):
    write(entry(AuditKind.AUDIT_CHAIN_VERIFIED, patient_id=None, entities=(), detail=detail))
    assert told in words(officer.browser.get("/staff/audit/integrity"))


def test_tampered_log_is_told_with_the_number_and_on_every_page(officer, tampered):
    page = verify(officer)
    assert f"Changed after they were written {tampered}" in " ".join(words(page).split())
    assert "The audit trail is not intact." in officer.browser.get("/staff").text


def test_alarm_ends_with_a_verification_that_finds_nothing(officer, world, tampered):
    verify(officer)
    change_outcome(world, tampered, 0)
    verify(officer)
    assert "The audit trail is not intact." not in officer.browser.get("/staff").text


def test_unreadable_event_is_listed_and_the_rest_is_shown(officer, world, write, tampered):
    [after] = write(entry(request_id="after"))
    change_outcome(world, tampered, 77)
    page = officer.browser.get("/staff/audit")
    assert after in numbers(page)
    assert f"cannot be read any more; verify the audit trail: {tampered}" in " ".join(words(page).split())


@pytest.mark.parametrize("path", ["/staff/audit", "/staff/audit/integrity", "/staff/audit/events/1"])
def test_others_of_the_staff_see_nothing_of_it(staff, path):  # noqa: F811
    staff.administrator.sign_in()
    assert staff.administrator.browser.get(path).status_code == 403
