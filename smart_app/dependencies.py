"""What the SMART app needs from the composition root."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from rayhook.audit.record import AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHRRegistry
from rayhook.auth.tokens import JWKSCache
from rayhook.fhir.transport import Transport
from rayhook.inference.decode import Decoder
from rayhook.inference.registry import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class SMARTDependencies:
    """`public_base_url` is the origin that browsers and EHRs know us by, without a trailing slash.

    decoder: the viewer's own, so that nobody waits for a picture behind an analysis.
    """

    registry: EHRRegistry
    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    transport: Transport
    decoder: Decoder
    jwks: JWKSCache
    manifests: tuple[Manifest, ...]
    public_base_url: str
    clock: Callable[[], float] = time.time

    @property
    def secure(self) -> bool:
        return urlsplit(self.public_base_url).scheme == "https"

    @property
    def redirect_uri(self) -> str:
        return f"{self.public_base_url}/smart/callback"
