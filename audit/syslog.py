"""Syslog over TLS, so that a batch is either known to have been read or sent again.

Syslog has no acknowledgement. TLS has one: a receiver answers our close_notify when it has read all before it.
So each batch has a connection of its own, and counts once the receiver has closed it in order.

Spec: RFC 5424 (message), RFC 5425 (TLS, octet counting), RFC 8446 6.1 (closure alerts); IHE ITI TF-2 3.20
"""

import json
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rayhook.audit.balp import Observer, audit_event
from rayhook.audit.checkpoint import Checkpoint, printed
from rayhook.audit.delivery import DeliveryFailed
from rayhook.audit.dicom_message import dicom_message
from rayhook.audit.review import AuditRecord

_SECURITY_NOTICE: Final = 10 * 8 + 5
_SECURITY_WARNING: Final = 10 * 8 + 4
_BOM: Final = b"\xef\xbb\xbf"
_MAX_SEQUENCE: Final = 2_147_483_647


@dataclass(frozen=True, slots=True)
class SyslogServer:
    """`certificate` and `key` are ours, where the repository authenticates its nodes (ITI-19)."""

    host: str
    port: int
    ca_bundle: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    timeout_s: float = 10.0

    def send(self, messages: Sequence[bytes]) -> None:
        """Return once the receiver has read them all; raises DeliveryFailed otherwise."""
        try:
            with (
                socket.create_connection((self.host, self.port), timeout=self.timeout_s) as plain,
                self._context().wrap_socket(plain, server_hostname=self.host) as secured,
            ):
                secured.sendall(b"".join(b"%d %s" % (len(message), message) for message in messages))
                _close(secured)
        except ssl.SSLError as error:
            raise DeliveryFailed("tls_refused") from error
        except TimeoutError as error:
            raise DeliveryFailed("timeout") from error
        except OSError as error:
            raise DeliveryFailed("unreachable") from error

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_bundle)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


def _close(secured: ssl.SSLSocket) -> None:
    """Wait for the receiver's own end; one that only shuts its socket has read everything too."""
    try:
        secured.unwrap()
    except ssl.SSLEOFError:
        return


@dataclass(frozen=True, slots=True)
class SyslogEvents:
    """Events as DICOM audit messages, or as FHIR JSON where `is_fhir`."""

    server: SyslogServer
    observer: Observer
    is_fhir: bool = False
    target: str = "events:syslog"

    def send(self, items: Sequence[AuditRecord]) -> int:
        self.server.send([self._message(record) for record in items])
        return len(items)

    def _message(self, record: AuditRecord) -> bytes:
        resource = audit_event(record, self.observer)
        body = json.dumps(resource).encode() if self.is_fhir else dicom_message(resource)
        moment = record.recorded_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        priority = _SECURITY_NOTICE if record.outcome == 0 else _SECURITY_WARNING
        # Receivers know an audit message by this name since 2004, whatever the schema it follows.
        id_ = "IHE+FHIR" if self.is_fhir else "IHE+RFC-3881"
        return _message(priority, moment, id_, record.seq, _BOM + body)


@dataclass(frozen=True, slots=True)
class SyslogAnchor:
    """Checkpoints as one line each: the log's witness where its owner cannot write."""

    server: SyslogServer
    target: str = "checkpoints:syslog"

    def send(self, items: Sequence[Checkpoint]) -> int:
        self.server.send(
            [
                _message(
                    _SECURITY_NOTICE,
                    item.tree_head.signed_at,
                    "audit-checkpoint",
                    item.tree_head.size,
                    printed(item).encode(),
                )
                for item in items
            ]
        )
        return len(items)


def _message(priority: int, moment: str, id_: str, number: int, body: bytes) -> bytes:
    """Spec: RFC 5424 6 and 7.3.1 (`meta sequenceId`, which starts again after 2^31 - 1)."""
    sequence = (number - 1) % _MAX_SEQUENCE + 1
    head = f'<{priority}>1 {moment} {socket.gethostname()} rayhook - {id_} [meta sequenceId="{sequence}"] '
    return head.encode("ascii", "replace") + body
