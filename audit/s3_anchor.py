"""Checkpoints as objects under S3's object lock: until its time has passed nobody deletes one, not even the account's root.

Spec: S3 Object Lock in compliance mode; conditional writes (`If-None-Match`).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from rayhook.audit.checkpoint import Checkpoint, checkpoint_line, parse_checkpoint
from rayhook.audit.delivery import DeliveryFailed
from rayhook.fhir.errors import ServiceUnavailable

_READERS: Final = 16
_NOT_THERE: Final = frozenset({"NoSuchBucket", "NoSuchKey", "NoSuchVersion"})
_ALREADY_THERE: Final = frozenset({"ConditionalRequestConflict", "PreconditionFailed"})


@dataclass(frozen=True, slots=True)
class S3Anchor:
    """`client` is boto3's for S3. An object is named by the size that it states, and locked for `kept_days`."""

    client: Any
    bucket: str
    prefix: str
    kept_days: int
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    target: str = "checkpoints:s3"

    def send(self, items: Sequence[Checkpoint]) -> int:
        """Write each statement as its own object; one that is there already stays as it is.

        Raises DeliveryFailed, also where an object of that size states something else: then the log is not the
        one that was witnessed.
        """
        taken = 0
        for item in items:
            try:
                self._put(item)
            except DeliveryFailed:
                if taken == 0:
                    raise
                break
            taken += 1
        return taken

    def key(self, size: int) -> str:
        return f"{self.prefix}{size:020d}.json"

    def checkpoints(self) -> Iterator[Checkpoint | None]:
        """Yield what each object states, in the order of sizes; None for one that cannot be read.

        Every version counts: neither a newer one nor a delete marker hides what is locked beneath.
        Raises FileNotFoundError where there is none, and ServiceUnavailable where S3 does not answer.
        """
        with _reading():
            versions = list(self._versions())
            if not versions:
                raise FileNotFoundError(f"no checkpoint under s3://{self.bucket}/{self.prefix}")
            with ThreadPoolExecutor(_READERS, thread_name_prefix="audit-s3") as readers:
                yield from readers.map(self._get, versions)

    def _put(self, checkpoint: Checkpoint) -> None:
        size, line = checkpoint.tree_head.size, checkpoint_line(checkpoint)
        try:
            self.client.put_object(
                Bucket=self.bucket,
                Key=self.key(size),
                Body=line,
                ContentType="application/json",
                ChecksumAlgorithm="SHA256",
                IfNoneMatch="*",
                ObjectLockMode="COMPLIANCE",
                ObjectLockRetainUntilDate=self.clock() + timedelta(days=self.kept_days),
            )
        except ClientError as error:
            code = _code(error)
            if code not in _ALREADY_THERE:
                raise DeliveryFailed(code) from error
            self._compare(size, line)
        except BotoCoreError as error:
            raise DeliveryFailed(type(error).__name__) from error

    def _compare(self, size: int, line: bytes) -> None:
        try:
            stored = self.client.get_object(Bucket=self.bucket, Key=self.key(size))["Body"].read()
        except ClientError as error:
            raise DeliveryFailed(_code(error)) from error
        except BotoCoreError as error:
            raise DeliveryFailed(type(error).__name__) from error
        if stored != line:
            raise DeliveryFailed("another_statement_is_there")

    def _versions(self) -> Iterator[tuple[str, str]]:
        pages = self.client.get_paginator("list_object_versions").paginate(
            Bucket=self.bucket, Prefix=self.prefix
        )
        for page in pages:
            for version in page.get("Versions", ()):
                yield version["Key"], version["VersionId"]

    def _get(self, version: tuple[str, str]) -> Checkpoint | None:
        key, id_ = version
        stored = self.client.get_object(Bucket=self.bucket, Key=key, VersionId=id_)["Body"].read()
        return parse_checkpoint(stored)


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if _code(error) in _NOT_THERE:
            raise FileNotFoundError("the S3 anchor is not there") from error
        raise ServiceUnavailable(
            f"the S3 anchor cannot be read: {_code(error)}", code="anchor_unreadable"
        ) from error
    except BotoCoreError as error:
        raise ServiceUnavailable(
            f"the S3 anchor cannot be read: {type(error).__name__}", code="anchor_unreadable"
        ) from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "S3"))[:64]
