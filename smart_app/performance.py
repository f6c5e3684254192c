"""The staff's page of how people agree with the models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.inference.performance import FEWEST, ModelPerformance, ScoreShift, Tally, measure, score_shifts
from rayhook.inference.registry import Estimate, Manifest
from rayhook.smart_app.access import Gate
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import decimal_text
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.numbers import counted_share, percent
from rayhook.smart_app.pages import Pages
from rayhook.smart_app.staff_pages import StaffPages, staff_router

_NOTABLE = 0.25


@dataclass(frozen=True, slots=True)
class TallyView:
    """One row: its name, and the counts as text; all `None` where there are too few."""

    name: str
    answered: str | None
    agreed: str
    overridden: str
    missed: str
    rejected: str
    uncertain: str
    ppv: str
    npv: str


@dataclass(frozen=True, slots=True)
class PerformanceView:
    """One label of one version of a model."""

    title: str
    version: str
    finding: str
    total: TallyView
    weeks: tuple[TallyView, ...]
    ehrs: tuple[TallyView, ...]
    added: str


@dataclass(frozen=True, slots=True)
class ShiftView:
    title: str
    version: str
    scores: str
    psi: str
    notable: bool


def performance_view(found: ModelPerformance, manifests: Sequence[Manifest]) -> PerformanceView:
    manifest = next((m for m in manifests if m.id == found.model_id), None)
    labels = () if manifest is None else manifest.labels
    display = next(
        (one.finding.display for one in labels if one.finding.code == found.finding), found.finding
    )
    return PerformanceView(
        title=found.model_id if manifest is None else manifest.title,
        version=found.model_version,
        finding=display,
        total=_tally_view(_("In all"), found.total),
        weeks=tuple(_tally_view(one.key[0], one) for one in reversed(found.weeks)),
        ehrs=tuple(_tally_view(one.key[0], one) for one in found.ehrs),
        added=_("fewer than %(count)s", count=FEWEST) if found.added is None else decimal_text(found.added),
    )


def _tally_view(name: str, tally: Tally) -> TallyView:
    if tally.answered is None:
        return TallyView(name, None, "", "", "", "", "", "", "")
    return TallyView(
        name=name,
        answered=decimal_text(tally.answered),
        agreed=decimal_text(tally.agreed or 0),
        overridden=decimal_text(tally.overridden or 0),
        missed=decimal_text(tally.missed or 0),
        rejected=decimal_text(tally.rejected or 0),
        uncertain=decimal_text(tally.uncertain or 0),
        ppv=_estimate(tally.ppv),
        npv=_estimate(tally.npv),
    )


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return _("too few")
    return _(
        "%(share)s (%(low)s to %(high)s)",
        share=counted_share(estimate.value),
        low=percent(estimate.low),
        high=percent(estimate.high),
    )


def _shift_view(shift: ScoreShift, manifests: Sequence[Manifest]) -> ShiftView:
    manifest = next((m for m in manifests if m.id == shift.model_id), None)
    return ShiftView(
        shift.model_id if manifest is None else manifest.title,
        shift.model_version,
        decimal_text(shift.scores),
        decimal_text(shift.psi, 2),
        shift.psi > _NOTABLE,
    )


def build_performance_router(deps: SMARTDependencies, pages: Pages, gate: Gate) -> APIRouter:
    own = StaffPages(deps, pages)
    router = staff_router(own)
    reading = Annotated[StaffMember, Depends(gate.staffing(Permission.INFERENCE_PERFORMANCE_READ))]

    @router.get("/staff/performance")
    def performance(request: Request, member: reading) -> Response:
        with deps.sessions() as session:
            found = measure(session)
            shifts = score_shifts(session, deps.keyring, deps.held_out)
            entry = AuditEntry(AuditKind.INFERENCE_PERFORMANCE_READ, agent=member.agent)
            deps.audit.record(session, entry)
            session.commit()
        return own.render(
            "staff_performance.html",
            request,
            member,
            models=[performance_view(one, deps.manifests) for one in found],
            shifts=[_shift_view(one, deps.manifests) for one in shifts],
            fewest=FEWEST,
        )

    return router
