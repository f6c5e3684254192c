"""Two people at once on a real PostgreSQL, whose transactions truly run side by side."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.errors import Conflict
from rayhook.inference import jobs
from rayhook.inference.answers import AnswerAction, AnswerDraft, Person, load_answers, record_answer
from rayhook.inference.report import build_resources
from rayhook.inference.sign_off import SignRequest, seen_state, sign
from rayhook.inference.signature import SignAct, load_signatures
from tests.unit.inference.samples import analysed, manifest, reference

pytestmark = pytest.mark.postgresql

PEOPLE = tuple(Person(fhir_user=f"Practitioner/{name}") for name in ("anna", "ben"))
ACCEPT = AnswerDraft(finding="126952004", action=AnswerAction.ACCEPTED)
KEYS = itertools.count()


@pytest.fixture(scope="module")
def database(server):
    server.psql("CREATE DATABASE review")
    url = server.get_uri("review")
    migrate(url)
    database = create_database(url)
    yield database
    database.close()


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def stored(database, keyring):
    with database.sessions() as session:
        key = f"review-{next(KEYS)}"
        row, _ = jobs.enqueue(session, keyring, reference(), None, key=key, request_id="r")
        claimed = jobs.claim(session, keyring, row.id, lease_s=60)
        resources = build_resources(reference(), analysed(), manifest(), organization="Site")
        result_id = jobs.complete(session, keyring, claimed, analysed(), resources)
        session.commit()
        return jobs.load_result(session, keyring, result_id)


@pytest.fixture
def both(database):
    """Let two people do the same at the same moment, and return how it ended for each."""

    def run(act):
        start = Barrier(2)

        def one(person):
            start.wait()
            try:
                with database.sessions() as session:
                    act(session, person)
                    session.commit()
            except Conflict as error:
                return error.code
            return "done"

        with ThreadPoolExecutor(2) as pool:
            return sorted(pool.map(one, PEOPLE))

    return run


def test_of_two_answers_one_counts_and_the_other_is_told(both, stored, keyring):
    ends = both(
        lambda session, person: record_answer(session, keyring, stored, ACCEPT, expected_version=0, by=person)
    )
    assert ends == ["answer_overtaken", "done"]


def test_of_two_signatures_one_counts_and_the_other_is_told(both, stored, database, keyring):
    with database.sessions() as session:
        record_answer(session, keyring, stored, ACCEPT, expected_version=0, by=PEOPLE[0])
        session.commit()
        seen = seen_state(load_answers(session, keyring, stored.id), ())

    def act(session, person):
        request = SignRequest(act=SignAct.SIGN, by=person, seen=seen)
        sign(session, keyring, stored, request, manifest=manifest(), authorization=None)

    assert both(act) == ["done", "signature_overtaken"]
    with database.reading() as session:
        assert len(load_signatures(session, keyring, stored.id)) == 1
