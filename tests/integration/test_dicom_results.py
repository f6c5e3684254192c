"""Results as DICOM objects in the demo PACS, by the whole pipeline."""

import shutil
import time
from dataclasses import replace
from io import BytesIO

import httpx
import pytest
from pydicom import dcmread
from sqlalchemy import text

from rayhook.audit.review import recent
from rayhook.deploy.demo.pacs import create_pacs
from rayhook.deploy.demo.run import serving
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
from rayhook.inference.dicom_table import (
    MAX_ATTEMPTS,
    StoreState,
    awaits_objects,
    due_results,
    load_objects,
    load_source,
)
from rayhook.inference.dicomweb import RetrievalLimits, retrieve_study
from rayhook.inference.outbox import Errand, awaits_errand
from rayhook.inference.results import DeliveryState
from rayhook.inference.sign_off import SignRequest, seen_state, sign
from rayhook.inference.sign_off_queue import SignOffQueue
from rayhook.inference.signature import SignAct, load_signatures
from tests.integration.hospital import READ, WRITE, open_hospital
from tests.integration.pipeline_parts import pipeline_over
from tests.ports import free_url
from tests.unit.inference.dicom_objects import (
    KINDS,
    errors,
    find,
)
from tests.unit.inference.samples import STUDY_UID, reference

SR = "1.2.840.10008.5.1.4.1.1.88.34"
MAP = "1.2.840.10008.5.1.4.1.1.30"
NOTE = "1.2.840.10008.5.1.4.1.1.88.59"


@pytest.fixture
def hospital(catalogue, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "rayhook")
    with open_hospital(catalogue, tmp_path) as hospital:
        yield hospital


@pytest.fixture
def pipeline(hospital, decoder):
    with pipeline_over(
        hospital.folder,
        ehr_url=hospital.ehr_url,
        pacs_url=hospital.pacs_url,
        decoder=decoder,
        dicom_results=(*KINDS, "rejection_note"),
        limits=RetrievalLimits(deadline_s=5.0),
    ) as pipeline:
        yield pipeline


def run(pipeline, hospital, name="lesion", *, scope=READ + WRITE, **changes):
    asked = hospital.reference(name, **changes)
    with pipeline.sessions() as session:
        key = jobs.job_key(asked, pipeline.analyser.identities)
        token = hospital.token(name, scope)
        row, _ = jobs.enqueue(session, pipeline.keyring, asked, token, key=key, request_id="request-1")
        session.commit()
    pipeline.run(row.id)
    with pipeline.sessions() as session:
        ended = jobs.load_job(session, row.id)
        return jobs.load_result(session, pipeline.keyring, ended.result_id)


def rows(pipeline, result):
    with pipeline.sessions() as session:
        return {one.kind: one for one in load_objects(session, pipeline.keyring, result.id)}


def events(pipeline):
    with pipeline.sessions() as session:
        return recent(session, pipeline.keyring, limit=50)[::-1]


def in_pacs(hospital, study=STUDY_UID) -> dict[str, bytes]:
    token = hospital.token("lesion").access_token
    transport = Transport(allow_loopback_http=True)
    try:
        asked = reference(study_instance_uid=study, dicomweb_url=f"{hospital.pacs_url}/dicom-web")
        files = retrieve_study(
            transport,
            asked,
            allowed_origins=frozenset({hospital.pacs_url}),
            access_token=token,
            limits=RetrievalLimits(),
        )
        return {str(dcmread(BytesIO(one), stop_before_pixels=True).SOPInstanceUID): one for one in files}
    finally:
        transport.close()


def test_the_objects_are_in_the_study_after_the_report(pipeline, hospital, tmp_path):
    result = run(pipeline, hospital)
    stored = rows(pipeline, result)
    held = in_pacs(hospital)
    assert {kind: row.state.value for kind, row in stored.items()} == dict.fromkeys(KINDS, "stored")
    for row in stored.values():
        assert errors(held[row.names.sop_instance_uid], tmp_path) == []


