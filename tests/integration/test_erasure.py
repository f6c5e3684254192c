"""A patient is erased: nothing of the patient can be read any more, and everything else goes on."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import SQLModel

from rayhook.audit.chain import verify
from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.retention import HoldSubject, Retention, RetentionPolicy
from rayhook.audit.review import AuditSearch, search
from rayhook.auth.data_key import data_key_of
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import ERASED_PREFIX, PATIENT_KEY, patient_index, unseal
from rayhook.auth.scopes import ScopeSet
from rayhook.auth.sessions import SMARTSession, create_session, find_session
from rayhook.cds_hooks.erased_cards import erase_cards
from rayhook.deploy.database import create_database
from rayhook.deploy.erasure_list import ErasureList
from rayhook.deploy.erasures import ErasureUpkeep
from rayhook.deploy.sealed_columns import SEALED_COLUMNS
from rayhook.fhir.codes import DiagnosticReportStatus
from rayhook.fhir.errors import Conflict, Erased, InvalidRequest, NotFound, ServiceUnavailable
from rayhook.inference import jobs
from rayhook.inference.answers import AnswerAction, AnswerDraft, Person, load_answers, record_answer
from rayhook.inference.dicom_table import ObjectNames, add_source, begin, load_objects
from rayhook.inference.erasure import ErasurePatient, Erasures
from rayhook.inference.job_table import JobState
from rayhook.inference.outbox import Errand, awaits_errand
from rayhook.inference.report import build_resources
from rayhook.inference.review import review_versions
from rayhook.inference.signature import Act, SignAct, add_signature, load_signatures
from tests import storage
from tests.unit.inference.samples import analysed, manifest, reference

CODE = "126952004"
ANNA = "urn:rayhook:staff:anna"
BELA = "urn:rayhook:staff:bela"
REASON = "CANARY-REASON 4711"
CANARIES = (b"CANARY^PATIENT", b"CANARY-REASON", b"patient-canary-1", b"CANARY-COMMENT", b"token-canary")


@pytest.fixture(scope="module")
def keyring_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keyring.json"
    Keyring.load_or_create(path)
    return path


class Place:
    """One installation, and what is known of it in one process."""

    def __init__(self, url: str, owner_url: str, keyring_path: Path, folder: Path) -> None:
        self.keyring = Keyring.load_or_create(keyring_path)
        self.database = create_database(url)
        self.owner = create_database(owner_url)
        self.audit = AuditLog(self.keyring)
        self.erasures = Erasures(
            keyring=self.keyring,
            audit=self.audit,
            retention=RetentionPolicy(),
            more_rows=(erase_cards,),
        )
        self.list = ErasureList(folder / "erased-keys.jsonl", self.keyring)
        self.upkeep = ErasureUpkeep(self.erasures, self.database, self.list)

    def close(self) -> None:
        self.database.close()
        self.owner.close()

    def fill(self, patient_id: str, *, key: str | None = None):
        """Analyse, answer, sign and show: return the reference and the result's id."""
        about = replace(reference(), patient_id=patient_id)
        key = key or jobs.job_key(about, ())
        with self.database.sessions() as session:
            row, _ = jobs.enqueue(session, self.keyring, about, None, key=key, request_id="r")
            claimed = jobs.claim(session, self.keyring, row.id, lease_s=60)
            resources = build_resources(about, analysed(), manifest(), organization="Site")
            result_id = jobs.complete(session, self.keyring, claimed, analysed(), resources)
            add_source(session, self.keyring, result_id, b"CANARY^PATIENT")
            names = ObjectNames(
                "1.2", f"1.2.{len(patient_id)}.9", "1.2.4", "1.2.5", "https://pacs.example/dw"
            )
            begin(session, self.keyring, result_id, [("sr", names)], ehr_id=about.ehr_id)
            stored = jobs.load_result(session, self.keyring, result_id)
            draft = AnswerDraft(finding=CODE, action=AnswerAction.ACCEPTED, comment="CANARY-COMMENT")
            person = Person(fhir_user="Practitioner/anna", name="Anna Ito")
            record_answer(session, self.keyring, stored, draft, expected_version=0, by=person)
            act = Act(act=SignAct.SIGN, status=DiagnosticReportStatus.FINAL, by=person, answers="")
            add_signature(session, self.keyring, stored, act, resources, version=2, authorization=None)
            self.audit.record(
                session,
                AuditEntry(
                    AuditKind.SMART_APP_RESULT_VIEWED,
                    ehr_id=about.ehr_id,
                    agent="Practitioner/anna",
                    patient_id=patient_id,
                    entities=(f"Patient/{patient_id}",),
                    detail={"part": "page"},
                ),
            )
            session.commit()
        return about, result_id

    def session_of(self, patient_id: str) -> str:
        new = SMARTSession(
            ehr_id=reference().ehr_id,
            fhir_base_url="https://ehr.example/fhir",
            client_id="rayhook",
            scopes=ScopeSet.parse("patient/Patient.r"),
            access_token="token-canary",
            access_token_expires_at=9e9,
            patient_id=patient_id,
            fhir_user="Practitioner/anna",
        )
        with self.database.sessions() as session:
            id_ = create_session(session, self.keyring, new)
            session.commit()
        return id_

    def erase(self, patient_id: str, *, takes_audit: bool = False):
        patient = ErasurePatient(reference().ehr_id, patient_id)
        with self.database.sessions() as session:
            id_ = self.erasures.ask(session, patient, reason=REASON, takes_audit=takes_audit, agent=ANNA)
            session.commit()
        with self.database.sessions() as session:
            done = self.erasures.confirm(session, id_, agent=BELA)
            session.commit()
        self.upkeep.told(done)
        return done

    def load(self, result_id: str):
        with self.database.reading() as session:
            return jobs.load_result(session, self.keyring, result_id)

    def events(self, patient_id: str):
        wanted = AuditSearch(ehr_id=reference().ehr_id, patient_id=patient_id)
        with self.database.reading() as session:
            return search(session, self.keyring, wanted, limit=100).records


