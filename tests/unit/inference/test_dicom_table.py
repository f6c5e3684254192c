import time

import pytest

from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database
from rayhook.inference import jobs
from rayhook.inference.dicom_table import (
    MAX_ATTEMPTS,
    ObjectNames,
    StoreState,
    add_source,
    awaits_objects,
    begin,
    drop_source,
    due_results,
    end,
    load_objects,
    load_source,
)
from tests.unit.inference.samples import STUDY_UID, analysed, reference

NAMES = ObjectNames("1.2", "1.2.3", "1.2.4", STUDY_UID, "https://pacs.example/dicom-web")


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def session(both):
    database = create_database(both.url)
    with database.sessions() as session:
        yield session
    database.close()


def result(session, keyring, key="1") -> str:
    row, _ = jobs.enqueue(session, keyring, reference(), None, key=key, request_id="r")
    claimed = jobs.claim(session, keyring, row.id, lease_s=60)
    return jobs.complete(session, keyring, claimed, analysed(), [])


def attempt(session, keyring, result_id, at=0.0, **changes):
    return begin(session, keyring, result_id, [("sr", NAMES)], ehr_id="ehr", clock=lambda: at, **changes)


def only(session, keyring, result_id):
    (one,) = load_objects(session, keyring, result_id)
    return one


def test_a_header_reads_back_and_lies_sealed(session, keyring):
    id_ = result(session, keyring)
    add_source(session, keyring, id_, b"PHANTOM^TEST")
    assert load_source(session, keyring, id_) == b"PHANTOM^TEST"
    drop_source(session, id_)
    assert load_source(session, keyring, id_) is None


def test_an_attempt_is_counted_before_anything_is_sent(session, keyring):
    id_ = result(session, keyring)
    assert list(attempt(session, keyring, id_)) == ["1.2.3"]
    one = only(session, keyring, id_)
    assert (one.kind, one.names, one.state, one.attempts) == ("sr", NAMES, StoreState.PENDING, 1)


def test_for_want_of_a_token_none_is_counted(session, keyring):
    id_ = result(session, keyring)
    attempt(session, keyring, id_, counts=False)
    assert only(session, keyring, id_).attempts == 0


@pytest.mark.parametrize("state", [StoreState.STORED, StoreState.REFUSED])
def test_what_has_ended_is_not_begun_again(session, keyring, state):
    id_ = result(session, keyring)
    end(session, attempt(session, keyring, id_)["1.2.3"], state, None)
    assert attempt(session, keyring, id_) == {}


def test_what_is_stored_stays_so(session, keyring):
    id_ = result(session, keyring)
    row = attempt(session, keyring, id_)["1.2.3"]
    end(session, row, StoreState.STORED, None)
    end(session, row, StoreState.FAILED, "http_500")
    assert only(session, keyring, id_).state is StoreState.STORED


def test_another_result_of_the_same_images_need_not_store_it(session, keyring):
    first, second = result(session, keyring), result(session, keyring, "2")
    end(session, attempt(session, keyring, first)["1.2.3"], StoreState.STORED, None)
    assert attempt(session, keyring, second) == {}
    assert only(session, keyring, second).state is StoreState.STORED


@pytest.mark.parametrize(
    ("after_s", "is_due"), [(10, False), (31, True)], ids=["in its pause", "after its pause"]
)
def test_what_failed_is_due_after_its_pause(session, keyring, after_s, is_due):
    id_ = result(session, keyring)
    row = attempt(session, keyring, id_)["1.2.3"]
    end(session, row, StoreState.FAILED, "http_500", clock=lambda: 100.0)
    assert due_results(session, now=100.0 + after_s) == ([(id_, "ehr")] if is_due else [])


def test_the_pause_grows_and_has_an_end(session, keyring):
    id_ = result(session, keyring)
    for _ in range(3):
        row = attempt(session, keyring, id_)["1.2.3"]
        end(session, row, StoreState.FAILED, "http_500", clock=lambda: 100.0)
    assert due_results(session, now=100.0 + 119) == []
    assert due_results(session, now=100.0 + 121) == [(id_, "ehr")]
    for _ in range(MAX_ATTEMPTS - 3):
        row = attempt(session, keyring, id_)["1.2.3"]
        end(session, row, StoreState.FAILED, "http_500", clock=lambda: 100.0)
    assert due_results(session, now=1e9) == []
    assert not awaits_objects(session, id_, now=1e9)


def test_a_result_that_was_cut_off_before_its_objects_is_due(session, keyring):
    id_ = result(session, keyring)
    add_source(session, keyring, id_, b"header")
    assert due_results(session, now=time.time()) == []
    assert due_results(session, now=time.time() + 130) == [(id_, "ehr")]
    assert awaits_objects(session, id_, now=time.time() + 130)
