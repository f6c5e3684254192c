"""What the CDS services need from the composition root."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rayhook.audit.record import AuditLog
from rayhook.audit.refusals import RefusalLimit
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHRRegistry
from rayhook.auth.tokens import JWKSCache
from rayhook.cds_hooks.load import CallsInHand
from rayhook.cds_hooks.rate_limit import NewAnalyses, RateLimit
from rayhook.cds_hooks.results import ResultCache
from rayhook.fhir.transport import Transport
from rayhook.inference.intake import Intake
from rayhook.inference.job_table import Authorization
from rayhook.inference.queue import AnalysisQueue
from rayhook.inference.registry import Manifest
from rayhook.inference.study import ModelIdentity

_FETCH_THREADS = 64


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="prefetch")


@dataclass(frozen=True, slots=True, kw_only=True)
class CDSDependencies:
    """`public_base_url` has no trailing slash; JWTs name it in `aud`.

    `reading` sessions do not wait for writers; what `unsynced` ones commit is on the disk with the next commit of
    `sessions`, here that of the call's audit, before its answer.
    `models` are those that an analysis runs, in their order; `manifests` those of every installed one.
    deliver_again takes a result's id and a token that may write it.
    intake: which analyses may wait, and for which workers.
    fetch_s and wait_s count from the start of a call: what is not fetched by the one is told as missing, what is
    not analysed by the other is told as in progress.
    """

    registry: EHRRegistry
    jwks: JWKSCache
    sessions: Sessions
    reading: Sessions
    unsynced: Sessions
    keyring: Keyring
    audit: AuditLog
    queue: AnalysisQueue
    transport: Transport
    manifests: tuple[Manifest, ...]
    models: tuple[ModelIdentity, ...]
    deliver_again: Callable[[str, Authorization], None]
    public_base_url: str
    intake: Intake = field(default_factory=Intake)
    fetch_s: float = 0.25
    wait_s: float = 0.4
    clock: Callable[[], float] = time.time
    pool: ThreadPoolExecutor = field(default_factory=_pool)
    results: ResultCache = field(default_factory=ResultCache)
    in_hand: CallsInHand = field(default_factory=CallsInHand)
    rate_limit: RateLimit = field(default_factory=RateLimit)
    new_analyses: NewAnalyses = field(default_factory=NewAnalyses)
    refusals: RefusalLimit = field(default_factory=RefusalLimit)
