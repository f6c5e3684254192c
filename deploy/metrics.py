"""Counts for Prometheus, never anything of a patient; for a scraper on this machine, or one that shows the token."""

import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlmodel import Session
from starlette.responses import Response

from rayhook.audit.checkpoint import latest_tree
from rayhook.audit.delivery import delivery_statuses
from rayhook.audit.events import AuditKind
from rayhook.audit.models import AUDIT_EVENT
from rayhook.audit.unusual import ReviewState, count_items
from rayhook.audit.watch import Rule
from rayhook.auth.database_types import Sessions
from rayhook.deploy import arrival_metrics, job_metrics, key_metrics, request_metrics, stage_metrics
from rayhook.fhir.errors import Forbidden

log = structlog.get_logger(__name__)

PATH: Final = "/metrics"
METRICS: Final = {
    "rayhook_audit_events": "Number of the newest audit event.",
    "rayhook_audit_checkpoint_age_seconds": "Time since the last signed checkpoint.",
    "rayhook_audit_intact": "1 where the last verification found the log intact, 0 where it did not.",
    "rayhook_audit_verified_timestamp_seconds": "When the log was last verified.",
    "rayhook_audit_delivery_behind": "Events or checkpoints that wait for a receiver, by target.",
    "rayhook_audit_delivery_failures": "Tries in a row that a receiver did not take, by target.",
    "rayhook_audit_review_items": "What the rules for unusual access found, by rule and state.",
    **request_metrics.DOCUMENTED,
    **job_metrics.DOCUMENTED,
    **stage_metrics.DOCUMENTED,
    **arrival_metrics.DOCUMENTED,
    **key_metrics.DOCUMENTED,
}


@dataclass(frozen=True, slots=True)
class AuditCollector(Collector):
    """Reads the database when it is asked: several processes tell the same."""

    sessions: Sessions

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        with self.sessions() as session:
            return [*_log(session), *_verified(session), *_delivery(session), _items(session)]


def _gauge(name: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, METRICS[name], labels=labels)


def _log(session: Session) -> Iterable[Metric]:
    size = _gauge("rayhook_audit_events")
    size.add_metric([], session.execute(select(func.max(AUDIT_EVENT.c.seq))).scalar() or 0)
    yield size
    tree = latest_tree(session)
    if tree is not None:
        age = _gauge("rayhook_audit_checkpoint_age_seconds")
        signed_at = datetime.fromisoformat(tree.checkpoint.tree_head.signed_at)
        age.add_metric([], (datetime.now(UTC) - signed_at).total_seconds())
        yield age


def _verified(session: Session) -> Iterable[Metric]:
    event = AUDIT_EVENT.c
    query = select(event.outcome, event.recorded_at).where(event.kind == AuditKind.AUDIT_CHAIN_VERIFIED.value)
    row = session.execute(query.order_by(event.recorded_at.desc(), event.seq.desc()).limit(1)).first()
    if row is None:
        return
    intact, when = _gauge("rayhook_audit_intact"), _gauge("rayhook_audit_verified_timestamp_seconds")
    intact.add_metric([], int(row.outcome == 0))
    when.add_metric([], datetime.fromisoformat(row.recorded_at).timestamp())
    yield intact
    yield when


def _delivery(session: Session) -> Iterable[Metric]:
    behind = _gauge("rayhook_audit_delivery_behind", "target")
    failures = _gauge("rayhook_audit_delivery_failures", "target")
    for one in delivery_statuses(session):
        behind.add_metric([one.target], one.behind)
        failures.add_metric([one.target], one.failures)
    yield behind
    yield failures


def _items(session: Session) -> Metric:
    found = count_items(session)
    items = _gauge("rayhook_audit_review_items", "rule", "state")
    for rule in Rule:
        for state in ReviewState:
            items.add_metric([rule.value, state.value], found.get((rule, state), 0))
    return items


def build_router(
    sessions: Sessions | None, token_file: Path | None, *, others: Iterable[Collector] = ()
) -> APIRouter:
    """Return the route; with `token_file`, only for who shows the token that it holds, else only for this machine.

    sessions: to count the audit with; None where another process does.  others: what is counted beside it.
    """
    registry = CollectorRegistry(auto_describe=False)
    if sessions is not None:
        registry.register(AuditCollector(sessions))
    for collector in others:
        registry.register(collector)
    router = APIRouter(include_in_schema=False)

    @router.get(PATH)
    def metrics(request: Request) -> Response:
        if not _is_allowed(request, token_file):
            raise Forbidden("metrics are for this machine, or for who shows the token", code="metrics_closed")
        headers = {"Cache-Control": "no-store"}
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST, headers=headers)

    return router


def _is_allowed(request: Request, token_file: Path | None) -> bool:
    """A request that a proxy on this machine passes on is not from this machine."""
    if token_file is not None:
        try:
            expected = f"Bearer {token_file.read_text('utf-8').strip()}"
        except OSError:
            log.exception("metrics_token_unreadable")
            return False
        shown = request.headers.get("Authorization", "")
        return hmac.compare_digest(shown.encode(), expected.encode())
    if {"forwarded", "x-forwarded-for"} & set(request.headers.keys()):
        return False
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
