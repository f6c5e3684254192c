"""The pipeline with tokens of its own, where the hook's are missing, spent or too narrow."""

import time
from dataclasses import replace

import pytest
from joserfc.jwk import KeySet

from rayhook.auth.registry import EHRRegistry
from rayhook.auth.smart import public_jwks
from rayhook.inference import jobs
from rayhook.inference.dicomweb import RetrievalLimits
from rayhook.inference.job_table import JobState
from rayhook.inference.results import DeliveryState

from .hospital import READ, WRITE, catalogue_in, open_hospital
from .pipeline_parts import as_backend, pipeline_over


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backend")
    with open_hospital(catalogue_in(folder), folder) as hospital:
        yield hospital


@pytest.fixture
def pipeline(hospital, decoder, tmp_path):
    with pipeline_over(
        tmp_path,
        ehr_url=hospital.ehr_url,
        pacs_url=hospital.pacs_url,
        decoder=decoder,
        limits=RetrievalLimits(deadline_s=5.0),
    ) as pipeline:
        server = hospital.demo.authorization
        server.client_keys = lambda: KeySet.import_key_set(public_jwks(pipeline.keyring))
        yield as_backend(pipeline)


def run(pipeline, hospital, token):
    reference = hospital.reference("lesion")
    with pipeline.sessions() as session:
        key = jobs.job_key(reference, pipeline.analyser.identities)
        row, _ = jobs.enqueue(session, pipeline.keyring, reference, token, key=key, request_id="request-1")
        session.commit()
    pipeline.run(row.id)
    with pipeline.sessions() as session:
        ended = jobs.load_job(session, row.id)
        return ended, ended.result_id and jobs.load_result(session, pipeline.keyring, ended.result_id)


def spent(hospital):
    return replace(hospital.token("lesion"), expires_at=time.time() - 1)


def ended_early(hospital):
    """The EHR said that it would live for five minutes, and ended it at once: its user left."""
    token = hospital.token("lesion")
    hospital.demo.authorization.tokens.revoke(token.access_token)
    return token


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(lambda _: None, id="no token"),
        pytest.param(spent, id="spent"),
        pytest.param(ended_early, id="ended early"),
        pytest.param(lambda hospital: hospital.token("lesion", READ), id="too narrow"),
    ],
)
def test_a_study_is_fetched_analysed_and_delivered_without_the_hooks_help(pipeline, hospital, token):
    row, stored = run(pipeline, hospital, token(hospital))
    assert (row.state, stored.delivery) == (JobState.DONE, DeliveryState.DELIVERED)


def test_without_a_registered_client_a_narrow_token_stays_narrow(pipeline, hospital):
    (ehr,) = pipeline.registry
    alone = replace(pipeline, registry=EHRRegistry((replace(ehr, backend=None),)))
    _, stored = run(alone, hospital, hospital.token("lesion", READ))
    assert (stored.delivery, stored.delivery_detail) == (DeliveryState.NOT_PERMITTED, "scope_not_granted")


def test_an_authorization_server_that_refuses_us_leaves_the_hooks_token_in_use(pipeline, hospital):
    hospital.demo.authorization.client_keys = lambda: KeySet([])
    row, stored = run(pipeline, hospital, hospital.token("lesion", READ + WRITE))
    assert (row.state, stored.delivery) == (JobState.DONE, DeliveryState.DELIVERED)
