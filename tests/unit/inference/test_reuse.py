"""What makes two studies' images the same, and who notes what they came to, on both databases."""

import hashlib
import time
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from rayhook.audit.record import AuditLog
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database
from rayhook.inference import jobs
from rayhook.inference.attempt import Attempt
from rayhook.inference.lease import Hold
from rayhook.inference.reuse import Held, ResultContent, Reuse
from rayhook.inference.study import AnalysisStatus, InstanceResult, ModelIdentity
from tests.unit.inference.samples import analysed, reference

MODEL = ModelIdentity("model", "1", "ab" * 32, "cd" * 32)
DIGESTS = {"a" * 64, "b" * 64}


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def database(both):
    database = create_database(both.url)
    yield database
    database.close()


@pytest.fixture
def reuse(database, keyring):
    return Reuse(sessions=database.sessions, keyring=keyring, audit=AuditLog(keyring), models=(MODEL,))


@pytest.fixture
def plain(keyring):
    """Keys need no database."""
    return Reuse(sessions=None, keyring=keyring, audit=None, models=(MODEL,))


def test_the_order_of_images_and_what_the_ehr_calls_the_study_do_not_count(plain):
    key = plain.content_key(reference(), sorted(DIGESTS))
    told_anew = reference(imaging_study_id="other", source_version="9", dicomweb_url="http://elsewhere")
    assert plain.content_key(told_anew, sorted(DIGESTS, reverse=True)) == key


@pytest.mark.parametrize(
    "change",
    [{"ehr_id": "other"}, {"patient_id": "other"}, {"study_instance_uid": "1.2.3"}],
    ids=lambda change: next(iter(change)),
)
def test_whose_images_they_are_counts(plain, change):
    assert plain.content_key(reference(**change), DIGESTS) != plain.content_key(reference(), DIGESTS)


@pytest.mark.parametrize(
    "models",
    [
        (),
        (replace(MODEL, version="2"),),
        (replace(MODEL, weights_sha256="ef" * 32),),
        (replace(MODEL, manifest_sha256="ef" * 32),),
        (MODEL, replace(MODEL, id="second")),
        (replace(MODEL, finder=MODEL),),
    ],
)
def test_which_models_would_answer_counts(plain, models):
    assert replace(plain, models=models).content_key(reference(), DIGESTS) != plain.content_key(
        reference(), DIGESTS
    )


def test_an_image_more_or_less_counts(plain):
    keys = {plain.content_key(reference(), some) for some in (DIGESTS, {"a" * 64}, {*DIGESTS, "c" * 64})}
    assert len(keys) == 3


def test_the_key_cannot_be_had_without_the_keyring(plain, tmp_path):
    other = replace(plain, keyring=Keyring.load_or_create(tmp_path / "keyring.json"))
    assert other.content_key(reference(), DIGESTS) != plain.content_key(reference(), DIGESTS)


def taken(database, keyring, version) -> Attempt:
    asked = reference(source_version=version)
    with database.sessions() as session:
        row, _ = jobs.enqueue(session, keyring, asked, None, key=f"{version}{time.time()}", request_id="r")
        claimed = jobs.claim(session, keyring, row.id, lease_s=60)
        session.commit()
    return Attempt(claimed, None, Hold(claimed))


def completed(reuse, attempt, result):
    """Store a result and note what it is of, as the pipeline does."""
    content = reuse.content_key(attempt.claimed.reference, DIGESTS)
    with reuse.sessions() as session:
        result_id = jobs.complete(session, reuse.keyring, attempt.claimed, result, [])
        reuse.note(session, attempt, content, result_id, result)
        session.commit()
    with reuse.sessions() as session:
        return result_id, reuse.find(session, content)


def test_what_images_came_to_is_found_again(reuse, database, keyring):
    result_id, found = completed(reuse, taken(database, keyring, "1"), analysed())
    assert found == result_id


def test_what_a_busy_machine_made_of_images_is_not_kept_for_ever(reuse, database, keyring):
    late = InstanceResult(None, None, None, AnalysisStatus.REFUSED, error_code="decoder_timeout")
    _, found = completed(reuse, taken(database, keyring, "1"), replace(analysed(), instances=(late,)))
    assert found is None


def test_one_of_two_at_once_notes_what_the_images_came_to(reuse, database, keyring):
    """Where both have looked before either noted: the second to commit is told, and keeps nothing."""
    first, second = taken(database, keyring, "1"), taken(database, keyring, "2")
    content = reuse.content_key(first.claimed.reference, DIGESTS)
    with reuse.sessions() as session:
        assert reuse.find(session, content) is None
    result_id, _ = completed(reuse, first, analysed())
    with pytest.raises(IntegrityError):
        complete_unlooked(reuse, second, content)
    with reuse.sessions() as session:
        assert reuse.find(session, content) == result_id
        assert jobs.load_job(session, second.claimed.id).state is jobs.JobState.RUNNING


def complete_unlooked(reuse, attempt, content):
    """As a transaction that began before the other's end, and cannot see its note."""
    with reuse.sessions() as session:
        result_id = jobs.complete(session, reuse.keyring, attempt.claimed, analysed(), [])
        session.execute(insert(ResultContent).values(content_key=content, result_id=result_id))
        session.commit()


@pytest.mark.parametrize("ends", ["completed", "reused"])
def test_the_turn_ends_with_the_job(reuse, database, keyring, ends):
    first = taken(database, keyring, "1")
    assert reuse.take_turn(first)
    result_id, _ = completed(reuse, first, analysed())
    second = taken(database, keyring, "2")
    assert reuse.take_turn(second)
    if ends == "reused":
        assert reuse.end(second, result_id)
    else:
        with reuse.sessions() as session:
            jobs.fail(session, second.claimed, code="c", message="m", retryable=False)
            session.commit()
    assert reuse.take_turn(taken(database, keyring, "3"))


def test_another_study_has_a_turn_of_its_own(reuse, database, keyring):
    assert reuse.take_turn(taken(database, keyring, "1"))
    assert not reuse.take_turn(taken(database, keyring, "2"))
    with database.sessions() as session:
        asked = reference(study_instance_uid="1.2.3")
        row, _ = jobs.enqueue(session, keyring, asked, None, key="another", request_id="r")
        claimed = jobs.claim(session, keyring, row.id, lease_s=60)
        session.commit()
    assert reuse.take_turn(Attempt(claimed, None, Hold(claimed)))


def test_images_that_are_fetched_anew_are_told_by_what_they_are_then(reuse, database, keyring, monkeypatch):
    """A study that is too large to be kept may change between the two times that it is read."""
    monkeypatch.setattr(Held, "read", partial(Held.read, max_bytes=10))
    completed(reuse, taken(database, keyring, "1"), analysed())
    reads = iter([[b"one image of 24 bytes..."], [b"one image of 24 bytes...", b"and another one"]])
    looked = reuse.look(taken(database, keyring, "2"), lambda: each(next(reads)), frozenset())
    images = list(looked.images)
    assert looked.digests == {hashlib.sha256(image).hexdigest() for image in images}
    assert len(images) == 2


def each(files):
    yield from files
