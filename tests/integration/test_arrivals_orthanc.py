"""Orthanc as the sender of images, and as the archive that is polled."""

import random
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO

import httpx
import pytest
from pydicom import dcmread

from rayhook.auth.arrival_sources import PolledPACS
from rayhook.auth.registry import EHRRegistry
from rayhook.deploy.demo.ehr_seed import imaging_study_id
from rayhook.inference.arrival import ArrivalRow
from rayhook.inference.job_table import JobState
from rayhook.inference.received import ReceivedInstance

from .arriving import SENDER_SECRET, files_of

pytestmark = [pytest.mark.orthanc, pytest.mark.xdist_group("orthanc")]


def as_new_study(arrivals, name, **changes):
    """Return the files of a study under UIDs of its own, which the demo EHR knows: Orthanc is shared by all tests."""
    store = arrivals.hospital.demo.store
    resource = store.read("ImagingStudy", imaging_study_id(arrivals.hospital.study(name)))
    uid = f"1.2.826.0.1.3680043.8.498.{random.randrange(10**12)}"
    files = []
    for number, data in enumerate(files_of(arrivals, name), start=1):
        image = dcmread(BytesIO(data))
        image.StudyInstanceUID, image.SeriesInstanceUID = uid, f"{uid}.1"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1.{number}"
        image.StudyDate = datetime.now(UTC).strftime("%Y%m%d")
        buffer = BytesIO()
        image.save_as(buffer)
        files.append(buffer.getvalue())
    identifier = [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}]
    store.seed([{**resource, "id": f"study-{uid[-12:]}", "identifier": identifier, **changes}])
    return uid, files


def orthanc_id(orthanc, uid):
    query = {"Level": "Study", "Query": {"StudyInstanceUID": uid}}
    (found,) = httpx.post(f"{orthanc.origin}/tools/find", json=query, timeout=20).json()
    return found


def forward(orthanc, arrivals, uid, headers):
    """Have Orthanc's DICOMweb plug-in send a study to us."""
    server = {"Url": f"{arrivals.base_url}/dicom-web/", "HttpHeaders": headers}
    httpx.put(f"{orthanc.origin}/dicom-web/servers/rayhook", json=server, timeout=20).raise_for_status()
    order = {"Resources": [orthanc_id(orthanc, uid)], "Synchronous": True}
    return httpx.post(f"{orthanc.origin}/dicom-web/servers/rayhook/stow", json=order, timeout=60)


def test_a_study_that_orthanc_sends_is_analysed_from_what_it_sent(arrivals, orthanc):
    uid, files = as_new_study(arrivals, "lesion")
    orthanc.store(files).raise_for_status()
    answer = forward(orthanc, arrivals, uid, {"Authorization": f"Bearer {SENDER_SECRET}"})
    assert answer.status_code == 200, answer.text
    assert len(arrivals.rows(ReceivedInstance)) == len(files)
    arrivals.settle()
    pipeline = replace(arrivals.pipeline, received=arrivals.received)
    for job_id in arrivals.sent:
        pipeline.run(job_id)
    (retrieved,) = arrivals.events("dicomweb:study:retrieved")
    assert (retrieved.detail["from"], retrieved.detail["instances"]) == ("spool", str(len(files)))


def test_orthanc_is_told_that_its_secret_is_wrong(arrivals, orthanc):
    uid, files = as_new_study(arrivals, "lesion")
    orthanc.store(files).raise_for_status()
    answer = forward(orthanc, arrivals, uid, {"Authorization": "Bearer wrong"})
    assert answer.status_code != 200
    assert arrivals.rows(ReceivedInstance) == []


def test_orthanc_may_send_a_study_again(arrivals, orthanc):
    uid, files = as_new_study(arrivals, "lesion")
    orthanc.store(files).raise_for_status()
    headers = {"Authorization": f"Bearer {SENDER_SECRET}"}
    answers = [forward(orthanc, arrivals, uid, headers).status_code for _ in range(2)]
    assert (answers, len(arrivals.rows(ReceivedInstance))) == ([200, 200], len(files))


@pytest.fixture
def polled(arrivals, orthanc):
    """The arrivals' EHR, whose PACS is Orthanc."""
    (ehr,) = arrivals.pipeline.registry
    pacs = PolledPACS("orthanc", orthanc.dicomweb_url, every_s=60.0)
    known = replace(ehr, arrivals=replace(ehr.arrivals, polled=(pacs,)))
    arrivals.pipeline = replace(arrivals.pipeline, registry=EHRRegistry((known,)))
    arrivals.polling.prepare()
    return arrivals


def poll(polled):
    polled.clock.ahead_s += 61
    polled.polling.run_due()


def told(polled):
    return sum(row.told for row in polled.rows(ArrivalRow))


def test_a_study_that_comes_to_orthanc_is_found_and_fetched_there(polled, orthanc):
    """Its EHR does not say where the images are: where it was found is good enough."""
    poll(polled)
    before = told(polled)
    _, files = as_new_study(polled, "lesion", endpoint=[])
    orthanc.store(files).raise_for_status()
    poll(polled)
    assert told(polled) == before + 1
    polled.settle()
    for job_id in polled.sent:
        polled.pipeline.run(job_id)
    with polled.pipeline.sessions() as session:
        states = [row[0] for row in session.connection().exec_driver_sql("SELECT state FROM analysis_job")]
    assert states[-1:] == [JobState.DONE]


def test_a_study_that_grew_is_told_of_again(polled, orthanc):
    _, files = as_new_study(polled, "lesion")
    orthanc.store(files[:5]).raise_for_status()
    poll(polled)
    before = told(polled)
    poll(polled)
    assert told(polled) == before
    orthanc.store(files[5:]).raise_for_status()
    poll(polled)
    assert told(polled) == before + 1