@pytest.fixture
def place(both, keyring_path, tmp_path):
    place = Place(both.url, both.owner_url, keyring_path, tmp_path)
    yield place
    place.close()


@pytest.fixture
def another(both, keyring_path, tmp_path):
    """The same installation in another process: what the one keeps in memory the other does not know."""
    other = Place(both.url, both.owner_url, keyring_path, tmp_path)
    yield other
    other.close()


def sealed_values(place: Place):
    for sealed in SEALED_COLUMNS:
        with place.database.reading() as session:
            rows = session.execute(select(sealed.row, sealed.column)).all()
        for row, value in rows:
            if value is not None:
                yield sealed, str(row), value


def test_the_result_is_erased(place):
    _, result_id = place.fill("anna")
    place.erase("anna")
    with pytest.raises(Erased):
        place.load(result_id)


def test_another_patient_is_not(place):
    place.fill("anna")
    _, theirs = place.fill("bela")
    place.erase("anna")
    assert place.load(theirs).patient_id == "bela"


def test_answers_signatures_and_objects_are_erased(place):
    _, result_id = place.fill("anna")
    place.erase("anna")
    for load in (load_answers, load_signatures, load_objects):
        with place.database.reading() as session, pytest.raises(Erased):
            load(session, place.keyring, result_id)


def test_every_sealed_value_of_the_patient_refuses_and_no_other(place):
    place.fill("anna")
    before = {(str(sealed), row) for sealed, row, _ in sealed_values(place)}
    deleted = {one for one in before if one[0] == "dicom_source.header"}
    place.fill("bela")
    place.erase("anna", takes_audit=True)
    refused = set()
    for sealed, row, value in sealed_values(place):
        if data_key_of(value) is None:
            continue
        with place.database.reading() as session:
            try:
                unseal(session, place.keyring, value, table=sealed.table.name, column=sealed.name, row=row)
            except Erased:
                refused.add((str(sealed), row))
    readable = {name for name, _ in before - deleted - refused}
    assert readable == {"audit_event.agent_sealed", "patient_key.wrapped"}
    of_others = {name for name, _ in refused - before}
    assert all(name.startswith(("patient_erasure.", "audit_event.")) for name in of_others)


def test_nothing_readable_is_on_the_disk(place, both):
    about, _ = place.fill("patient-canary-1")
    place.session_of(about.patient_id)
    place.erase("patient-canary-1", takes_audit=True)
    content = both.content()
    assert [canary for canary in CANARIES if canary in content] == []


