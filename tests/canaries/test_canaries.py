"""A patient whose every value is a canary goes through the whole product; then each place is searched for them.

In the EHR's addresses are only the ids that the EHR itself gave (FHIR R4 http.html#read), in the PACS's only UIDs
(DICOM PS3.18 10.4): both standards have them there.
"""

import base64
import gzip
import io
import json
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from urllib.parse import quote, quote_plus

import httpx
import psutil
import pytest
import redis
from sqlalchemy import text

from rayhook.auth.one_time_codes import current_code
from rayhook.auth.roles import Role
from rayhook.deploy.accounts import opened_accounts
from rayhook.deploy.database import administering, create_database, parse_url
from rayhook.deploy.demo.catalogue import DemoStudy
from rayhook.deploy.demo.ehr import SENDER_SECRET, SUBSCRIPTION_SECRET
from rayhook.deploy.demo.ehr_seed import PRACTITIONER_ID, RADIOLOGIST_ID
from rayhook.deploy.postgresql import ConnectionSettings
from tests.canaries.canaries import PIXELS, PLANTED, Found, Search, token
from tests.canaries.patient import assigned, chart, order
from tests.canaries.site import Site, hidden, in_time, running_site

pytestmark = pytest.mark.timeout(900)

PASSWORD = token()
OFFICER = "canary.officer"
CODE = re.compile(r'name="finding" value="([^"]+)"')


@pytest.fixture(
    scope="module", params=["embedded", pytest.param("distributed", marks=pytest.mark.postgresql)]
)
def site(request, tmp_path_factory) -> Iterator[Site]:
    """The site after the whole story, still running."""
    folder = tmp_path_factory.mktemp(request.param)
    search = Search(PLANTED | {"pixels": PIXELS.tobytes()})
    with running_site(folder, search, distributed=request.param == "distributed") as running:
        story(running)
        yield running


def story(site: Site) -> None:
    good, damaged, waiting, arriving = site.studies
    the_peers_refuse(site, waiting.patient_id)
    analysed(site, good.patient_id)
    site.ehr.client.order_sign(good.patient_id, order(good, id="draft"))
    malformed_calls(site, good.patient_id)
    site.ehr.client.patient_view(damaged.patient_id)
    arrived(site, arriving)
    answered_and_signed(site, good.patient_id)
    in_an_emergency(site, good.patient_id)
    the_officer(site, good.patient_id)
    command_lines(site)
    crashed(site, waiting.patient_id)


def the_peers_refuse(site: Site, patient: str) -> None:
    """Errors of both peers tell of the patient; so do those that are no FHIR at all."""
    told = " ".join((PLANTED["EHR error"], PLANTED["family name"], PLANTED["record number"]))
    outcome = {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "error", "code": "processing", "diagnostics": told}],
    }
    body = json.dumps(outcome).encode()
    for status in (400, 403, 500):
        site.ehr_tap.answer = lambda _, path, s=status: (
            (s, body) if path.startswith("/fhir/Patient/") else None
        )
        site.ehr.client.patient_view(patient)
        time.sleep(1.0)
    site.ehr_tap.answer = lambda *_: None
    said = f"<html>{PLANTED['archive error']} {PLANTED['study uid']} {PLANTED['family name']}</html>".encode()
    for status in (404, 500, 200):
        site.pacs_tap.answer = lambda *_, s=status: (s, said)
        site.ehr.client.patient_view(patient)
        time.sleep(1.0)
    site.pacs_tap.answer = lambda *_: None


def analysed(site: Site, patient: str) -> None:
    in_time(lambda: has_ended(site, patient), "the analysis")
    in_time(lambda: bool(site.ehr.store.search("DiagnosticReport", [])), "the report at the EHR")


def has_ended(site: Site, patient: str) -> bool:
    answer = site.ehr.client.patient_view(patient)
    return answer.error is None and bool(answer.cards) and not answer.in_progress


