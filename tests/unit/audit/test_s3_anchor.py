import socket
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

from rayhook.audit.checkpoint import Checkpoint, TreeHead
from rayhook.audit.delivery import DeliveryFailed
from rayhook.deploy.s3 import anchor_at
from rayhook.fhir.errors import InvalidRequest, ServiceUnavailable
from tests.doubles.object_store import make_bucket, object_store


@pytest.fixture(scope="module", autouse=True)
def store():
    with object_store() as endpoint:
        yield endpoint


@pytest.fixture
def bucket():
    return make_bucket(f"audit-{uuid.uuid4().hex}")


@pytest.fixture
def anchor(bucket):
    return anchor_at(bucket.address, kept_days=2192)


def statement(size, root="a" * 64):
    return Checkpoint(TreeHead(size, root, "b" * 64, "2026-01-01T00:00:00.000000Z"), "c" * 128)


def test_each_statement_is_its_own_object_named_by_its_size(anchor, bucket):
    assert anchor.send([statement(100), statement(200)]) == 2
    assert bucket.names() == ["rayhook/00000000000000000100.json", "rayhook/00000000000000000200.json"]


def test_what_was_written_is_read_in_order(anchor):
    sent = [statement(100), statement(200), statement(1000)]
    anchor.send(sent)
    assert list(anchor.checkpoints()) == sent


def test_object_is_locked_in_compliance_mode_for_as_long_as_events_are_kept(anchor, bucket):
    anchor.send([statement(100)])
    stored = bucket.client.head_object(Bucket=bucket.name, Key=anchor.key(100))
    assert stored["ObjectLockMode"] == "COMPLIANCE"
    left = stored["ObjectLockRetainUntilDate"] - datetime.now(UTC)
    assert timedelta(days=2191) < left <= timedelta(days=2192)


def test_locked_object_is_not_deleted(anchor, bucket):
    anchor.send([statement(100)])
    [version] = bucket.versions()
    with pytest.raises(ClientError, match="AccessDenied"):
        bucket.client.delete_object(
            Bucket=bucket.name,
            Key=version["Key"],
            VersionId=version["VersionId"],
            BypassGovernanceRetention=True,
        )


def test_statement_sent_twice_is_there_once(anchor, bucket):
    """A kill between the write and its being noted sends it again."""
    anchor.send([statement(100)])
    assert anchor.send([statement(100), statement(200)]) == 2
    assert len(bucket.versions()) == 2


def test_another_statement_of_the_same_size_is_refused_and_overwrites_nothing(anchor):
    anchor.send([statement(100)])
    with pytest.raises(DeliveryFailed, match="another_statement_is_there"):
        anchor.send([statement(100, root="d" * 64)])
    assert list(anchor.checkpoints()) == [statement(100)]


def test_what_was_taken_before_a_failure_counts(anchor):
    anchor.send([statement(200)])
    assert anchor.send([statement(100), statement(200, root="d" * 64), statement(300)]) == 1


def test_newer_version_does_not_hide_the_locked_one(anchor, bucket):
    anchor.send([statement(100)])
    bucket.client.put_object(Bucket=bucket.name, Key=anchor.key(100), Body=b"nothing")
    found = list(anchor.checkpoints())
    assert set(found) == {statement(100), None}


def test_delete_marker_does_not_hide_the_locked_version(anchor, bucket):
    anchor.send([statement(100)])
    bucket.client.delete_object(Bucket=bucket.name, Key=anchor.key(100))
    assert bucket.names() == []
    assert list(anchor.checkpoints()) == [statement(100)]


def test_more_statements_than_a_page_holds(anchor, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    sent = [statement(size) for size in range(1, 26)]
    assert anchor.send(sent) == 25
    assert list(anchor.checkpoints()) == sent


def test_prefix_with_nothing_under_it_is_no_anchor(anchor):
    with pytest.raises(FileNotFoundError):
        list(anchor.checkpoints())


def test_bucket_that_is_gone_is_no_anchor():
    with pytest.raises(FileNotFoundError):
        list(anchor_at("s3://not-there/rayhook", kept_days=1).checkpoints())


def test_bucket_without_object_lock_takes_no_statement():
    bucket = make_bucket(f"plain-{uuid.uuid4().hex}", is_locking=False)
    with pytest.raises(DeliveryFailed):
        anchor_at(bucket.address, kept_days=1).send([statement(100)])
    assert bucket.names() == []


def test_absent_bucket_is_told_by_its_code():
    with pytest.raises(DeliveryFailed, match="NoSuchBucket"):
        anchor_at("s3://not-there/rayhook", kept_days=1).send([statement(100)])


@pytest.fixture
def nowhere(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    return anchor_at("s3://audit/rayhook", kept_days=1)


def test_outage_fails_the_delivery(nowhere):
    with pytest.raises(DeliveryFailed, match="EndpointConnectionError"):
        nowhere.send([statement(100)])


def test_outage_is_no_finding_of_the_verification(nowhere):
    """An anchor that does not answer must not be told as one that was deleted."""
    with pytest.raises(ServiceUnavailable, match="cannot be read"):
        list(nowhere.checkpoints())


def test_unusable_settings_of_aws_are_refused(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not an address")
    with pytest.raises(InvalidRequest, match="AWS_"):
        anchor_at("s3://audit/rayhook", kept_days=1)