def test_on_sqlite_the_wrapped_key_is_gone_from_the_files(tmp_path, migrated_sqlite, keyring_path):
    """PostgreSQL writes a row anew, and keeps the old one until it is vacuumed, and in its archive."""
    files = storage.sqlite(tmp_path / "storage", migrated_sqlite)
    place = Place(files.url, files.owner_url, keyring_path, tmp_path)
    place.fill("anna")
    with place.database.reading() as session:
        wrapped = session.execute(
            select(PATIENT_KEY.c.wrapped).where(PATIENT_KEY.c.scope == "clinical")
        ).scalar()
    assert wrapped in files.content()
    place.erase("anna")
    assert wrapped not in files.content()
    place.close()


def test_the_log_verifies_and_is_searched(place):
    place.fill("anna")
    place.erase("anna")
    with place.database.reading() as session:
        report = verify(session, place.keyring.audit_public_key, None, keyring=place.keyring)
    assert report.intact
    assert AuditKind.SMART_APP_RESULT_VIEWED in {event.kind for event in place.events("anna")}


def test_the_log_says_of_the_patient_what_it_did_until_its_time_is_over(place):
    place.fill("anna")
    place.erase("anna")
    viewed = [event for event in place.events("anna") if event.kind is AuditKind.SMART_APP_RESULT_VIEWED]
    assert [(event.patient_id, event.is_erased) for event in viewed] == [("anna", False)]


def test_with_the_log_only_who_acted_stays(place):
    place.fill("anna")
    place.erase("anna", takes_audit=True)
    [viewed] = [event for event in place.events("anna") if event.kind is AuditKind.SMART_APP_RESULT_VIEWED]
    assert (viewed.agent, viewed.patient_id, viewed.entities, viewed.detail, viewed.is_erased) == (
        "Practitioner/anna",
        None,
        (),
        {"erased": "yes"},
        True,
    )


def test_with_the_log_it_still_verifies(place):
    place.fill("anna")
    place.erase("anna", takes_audit=True)
    with place.database.reading() as session:
        assert verify(session, place.keyring.audit_public_key, None, keyring=place.keyring).intact


def test_the_erasure_is_found_under_the_patient_and_does_not_name_the_patient(place):
    place.fill("anna")
    done = place.erase("anna", takes_audit=True)
    [event] = [one for one in place.events("anna") if one.kind is AuditKind.AUTH_PATIENT_KEY_DESTROYED]
    assert (event.agent, event.patient_id, event.detail["keys"]) == (BELA, None, " ".join(done.key_ids))


def test_the_audit_key_goes_when_retention_is_over(place):
    place.fill("anna")
    place.erase("anna")
    later = replace(place.upkeep, clock=lambda: 9e9)
    later.tend()
    [viewed] = [event for event in place.events("anna") if event.kind is AuditKind.SMART_APP_RESULT_VIEWED]
    assert viewed.is_erased


def test_the_patient_coming_again_is_new(place):
    about, _ = place.fill("anna")
    place.erase("anna")
    _, result_id = place.fill("anna")
    assert place.load(result_id).patient_id == "anna"
    with place.database.reading() as session:
        found = jobs.results_for_patient(session, place.keyring, about.ehr_id, "anna")
    assert [one.id for one in found] == [result_id]


def test_what_is_queued_or_running_is_cancelled(place):
    about = replace(reference(), patient_id="anna")
    with place.database.sessions() as session:
        queued, _ = jobs.enqueue(session, place.keyring, about, None, key="a", request_id="r")
        running, _ = jobs.enqueue(session, place.keyring, about, None, key="b", request_id="r")
        claimed = jobs.claim(session, place.keyring, running.id, lease_s=60)
        session.commit()
    done = place.erase("anna")
    with place.database.sessions() as session:
        states = [jobs.load_job(session, id_).state for id_ in (queued.id, running.id)]
        resources = build_resources(about, analysed(), manifest(), organization="Site")
        late = jobs.complete(session, place.keyring, claimed, analysed(), resources)
    assert (states, late, done.count.jobs_cancelled) == ([JobState.CANCELLED] * 2, None, 2)


def test_sessions_of_the_patient_are_closed_and_no_others(place):
    place.fill("anna")
    ours, theirs = place.session_of("anna"), place.session_of("bela")
    place.erase("anna")
    with place.database.sessions() as session:
        found = [find_session(session, place.keyring, one) for one in (ours, theirs)]
    assert [one is None for one in found] == [True, False]