def malformed_calls(site: Site, patient: str) -> None:
    """What a call must not have is refused without its value."""
    url = f"{site.service_url}/cds-services/rayhook-patient-view"
    bad = f"{PLANTED['hook value']} {PLANTED['family name']}"
    contexts = [
        {"userId": bad, "patientId": patient},
        {"userId": "Practitioner/demo-clinician", "patientId": bad},
        {"userId": "Practitioner/demo-clinician", "patientId": [patient]},
    ]
    bodies: list[object] = [site.ehr.client.request({}, "patient-view", one) for one in contexts]
    whole = site.ehr.client.request({}, "patient-view", contexts[0] | {"userId": "Practitioner/1"})
    bodies += [whole | {"hook": bad}, whole | {"fhirServer": bad}, whole | {"prefetch": {"patient": bad}}]
    for body in bodies:
        sent = {"Authorization": f"Bearer {site.ehr.client.assertion(url)}"}
        site.answers.append((url, httpx.post(url, json=body, headers=sent, timeout=30).content))
    httpx.post(url, content=f'{{"hook": "{bad}"', headers={"Authorization": f"Bearer {bad}"}, timeout=30)
    for path in ("/results", "/fhir/R4/Patient", "/studies"):
        httpx.get(f"{site.service_url}{path}/{'0' * 32}", timeout=30)


def arrived(site: Site, study: DemoStudy) -> None:
    """Images are stored at our own door, in order and not; an EHR notifies of what it should not."""
    url = f"{site.service_url}/dicom-web/studies"
    files = [instance.path.read_bytes() for instance in study.instances]
    for body in ([b"no DICOM: " + PLANTED["hook value"].encode()], [files[0][:300]], files):
        made, content_type = multipart(body)
        headers = {"Authorization": f"Bearer {site.secret(SENDER_SECRET)}", "Content-Type": content_type}
        answer = httpx.post(
            url, content=made, headers=headers | {"Accept": "application/dicom+json"}, timeout=60
        )
    assert answer.status_code == 200, answer.text
    told = {"resourceType": "Parameters", "parameter": [{"name": PLANTED["hook value"], "valueString": "x"}]}
    bundle = {
        "resourceType": "Bundle",
        "type": "history",
        "entry": [{"resource": told}, {"resource": chart(study)[0]}],
    }
    for content in (bundle, told, {"resourceType": PLANTED["family name"]}):
        answer = httpx.post(
            f"{site.service_url}/fhir/subscriptions/demo-ehr",
            json=content,
            headers={"Authorization": f"Bearer {site.secret(SUBSCRIPTION_SECRET)}"},
            timeout=30,
        )
        assert answer.status_code >= 400
        site.answers.append(("a notification", answer.content))

    def is_reported() -> bool:
        reports = site.ehr.store.search("DiagnosticReport", [])
        return any(one["subject"]["reference"] == f"Patient/{study.patient_id}" for one in reports)

    in_time(is_reported, "the report on what arrived")


def multipart(files: list[bytes]) -> tuple[bytes, str]:
    parts = b"".join(b"--B\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files)
    return parts + b"--B--\r\n", 'multipart/related; type="application/dicom"; boundary=B'


def answered_and_signed(site: Site, patient: str) -> None:
    browser = site.browser(RADIOLOGIST_ID)
    page = site.launch(browser, patient)
    link = unescape(re.search(r'href="([^"]*/results/[^"]+)"', page.text)[1])
    page = browser.get(httpx.URL(str(page.url)).join(link))
    address, _, _ = str(page.url).partition("?")
    mark = hidden(page, "rayhook-window")
    look_at_images(site, browser, page)

    def post(path: str, **fields: str) -> httpx.Response:
        answer = browser.post(f"{address}{path}", params={"w": mark}, data=fields)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:500])
        return answer

    finding = CODE.search(page.text)[1]
    words = {"text": PLANTED["answer reason"], "comment": PLANTED["answer comment"]}
    refused = browser.post(
        f"{address}/answers", params={"w": mark}, data={"finding": PLANTED["hook value"], **words}
    )
    assert refused.status_code >= 400
    post(
        "/answers",
        finding=finding,
        version="0",
        action="edited",
        value="absent",
        reason="false-positive",
        site=PLANTED["answer site"],
        **words,
    )
    page = post(
        "/answers",
        finding="",
        version="0",
        action="added",
        value="present",
        reason="not-looked-for",
        display=PLANTED["added finding"],
        **words,
    )
    page = post("/report", act="sign", seen=unescape(hidden(page, "seen")), reason="")
    post("/report", act="withdraw", seen=unescape(hidden(page, "seen")), reason=PLANTED["correction reason"])
    browser.get(f"{site.service_url}/fhir/R4/DiagnosticReport", params={"w": mark})


def look_at_images(site: Site, browser: httpx.Client, page: httpx.Response) -> None:
    """As the viewer does: the study, its series, each image, and the overlay."""
    viewer = re.search(r'<rayhook-viewer[^>]*data-study="([^"]+)"', page.text)
    assert viewer
    study_url = httpx.URL(str(page.url)).join(unescape(viewer[1]))
    headers = {"X-Rayhook-Window": hidden(page, "rayhook-window"), "Accept": "*/*"}
    study = browser.get(study_url, headers=headers).json()
    for line in study["series"]:
        series_url = f"{str(study_url).partition('?')[0]}/series/{line['handle']}"
        series = browser.get(series_url, headers=headers).json()
        for frame in series["frames"][:4]:
            browser.get(f"{series_url}/images/{frame['image']}/0", headers=headers)


