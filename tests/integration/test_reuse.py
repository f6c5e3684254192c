"""Once however often: the same images are analysed once, and each resource is at the EHR and in the PACS once."""

import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rayhook.audit.review import recent
from rayhook.deploy.demo.catalogue import Catalogue
from rayhook.inference import jobs
from rayhook.inference.dicomweb import RetrievalLimits
from rayhook.inference.jobs import DeliveryState, JobState
from rayhook.inference.reuse import Held
from tests.integration.hospital import READ, WRITE, open_hospital, slices, study_of
from tests.integration.pipeline_parts import pipeline_over
from tests.unit.inference.dicom_objects import KINDS
from tests.unit.inference.samples import STUDY_UID

ROOT = Path(__file__).resolve().parents[2]
LINKS = " patient/DocumentReference.c"
WRITTEN = ("Device", "DiagnosticReport", "DocumentReference", "Observation", "Provenance")


@pytest.fixture
def own(tmp_path) -> Catalogue:
    """Files of this test's own, which it may change."""
    (tmp_path / "studies").mkdir()
    return Catalogue((study_of(tmp_path / "studies", "lesion", slices(STUDY_UID)),))


@pytest.fixture
def hospital(own, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "rayhook")
    with open_hospital(own, tmp_path) as hospital:
        yield hospital


@pytest.fixture
def open_pipeline(hospital, decoder):
    @contextmanager
    def opened(**changes):
        with pipeline_over(
            hospital.folder,
            ehr_url=hospital.ehr_url,
            pacs_url=hospital.pacs_url,
            decoder=decoder,
            dicom_results=KINDS,
            limits=RetrievalLimits(deadline_s=20.0),
            **changes,
        ) as pipeline:
            yield pipeline

    return opened


@pytest.fixture
def pipeline(open_pipeline):
    with open_pipeline() as pipeline:
        yield pipeline


def ask(pipeline, hospital, scope=READ + WRITE + LINKS, **changes) -> str:
    asked = hospital.reference("lesion", **changes)
    with pipeline.sessions() as session:
        key = jobs.job_key(asked, pipeline.analyser.identities)
        token = hospital.token("lesion", scope)
        row, _ = jobs.enqueue(session, pipeline.keyring, asked, token, key=key, request_id="request-1")
        session.commit()
    return row.id


def ended(pipeline, job_id):
    with pipeline.sessions() as session:
        return jobs.load_job(session, job_id)


def run(pipeline, hospital, **changes):
    job_id = ask(pipeline, hospital, **changes)
    pipeline.run(job_id)
    return ended(pipeline, job_id)


def kinds(pipeline) -> Counter:
    with pipeline.sessions() as session:
        return Counter(event.kind.value for event in recent(session, pipeline.keyring, limit=200))


def at_the_ehr(hospital) -> dict[str, list[str]]:
    """Return our resources there, each by what we call it: two of one name are two of one thing."""

    def name(one):
        return (one.get("identifier") or one.get("masterIdentifier") or one["meta"]["tag"])[0]

    def spoken(one):
        found = name(one) if not isinstance(one.get("masterIdentifier"), dict) else one["masterIdentifier"]
        return str(found.get("value") or found.get("code"))

    return {kind: sorted(map(spoken, hospital.written(kind))) for kind in WRITTEN}


def in_the_pacs(hospital) -> list[str]:
    return sorted(one.sop_instance_uid for one in hospital.archive.find(study=STUDY_UID))


def change(hospital, *, number: int) -> None:
    """Put another pixel into one image of the study."""
    path = hospital.study("lesion").instances[number].path
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x0F
    path.write_bytes(data)


ANEW = {"version": {"source_version": "2"}, "id": {"imaging_study_id": "told-again"}}


@pytest.mark.parametrize("how", ANEW)
def test_a_study_that_is_told_of_anew_is_not_analysed_again(pipeline, hospital, how):
    first = run(pipeline, hospital)
    again = run(pipeline, hospital, **ANEW[how])
    assert (again.state, again.result_id) == (JobState.DONE, first.result_id)
    assert again.id != first.id
    assert kinds(pipeline)["inference:study:analysed"] == 1