def test_they_are_audited_after_the_report(pipeline, hospital):
    result = run(pipeline, hospital)
    kinds = [event.kind.value for event in events(pipeline)]
    assert kinds[-2:] == ["fhir:result:written", "dicomweb:result:stored"]
    told = events(pipeline)[-1]
    assert {f"urn:oid:{row.names.sop_instance_uid}" for row in rows(pipeline, result).values()} <= set(
        told.entities
    )


def test_a_part_that_fails_is_told_and_the_rest_is_there(pipeline, hospital):
    hospital.pacs_faults.refused[SR] = 0x0122
    result = run(pipeline, hospital)
    stored = rows(pipeline, result)
    assert (stored["sr"].state, stored["sr"].failure) == (StoreState.REFUSED, "reason_0122")
    assert stored["secondary_capture"].state is StoreState.STORED
    assert [event.kind.value for event in events(pipeline)][-2:] == [
        "dicomweb:result:stored",
        "dicomweb:result:failed",
    ]


def test_what_failed_for_a_while_is_made_good_with_a_later_token(pipeline, hospital):
    hospital.pacs_faults.refused[SR] = 0xA700
    result = run(pipeline, hospital)
    with pipeline.sessions() as session:
        assert awaits_objects(session, result.id, now=pipeline.clock())
    hospital.pacs_faults.refused.clear()
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    stored = rows(pipeline, result)
    assert (stored["sr"].state, stored["sr"].attempts) == (StoreState.STORED, 2)
    assert stored["secondary_capture"].attempts == 1
    with pipeline.sessions() as session:
        assert not awaits_objects(session, result.id, now=pipeline.clock())


def test_a_pacs_that_takes_nothing_does_not_lose_the_result(pipeline, hospital):
    hospital.pacs_faults.busy = 99
    result = run(pipeline, hospital)
    assert result.delivery is DeliveryState.DELIVERED
    assert {row.state for row in rows(pipeline, result).values()} == {StoreState.FAILED}


def test_doing_it_again_stores_nothing_twice(pipeline, hospital):
    result = run(pipeline, hospital)
    before = in_pacs(hospital)
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    assert in_pacs(hospital) == before
    assert {row.attempts for row in rows(pipeline, result).values()} == {1}


def test_what_is_there_is_not_even_made_again(pipeline, hospital, monkeypatch):
    result = run(pipeline, hospital)
    made = []
    monkeypatch.setattr(
        "rayhook.inference.dicom_delivery.build_objects", lambda *_, **__: made.append(1) or []
    )
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    assert made == []
    with pipeline.sessions() as session:
        session.execute(text("UPDATE dicom_result SET state = 'failed' WHERE kind = 'sr'"))
        session.commit()
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    assert made == [1]


def test_a_study_with_our_objects_in_it_comes_to_the_same_report(pipeline, hospital):
    first = run(pipeline, hospital)
    again = run(pipeline, hospital, source_version="2")
    assert len(again.result.instances) == len(first.result.instances)
    assert [one["id"] for one in again.resources] == [one["id"] for one in first.resources]
    uids = {kind: row.names.sop_instance_uid for kind, row in rows(pipeline, again).items()}
    assert uids == {kind: row.names.sop_instance_uid for kind, row in rows(pipeline, first).items()}
    assert again.id == first.id
    assert {row.attempts for row in rows(pipeline, again).values()} == {1}


def test_the_pacs_lists_the_new_series(pipeline, hospital):
    run(pipeline, hospital)
    token = hospital.token("lesion").access_token
    answer = httpx.get(
        f"{hospital.pacs_url}/dicom-web/studies/{STUDY_UID}/series",
        headers={"Authorization": f"Bearer {token}"},
    )
    described = {one["0008103E"]["Value"][0] for one in answer.json()}
    assert {"AI report, investigational", "AI key image, investigational"} <= described