def in_an_emergency(site: Site, patient: str) -> None:
    browser = site.browser(PRACTITIONER_ID)
    page = site.launch(browser, patient)
    assert page.status_code == 403
    link = unescape(re.search(r'href="(/emergency[^"]*)"', page.text)[1])
    url = f"{site.service_url}{link}"
    assert browser.post(url, data={"reason": PLANTED["emergency reason"]}).status_code == 200


def the_officer(site: Site, patient: str) -> None:
    """Signs in, with wrong words too; searches, exports, reports on the patient, holds, verifies."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("DATABASE_URL", "RAYHOOK_DATA_DIR"):
            if name in site.environment:
                patched.setenv(name, site.environment[name])
        with opened_accounts(None) as acts:
            made = acts.create_enrolled(OFFICER, [Role.COMPLIANCE_OFFICER], PASSWORD, agent="test")
    browser = site.browser(RADIOLOGIST_ID)
    browser.headers["Origin"] = site.service_url

    def post(path: str, **fields: str) -> httpx.Response:
        return browser.post(f"{site.service_url}{path}", data=fields)

    post("/sign-in", name=PLANTED["family name"], password=PLANTED["record number"], code="123456")
    code = current_code(made.secret, time.time())
    post("/sign-in", name=OFFICER, password=PASSWORD, code=code)
    assert browser.get(f"{site.service_url}/staff/audit").status_code == 200
    post("/staff/audit", patient=PLANTED["search"])
    page = post("/staff/audit", ehr="demo-ehr", patient=patient)
    assert patient in page.text
    seq = re.search(r"/staff/audit/events/(\d+)", page.text)[1]
    browser.get(f"{site.service_url}/staff/audit/events/{seq}")
    post("/staff/audit/export", form="csv", ehr="demo-ehr", patient=patient)
    for form in ("page", "pdf"):
        post("/staff/audit/reports", ehr="demo-ehr", patient=patient, report="access", form=form)
    post("/staff/audit/holds", reason=PLANTED["hold reason"], ehr="demo-ehr", patient=patient)
    browser.get(f"{site.service_url}/staff/audit/holds")
    page = browser.get(f"{site.service_url}/staff/audit/reviews")
    for item in re.findall(r'action="(/staff/audit/reviews/[^"]+)"', page.text)[:1]:
        post(unescape(item), state="closed", note=PLANTED["review note"])
    post("/staff/audit/integrity")


def command_lines(site: Site) -> None:
    """What an administrator prints and keeps in a ticket."""
    for number, command in enumerate(
        (
            ["audit", "verify"],
            ["jobs", "list"],
            ["jobs", "list", "--json"],
            ["jobs", "retry", "--all"],
            ["account", "list"],
            ["registry", "check", str(site.folder / "ehrs.toml")],
        )
    ):
        with (site.folder / f"command-{number}.log").open("wb") as log:
            subprocess.run(
                [sys.executable, "-m", "rayhook.deploy.cli", *command],
                env=site.environment,
                cwd=site.folder / "cwd",
                stdout=log,
                stderr=log,
                timeout=120,
                check=False,
            )


def crashed(site: Site, patient: str) -> None:
    """The process that analyses ends by a fault of its own, with a study in hand, and is started again."""
    process = site.processes.get("worker") or site.processes["api"]
    for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        assert one.rlimit(psutil.RLIMIT_CORE) == (0, 0), one.cmdline()
    site.pacs.faults.slow_s = 5.0
    site.ehr.client.patient_view(patient)
    time.sleep(2.0)
    psutil.Process(process.pid).send_signal(signal.SIGSEGV)
    in_time(lambda: not process.is_running, "the crash")
    site.pacs.faults.slow_s = 0.0
    process.kill()
    process.start()
    site.watch.of(process)
    site.await_ready()
    in_time(lambda: has_ended(site, patient), "what was in hand at the crash")


@pytest.fixture(scope="module")
def search(site: Site) -> Search:
    """For all that was planted, and what was given out on the way."""
    tokens = site.ehr.authorization.tokens
    given = {f"token {n}": one for n, one in enumerate((*tokens._access, *tokens._refresh))}
    cookies = {
        f"cookie {n}": cookie.value or ""
        for n, cookie in enumerate(cookie for one in site.browsers for cookie in one.cookies.jar)
        if len(cookie.value or "") >= 16
    }
    reports = {
        f"{kind} {n}": one["id"]
        for kind in ("DiagnosticReport", "Observation", "Provenance")
        for n, one in enumerate(site.ehr.store.search(kind, []))
    }
    ids = assigned(site.studies[0])
    return Search(
        PLANTED
        | given
        | cookies
        | reports
        | ids
        | {"password": PASSWORD, "pixels": PIXELS.tobytes()}
        | {name: site.secret(name) for name in (SENDER_SECRET, SUBSCRIPTION_SECRET)}
    )


def test_there_are_at_least_forty_canaries(search):
    assert len(search.names()) >= 40


def test_the_story_went_through(site):
    """What the search would be blind without: each step left its mark where it belongs."""

    def is_withdrawn() -> bool:
        reports = site.ehr.store.search("DiagnosticReport", [])
        return "entered-in-error" in {one["status"] for one in reports}

    in_time(is_withdrawn, "the report's withdrawal at the EHR")
    assert len(site.visited) > 15
    assert any("/studies/" in one for one in site.pacs_tap.asked)


def addresses_of_the_ehr(site: Site, search: Search) -> list[Found]:
    """All but the ids that it gave itself; what the test's own browser asks it for is not ours."""
    its_own = ("patient id", "study's id", "order's id", "DiagnosticReport ", "Observation ", "Provenance ")
    asked = [one for one in site.ehr_tap.asked if not re.match(r"GET /(patients|user)\b", one)]
    found = search.within("\n".join(asked).encode(), "addresses of the EHR")
    # The parameter that says whose resources are searched for takes the Patient's id at the server.
    queries = [re.sub(r"\b(patient|subject)=[^&]*", "", one.partition("?")[2]) for one in asked]
    return [
        *(one for one in found if not one.canary.startswith(its_own)),
        *search.within("\n".join(queries).encode(), "queries to the EHR"),
    ]


