"""What a compliance officer does: reports on a patient, exports, holds, reviews."""

import csv
import io
import json
import tempfile
import zipfile

import pytest
from pypdf import PdfReader
from sqlalchemy import text

from rayhook.audit.events import AuditKind
from rayhook.audit.export import check_export
from rayhook.audit.record import AuditEntry
from rayhook.inference.sealed_spool import SealedSpool

from .test_audit_pages import PATIENT, entry, newest, officer, write  # noqa: F401 - fixtures
from .test_staff_sign_in import at_once, staff, words  # noqa: F401 - fixtures

SUBJECT = "patient-of-a-report"
REPORT = {"ehr": "demo-ehr", "patient": SUBJECT}


def plain(answer) -> str:
    return " ".join(words(answer).split())


@pytest.fixture
def told(write):  # noqa: F811
    """What happened to one patient: seen, sent to research, and seen by nobody of another."""
    return write(
        entry(patient_id=SUBJECT),
        entry(
            AuditKind.FHIR_RESULT_WRITTEN,
            patient_id=SUBJECT,
            purpose="HRESCH",
            agent="Organization/university",
        ),
        entry(patient_id="somebody-else", agent="Practitioner/nobody"),
    )


def test_access_report_tells_who_what_and_why(officer, told):  # noqa: F811
    page = plain(officer.browser.post("/staff/audit/reports", data=REPORT))
    assert "Practitioner/dr-x" in page
    assert "research" in page
    assert "Practitioner/nobody" not in page


def test_report_is_told_to_the_log_of_the_patient(officer, world, told):  # noqa: F811
    officer.browser.post("/staff/audit/reports", data=REPORT)
    record = newest(world, AuditKind.AUDIT_DISCLOSURE_READ)
    assert (record.patient_id, record.detail["report"]) == (SUBJECT, "access")


def test_accounting_leaves_out_treatment_and_says_so(officer, told):  # noqa: F811
    page = plain(officer.browser.post("/staff/audit/reports", data={**REPORT, "report": "disclosures"}))
    assert "Organization/university" in page
    assert "Practitioner/dr-x" not in page
    assert "164.528(a)(1)(i) excludes" in page


def test_accounting_is_of_a_period(officer, told):  # noqa: F811
    given = {**REPORT, "report": "disclosures", "last_day": "2025-01-01"}
    assert "Nothing to list." in plain(officer.browser.post("/staff/audit/reports", data=given))


def test_accounting_goes_six_years_back_at_most(officer):  # noqa: F811
    given = {**REPORT, "report": "disclosures", "first_day": "2001-01-01"}
    answer = officer.browser.post("/staff/audit/reports", data=given)
    assert answer.status_code == 400
    assert "six years" in plain(answer)


def test_report_as_csv_has_a_line_for_each(officer, told):  # noqa: F811
    answer = officer.browser.post("/staff/audit/reports", data={**REPORT, "form": "csv"})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert {"Practitioner/dr-x", "Organization/university"} <= {row["recipient"] for row in rows}
    assert "attachment" in answer.headers["Content-Disposition"]


def test_report_as_pdf_has_a_line_for_each(officer, told):  # noqa: F811
    answer = officer.browser.post("/staff/audit/reports", data={**REPORT, "form": "pdf"})
    assert answer.headers["Content-Type"] == "application/pdf"
    shown = "".join(page.extract_text() for page in PdfReader(io.BytesIO(answer.content)).pages)
    assert "Practitioner/dr-x" in shown
    assert "Organization/university" in shown


def test_report_as_fhir_has_the_events(officer, told):  # noqa: F811
    answer = officer.browser.post("/staff/audit/reports", data={**REPORT, "form": "fhir"})
    bundle = json.loads(answer.text)
    assert {one["resource"]["resourceType"] for one in bundle["entry"]} == {"AuditEvent"}


def test_report_needs_a_patient(officer):  # noqa: F811
    answer = officer.browser.post("/staff/audit/reports", data={"ehr": "demo-ehr", "patient": " "})
    assert (answer.status_code, "type the patient" in plain(answer)) == (400, True)


@pytest.mark.parametrize("form", ["csv", "fhir", "ndjson"])
def test_export_holds_against_its_manifest(officer, world, told, tmp_path, form):  # noqa: F811
    given = {"form": form, "ehr": "demo-ehr", "patient": SUBJECT}
    answer = officer.browser.post("/staff/audit/export", data=given)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    [manifest] = tmp_path.glob("*.manifest.json")
    events = manifest.with_name(manifest.name.removesuffix(".manifest.json"))
    assert check_export(events, manifest.read_bytes(), world.keyring.audit_public_key) == []
    assert json.loads(manifest.read_text())["count"] >= 2
    assert SUBJECT in events.read_text()
    assert "somebody-else" not in events.read_text()


def test_export_is_told_before_it_is_given(officer, world):  # noqa: F811
    officer.browser.post("/staff/audit/export", data={"form": "csv", "first_day": "2026-01-01"})
    record = newest(world, AuditKind.AUDIT_LOG_EXPORTED)
    assert (record.detail["format"], record.detail["from"][:10]) == ("csv", "2026-01-01")


