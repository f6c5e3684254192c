"""TLS of our own listener: which versions and suites, and a certificate that is taken up anew without a restart.

Spec: RFC 9325 (BCP 195) 3.1.1, 4.2; NIST SP 800-52 Rev. 2, 3.1 and 3.3.1; OWASP ASVS 5.0.0 V12.1
"""

import ssl
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

log = structlog.get_logger(__name__)

# Of TLS 1.2; those of TLS 1.3 are all of this kind: forward secrecy, and encryption that authenticates.
_SUITES: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_LOOKS_EVERY_S: Final = 10.0

_Seen = tuple[tuple[int, int], ...]


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return the context to serve https with. Raises OSError or ssl.SSLError for files that are not a pair."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key)
    return context


def expires_at(certificate: Path) -> datetime | None:
    """Return when the certificate itself, the first of its file, ends; None where there is none to read."""
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return None


class ServedCertificate:
    """The listener's certificate: `context` serves what is in the files, from the next connection after a change."""

    def __init__(self, certificate: Path, key: Path | None) -> None:
        self.context = server_context(certificate, key)
        self._certificate = certificate
        self._key = key
        self._seen = self._look()

    def left_s(self) -> float | None:
        """Return the seconds until it ends."""
        ends = expires_at(self._certificate)
        return None if ends is None else (ends - datetime.now(UTC)).total_seconds()

    def renew(self) -> bool:
        """Take up the files where they changed and are a pair; return whether that was so.

        The two are not replaced at one moment: half a change is looked at again the next time.
        """
        found = self._look()
        if found == self._seen or not found:
            return False
        try:
            server_context(self._certificate, self._key)
            self.context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:
            log.warning("tls_certificate_not_renewed", error_type=type(error).__name__)
            return False
        self._seen = found
        log.info("tls_certificate_renewed")
        return True

    def renew_until(self, stopping: threading.Event) -> None:
        while not stopping.wait(_LOOKS_EVERY_S):
            self.renew()

    def _look(self) -> _Seen:
        """Return what tells one version of the files from another; nothing where one of them is away."""
        try:
            found = [path.stat() for path in (self._certificate, self._key) if path is not None]
        except OSError:
            return ()
        return tuple((one.st_ino, one.st_mtime_ns) for one in found)