def addresses_of_the_archive(site: Site, search: Search) -> list[Found]:
    found = search.within("\n".join(site.pacs_tap.asked).encode(), "addresses of the PACS")
    return [one for one in found if one.canary not in {"study uid", "series uid", "image uid"}]


def installation(site: Site, search: Search) -> list[Found]:
    """The database with its log where it is a file, the keys, the anchor, temporary files, what a crash left."""
    files = [path for folder in ("data", "tmp", "cwd") for path in (site.folder / folder).rglob("*")]
    assert any(path.name == "keyring.json" for path in files)
    return list(search.in_files(files))


def database(site: Site, search: Search) -> list[Found]:
    if site.postgresql is None:
        return list(search.in_files(site.data.glob("rayhook.sqlite3*")))
    with administering(parse_url(site.postgresql.url), ConnectionSettings()) as connection:
        connection.exec_driver_sql("CHECKPOINT")
    files = list(Path(site.postgresql._server.pgdata).rglob("*"))
    assert any("pg_wal" in str(path) for path in files)
    return list(search.in_files(files))


def redis_server(site: Site, search: Search) -> list[Found]:
    """What it was told, what it holds, and what it writes to its disk."""
    if site.redis is None or site.monitor is None:
        return []
    with redis.Redis.from_url(site.redis.url) as client:
        keys = list(client.scan_iter())
        values = [client.dump(key) or b"" for key in keys]
        client.save()
    said = site.monitor.said
    assert len(said) > 1000
    dumps = [path for path in (site.folder / "redis").rglob("*") if path.is_file()]
    assert any(path.suffix == ".rdb" for path in dumps)
    return [
        *search.within(said, "MONITOR"),
        *search.within(b"\n".join(keys + values), "keys and values"),
        *search.in_files(dumps),
    ]


def metrics(site: Site, search: Search) -> list[Found]:
    answer = httpx.get(f"{site.service_url}/metrics", timeout=30)
    assert answer.status_code == 200
    return list(search.within(answer.content, "/metrics"))


def open_pages(site: Site, search: Search) -> list[Found]:
    paths = ("/health/live", "/health/ready", "/health/startup", "/cds-services", "/fhir/R4/metadata")
    answers = [(path, httpx.get(f"{site.service_url}{path}", timeout=30).content) for path in paths]
    return [one for path, answer in answers for one in search.within(answer, path)]


def files_while_they_were_open(site: Site, _search: Search) -> list[Found]:
    site.watch.look()
    assert len(site.watch.looked_at) > 3
    return list(site.watch.found)


