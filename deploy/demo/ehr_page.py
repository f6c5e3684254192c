"""The demo EHR as its clinician sees it."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.responses import HTMLResponse, RedirectResponse, Response

from rayhook.deploy.demo.ehr_authorization import AuthorizationServer
from rayhook.deploy.demo.ehr_cds_client import CDSAnswer, CDSClient
from rayhook.deploy.demo.ehr_chart import PatientRow, order_rows, patient_row, patient_rows, report_rows
from rayhook.deploy.demo.ehr_seed import PRACTITIONER_ID, PRACTITIONER_NAME, USERS
from rayhook.deploy.demo.ehr_store import Resource, ResourceStore
from rayhook.fhir.errors import InvalidRequest, NotFound
from rayhook.fhir.transport import origin_of

_HERE = Path(__file__).parent
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["users"] = USERS
    environment.globals["user_id"] = PRACTITIONER_ID
    environment.filters["markdown"] = render_markdown
    return environment


_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")


def render_markdown(text: str) -> Markup:
    """Return a card's GFM detail as HTML; markup inside it is shown as text, scripts and images never run."""
    return Markup(_MARKDOWN.render(text))  # noqa: S704 - the renderer escapes all input: html is off


class Pages:
    """Renders with the demo's headers: no foreign scripts, one frame, the launched app's."""

    def __init__(self, app_origin: str) -> None:
        self._environment = _environment()
        self._headers = {
            "Cache-Control": "no-store",
            "Content-Security-Policy": (
                "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
                f"form-action 'self'; base-uri 'none'; frame-ancestors 'none'; frame-src 'self' {app_origin}"
            ),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    def render(self, template: str, *, status: int = 200, **values: Any) -> Response:
        html = self._environment.get_template(template).render(values)
        return HTMLResponse(html, status_code=status, headers=self._headers)

    def static(self, name: str) -> Response:
        path = _HERE / "static" / name
        if path.name != name or path.suffix not in _MEDIA_TYPES or not path.is_file():
            raise NotFound("static: no such file")
        return Response(
            path.read_bytes(), media_type=_MEDIA_TYPES[path.suffix], headers={"Cache-Control": "no-cache"}
        )


_USER_COOKIE = "harbour-user"


def current_user(request: Request) -> str:
    """Return whom the browser says it is: one of USERS."""
    named = request.cookies.get(_USER_COOKIE, "")
    return named if named in USERS else PRACTITIONER_ID


User = Annotated[str, Depends(current_user)]


@dataclass(frozen=True, slots=True)
class ChartPages:
    """The routes that a clinician's browser asks for."""

    store: ResourceStore
    client: CDSClient
    authorization: AuthorizationServer
    pages: Pages
    offers_new_study: bool = False

    def router(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/", self.patients)
        router.add_api_route("/user", self.change_user)
        router.add_api_route("/static/{name}", self.pages.static)
        router.add_api_route("/patients/{patient_id}", self.chart)
        router.add_api_route("/patients/{patient_id}/cards", self.cards)
        router.add_api_route("/patients/{patient_id}/orders", self.sign_order, methods=["POST"])
        router.add_api_route("/patients/{patient_id}/reports", self.reports)
        router.add_api_route("/patients/{patient_id}/app", self.app_frame)
        router.add_api_route("/patients/{patient_id}/launch", self.launch)
        return router

    def patients(self, user_id: User) -> Response:
        return self.pages.render(
            "patients.html",
            patients=patient_rows(self.store),
            user_id=user_id,
            offers_new_study=self.offers_new_study,
        )

    def chart(self, patient_id: str, user_id: User) -> Response:
        orders = order_rows(self.store, patient_id)
        patient = self._patient(patient_id)
        return self.pages.render(
            "chart.html",
            patient=patient,
            orders=orders,
            user_id=user_id,
            app_url=f"{self.client.cds_base_url}/smart/launch",
        )

    def change_user(self, user: str) -> Response:
        """The demo's sign-in: one says who one is."""
        response = RedirectResponse("/", status_code=303)
        if user in USERS:
            response.set_cookie(_USER_COOKIE, user, httponly=True, samesite="lax")
        return response

    def cards(self, patient_id: str) -> Response:
        self._patient(patient_id)
        return self._cards(patient_id, self.client.patient_view(patient_id))

    def sign_order(self, patient_id: str, description: Annotated[str, Form(max_length=120)]) -> Response:
        self._patient(patient_id)
        return self._cards(
            patient_id, self.client.order_sign(patient_id, draft_order(patient_id, description))
        )

    def reports(self, patient_id: str) -> Response:
        return self.pages.render("_reports.html", reports=report_rows(self.store, patient_id))

    def app_frame(self, patient_id: str, request: Request) -> Response:
        return self.pages.render(
            "app.html",
            patient=self._patient(patient_id),
            launch_query=request.url.query,
            user_id=current_user(request),
        )

    def launch(
        self, patient_id: str, user_id: User, url: str, *, app_context: str = "", study: str = ""
    ) -> Response:
        """Spec: SMART App Launch 2.2, "EHR launch"; only the registered app may be launched.

        study: the id of the ImagingStudy that the clinician is looking at.
        """
        self._patient(patient_id)
        if origin_of(url) != origin_of(self.client.cds_base_url):
            raise InvalidRequest("url must belong to the registered app", expression="url")
        handle = self.authorization.new_launch(
            patient_id, app_context or None, study or None, user_id=user_id
        )
        query = urlencode({"iss": self.authorization.issuer, "launch": handle})
        return RedirectResponse(f"{url}?{query}", status_code=303)

    def _patient(self, patient_id: str) -> PatientRow:
        return patient_row(self.store, self.store.read("Patient", patient_id))

    def _cards(self, patient_id: str, answer: CDSAnswer) -> Response:
        return self.pages.render("_cards.html", patient_id=patient_id, answer=answer)


def draft_order(patient_id: str, description: str) -> Resource:
    """Return the imaging order a clinician is about to sign.

    Spec: FHIR R4 ServiceRequest; CDS Hooks Library, order-sign `draftOrders`
    """
    return {
        "resourceType": "ServiceRequest",
        "id": f"draft-{uuid.uuid4()}",
        "status": "draft",
        "intent": "order",
        "category": [
            {"coding": [{"system": "http://snomed.info/sct", "code": "363679005", "display": "Imaging"}]}
        ],
        "code": {"text": description},
        "subject": {"reference": f"Patient/{patient_id}"},
        "authoredOn": datetime.now(UTC).isoformat(timespec="seconds"),
        "requester": {"reference": f"Practitioner/{PRACTITIONER_ID}", "display": PRACTITIONER_NAME},
    }