def test_export_lies_on_the_disk_as_nobody_can_read_it(officer, told, tmp_path, monkeypatch):  # noqa: F811
    """What is there when the first byte goes out is the whole of it, and no archive."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lying, read = [], SealedSpool.read

    def looked(spool, name):
        lying.extend(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        yield from read(spool, name)

    monkeypatch.setattr(SealedSpool, "read", looked)
    answer = officer.browser.post(
        "/staff/audit/export", data={"form": "csv", "ehr": "demo-ehr", "patient": SUBJECT}
    )
    assert zipfile.is_zipfile(io.BytesIO(answer.content))
    [file] = lying
    assert len(file) > len(answer.content)
    assert not any(word in file for word in (b"PK\x03\x04", SUBJECT.encode(), answer.content[-40:]))


def grow_stale(world):
    with world.database.sessions() as session:
        session.execute(text("UPDATE staff_session SET proved_at = proved_at - 601"))
        session.commit()


@pytest.mark.parametrize("path", ["/staff/audit/export", "/staff/audit/holds"])
def test_what_matters_needs_a_fresh_code(officer, world, path):  # noqa: F811
    grow_stale(world)
    answer = officer.browser.post(path, data={"form": "csv", "reason": "x", "person": "p"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in/confirm")
    assert "Confirm that it is you" in officer.browser.get(path).text


def test_hold_is_placed_listed_and_released(officer, world):  # noqa: F811
    given = {"reason": "case 17", "ehr": "demo-ehr", "patient": SUBJECT}
    assert officer.browser.post("/staff/audit/holds", data=given).status_code == 303
    page = officer.browser.get("/staff/audit/holds")
    assert "case 17" in page.text
    assert newest(world, AuditKind.AUDIT_HOLD_PLACED).agent.endswith(officer.name)
    action = page.text.split("/release")[0].rpartition('"')[2]
    assert officer.browser.post(f"{action}/release").status_code == 303
    assert newest(world, AuditKind.AUDIT_HOLD_RELEASED).agent.endswith(officer.name)
    assert "Released" in officer.browser.get("/staff/audit/holds").text


@pytest.mark.parametrize(
    ("given", "told_"),
    [
        ({"reason": "case"}, "one of the three"),
        ({"reason": "case", "patient": "p"}, "one of the three"),
        ({"reason": "case", "first": "x", "last": "2"}, "one of the three"),
        ({"reason": " ", "person": "Practitioner/1"}, "write the reason"),
    ],
)
def test_hold_that_is_not_clear_is_refused(officer, given, told_):  # noqa: F811
    answer = officer.browser.post("/staff/audit/holds", data=given)
    assert (answer.status_code, told_ in plain(answer).lower()) == (400, True)


@pytest.fixture
def unusual(write, request):  # noqa: F811
    """Five denials within a minute, of somebody whom no other test knows."""
    denied = AuditEntry(
        AuditKind.SMART_APP_ACCESS_DENIED,
        ehr_id="demo-ehr",
        agent=f"Practitioner/{request.node.name}",
        patient_id=PATIENT,
    )
    return write(*[denied] * 5)


def item_id(page) -> str:
    return page.text.split('id="item-')[1][:32]


def test_what_a_rule_finds_is_on_the_page_at_once(officer, request, unusual):  # noqa: F811
    page = officer.browser.get("/staff/audit/reviews")
    assert "Repeated denials" in page.text
    assert f"Practitioner/{request.node.name}" in page.text
    assert all(f"/staff/audit/events/{seq}" in page.text for seq in unusual)


def test_first_page_says_how_much_there_is_to_review(officer, unusual):  # noqa: F811
    officer.browser.get("/staff/audit/reviews")
    assert "to review" in plain(officer.browser.get("/staff/audit"))


def test_review_is_taken_up_and_closed_with_a_note(officer, world, unusual):  # noqa: F811
    path = f"/staff/audit/reviews/{item_id(officer.browser.get('/staff/audit/reviews'))}"
    assert officer.browser.post(path, data={"state": "under_review"}).status_code == 303
    assert newest(world, AuditKind.AUDIT_REVIEW_CHANGED).detail["to"] == "under_review"
    assert officer.browser.post(path, data={"state": "closed", "note": " "}).status_code == 400
    assert officer.browser.post(path, data={"state": "closed", "note": "a mistyped link"}).status_code == 303
    page = plain(officer.browser.get("/staff/audit/reviews"))
    assert "a mistyped link" in page
    assert newest(world, AuditKind.AUDIT_REVIEW_CHANGED).detail["note"] == "a mistyped link"


def test_review_item_that_is_not_there_is_not_found(officer):  # noqa: F811
    assert officer.browser.post(f"/staff/audit/reviews/{'0' * 32}", data={"state": "open"}).status_code == 404


PAGES = ("reports", "export", "holds", "reviews")


@pytest.mark.parametrize("page", PAGES)
def test_opening_a_page_is_an_event(officer, world, page):  # noqa: F811
    assert officer.browser.get(f"/staff/audit/{page}").status_code == 200
    assert newest(world, AuditKind.AUDIT_LOG_READ).detail["page"] == page


@pytest.mark.parametrize("page", PAGES)
def test_others_of_the_staff_are_denied(staff, page):  # noqa: F811
    staff.administrator.sign_in()
    assert staff.administrator.browser.get(f"/staff/audit/{page}").status_code == 403
