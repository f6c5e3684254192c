"""The demo's accounts of the staff, and an authenticator app for them that anybody at this machine can read.

Passwords and secrets are random for each data folder and lie in one file there, mode 0600. In development only:
a code that the EHR's page shows is no second factor.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from rayhook.auth.one_time_codes import STEP_S, current_code
from rayhook.auth.roles import Role
from rayhook.deploy.accounts import opened_accounts
from rayhook.deploy.demo.ehr_page import Pages
from rayhook.fhir.errors import NotFound

FILE = "demo-staff.json"
NAMES = {
    "demo.officer": Role.COMPLIANCE_OFFICER,
    "demo.models": Role.MODEL_MANAGER,
    "demo.administrator": Role.ADMINISTRATOR,
}
_AGENT = "rayhook demo"


@dataclass(frozen=True, slots=True)
class DemoAccount:
    name: str
    role: str
    password: str = field(repr=False)
    secret: str = field(repr=False)


def demo_staff(data_dir: Path) -> list[DemoAccount]:
    """Return the accounts of a data folder whose service has started, made where they are not there yet."""
    known = {account.name: account for account in read_demo_staff(data_dir / FILE)}
    with opened_accounts(data_dir) as acts:
        accounts = []
        for name, role in NAMES.items():
            try:
                there = acts.named(name)
            except NotFound:
                there = None
            if there is None or name not in known:
                password = secrets.token_urlsafe(15)
                enrolled = (
                    acts.create_enrolled(name, [role], password, agent=_AGENT)
                    if there is None
                    else acts.enrol_again(there.id, password, agent=_AGENT)
                )
                known[name] = DemoAccount(name, role.value, password, enrolled.secret)
            accounts.append(known[name])
    _write(data_dir / FILE, accounts)
    return accounts


def read_demo_staff(path: Path) -> list[DemoAccount]:
    if not path.exists():
        return []
    return [DemoAccount(**one) for one in json.loads(path.read_text("utf-8"))]


def _write(path: Path, accounts: list[DemoAccount]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump([asdict(account) for account in accounts], file, indent=2)


def authenticator(pages: Pages, path: Path, *, sign_in_url: str) -> APIRouter:
    """Return the page that stands in for the app on a phone: it shows each account's present code."""
    router = APIRouter(include_in_schema=False)

    @router.get("/authenticator")
    def show() -> Response:
        now = time.time()
        return pages.render(
            "authenticator.html",
            rows=list(_rows(path, now)),
            seconds_left=STEP_S - int(now) % STEP_S,
            sign_in_url=sign_in_url,
        )

    return router


def _rows(path: Path, now: float) -> Iterator[tuple[DemoAccount, str]]:
    for account in read_demo_staff(path):
        code = current_code(account.secret, now)
        yield account, f"{code[:3]} {code[3:]}"
