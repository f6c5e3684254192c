"""An S3 of versions and object locks on loopback, for clients that find it by AWS's own variables."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer

# Left to itself, werkzeug logs each request to the stderr of whichever test was the first to start a server.
logging.getLogger("werkzeug").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Bucket:
    """A bucket, with the hands on it of somebody who has its account."""

    name: str
    client: Any

    @property
    def address(self) -> str:
        return f"s3://{self.name}/rayhook"

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", ())
        return [one["Key"] for one in found]

    def versions(self) -> list[dict[str, Any]]:
        return self.client.list_object_versions(Bucket=self.name).get("Versions", [])


@contextmanager
def object_store() -> Iterator[str]:
    """Yield the endpoint; AWS_* say it to every client that is made meanwhile."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    named = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        with mock.patch.dict(os.environ, named):
            yield named["AWS_ENDPOINT_URL"]
    finally:
        server.stop()


def make_bucket(name: str, *, is_locking: bool = True) -> Bucket:
    client = boto3.client("s3")
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=is_locking)
    return Bucket(name, client)
