"""What the SMART app needs from the composition root."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from rayhook.audit.balp import Observer
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.refusals import RefusalLimit
from rayhook.audit.retention import RetentionPolicy
from rayhook.audit.unusual import Watching
from rayhook.audit.verification import Verifier
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHRRegistry
from rayhook.auth.tokens import JWKSCache
from rayhook.fhir.transport import Transport
from rayhook.inference.decode import Decoder
from rayhook.inference.erasure import Done, Erasures
from rayhook.inference.held_out import HeldOut
from rayhook.inference.intake import Intake
from rayhook.inference.queue import AnalysisQueue
from rayhook.inference.registry import Manifest
from rayhook.inference.sign_off_queue import SignOffQueue
from rayhook.inference.study import ModelIdentity
from rayhook.smart_app.address_limit import LaunchLimit, SignInLimit
from rayhook.smart_app.fhir_limit import FHIRLimit
from rayhook.smart_app.retrievals import Retrievals


@dataclass(frozen=True, slots=True)
class SettingView:
    """One setting as it may be shown: no secret is in `value`."""

    name: str
    value: str
    is_default: bool


def _ignore(_result_id: str) -> None:
    """Nobody keeps what was signed."""


def _tell_nobody(_done: Done) -> None:
    """Nobody keeps what was erased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SMARTDependencies:
    """`public_base_url` is the origin that browsers and EHRs know us by, without a trailing slash.

    reading: sessions that do not wait for writers; `sessions` where there are none.
    organization: who operates the service, for the audit.
    intake: which analyses may wait, and for which workers.
    models: those that run, in their order.  decoder: the viewer's own, so that nobody waits for a picture behind an analysis.
    held_out: evaluations by the SHA-256 of the weights that they are of.
    sign_off: brings signed reports to their EHR.
    retention: how long events are kept.
    erasures: how patients are erased; `erased` is told of each, once it is committed.
    forgetting: what to call after an erasure, of all that keeps what it has opened.
    settings: those of the process, as an administrator may see them.
    watching: looks for unusual access; verifier: verifies the log.  Pages make their own where there is none.
    report_changed: is told the id of a result whose report was signed, changed or withdrawn.
    """

    registry: EHRRegistry
    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    transport: Transport
    decoder: Decoder
    jwks: JWKSCache
    manifests: tuple[Manifest, ...]
    models: tuple[ModelIdentity, ...]
    queue: AnalysisQueue
    public_base_url: str
    sign_off: SignOffQueue
    organization: str = ""
    intake: Intake = field(default_factory=Intake)
    reading: Sessions | None = None
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)
    report_changed: Callable[[str], None] = _ignore
    watching: Watching | None = None
    verifier: Verifier | None = None
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    erasures: Erasures | None = None
    erased: Callable[[Done], None] = _tell_nobody
    forgetting: list[Callable[[], None]] = field(default_factory=list)
    version: str = ""
    settings: tuple[SettingView, ...] = ()
    fhir_limit: FHIRLimit = field(default_factory=FHIRLimit)
    sign_in_limit: SignInLimit = field(default_factory=SignInLimit)
    launch_limit: LaunchLimit = field(default_factory=LaunchLimit)
    refusals: RefusalLimit = field(default_factory=RefusalLimit)
    retrievals: Retrievals = field(default_factory=Retrievals)
    clock: Callable[[], float] = time.time

    def tell(self, entry: AuditEntry) -> None:
        """Record what happened, in a transaction of its own."""
        with self.sessions() as session:
            self.audit.record(session, entry)
            session.commit()

    def tell_refusal(self, entry: AuditEntry) -> None:
        """Record that a caller whom we do not know was refused, in a transaction of its own."""
        with self.sessions() as session:
            self.refusals.record(session, self.audit, entry)
            session.commit()

    @property
    def reading_sessions(self) -> Sessions:
        return self.reading or self.sessions

    @property
    def patient_erasures(self) -> Erasures:
        return self.erasures or Erasures(
            keyring=self.keyring, audit=self.audit, retention=self.retention, clock=self.clock
        )

    @property
    def observer(self) -> Observer:
        """Return this installation, as its events in FHIR name it."""
        bases = {ehr.id: ehr.fhir_base_urls[0] for ehr in self.registry}
        return Observer(self.organization or "Rayhook", self.public_base_url, self.version, bases)

    @property
    def secure(self) -> bool:
        return urlsplit(self.public_base_url).scheme == "https"

    @property
    def redirect_uri(self) -> str:
        return f"{self.public_base_url}/smart/callback"
