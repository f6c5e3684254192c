"""Signed reports to the demo EHR over loopback."""

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rayhook.audit.record import AuditLog
from rayhook.audit.review import recent
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import load_registry
from rayhook.deploy.database import create_database, migrate
from rayhook.deploy.demo.catalogue import Catalogue, DemoInstance, DemoStudy
from rayhook.deploy.demo.ehr import DemoEHR, create_ehr, demo_registry_toml
from rayhook.deploy.demo.run import serving
from rayhook.fhir.r4 import encode_json
from rayhook.fhir.transport import Transport
from rayhook.inference import jobs
from rayhook.inference.answers import (
    AnswerAction,
    AnswerDraft,
    AnswerReason,
    FindingValue,
    Person,
    load_answers,
    record_answer,
)
from rayhook.inference.job_table import Authorization
from rayhook.inference.report import build_resources, transaction
from rayhook.inference.results import DeliveryState
from rayhook.inference.sign_off import SignRequest, seen_state, sign
from rayhook.inference.sign_off_delivery import SignedDelivery, write_signed
from rayhook.inference.sign_off_queue import SignOffQueue
from rayhook.inference.signature import SignAct, load_signatures
from tests.leaks import WORD
from tests.ports import free_port
from tests.unit.inference.samples import analysed, manifest, reference

CODE = "126952004"
ANNA = Person(fhir_user="Practitioner/anna", name="Anna Ito")
ACCEPT = AnswerDraft(finding=CODE, action=AnswerAction.ACCEPTED)
ABSENT = AnswerDraft(
    finding=CODE, action=AnswerAction.EDITED, value=FindingValue.ABSENT, reason=AnswerReason.FALSE_POSITIVE
)
SCOPES = " ".join(
    f"patient/{kind}.crus" for kind in ("Device", "DiagnosticReport", "Observation", "Provenance")
)


@dataclass
class Site:
    """A demo EHR, a database, and the queue between them."""

    ehr: DemoEHR
    ehr_url: str
    database: object
    keyring: Keyring
    queue: SignOffQueue
    ahead_s: float = 0.0
    offered: list[Authorization] = field(default_factory=list)

    def token(self, scope=SCOPES, *, expires_in=300.0):
        access = self.ehr.authorization.issue("patient-1", scope)
        return Authorization(access, scope, time.time() + expires_in)

    def store(self):
        at = reference(ehr_id="demo-ehr", fhir_base_url=f"{self.ehr_url}/fhir")
        result = analysed()
        with self.database.sessions() as session:
            row, _ = jobs.enqueue(session, self.keyring, at, None, key=str(time.time()), request_id="r")
            claimed = jobs.claim(session, self.keyring, row.id, lease_s=60)
            resources = build_resources(at, result, manifest(), organization="Site")
            result_id = jobs.complete(session, self.keyring, claimed, result, resources)
            session.commit()
            return jobs.load_result(session, self.keyring, result_id)

    def answer_and_sign(self, stored, draft=ACCEPT, *, act=SignAct.SIGN, expected=0, lent=None, reason="r"):
        with self.database.sessions() as session:
            record_answer(session, self.keyring, stored, draft, expected_version=expected, by=ANNA)
            answers = load_answers(session, self.keyring, stored.id)
            seen = seen_state(answers, load_signatures(session, self.keyring, stored.id))
            request = SignRequest(act=act, by=ANNA, seen=seen, reason=reason)
            sign(session, self.keyring, stored, request, manifest=manifest(), authorization=lent)
            session.commit()

    def signed(self, stored):
        with self.database.reading() as session:
            return load_signatures(session, self.keyring, stored.id)

    @property
    def reports(self):
        return self.ehr.store.search("DiagnosticReport", [("patient", "patient-1")])

    @property
    def history(self):
        return self.ehr.store.history("DiagnosticReport", self.reports[0]["id"])


def _catalogue() -> Catalogue:
    instance = DemoInstance(Path("/nonexistent"), "1.2.3.4.5", "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4")
    study = DemoStudy(
        patient_id="patient-1",
        patient_display=f"PHANTOM {WORD}",
        dicom_patient_id="RH-1",
        study_instance_uid="1.2.3.1",
        modality="MR",
        description="MR head",
        body_part="HEAD",
        started="2026-05-01T10:00:00Z",
        is_phantom=True,
        instances=(instance,),
    )
    return Catalogue(studies=(study,))