def test_an_ehr_that_asks_for_none_gets_none_and_no_header_is_kept(hospital, decoder):
    with pipeline_over(
        hospital.folder, ehr_url=hospital.ehr_url, pacs_url=hospital.pacs_url, decoder=decoder
    ) as pipeline:
        result = run(pipeline, hospital)
        assert rows(pipeline, result) == {}
        with pipeline.sessions() as session:
            assert load_source(session, pipeline.keyring, result.id) is None


def test_nothing_of_the_patient_lies_open_in_the_database(pipeline, hospital):
    run(pipeline, hospital)
    with pipeline.sessions() as session:
        for table in ("dicom_source", "dicom_result"):
            for row in session.execute(text(f"SELECT * FROM {table}")):
                plain = b" ".join(v if isinstance(v, bytes) else str(v).encode() for v in row)
                assert b"PHANTOM" not in plain
                assert STUDY_UID.encode() not in plain


def test_no_token_goes_to_another_server(pipeline, hospital, catalogue, tmp_path):
    (tmp_path / "other").mkdir()
    (ehr,) = pipeline.registry.ehrs
    with open_hospital(catalogue, tmp_path / "other") as elsewhere:
        moved = replace(ehr, stow_url=f"{elsewhere.pacs_url}/dicom-web")
        changed = replace(pipeline, registry=replace(pipeline.registry, ehrs=(moved,)))
        result = run(changed, hospital)
        assert {row.failure for row in rows(pipeline, result).values()} == {"http_401"}


def later(pipeline, seconds):
    return replace(pipeline, clock=lambda: time.time() + seconds)


def open_to_all(app):
    """The app, for which whoever comes has a token."""

    async def call(scope, receive, send):
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], (b"authorization", b"Bearer any")]
        await app(scope, receive, send)

    return call


def test_a_pacs_without_tokens_is_tried_again_by_itself(pipeline, hospital, catalogue):
    pacs = create_pacs(catalogue, introspect=lambda _: True)
    url = free_url()
    pacs.state.demo.faults.refused[SR] = 0xA700
    (ehr,) = pipeline.registry.ehrs
    with serving(open_to_all(pacs), url):
        moved = replace(ehr, stow_url=f"{url}/dicom-web")
        changed = replace(pipeline, registry=replace(pipeline.registry, ehrs=(moved,)))
        result = run(changed, hospital)
        pacs.state.demo.faults.refused.clear()
        changed.store_due()
        assert rows(changed, result)["sr"].state is not StoreState.STORED  # its pause is not over
        later(changed, 40).store_due()
        assert rows(changed, result)["sr"].state is StoreState.STORED


def test_what_waits_for_a_token_is_not_tried_by_itself(pipeline, hospital):
    hospital.pacs_faults.refused[SR] = 0xA700
    result = run(pipeline, hospital)
    hospital.pacs_faults.refused.clear()
    later(pipeline, 40).store_due()  # no token of our own: nothing is sent
    row = rows(pipeline, result)["sr"]
    assert (row.state, row.failure, row.attempts) == (StoreState.FAILED, "authorization_missing", 1)
    later(pipeline, 4000).store_due()
    assert rows(pipeline, result)["sr"].attempts == 1
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    assert rows(pipeline, result)["sr"].state is StoreState.STORED


def test_an_object_that_keeps_failing_is_given_up(pipeline, hospital):
    hospital.pacs_faults.refused[SR] = 0xA700
    result = run(pipeline, hospital)
    for _ in range(MAX_ATTEMPTS + 2):
        pipeline.deliver_again(result.id, hospital.token("lesion"))
    with pipeline.sessions() as session:
        assert not awaits_objects(session, result.id, now=pipeline.clock())


def test_a_process_that_ended_before_the_objects_is_made_good(pipeline, hospital):
    result = run(pipeline, hospital)
    with pipeline.sessions() as session:
        session.execute(text("DELETE FROM dicom_result"))
        session.commit()
        assert awaits_objects(session, result.id, now=pipeline.clock() + 130)
    assert rows(pipeline, result) == {}
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    assert {row.state for row in rows(pipeline, result).values()} == {StoreState.STORED}


