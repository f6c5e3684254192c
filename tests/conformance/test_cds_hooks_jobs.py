"""What calls ask of the queue, and what they are told where an analysis does not come to its end."""

import time

import pytest
from sqlmodel import select

from rayhook.inference import claims
from rayhook.inference.job_table import AnalysisJob, JobState, Priority
from rayhook.inference.jobs import load_job

NO_ANSWER = "says nothing about whether a finding is present"


@pytest.fixture
def held(service):
    """Keep the analysis from its end, so that the test can end the job in another way."""
    service.analysis.delay_s = 1.5
    return service


@pytest.fixture
def begin(held, make):
    """Call about a new study; return the body, and the id of the job that came of it."""

    def call(**how):
        body = make.body()
        cards = held.cards(body, client=held.in_time, **how)
        assert cards[0]["source"]["topic"]["code"] == "in-progress"
        with held.database.reading() as session:
            newest = select(AnalysisJob.id).order_by(AnalysisJob.created_at.desc())
            return body, session.exec(newest).first()

    return call


def job(service, job_id):
    with service.database.reading() as session:
        return load_job(session, job_id)


def told(service, body):
    (card,) = service.cards(body, client=service.in_time)
    return card["source"]["topic"]["code"], card


def test_somebody_waits_for_a_hooks_analysis(held, begin):
    _, id_ = begin()
    assert job(held, id_).priority is Priority.ASAP


def test_a_stat_order_makes_its_analyses_stat(held, make):
    order = make.order(priority="stat")
    held.call(
        make.order_sign(make.study(), orders=(order,)), service="rayhook-order-sign", client=held.in_time
    )
    with held.database.reading() as session:
        newest = select(AnalysisJob.priority).order_by(AnalysisJob.created_at.desc())
        assert session.exec(newest).first() == "stat"


def test_a_cancelled_analysis_is_told_as_that(held, begin):
    body, id_ = begin()
    with held.database.sessions() as session:
        claims.cancel(session, id_)
        session.commit()
    topic, card = told(held, body)
    assert (topic, NO_ANSWER in card["detail"]) == ("cancelled", True)


def test_images_that_end_their_process_are_told_as_that(held, begin):
    body, id_ = begin()
    now = time.time()
    with held.database.sessions() as session:
        for attempt in range(1, claims.MAX_ATTEMPTS + 2):
            claims.claim(session, held.keyring, id_, lease_s=1, clock=lambda n=attempt: now + 1000 * n)
        session.commit()
    assert job(held, id_).state is JobState.DEAD
    topic, card = told(held, body)
    assert (topic, NO_ANSWER in card["detail"]) == ("given-up", True)
    assert "end the process that analyses them" in card["summary"]


def test_a_study_that_is_entered_in_error_is_not_analysed_any_more(held, begin, make):
    body, id_ = begin()
    study = body["prefetch"]["imagingStudies"]["entry"][0]["resource"] | {"status": "entered-in-error"}
    held.cards(make.body(study), client=held.in_time)
    found = job(held, id_)
    assert (found.state, found.error_code) == (JobState.CANCELLED, "study_withdrawn")
    (record,) = held.audit("inference:job:cancelled")
    assert record.detail["job"] == id_


def test_a_study_that_is_there_is_not_touched_by_one_that_is_taken_back(held, begin, make):
    _, id_ = begin()
    held.cards(make.body(make.study(2, status="cancelled")), client=held.in_time)
    assert not job(held, id_).state.is_final