PLACES: dict[str, Callable[[Site, Search], list[Found]]] = {
    "addresses of the archive": addresses_of_the_archive,
    "addresses of the EHR": addresses_of_the_ehr,
    "addresses of the service": lambda site, search: list(
        search.within("\n".join(site.visited).encode(), "addresses of the service")
    ),
    "database": database,
    "files while they were open": files_while_they_were_open,
    "installation": installation,
    "logs": lambda site, search: list(search.in_files(site.logs())),
    "metrics": metrics,
    "open pages": open_pages,
    "redis": redis_server,
}


@pytest.mark.parametrize("place", PLACES)
def test_no_canary_is_in(site, search, place):
    leaks = PLACES[place](site, search)
    assert leaks == [], "\n".join(f"{one.canary} in {one.where}: {one.around!r}" for one in leaks[:20])


def test_no_refusal_gives_a_value_back(site):
    words = Search({name: PLANTED[name] for name in ("hook value", "family name", "record number")})
    assert len(site.answers) > 5
    assert [one for url, answer in site.answers for one in words.within(answer, url)] == []


def test_no_core_file_was_left(site):
    places = (site.folder / "cwd", site.temporary, site.data, Path.cwd())
    assert [path for place in places for path in place.glob("core*") if path.is_file()] == []


def plant_in_the_database(site: Site, value: bytes) -> None:
    """As a table would have it that somebody forgot to seal."""
    url = f"sqlite:///{site.data / 'rayhook.sqlite3'}" if site.postgresql is None else site.postgresql.url
    made = create_database(url)
    with made.sessions() as session:
        session.execute(text("CREATE TABLE forgotten (value TEXT)"))
        session.execute(text("INSERT INTO forgotten VALUES (:value)"), {"value": value.decode()})
        session.commit()
    made.close()


def plant_in_redis(site: Site, value: bytes) -> None:
    if site.redis is not None:
        with redis.Redis.from_url(site.redis.url) as client:
            client.set("planted", value)


def append(path: Path, value: bytes) -> None:
    with path.open("ab") as file:
        file.write(value)


PLANT: dict[str, Callable[[Site, bytes], object]] = {
    "addresses of the archive": lambda site, value: httpx.get(
        f"{site.pacs_url}/dicom-web/studies", params={"PatientName": value.decode()}
    ),
    "addresses of the EHR": lambda site, value: httpx.get(
        f"{site.ehr_url}/fhir/Patient", params={"name": value.decode()}
    ),
    "addresses of the service": lambda site, value: site.browsers[0].get(
        f"{site.service_url}/patient", params={"name": value.decode()}
    ),
    "database": plant_in_the_database,
    "files while they were open": lambda site, value: append(site.temporary / "planted-for-a-moment", value),
    "installation": lambda site, value: append(site.data / "planted", value),
    "logs": lambda site, value: append(site.logs()[0], value),
    "redis": plant_in_redis,
}


@pytest.mark.parametrize("place", PLANT)
def test_what_is_planted_in_a_place_is_found_there(site, search, place):
    """After the search for what must not be there: that it would have been found."""
    if place == "redis" and site.redis is None:
        assert PLACES[place](site, search) == []
        return
    PLANT[place](site, PLANTED["family name"].encode())
    assert "family name" in {one.canary for one in PLACES[place](site, search)}


SPELT = {
    "as it is": lambda value: value.encode(),
    "in capitals": lambda value: value.upper().encode(),
    "UTF-16": lambda value: value.encode("utf-16-le"),
    "base64": lambda value: base64.b64encode(b"xy" + value.encode() + b"z"),
    "hexadecimal": lambda value: value.encode().hex().encode(),
    "an address": lambda value: quote(value).encode(),
    "a form": lambda value: quote_plus(value).encode(),
    "JSON": lambda value: json.dumps({"x": value}).encode(),
}


def zipped(value: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("events.csv", value * 3)
    return made.getvalue()


@pytest.mark.parametrize("pack", [zipped, lambda value: gzip.compress(value.encode())])
def test_what_is_packed_is_opened(pack):
    assert list(Search(PLANTED).within(pack(PLANTED["search"]), "planted"))


@pytest.mark.parametrize("spelling", SPELT)
@pytest.mark.parametrize("name", PLANTED)
def test_every_canary_is_found_in_every_spelling(name, spelling):
    data = b"before\0" + SPELT[spelling](PLANTED[name]) + b"\0after"
    assert name in {one.canary for one in Search(PLANTED).within(data, "planted")}