def test_objects_that_cannot_be_made_are_told_once(pipeline, hospital):
    def broken(header):
        return header.replace(b"1.2.840.10008.5.1.4.1.1.4\0", b"1.2.840.10008.5.1.4.1.1.9\0")

    result = run(pipeline, hospital)
    (ehr,) = pipeline.registry.ehrs
    delivery = pipeline._objects()
    with pipeline.sessions() as session:
        header = broken(load_source(session, pipeline.keyring, result.id))
    told = replace(result.result, source_header=header)
    delivery.deliver(ehr, result.reference, result.id, told, hospital.token("lesion"))
    assert events(pipeline)[-1].kind.value == "dicomweb:result:failed"
    with pipeline.sessions() as session:
        assert load_source(session, pipeline.keyring, result.id) is None
        assert due_results(session, now=pipeline.clock() + 1e6) == []


LINK = " patient/DocumentReference.c"


def test_the_ehr_is_told_where_each_object_is(pipeline, hospital):
    result = run(pipeline, hospital, scope=READ + WRITE + LINK)
    links = {one["description"].partition(",")[0]: one for one in hospital.written("DocumentReference")}
    stored = rows(pipeline, result)
    urls = {one["content"][0]["attachment"]["url"] for one in links.values()}
    assert urls == {row.names.wado_url for row in stored.values()}
    report = links["AI report"]
    related = {one["reference"].partition("/")[0] for one in report["context"]["related"]}
    assert related == {"DiagnosticReport", "ImagingStudy", "Observation"}
    assert report["masterIdentifier"]["value"] == f"urn:oid:{stored['sr'].names.sop_instance_uid}"
    assert report["content"][0]["format"]["code"] == f"urn:oid:{SR}"


def test_a_link_leads_to_the_object(pipeline, hospital):
    run(pipeline, hospital, scope=READ + WRITE + LINK)
    for link in hospital.written("DocumentReference"):
        token = hospital.token("lesion").access_token
        url = link["content"][0]["attachment"]["url"]
        answer = httpx.get(
            url,
            headers={
                "Authorization": f"Bearer {token}",
                "Accept": 'multipart/related; type="application/dicom"',
            },
        )
        assert link["masterIdentifier"]["value"].removeprefix("urn:oid:").encode() in answer.content


def test_an_ehr_that_takes_no_links_is_not_asked(pipeline, hospital):
    run(pipeline, hospital)
    assert hospital.written("DocumentReference") == []


def test_links_are_written_once(pipeline, hospital):
    result = run(pipeline, hospital, scope=READ + WRITE + LINK)
    pipeline.deliver_again(result.id, hospital.token("lesion", READ + WRITE + LINK))
    assert len(hospital.written("DocumentReference")) == len(rows(pipeline, result))


REVISE = " ".join(
    f"patient/{kind}.crus" for kind in ("Device", "DiagnosticReport", "Observation", "Provenance")
)
ANNA = Person(fhir_user="Practitioner/anna", name="Anna Ito")


def sign_at(pipeline, hospital, stored, draft, *, act=SignAct.SIGN, expected=0, is_killed=False):
    """Answer, where there is a draft, and sign as the app does; write it to EHR and PACS as the queue does.

    is_killed: whether the process ends once the EHR has it.
    """
    manifest = pipeline.analyser.manifest_of(stored.result.model)
    token = hospital.token("lesion", f"{READ} {REVISE}{LINK}")
    with pipeline.sessions() as session:
        if draft is not None:
            record_answer(session, pipeline.keyring, stored, draft, expected_version=expected, by=ANNA)
        answers = load_answers(session, pipeline.keyring, stored.id)
        seen = seen_state(answers, load_signatures(session, pipeline.keyring, stored.id))
        request = SignRequest(act=act, by=ANNA, seen=seen, reason="looked again")
        sign(session, pipeline.keyring, stored, request, manifest=manifest, authorization=token)
        session.commit()
    queue = SignOffQueue(
        registry=pipeline.registry,
        sessions=pipeline.sessions,
        keyring=pipeline.keyring,
        audit=pipeline.audit,
        transport=pipeline.transport,
        on_written=None if is_killed else pipeline.store_signed,
    )
    return queue.deliver(stored.id, authorization=token)