@pytest.mark.parametrize("how", ANEW)
def test_what_is_reused_is_written_nowhere_again(pipeline, hospital, how):
    run(pipeline, hospital)
    before = at_the_ehr(hospital), in_the_pacs(hospital)
    run(pipeline, hospital, **ANEW[how])
    assert (at_the_ehr(hospital), in_the_pacs(hospital)) == before
    assert len(hospital.written("DiagnosticReport")) == 1


def test_a_reuse_is_audited_with_its_access(pipeline, hospital):
    run(pipeline, hospital)
    run(pipeline, hospital, source_version="2")
    counted = kinds(pipeline)
    assert (counted["dicomweb:study:retrieved"], counted["inference:result:reused"]) == (2, 1)


def test_an_image_that_changed_is_another_content(pipeline, hospital):
    first = run(pipeline, hospital)
    change(hospital, number=0)
    again = run(pipeline, hospital, source_version="2")
    assert again.result_id != first.result_id
    assert kinds(pipeline)["inference:study:analysed"] == 2


def test_an_image_that_came_is_another_content(pipeline, hospital):
    late = hospital.archive.find(study=STUDY_UID)[-1]
    hospital.archive._instances.pop(late.sop_instance_uid)
    first = run(pipeline, hospital)
    hospital.archive._instances[late.sop_instance_uid] = late
    assert run(pipeline, hospital, source_version="2").result_id != first.result_id


def test_images_that_are_not_the_patients_any_more_are_refused(pipeline, hospital):
    """The EHR has merged or corrected the patient since: what was believed then is not now."""
    run(pipeline, hospital)
    patient = hospital.demo.store.read("Patient", "patient-lesion")
    hospital.demo.store.seed([patient | {"identifier": [{"system": "urn:mrn", "value": "MRN-OTHER"}]}])
    again = run(pipeline, hospital, source_version="2")
    assert (again.state, again.error_code) == (JobState.REFUSED, "patient_mismatch")


def test_a_report_that_the_ehr_lacks_is_brought_with_the_token_of_who_asks_again(pipeline, hospital):
    first = run(pipeline, hospital, scope=READ)
    assert hospital.written("DiagnosticReport") == []
    run(pipeline, hospital, source_version="2")
    with pipeline.sessions() as session:
        stored = jobs.load_result(session, pipeline.keyring, first.result_id)
    assert stored.delivery is DeliveryState.DELIVERED


def test_while_one_job_has_the_images_another_waits_for_what_it_comes_to(pipeline, open_pipeline, hospital):
    first, second = ask(pipeline, hospital), ask(pipeline, hospital, source_version="2")
    arrived, may_go_on = threading.Event(), threading.Event()

    def hold():
        arrived.set()
        assert may_go_on.wait(60)

    hospital.on_introspection.append(hold)
    with open_pipeline() as other:
        worker = threading.Thread(target=pipeline.run, args=(first,))
        worker.start()
        assert arrived.wait(60)
        other.run(second)
        waiting = ended(other, second)
        may_go_on.set()
        worker.join()
        other.run(second)
    assert (waiting.state, waiting.attempts) == (JobState.QUEUED, 0)
    assert waiting.next_attempt_at is not None
    assert ended(pipeline, second).result_id == ended(pipeline, first).result_id
    assert kinds(pipeline)["inference:study:analysed"] == 1


def test_a_turn_ends_with_the_lease_of_who_had_it(pipeline, hospital):
    first, second = ask(pipeline, hospital), ask(pipeline, hospital, source_version="2")
    with pipeline.sessions() as session:
        claimed = jobs.claim(session, pipeline.keyring, first, lease_s=60)
        assert pipeline._reuse._take(session, claimed)
        session.commit()
    pipeline.run(second)
    assert ended(pipeline, second).state is JobState.QUEUED
    replace(pipeline, clock=lambda: time.time() + 61).run(second)
    assert ended(pipeline, second).state is JobState.DONE


