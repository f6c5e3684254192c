"""A KMS on loopback: one that keeps keys, and one that only ever says no."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3


@dataclass(frozen=True)
class KMSKey:
    """A key of the KMS that AWS_* name, with the hands on it of somebody who has its account."""

    arn: str
    client: Any

    @property
    def uri(self) -> str:
        return f"aws-kms://{self.arn}"


def make_key() -> KMSKey:
    client = boto3.client("kms")
    return KMSKey(client.create_key()["KeyMetadata"]["Arn"], client)


@contextmanager
def kms_that_says(code: str, *, status: int = 400) -> Iterator[str]:
    """Yield the endpoint of a KMS that answers everything with one error, as KMS's JSON protocol has it.

    For what the keeping one does not know: it lets disabled keys go on.
    """
    body = json.dumps({"__type": code, "message": "arn:aws:iam::123456789012:user/eve may not"}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: the tests' output is not the place."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
