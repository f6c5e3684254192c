"""Receivers of the audit on loopback: a FHIR repository, and a syslog server over TLS. Both can be switched off."""

import json
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl


class FHIRRepository:
    """Takes batches as ITI-20 has it, with conditional creates; `mode` says how it misbehaves."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self.batches = 0
        self.mode = "up"
        self.tokens: list[str | None] = []
        self.refuse_from: int | None = None

    def take(self, bundle: dict) -> dict:
        self.batches += 1
        answers = []
        for entry in bundle["entry"]:
            system, _, code = dict(parse_qsl(entry["request"]["ifNoneExist"]))["_tag"].partition("|")
            is_known = any({"system": system, "code": code} in event["meta"]["tag"] for event in self.events)
            if self.refuse_from is not None and len(self.events) >= self.refuse_from:
                answers.append({"response": {"status": "422 Unprocessable"}})
                continue
            if not is_known:
                self.events.append(entry["resource"])
            answers.append({"response": {"status": "200 OK" if is_known else "201 Created"}})
        return {"resourceType": "Bundle", "type": "batch-response", "entry": answers}

    @contextmanager
    def running(self):
        repository = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                repository.tokens.append(self.headers.get("Authorization"))
                if repository.mode == "down":
                    self.send_error(503)
                    return
                answer = json.dumps(repository.take(json.loads(body))).encode()
                if repository.mode == "lost answer":
                    self.connection.close()
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/fhir"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class SyslogReceiver:
    """Reads octet-counted frames until the sender closes; in mode "broken" it breaks off before the end."""

    def __init__(self, certificate, key) -> None:
        self.messages: list[bytes] = []
        self.mode = "up"
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate, key)

    @contextmanager
    def running(self):
        listener = socket.create_server(("127.0.0.1", 0))
        stopping = threading.Event()
        thread = threading.Thread(target=self._serve, args=(listener, stopping), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stopping.set()
            with suppress(OSError):
                socket.create_connection(listener.getsockname()).close()
            thread.join()
            listener.close()

    def _serve(self, listener, stopping):
        while True:
            plain, _ = listener.accept()
            if stopping.is_set():
                plain.close()
                return
            with suppress(OSError), plain:
                if self.mode == "down":
                    continue
                with self._context.wrap_socket(plain, server_side=True) as secured:
                    self._read(secured)

    def _read(self, secured):
        received = b""
        while chunk := secured.recv(65536):
            received += chunk
            if self.mode == "broken":
                # Gone with what was read, and a reset for the sender: linger with nothing left to say.
                secured.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                return
        while received:
            length, _, rest = received.partition(b" ")
            self.messages.append(rest[: int(length)])
            received = rest[int(length) :]
        with suppress(OSError):
            secured.unwrap()
