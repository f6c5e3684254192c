"""The card of a model: all that its package says of it, nothing made up, and nothing left blank."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import NotFound
from rayhook.inference.held_out import HeldOut
from rayhook.inference.registry import Estimate, Evaluation, Manifest
from rayhook.inference.statement import EXPERIMENTAL, INVESTIGATIONAL
from rayhook.smart_app.access import Gate, Viewer
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.figures import Figure, evaluated_on, figure
from rayhook.smart_app.finding_view import units_text
from rayhook.smart_app.i18n import decimal_text, percent_text, tell
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.numbers import percent
from rayhook.smart_app.pages import Pages, page_route
from rayhook.smart_app.presentation import card_path
from rayhook.smart_app.results import ResultViews
from rayhook.smart_app.source_attributes import SOURCE_ATTRIBUTES
from rayhook.smart_app.staff_pages import StaffPages, staff_router


@dataclass(frozen=True, slots=True)
class AttributeView:
    """One source attribute. source: the regulation's words.  value: of the manifest's card, never empty."""

    number: int
    paragraph: str
    source: str
    title: str
    value: str


@dataclass(frozen=True, slots=True)
class GroupView:
    title: str
    attributes: tuple[AttributeView, ...]


@dataclass(frozen=True, slots=True)
class EvaluationView:
    title: str
    about: str
    limits: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class CardView:
    """All that model.html shows. facts: names with values; `code` ones are digests and ids."""

    title: str
    version: str
    cautions: tuple[str, ...]
    intended_use: str
    limits: tuple[str, ...]
    groups: tuple[GroupView, ...]
    evaluations: tuple[EvaluationView, ...]
    prevalences: tuple[tuple[str, str, str], ...]
    facts: tuple[tuple[str, str, bool], ...]
    abstentions: tuple[tuple[str, str, str], ...]

    @property
    def attribute_count(self) -> int:
        return sum(len(group.attributes) for group in self.groups)


def card_view(manifest: Manifest, held_out: HeldOut | None = None) -> CardView:
    experimental = (tell(EXPERIMENTAL),) if manifest.status.value == "experimental" else ()
    return CardView(
        title=manifest.title,
        version=manifest.version,
        cautions=(*experimental, tell(INVESTIGATIONAL)),
        intended_use=manifest.intended_use,
        limits=manifest.limits,
        groups=tuple(_groups(manifest)),
        evaluations=tuple(map(_evaluation, manifest.evaluations)),
        prevalences=() if held_out is None else tuple(_prevalences(held_out)),
        facts=tuple(_facts(manifest)),
        abstentions=tuple(
            (one.images, decimal_text(one.count), percent_text(one.rate)) for one in manifest.abstentions
        ),
    )


def _groups(manifest: Manifest) -> Iterator[GroupView]:
    said = {attribute.number: attribute for attribute in manifest.card}
    for group in SOURCE_ATTRIBUTES:
        views = []
        for required in group.attributes:
            own = said.get(required.number)
            value = own.value.strip() if own is not None else ""
            views.append(
                AttributeView(
                    required.number,
                    required.paragraph,
                    required.text,
                    own.title if own is not None else "",
                    value or _("Not known: the package says nothing of it."),
                )
            )
        yield GroupView(_(group.title), tuple(views))


def _evaluation(evaluation: Evaluation) -> EvaluationView:
    return EvaluationView(
        title=f"{evaluation.dataset}, {evaluation.subset} ({units_text(evaluation.unit)})",
        about=evaluated_on(evaluation),
        limits=evaluation.limits,
        figures=tuple(figure(key, estimate) for key, estimate in evaluation.estimates.items()),
    )


def _prevalences(held_out: HeldOut) -> Iterator[tuple[str, str, str]]:
    for row in held_out.prevalence_table:
        yield percent(row.prevalence), _estimate(row.ppv), _estimate(row.npv)


def _estimate(one: Estimate) -> str:
    low, high = percent(one.low), percent(one.high)
    return _("%(share)s (%(low)s to %(high)s)", share=percent(one.value), low=low, high=high)


def _facts(manifest: Manifest) -> Iterator[tuple[str, str, bool]]:
    yield _("Model id"), manifest.id, True
    yield _("Version"), manifest.version, True
    yield _("Status"), manifest.status.value, False
    yield _("Modality"), ", ".join(manifest.modalities), False
    yield _("Body parts"), ", ".join(manifest.body_parts), False
    for label in manifest.labels:
        about = _("threshold %(threshold)s", threshold=percent(label.threshold))
        yield _("Looks for"), f"{label.finding.display} ({label.finding.code}), {about}", False
    yield _("Weights SHA-256"), manifest.weights_sha256, True
    yield _("Recipe SHA-256"), manifest.recipe_sha256, True
    yield _("Training data"), manifest.training_data, False
    yield _("Licence"), manifest.licence, False
    if manifest.quantisation is not None:
        yield _("Weights as shipped"), manifest.quantisation.scheme, False


def find_manifest(manifests: tuple[Manifest, ...], model_id: str, version: str) -> Manifest:
    """Raise NotFound where that version is not installed: the card of another would mislead."""
    for manifest in manifests:
        if (manifest.id, manifest.version) == (model_id, version):
            return manifest
    raise NotFound("this version of the model is not installed")


def build_model_router(deps: SMARTDependencies, pages: Pages, gate: Gate) -> APIRouter:
    router = APIRouter(route_class=page_route(pages), include_in_schema=False)
    views = ResultViews(deps, gate)
    reading = Annotated[Viewer, Depends(gate.viewing(Permission.INFERENCE_MODEL_READ))]

    @router.get("/models/{model_id}/{version}")
    def card(model_id: str, version: str, viewer: reading) -> Response:
        manifest = find_manifest(deps.manifests, model_id, version)
        view = card_view(manifest, deps.held_out.get(manifest.weights_sha256))
        return pages.render("model.html", ehr=viewer.ehr, patient=views.banner(viewer), card=view)

    return router


def build_staff_model_router(deps: SMARTDependencies, pages: Pages, gate: Gate) -> APIRouter:
    own = StaffPages(deps, pages)
    router = staff_router(own)
    reading = Annotated[StaffMember, Depends(gate.staffing(Permission.INFERENCE_MODEL_READ))]

    @router.get("/staff/models")
    def models(request: Request, member: reading) -> Response:
        listed = [(one, f"/staff{card_path(one.id, one.version)}") for one in deps.manifests]
        return own.render("staff_models.html", request, member, models=listed)

    @router.get("/staff/models/{model_id}/{version}")
    def card(model_id: str, version: str, request: Request, member: reading) -> Response:
        manifest = find_manifest(deps.manifests, model_id, version)
        view = card_view(manifest, deps.held_out.get(manifest.weights_sha256))
        return own.render("staff_model.html", request, member, card=view)

    return router