def test_nothing_more_is_sent(place):
    _, result_id = place.fill("anna")
    place.erase("anna")
    with place.database.reading() as session:
        assert not awaits_errand(session, result_id, Errand.REPORT, now=9e9)
        due = select(SQLModel.metadata.tables["report_signature"].c.next_attempt_at)
        assert session.execute(due).scalars().all() == [None]


def test_cached_results_are_told_to_be_gone(place):
    _, result_id = place.fill("anna")
    place.erase("anna")
    with place.database.reading() as session:
        assert review_versions(session, [result_id]) == {}


def test_no_index_leads_back_to_the_patient(place):
    about, _ = place.fill("anna")
    index = patient_index(place.keyring, about.ehr_id, "anna")
    place.erase("anna")
    for name in ("analysis_job", "analysis_result", "finding_answer", "report_signature"):
        column = SQLModel.metadata.tables[name].c.patient_index
        with place.database.reading() as session:
            found = session.execute(select(column)).scalars().all()
        assert found
        assert index not in found
        assert all(one.startswith(ERASED_PREFIX) for one in found)


def test_values_of_older_releases_are_overwritten(place):
    """They are under the keyring itself: no key of the patient's would take them along."""
    _, result_id = place.fill("anna")
    table = SQLModel.metadata.tables["analysis_result"]
    old = place.keyring.seal(b"old", table="analysis_result", column="result", row=result_id)
    with place.database.sessions() as session:
        session.execute(table.update().values(result=old))
        session.commit()
    place.erase("anna")
    with pytest.raises(Erased):
        place.load(result_id)


def test_a_hold_refuses_the_wish(place):
    place.fill("anna")
    hold(place, "anna")
    with pytest.raises(Conflict, match="legal hold"):
        place.erase("anna")


def test_a_hold_placed_since_refuses_the_confirmation(place):
    _, result_id = place.fill("anna")
    id_ = ask(place, "anna")
    hold(place, "anna")
    with place.database.sessions() as session, pytest.raises(Conflict, match="legal hold"):
        place.erasures.confirm(session, id_, agent=BELA)
    assert place.load(result_id).patient_id == "anna"
    assert place.events("anna")[0].kind is AuditKind.AUTH_ERASURE_REFUSED


def test_who_asked_cannot_confirm(place):
    _, result_id = place.fill("anna")
    id_ = ask(place, "anna")
    with place.database.sessions() as session, pytest.raises(Conflict, match="another person"):
        place.erasures.confirm(session, id_, agent=ANNA)
    assert place.load(result_id).patient_id == "anna"
    assert place.events("anna")[0].detail["code"] == "same_person"


def test_one_is_asked_for_once(place):
    ask(place, "anna")
    with pytest.raises(Conflict, match="waits"):
        ask(place, "anna")


def test_what_was_withdrawn_cannot_be_confirmed(place):
    id_ = ask(place, "anna")
    with place.database.sessions() as session:
        place.erasures.withdraw(session, id_, agent=ANNA)
        session.commit()
    with place.database.sessions() as session, pytest.raises(Conflict, match="decided"):
        place.erasures.confirm(session, id_, agent=BELA)


def test_what_nobody_asked_for_cannot_be_confirmed(place):
    with place.database.sessions() as session, pytest.raises(NotFound):
        place.erasures.confirm(session, "0" * 32, agent=BELA)


@pytest.mark.parametrize(("patient", "reason"), [("", "why"), ("anna", " ")])
def test_a_wish_names_patient_and_reason(place, patient, reason):
    wish = ErasurePatient("north", patient)
    with place.database.sessions() as session, pytest.raises(InvalidRequest):
        place.erasures.ask(session, wish, reason=reason, takes_audit=False, agent=ANNA)


def test_a_rolled_back_erasure_takes_nothing(place):
    _, result_id = place.fill("anna")
    id_ = ask(place, "anna")
    with place.database.sessions() as session:
        place.erasures.confirm(session, id_, agent=BELA)
        session.rollback()
    assert place.load(result_id).patient_id == "anna"


def test_erased_ones_are_listed_without_name_once_the_log_is_erased_too(place):
    place.fill("anna")
    place.erase("anna", takes_audit=True)
    with place.database.reading() as session:
        [one] = place.erasures.listed(session)
    assert (one.patient_id, one.reason, one.asked_by, one.decided_by, one.is_done) == (
        None,
        None,
        ANNA,
        BELA,
        True,
    )