def test_two_that_analysed_the_same_keep_one_result(pipeline, open_pipeline, hospital):
    """A worker that was thought dead comes to its result after another has come to the same."""
    first, second = ask(pipeline, hospital), ask(pipeline, hospital, source_version="2")
    at_once_later(hospital, open_pipeline, second)
    pipeline.run(first)
    assert ended(pipeline, first).result_id == ended(pipeline, second).result_id
    assert len(hospital.written("DiagnosticReport")) == 1
    assert kinds(pipeline)["inference:result:reused"] == 1


def at_once_later(hospital, open_pipeline, job_id: str) -> None:
    """When the next job asks for its images, have another worker do `job_id`, by whose clock that one is dead."""
    done = threading.Event()

    def do():
        if done.is_set():
            return
        done.set()
        with open_pipeline(clock=lambda: time.time() + 130) as other:
            other.run(job_id)

    hospital.on_introspection.append(do)


def killed_after(target, name: str, process: list, *, calls: int = 1):
    """Have the EHR or the PACS kill the worker once it has what the call brings, before it can answer."""
    original, counted = getattr(target, name), Counter()

    def wrapped(*arguments, **named):
        made = original(*arguments, **named)
        counted[name] += 1
        if counted[name] == calls:
            process[0].kill()
            process[0].wait()
        return made

    setattr(target, name, wrapped)


def worker(hospital, job_id: str) -> subprocess.Popen:
    arguments = [str(hospital.folder), hospital.ehr_url, hospital.pacs_url, job_id, *KINDS]
    return subprocess.Popen([sys.executable, "-m", "tests.integration.pipeline_parts", *arguments], cwd=ROOT)


@pytest.mark.parametrize(("where", "calls"), [("report", 1), ("object", 1), ("object", 2)])
def test_a_worker_killed_between_a_write_and_its_note_leaves_one_of_each(pipeline, hospital, where, calls):
    process: list[subprocess.Popen] = []
    target, name = (hospital.demo.store, "transaction") if where == "report" else (hospital.archive, "store")
    killed_after(target, name, process, calls=calls)
    job_id = ask(pipeline, hospital)
    process.append(worker(hospital, job_id))
    assert process[0].wait(timeout=120) == -9
    delattr(target, name)
    later = replace(pipeline, clock=lambda: time.time() + 200)
    later.run(job_id)  # where the job is not done: its lease is over
    result_id = ended(pipeline, job_id).result_id
    later_token = replace(hospital.token("lesion", READ + WRITE + LINKS), expires_at=time.time() + 1000)
    for _ in range(2):
        later.deliver_again(result_id, later_token)
    found = at_the_ehr(hospital)
    assert all(len(set(names)) == len(names) for names in found.values())
    assert {kind: len(names) > 0 for kind, names in found.items()} == dict.fromkeys(WRITTEN, True)
    assert len(found["DiagnosticReport"]) == 1
    assert len(found["DocumentReference"]) == len(KINDS)
    assert len(in_the_pacs(hospital)) == len(hospital.study("lesion").instances) + len(KINDS)


def test_a_job_whose_lease_was_lost_while_it_wrote_leaves_one_of_each(pipeline, open_pipeline, hospital):
    """Both go through to the end: who is late finds its fence stale, and what it writes is there already."""
    job_id = ask(pipeline, hospital)
    at_once_later(hospital, open_pipeline, job_id)
    pipeline.run(job_id)
    assert ended(pipeline, job_id).state is JobState.DONE
    assert len(hospital.written("DiagnosticReport")) == 1
    assert len(in_the_pacs(hospital)) == len(hospital.study("lesion").instances) + len(KINDS)
    assert kinds(pipeline)["inference:study:analysed"] == 1


def each(files):
    yield from files


def test_more_than_is_kept_in_memory_is_told_by_its_digests_alone():
    files = [bytes([n]) * 100 for n in range(5)]
    whole, much = Held.read(each(files)), Held.read(each(files), max_bytes=250)
    assert (whole.is_whole, len(whole.files)) == (True, 5)
    assert (much.is_whole, much.files) == (False, (files[0],))
    assert much.digests == whole.digests
    assert len(whole.digests) == 5