@pytest.fixture
def site(tmp_path):
    ehr_url = f"http://127.0.0.1:{free_port()}"
    registry = tmp_path / "ehrs.toml"
    registry.write_text(demo_registry_toml(ehr_base_url=ehr_url, pacs_base_url="http://127.0.0.1:9"))
    with ExitStack() as stack:
        app = create_ehr(
            _catalogue(),
            base_url=ehr_url,
            cds_base_url="http://127.0.0.1:9",
            pacs_base_url="http://127.0.0.1:9",
            keys_dir=tmp_path / "keys",
        )
        keyring = Keyring.load_or_create(tmp_path / "keyring.json")
        url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
        migrate(url)
        database = create_database(url)
        stack.callback(database.close)
        transport = Transport(allow_loopback_http=True)
        stack.callback(transport.close)
        queue = SignOffQueue(
            registry=load_registry(registry, development=True),
            sessions=database.sessions,
            keyring=keyring,
            audit=AuditLog(keyring),
            transport=transport,
            backend=lambda _ehr: found.offered[0] if found.offered else None,
            clock=lambda: time.time() + found.ahead_s,
        )
        found = Site(app.state.demo, ehr_url, database, keyring, queue)
        stack.enter_context(serving(app, ehr_url))
        yield found


def test_a_signed_report_is_final_at_the_ehr(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    assert site.queue.deliver(stored.id) is DeliveryState.DELIVERED
    assert [report["status"] for report in site.reports] == ["final"]


def test_the_models_version_stays_in_the_ehrs_history(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    assert [version["status"] for version in site.history] == ["preliminary", "final"]


def test_everything_in_the_report_is_the_ehrs_own(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    for link in site.reports[0]["result"]:
        kind, _, id_ = link["reference"].partition("/")
        found = site.ehr.store.read(kind, id_)
        assert found["status"] == "final"
        assert site.ehr.store.read(*found["device"]["reference"].split("/"))["resourceType"] == "Device"


def test_the_provenance_names_the_ehrs_version_that_was_revised(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    report = f"DiagnosticReport/{site.reports[0]['id']}"
    signed = site.ehr.store.search("Provenance", [("target", report)])[-1]
    revised = [e["what"]["reference"] for e in signed["entity"] if e["role"] == "revision"]
    assert f"{report}/_history/1" in revised


def test_a_correction_is_the_next_version(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    site.answer_and_sign(stored, ABSENT, act=SignAct.CORRECT, expected=1, lent=site.token())
    site.queue.deliver(stored.id)
    assert [version["status"] for version in site.history] == ["preliminary", "final", "corrected"]


def test_two_versions_that_the_ehr_missed_come_in_order(site):
    stored = site.store()
    site.answer_and_sign(stored)
    site.answer_and_sign(stored, ABSENT, act=SignAct.CORRECT, expected=1)
    site.queue.deliver(stored.id, authorization=site.token())
    assert [version["status"] for version in site.history] == ["preliminary", "final", "corrected"]


def test_delivered_twice_is_written_once(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    site.queue.deliver(stored.id)
    assert len(site.history) == 2


def taken_by_the_ehr(site, stored):
    """Write the newest version as a worker does that ends before it notes the EHR's answer."""
    signature = site.signed(stored)[-1]
    written = {} if signature.version == 2 else site.signed(stored)[-2].written
    done = write_signed(
        site.queue.transport,
        site.queue.registry.by_id(stored.ehr_id),
        stored,
        signature.resources,
        site.token(),
        written_before=written,
        is_forced=False,
    )
    assert done.state is DeliveryState.DELIVERED


@pytest.mark.parametrize("is_forced", [False, True])
def test_a_version_whose_taking_was_not_heard_of_is_recognised(site, is_forced):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    taken_by_the_ehr(site, stored)
    assert site.queue.deliver(stored.id, is_forced=is_forced) is DeliveryState.DELIVERED
    assert [version["status"] for version in site.history] == ["preliminary", "final"]


def test_the_version_after_one_not_heard_of_is_the_next(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    taken_by_the_ehr(site, stored)
    site.answer_and_sign(stored, ABSENT, act=SignAct.CORRECT, expected=1, lent=site.token())
    assert site.queue.deliver(stored.id) is DeliveryState.DELIVERED
    assert [version["status"] for version in site.history] == ["preliminary", "final", "corrected"]


@pytest.mark.parametrize("change", [{"conclusion": "by hand"}, {"status": "amended"}])
def test_a_version_not_heard_of_that_somebody_changed_since_is_theirs(site, change):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    taken_by_the_ehr(site, stored)
    site.ehr.store.update(site.reports[0] | change)
    assert site.queue.deliver(stored.id) is DeliveryState.CONFLICT


def test_a_copy_that_somebody_changed_is_not_written_over(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    site.ehr.store.update(site.reports[0] | {"conclusion": "written by hand"})
    site.answer_and_sign(stored, ABSENT, act=SignAct.CORRECT, expected=1, lent=site.token())
    assert site.queue.deliver(stored.id) is DeliveryState.CONFLICT
    assert site.reports[0]["conclusion"] == "written by hand"


def test_a_changed_copy_is_replaced_where_a_person_says_so(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    site.ehr.store.update(site.reports[0] | {"conclusion": "written by hand"})
    site.answer_and_sign(stored, ABSENT, act=SignAct.CORRECT, expected=1, lent=site.token())
    assert site.queue.deliver(stored.id, is_forced=True) is DeliveryState.DELIVERED
    assert len(site.history) == 4


def test_a_report_that_somebody_made_final_is_not_signed_over(site):
    stored = site.store()
    site.answer_and_sign(stored)
    site.queue.deliver(stored.id, authorization=site.token("patient/Observation.r"))
    site.ehr.store.transaction(json.loads(encode_json(transaction(stored.resources))))
    site.ehr.store.update(site.reports[0] | {"status": "final"})
    assert site.queue.deliver(stored.id, authorization=site.token()) is DeliveryState.CONFLICT


def test_without_a_token_it_is_signed_here_only(site):
    stored = site.store()
    site.answer_and_sign(stored)
    assert site.queue.deliver(stored.id) is DeliveryState.NOT_PERMITTED
    assert site.signed(stored)[-1].delivery_detail == "no_authorization"


def test_a_token_that_may_not_update_is_not_used(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token("patient/*.rs"))
    assert site.queue.deliver(stored.id) is DeliveryState.NOT_PERMITTED


def test_the_services_own_token_stands_in(site):
    stored = site.store()
    site.offered.append(site.token())
    site.answer_and_sign(stored, lent=site.token("patient/*.rs"))
    assert site.queue.deliver(stored.id) is DeliveryState.DELIVERED


def test_a_lost_connection_is_tried_again(site):
    stored = site.store()
    site.ehr.faults.fhir_status = 503
    site.answer_and_sign(stored, lent=site.token())
    assert site.queue.deliver(stored.id) is DeliveryState.FAILED
    site.ehr.faults.fhir_status = None
    site.ahead_s = 20.0
    assert site.queue.deliver_due() == 1
    assert site.signed(stored)[-1].delivery is DeliveryState.DELIVERED


def test_it_is_not_tried_again_at_once(site):
    stored = site.store()
    site.ehr.faults.fhir_status = 503
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    assert site.queue.deliver_due() == 0


def test_a_worker_that_died_leaves_it_to_another(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    signature = site.signed(stored)[-1]
    assert site.queue._claim(signature.id, is_asked=False) is not None
    assert site.queue.deliver_due() == 0
    site.ahead_s = 61.0
    assert site.queue.deliver_due() == 1


def test_the_token_is_erased_when_the_ehr_has_the_report(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    with site.database.engine.connect() as connection:
        lent = connection.exec_driver_sql("SELECT authorization FROM report_signature").scalar()
    assert lent is None


def lent_tokens(site):
    with site.database.engine.connect() as connection:
        return connection.exec_driver_sql("SELECT authorization FROM report_signature").scalars().all()


def test_a_token_that_may_not_write_is_not_kept(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token("patient/*.rs"))
    site.queue.deliver(stored.id)
    assert lent_tokens(site) == [None]


def test_a_token_is_kept_for_the_next_try_and_no_longer_than_it_lives(site):
    stored = site.store()
    site.ehr.faults.fhir_status = 503
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    assert lent_tokens(site) != [None]
    site.ahead_s = 400.0
    site.queue.deliver_due()
    assert lent_tokens(site) == [None]


def test_what_was_written_is_in_the_audit(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    with site.database.sessions() as session:
        event = next(iter(recent(session, site.keyring, limit=1)))
    assert (str(event.kind), f"DiagnosticReport/{site.reports[0]['id']}" in event.entities) == (
        "fhir:result:written",
        True,
    )


def test_a_copy_with_an_identifier_of_the_ehrs_own_is_found_again(site):
    stored = site.store()
    site.ehr.store.transaction(json.loads(encode_json(transaction(stored.resources))))
    for kind in ("DiagnosticReport", "Observation"):
        for one in site.ehr.store.search(kind, [("patient", "patient-1")]):
            own = {"system": "urn:ehr:accession", "value": one["id"]}
            site.ehr.store.update(one | {"identifier": [own, *one["identifier"]]})
    site.answer_and_sign(stored, lent=site.token())
    assert site.queue.deliver(stored.id) is DeliveryState.DELIVERED
    assert [report["status"] for report in site.reports] == ["final"]


def test_a_report_that_somebody_cancelled_is_not_signed_over(site):
    stored = site.store()
    site.ehr.store.transaction(json.loads(encode_json(transaction(stored.resources))))
    site.ehr.store.update(site.reports[0] | {"status": "cancelled"})
    site.answer_and_sign(stored, lent=site.token())
    assert site.queue.deliver(stored.id) is DeliveryState.CONFLICT
    assert [report["status"] for report in site.reports] == ["cancelled"]


def test_an_observation_that_somebody_deleted_is_not_made_again_unasked(site):
    stored = site.store()
    site.ehr.store.transaction(json.loads(encode_json(transaction(stored.resources))))
    kept = site.ehr.store.search("Observation", [("patient", "patient-1")])
    for one in kept:
        site.ehr.store.update(one | {"identifier": [{"system": "urn:other", "value": "1"}]})
    site.answer_and_sign(stored, lent=site.token())
    assert site.queue.deliver(stored.id) is DeliveryState.CONFLICT
    assert (
        site.queue.deliver(stored.id, authorization=site.token(), is_forced=True) is DeliveryState.DELIVERED
    )


def test_a_version_behind_one_that_waits_for_a_person_is_not_due_for_ever(site):
    stored = site.store()
    site.answer_and_sign(stored)
    site.queue.deliver(stored.id)
    site.answer_and_sign(stored, ABSENT, act=SignAct.CORRECT, expected=1)
    site.queue.deliver(stored.id)
    assert [one.delivery for one in site.signed(stored)] == [DeliveryState.NOT_PERMITTED] * 2
    site.ahead_s = 100.0
    assert site.queue.deliver_due() == 0


def test_a_version_held_back_is_written_with_the_one_before(site):
    stored = site.store()
    site.ehr.faults.fhir_status = 503
    site.answer_and_sign(stored, lent=site.token())
    site.queue.deliver(stored.id)
    site.answer_and_sign(stored, ABSENT, act=SignAct.CORRECT, expected=1, lent=site.token())
    site.queue.deliver(stored.id)
    site.ehr.faults.fhir_status = None
    site.ahead_s = 100.0
    site.queue.deliver_due()
    assert [version["status"] for version in site.history] == ["preliminary", "final", "corrected"]


def test_who_comes_second_does_not_unsay_a_delivery(site):
    stored = site.store()
    site.answer_and_sign(stored, lent=site.token())
    late = site.signed(stored)[-1]
    site.queue.deliver(stored.id)
    site.queue._record(stored, late, SignedDelivery(DeliveryState.CONFLICT, "changed_at_ehr"))
    (signed,) = site.signed(stored)
    assert (signed.delivery, bool(signed.written)) == (DeliveryState.DELIVERED, True)