def test_another_process_forgets_as_soon_as_it_looks(place, another):
    _, result_id = place.fill("anna")
    assert another.load(result_id).patient_id == "anna"
    forgotten = []
    another.upkeep.forgetting.append(lambda: forgotten.append(True))
    another.upkeep.look()
    place.erase("anna")
    another.upkeep.look()
    with pytest.raises(Erased):
        another.load(result_id)
    assert forgotten == [True]


def test_another_process_seals_nothing_under_the_destroyed_key(place, another):
    place.fill("anna")
    another.fill("anna", key="again")
    done = place.erase("anna")
    _, result_id = another.fill("anna", key="once more")
    with place.database.reading() as session:
        value = session.get(jobs.AnalysisResult, result_id).result
    assert data_key_of(value) not in done.key_ids


def test_a_restored_backup_is_erased_again(place, another, tmp_path):
    _, result_id = place.fill("anna")
    tables = [PATIENT_KEY, *(SQLModel.metadata.tables[n] for n in ("analysis_job", "analysis_result"))]
    with place.database.reading() as session:
        backup = {table.name: session.execute(table.select()).mappings().all() for table in tables}
    place.erase("anna")
    with place.owner.sessions() as session:
        for table in tables:
            [key] = table.primary_key.columns
            for row in backup[table.name]:
                session.execute(table.update().where(key == row[key.name]).values(dict(row)))
        session.commit()
    assert another.load(result_id).patient_id == "anna"
    assert another.upkeep.begin() == 1
    with pytest.raises(Erased):
        another.load(result_id)
    with another.database.reading() as session:
        assert jobs.results_for_patient(session, another.keyring, reference().ehr_id, "anna") == []


def test_every_machines_list_gets_every_erasure(place, another, tmp_path):
    place.fill("anna")
    done = place.erase("anna")
    elsewhere = ErasureList(tmp_path / "elsewhere.jsonl", another.keyring)
    replace(another.upkeep, on_disk=elsewhere).tend()
    assert {one.key for one in elsewhere.read()} == set(done.key_ids)


def test_a_list_that_was_altered_is_refused(place):
    place.fill("anna")
    place.erase("anna")
    text = place.list.path.read_text()
    place.list.path.write_text(text.replace('"at": 1', '"at": 2'))
    with pytest.raises(ServiceUnavailable) as refused:
        place.upkeep.begin()
    assert refused.value.code == "erasure_list_refused"


def test_a_line_that_was_cut_off_is_written_again(place):
    place.fill("anna")
    place.erase("anna")
    whole = place.list.path.read_bytes()
    place.list.path.write_bytes(whole[:-20])
    place.upkeep.tend()
    assert place.list.path.read_bytes() == whole


def ask(place: Place, patient_id: str) -> str:
    patient = ErasurePatient(reference().ehr_id, patient_id)
    with place.database.sessions() as session:
        id_ = place.erasures.ask(session, patient, reason=REASON, takes_audit=False, agent=ANNA)
        session.commit()
    return id_


def hold(place: Place, patient_id: str) -> None:
    retention = Retention(place.keyring, place.audit, RetentionPolicy(), agent=ANNA)
    subject = HoldSubject(ehr_id=reference().ehr_id, patient_id=patient_id)
    with place.database.sessions() as session:
        retention.place(session, subject, reason="case", now=datetime.now(UTC))
        session.commit()


def test_an_erasure_leaves_out_nothing_that_was_being_written(place, another):
    """Who seals for the patient is waited for: what was not committed yet when the erasure began is erased with it."""
    place.fill("anna")
    id_ = ask(place, "anna")
    about = replace(reference(), patient_id="anna")
    sealing, erased = threading.Event(), []

    def erase() -> None:
        sealing.wait(10)
        with another.database.sessions() as session:
            erased.append(another.erasures.confirm(session, id_, agent=BELA))
            session.commit()

    thread = threading.Thread(target=erase)
    thread.start()
    with place.database.sessions() as session:
        late, _ = jobs.enqueue(session, place.keyring, about, None, key="late", request_id="r")
        sealing.set()
        time.sleep(0.5)
        session.commit()
    thread.join()
    with place.database.reading() as session:
        row = session.get(jobs.AnalysisJob, late.id)
    assert (row.state, row.patient_index) == ("cancelled", f"{ERASED_PREFIX}{erased[0].key_ids[0]}")