def accepted(result):
    return AnswerDraft(finding=result.result.findings[0].code, action=AnswerAction.ACCEPTED)


def verified_in(hospital):
    told = [dcmread(BytesIO(data)) for data in in_pacs(hospital).values()]
    return [one for one in told if one.get("VerificationFlag") == "VERIFIED"]


def test_a_signed_report_is_in_the_pacs_as_a_verified_one(pipeline, hospital, tmp_path):
    result = run(pipeline, hospital)
    assert sign_at(pipeline, hospital, result, accepted(result)) is DeliveryState.DELIVERED
    (report,) = verified_in(hospital)
    before = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert before.ReferencedSOPInstanceUID == rows(pipeline, result)["sr"].names.sop_instance_uid
    assert str(report.VerifyingObserverSequence[0].VerifyingObserverName).startswith("Anna Ito")
    assert errors(in_pacs(hospital)[report.SOPInstanceUID], tmp_path) == []


def test_a_correction_follows_the_report_that_was_signed(pipeline, hospital):
    result = run(pipeline, hospital)
    sign_at(pipeline, hospital, result, accepted(result))
    (first,) = verified_in(hospital)
    changed = AnswerDraft(
        finding=result.result.findings[0].code,
        action=AnswerAction.EDITED,
        value=FindingValue.ABSENT,
        reason=AnswerReason.FALSE_POSITIVE,
    )
    sign_at(pipeline, hospital, result, changed, act=SignAct.CORRECT, expected=1)
    second = next(one for one in verified_in(hospital) if one.SOPInstanceUID != first.SOPInstanceUID)
    before = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    (container,) = find(second, "Qualitative Evaluations")
    (answer,) = (item for item in container.ContentSequence if item.ValueType == "CODE")
    assert before.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert answer.ConceptCodeSequence[0].CodeMeaning == "Negative"


def test_a_signed_report_that_the_pacs_does_not_take_is_signed_all_the_same(pipeline, hospital):
    result = run(pipeline, hospital)
    hospital.pacs_faults.refused[SR] = 0xA700
    assert sign_at(pipeline, hospital, result, accepted(result)) is DeliveryState.DELIVERED
    assert rows(pipeline, result)["verified_sr"].state is StoreState.FAILED
    hospital.pacs_faults.refused.clear()
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    assert rows(pipeline, result)["verified_sr"].state is StoreState.STORED
    assert len(verified_in(hospital)) == 1


def test_a_process_that_ended_before_the_verified_report_is_made_good(pipeline, hospital):
    result = run(pipeline, hospital)
    sign_at(pipeline, hospital, result, accepted(result), is_killed=True)
    pipeline.deliver_due()
    assert "verified_sr" not in rows(pipeline, result)  # it may still be at it
    later(pipeline, 70).deliver_due()
    assert rows(pipeline, result)["verified_sr"].failure == "authorization_missing"
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    assert len(verified_in(hospital)) == 1


def test_what_is_at_the_pacs_is_not_made_again(pipeline, hospital):
    result = run(pipeline, hospital)
    sign_at(pipeline, hospital, result, accepted(result))
    with pipeline.sessions() as session:
        assert not awaits_errand(session, result.id, Errand.SIGNED, now=pipeline.clock() + 1e6)


def test_an_ehr_that_asks_for_no_objects_has_no_errand(pipeline, hospital):
    (ehr,) = pipeline.registry.ehrs
    plain = replace(pipeline, registry=replace(pipeline.registry, ehrs=(replace(ehr, dicom_results=()),)))
    result = run(plain, hospital)
    sign_at(plain, hospital, result, accepted(result), is_killed=True)
    with pipeline.sessions() as session:
        assert not awaits_errand(session, result.id, Errand.SIGNED, now=pipeline.clock() + 1e6)


def withdraw(pipeline, hospital, result, **how):
    return sign_at(pipeline, hospital, result, None, act=SignAct.WITHDRAW, **how)


def test_a_process_that_ended_before_the_note_is_made_good(pipeline, hospital):
    result = run(pipeline, hospital)
    withdraw(pipeline, hospital, result, is_killed=True)
    later(pipeline, 70).deliver_due()
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    assert len(notes_in(hospital)) == 1


def rejected_by(note):
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    return {
        one.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


def notes_in(hospital):
    told = [dcmread(BytesIO(data)) for data in in_pacs(hospital).values()]
    return [one for one in told if one.Modality == "KO"]


def test_a_withdrawn_report_is_rejected_in_the_pacs_with_all_its_objects(pipeline, hospital, tmp_path):
    result = run(pipeline, hospital)
    sign_at(pipeline, hospital, result, accepted(result))
    before = {row.names.sop_instance_uid for row in rows(pipeline, result).values()}
    assert withdraw(pipeline, hospital, result) is DeliveryState.DELIVERED
    (note,) = notes_in(hospital)
    assert (len(before), rejected_by(note)) == (4, before)
    assert errors(in_pacs(hospital)[note.SOPInstanceUID], tmp_path) == []


def test_the_note_is_audited_as_what_it_is(pipeline, hospital):
    withdraw(pipeline, hospital, run(pipeline, hospital))
    told = [one for one in events(pipeline) if one.kind.value == "dicomweb:result:stored"][-1]
    assert told.detail["kinds"] == "rejection_note"


def test_the_ehr_is_told_of_no_note(pipeline, hospital):
    result = run(pipeline, hospital, scope=READ + WRITE + LINK)
    withdraw(pipeline, hospital, result)
    assert len(hospital.written("DocumentReference")) == len(KINDS)


def test_an_ehr_that_asks_for_no_note_gets_none(pipeline, hospital):
    (ehr,) = pipeline.registry.ehrs
    plain = replace(ehr, dicom_results=KINDS)
    changed = replace(pipeline, registry=replace(pipeline.registry, ehrs=(plain,)))
    withdraw(changed, hospital, run(changed, hospital))
    assert notes_in(hospital) == []


def test_a_note_that_the_pacs_does_not_take_is_brought_later(pipeline, hospital):
    result = run(pipeline, hospital)
    hospital.pacs_faults.refused[NOTE] = 0xA700
    withdraw(pipeline, hospital, result)
    assert rows(pipeline, result)["rejection_note"].state is StoreState.FAILED
    hospital.pacs_faults.refused.clear()
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    assert rows(pipeline, result)["rejection_note"].state is StoreState.STORED
    assert len(notes_in(hospital)) == 1


def test_of_a_withdrawn_report_no_more_is_stored(pipeline, hospital):
    hospital.pacs_faults.refused[SR] = 0xA700
    result = run(pipeline, hospital)
    withdraw(pipeline, hospital, result)
    hospital.pacs_faults.refused.clear()
    pipeline.deliver_again(result.id, hospital.token("lesion"))
    row = rows(pipeline, result)["sr"]
    assert (row.state, row.failure) == (StoreState.REFUSED, "report_withdrawn")
    assert row.names.sop_instance_uid not in in_pacs(hospital)
    with pipeline.sessions() as session:
        assert due_results(session, now=pipeline.clock() + 1e6) == []


def test_an_object_on_its_way_is_rejected_too(pipeline, hospital):
    result = run(pipeline, hospital)
    with pipeline.sessions() as session:
        session.execute(text("UPDATE dicom_result SET state = 'pending' WHERE kind = 'sr'"))
        session.commit()
    withdraw(pipeline, hospital, result)
    (note,) = notes_in(hospital)
    assert rows(pipeline, result)["sr"].names.sop_instance_uid in rejected_by(note)


def test_a_report_withdrawn_before_its_objects_were_made_has_none(pipeline, hospital):
    (ehr,) = pipeline.registry.ehrs
    without = replace(pipeline, registry=replace(pipeline.registry, ehrs=(replace(ehr, dicom_results=()),)))
    result = run(without, hospital)
    withdraw(without, hospital, result)
    token = hospital.token("lesion")
    told = replace(result.result, source_header=b"never read")
    pipeline._objects().deliver(ehr, result.reference, result.id, told, token)
    assert rows(pipeline, result) == {}


def test_a_report_withdrawn_before_anything_was_stored_leaves_nothing_due(pipeline, hospital):
    result = run(pipeline, hospital)
    with pipeline.sessions() as session:
        session.execute(text("DELETE FROM dicom_result"))  # as where the process ended before
        session.commit()
    withdraw(pipeline, hospital, result)
    with pipeline.sessions() as session:
        assert due_results(session, now=pipeline.clock() + 1e6) == []
    assert notes_in(hospital) == []


def copied(session, table, id_, **values):
    """Copy a row under other values."""
    names = [row[1] for row in session.execute(text(f"PRAGMA table_info({table})"))]
    chosen = ", ".join(f":{name}" if name in values else name for name in names)
    session.execute(
        text(f"INSERT INTO {table} SELECT {chosen} FROM {table} WHERE id = :from_id"),
        {**values, "from_id": id_},
    )


def test_an_object_that_another_result_stands_by_is_not_rejected(pipeline, hospital):
    """The same images under the same model, in a result of another job."""
    result = run(pipeline, hospital)
    shared = rows(pipeline, result)["sr"]
    other = hospital.reference("lesion", source_version="9")
    with pipeline.sessions() as session:
        key = jobs.job_key(other, pipeline.analyser.identities)
        job, _ = jobs.enqueue(session, pipeline.keyring, other, None, key=key, request_id="request-2")
        copied(session, "analysis_result", result.id, id="another", job_id=job.id)
        copied(session, "dicom_result", shared.id, id="another", result_id="another")
        session.commit()
    withdraw(pipeline, hospital, result)
    (note,) = notes_in(hospital)
    others = {row.names.sop_instance_uid for kind, row in rows(pipeline, result).items() if kind in KINDS}
    assert rejected_by(note) == others - {shared.names.sop_instance_uid}


def test_a_signed_object_that_is_out_of_date_is_not_due_for_ever(pipeline, hospital):
    result = run(pipeline, hospital)
    hospital.pacs_faults.refused[SR] = 0xA700
    sign_at(pipeline, hospital, result, accepted(result))
    hospital.pacs_faults.refused.clear()
    changed = AnswerDraft(
        finding=result.result.findings[0].code,
        action=AnswerAction.EDITED,
        value=FindingValue.ABSENT,
        reason=AnswerReason.FALSE_POSITIVE,
    )
    with pipeline.sessions() as session:  # what was signed is not what is answered now
        record_answer(session, pipeline.keyring, result, changed, expected_version=1, by=ANNA)
        session.commit()
    for turn in range(1, MAX_ATTEMPTS + 1):
        moment = later(pipeline, turn * 7200)
        moment.deliver_again(result.id, hospital.token("lesion"))
    with pipeline.sessions() as session:
        assert due_results(session, now=pipeline.clock() + 1e6) == []


def test_a_finding_is_named_alike_in_both_reports(pipeline, hospital):
    result = run(pipeline, hospital)
    report = dcmread(BytesIO(in_pacs(hospital)[rows(pipeline, result)["sr"].names.sop_instance_uid]))
    (group,) = find(report, "Measurement Group")
    named = {
        identifier["value"]
        for one in hospital.written("Observation")
        for identifier in one["identifier"]
        if identifier["system"] == "urn:dicom:uid"
    }
    assert named == {f"urn:oid:{group.ObservationUID}"}
