"""The staff's sign-in, accounts and pages as a browser meets them."""

import html
import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from sqlalchemy import text

from rayhook.auth.accounts import create_account, enrol_at_once, find_account
from rayhook.auth.one_time_codes import current_code
from rayhook.auth.roles import Role
from rayhook.smart_app import sign_in_steps

from .conftest import World

PASSWORD = "purple lantern seven orchard"
NEW_PASSWORD = "quiet harbour eleven pencils"
ADMINISTRATOR, OFFICER = "ada.hale", "olga.price"
_addresses = itertools.count(1)
_browsers: list[httpx.Client] = []


@dataclass
class Person:
    """Somebody of the staff with a browser of their own, at an address of their own."""

    world: World
    name: str
    secret: str = ""
    recovery_codes: tuple[str, ...] = ()
    browser: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        number = next(_addresses)
        self.browser = httpx.Client(
            base_url=self.world.base_url,
            timeout=20,
            headers={
                "Accept": "text/html",
                "Origin": self.world.base_url,
                "X-Forwarded-For": f"192.0.{number // 250}.{number % 250 + 1}",
            },
        )

        _browsers.append(self.browser)

    @property
    def code(self) -> str:
        return current_code(self.secret, self.world.clock())

    def sign_in(self, **given: str) -> httpx.Response:
        form = {"name": self.name, "password": PASSWORD, "code": self.code, **given}
        return self.browser.post("/sign-in", data=form)

    def next_code(self) -> None:
        self.world.clock.ahead_s += 30


@dataclass(frozen=True)
class Staff:
    world: World
    administrator: Person
    officer: Person

    def account_id(self, name: str) -> str:
        with self.world.database.sessions() as session:
            found = find_account(session, self.world.keyring, name)
        assert found is not None
        return found.id

    def kinds(self) -> list[str]:
        return self.world.kinds()


@pytest.fixture
def staff(world: World) -> Iterator[Staff]:
    people = {}
    with world.database.sessions() as session:
        for table in ("staff_account", "staff_session"):
            session.execute(text(f"DELETE FROM {table}"))
        for name, role in ((ADMINISTRATOR, Role.ADMINISTRATOR), (OFFICER, Role.COMPLIANCE_OFFICER)):
            account = create_account(session, world.keyring, name, [role], clock=world.clock)
            secret, codes = enrol_at_once(
                session, world.keyring, account.id, password=PASSWORD, clock=world.clock
            )
            people[name] = Person(world, name, secret, codes)
        session.commit()
    yield Staff(world, people[ADMINISTRATOR], people[OFFICER])
    while _browsers:
        _browsers.pop().close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals need not take their time here; one test below sees to it that they do."""
    monkeypatch.setattr(sign_in_steps, "_REFUSED_AFTER_S", 0.0)


def words(response: httpx.Response) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", response.text))


def test_the_staff_signs_in_and_lands_on_its_first_page(staff):
    answer = staff.officer.sign_in()
    assert (answer.status_code, answer.headers["Location"]) == (303, "/staff")


def test_the_first_page_names_the_roles(staff):
    staff.officer.sign_in()
    assert "Compliance officer" in staff.officer.browser.get("/staff").text


def test_the_cookie_is_for_no_script_and_no_other_site(staff):
    cookie = staff.officer.sign_in().headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))


@pytest.mark.parametrize(
    "given",
    [
        {"name": "nobody.at.all"},
        {"password": "wrong"},
        {"code": "000000"},
        {"name": "' OR 1=1 --", "password": "x" * 1024},
    ],
    ids=["name", "password", "code", "nothing"],
)
def test_whatever_is_wrong_the_answer_is_the_same(staff, given):
    reference = staff.officer.sign_in(name="somebody.else")
    answer = staff.officer.sign_in(**given)
    assert (answer.status_code, answer.text) == (401, reference.text)


@pytest.mark.parametrize("given", [{"name": "nobody.at.all"}, {"password": "wrong"}, {"code": "000000"}])
def test_a_refusal_is_not_told_before_its_time(staff, monkeypatch, given):
    monkeypatch.setattr(sign_in_steps, "_REFUSED_AFTER_S", 0.7)
    started = time.monotonic()
    staff.officer.sign_in(**given)
    assert time.monotonic() - started >= 0.7


def test_a_wrong_sign_in_sets_no_cookie(staff):
    assert "Set-Cookie" not in staff.officer.sign_in(password="wrong").headers


def test_what_was_wrong_is_told_to_the_audit_alone(staff):
    staff.officer.sign_in(password="wrong")
    record = staff.world.audited()[0]
    assert (record.kind, record.agent, record.detail["code"]) == (
        "auth:sign_in:refused",
        f"urn:rayhook:staff:{OFFICER}",
        "password_wrong",
    )


def test_a_name_that_nobody_has_is_not_written_down(staff):
    staff.officer.sign_in(name="my-secret-password")
    assert "my-secret-password" not in repr(staff.world.audited()[0])


def test_the_audit_knows_from_which_address(staff):
    staff.officer.sign_in()
    assert staff.world.audited()[0].detail["address"] == staff.officer.browser.headers["X-Forwarded-For"]


def test_five_wrong_attempts_are_told_as_a_lock_out(staff):
    for _ in range(5):
        staff.officer.sign_in(password="wrong")
    assert staff.kinds()[:2] == ["auth:account:locked_out", "auth:sign_in:refused"]


def test_one_address_has_twenty_attempts(staff):
    statuses = [staff.officer.sign_in(name="nobody").status_code for _ in range(21)]
    assert statuses == [401] * 20 + [429]


def test_who_is_throttled_is_told_how_long(staff):
    answers = [staff.officer.sign_in(name="nobody") for _ in range(21)]
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 300


def test_who_goes_on_all_the_same_does_not_flood_the_audit(staff):
    for _ in range(26):
        staff.officer.sign_in(name="nobody")
    refusals = [one.detail.get("code") for one in staff.world.audited()[:21]]
    assert refusals == ["rate_limited", *["account_unknown"] * 20]


def test_another_address_is_not_throttled_with_it(staff):
    for _ in range(21):
        staff.officer.sign_in(name="nobody")
    assert staff.administrator.sign_in().status_code == 303


def test_a_form_of_another_site_signs_nobody_in(staff):
    staff.officer.browser.headers["Origin"] = "https://evil.example"
    assert staff.officer.sign_in().status_code == 403


def test_a_sign_in_ends_the_browsers_earlier_session(staff):
    staff.officer.sign_in()
    earlier = dict(staff.officer.browser.cookies)
    staff.officer.next_code()
    staff.officer.sign_in()
    answer = httpx.get(f"{staff.world.base_url}/staff", cookies=earlier)
    assert answer.headers["Location"] == "/sign-in"


def test_without_the_audit_nobody_signs_in(staff):
    with staff.world.audit_is_full():
        answer = staff.officer.sign_in()
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (503, False)


def test_who_is_not_signed_in_is_sent_to_sign_in_and_back(staff):
    answer = staff.officer.browser.get("/staff/roles")
    assert answer.headers["Location"] == "/sign-in?next=%2Fstaff%2Froles"


def test_after_the_sign_in_the_page_that_was_wanted_comes(staff):
    assert staff.officer.sign_in(next="/staff/roles").headers["Location"] == "/staff/roles"


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example",
        "//evil.example",
        "/patient",
        "/staff/../patient",
        "/staff\\evil",
        "/staff//evil",
        "",
    ],
)
def test_no_other_place_is_gone_to(staff, wanted):
    assert staff.officer.sign_in(next=wanted).headers["Location"] == "/staff"


def test_the_staffs_pages_are_in_no_frame(staff):
    staff.officer.sign_in()
    for path in ("/staff", "/sign-in/confirm", "/staff/roles"):
        policy = staff.officer.browser.get(path).headers["Content-Security-Policy"]
        assert policy.endswith("frame-ancestors 'none'")


@pytest.mark.parametrize(
    "path", ["/sign-in", "/staff", "/staff/accounts", "/staff/roles", "/sign-in/confirm"]
)
def test_no_page_has_a_script_or_a_style_of_its_own(staff, path):
    staff.administrator.sign_in()
    assert not re.search(r"<script|<style|style=", staff.administrator.browser.get(path).text)


def test_the_links_are_those_that_the_person_may_open(staff):
    staff.administrator.sign_in()
    page = staff.administrator.browser.get("/staff").text
    assert ("/staff/accounts" in page, "/staff/audit" in page) == (True, False)


def test_signing_out_ends_the_session_on_the_server(staff):
    staff.officer.sign_in()
    cookies = dict(staff.officer.browser.cookies)
    staff.officer.browser.post("/sign-out")
    answer = httpx.get(f"{staff.world.base_url}/staff", cookies=cookies)
    assert (answer.headers["Location"], staff.kinds()[0]) == ("/sign-in", "auth:sign_in:ended")


def test_a_recovery_code_signs_in_and_is_told(staff):
    staff.officer.sign_in(code=staff.officer.recovery_codes[0].upper())
    assert staff.world.audited()[0].detail["second_factor"] == "recovery code"


def test_what_a_role_does_not_allow_is_refused_and_told(staff):
    staff.officer.sign_in()
    answer = staff.officer.browser.get("/staff/accounts")
    record = staff.world.audited()[0]
    assert (answer.status_code, record.kind, record.detail["permission"]) == (
        403,
        "smart_app:access:denied",
        "auth:account:manage",
    )


class TestConfirm:
    @pytest.fixture
    def stale(self, staff: Staff) -> Person:
        staff.administrator.sign_in()
        staff.world.clock.ahead_s += 601
        return staff.administrator

    def test_an_act_after_ten_minutes_asks_for_the_code(self, stale):
        answer = stale.browser.post("/staff/accounts", data={"name": "new.person", "role": "model_manager"})
        assert answer.headers["Location"] == "/sign-in/confirm"

    def test_nothing_was_done(self, stale):
        stale.browser.post("/staff/accounts", data={"name": "new.person", "role": "model_manager"})
        assert "new.person" not in stale.browser.get("/staff/accounts").text

    def test_the_code_opens_the_way(self, stale):
        stale.browser.post("/sign-in/confirm", data={"code": stale.code})
        answer = stale.browser.post("/staff/accounts", data={"name": "new.person", "role": "model_manager"})
        assert "Invitation for new.person" in words(answer)

    def test_a_wrong_code_does_not(self, stale):
        answer = stale.browser.post("/sign-in/confirm", data={"code": "000000"})
        assert (answer.status_code, stale.world.kinds()[0]) == (401, "auth:proof:refused")

    def test_the_code_of_the_sign_in_does_not(self, staff):
        person = staff.administrator
        code = person.code
        person.sign_in(code=code)
        assert person.browser.post("/sign-in/confirm", data={"code": code}).status_code == 401

    def test_wrong_codes_close_the_account(self, stale):
        for _ in range(5):
            stale.browser.post("/sign-in/confirm", data={"code": "000000"})
        assert stale.browser.post("/sign-in/confirm", data={"code": stale.code}).status_code == 401


class TestAccounts:
    @pytest.fixture
    def administrator(self, staff: Staff) -> Person:
        staff.administrator.sign_in()
        return staff.administrator

    def invite(self, administrator: Person, name: str, role: str = "model_manager") -> str:
        answer = administrator.browser.post("/staff/accounts", data={"name": name, "role": role})
        return re.search(r"/sign-in/enrol/[\w-]+", answer.text)[0]

    def enrol(self, administrator: Person, name: str) -> tuple[Person, httpx.Response]:
        link = self.invite(administrator, name)
        person = Person(administrator.world, name)
        page = person.browser.get(link).text
        person.secret = re.search(r'class="mono">([A-Z2-7]{32})<', page)[1]
        form = {"password": NEW_PASSWORD, "repeated": NEW_PASSWORD, "code": person.code}
        return person, person.browser.post(link, data=form)

    def test_who_is_invited_enrols_and_signs_in(self, administrator):
        person, _ = self.enrol(administrator, "max.mueller")
        person.next_code()
        person.sign_in(password=NEW_PASSWORD)
        assert "Model manager" in person.browser.get("/staff").text

    def test_the_first_code_is_used_up_by_the_enrolment(self, administrator):
        person, _ = self.enrol(administrator, "max.mueller")
        assert person.sign_in(password=NEW_PASSWORD).status_code == 401

    def test_the_recovery_codes_are_shown_once(self, administrator):
        _, answer = self.enrol(administrator, "max.mueller")
        assert len(set(re.findall(r"[a-z2-7]{4}(?:-[a-z2-7]{4}){3}", answer.text))) == 10

    def test_an_invitation_works_once(self, administrator):
        link = self.invite(administrator, "max.mueller")
        person = Person(administrator.world, "max.mueller")
        page = person.browser.get(link).text
        person.secret = re.search(r'class="mono">([A-Z2-7]{32})<', page)[1]
        form = {"password": NEW_PASSWORD, "repeated": NEW_PASSWORD, "code": person.code}
        statuses = [person.browser.post(link, data=form).status_code for _ in range(2)]
        assert statuses == [200, 404]

    @pytest.mark.parametrize(
        "spoilt",
        [
            {"password": "password1234", "repeated": "password1234"},
            {"repeated": "another one, not the same"},
            {"code": "000000"},
        ],
    )
    def test_an_enrolment_that_is_not_whole_changes_nothing(self, administrator, spoilt):
        link = self.invite(administrator, "max.mueller")
        person = Person(administrator.world, "max.mueller")
        page = person.browser.get(link).text
        person.secret = re.search(r'class="mono">([A-Z2-7]{32})<', page)[1]
        form = {"password": NEW_PASSWORD, "repeated": NEW_PASSWORD, "code": person.code, **spoilt}
        assert person.browser.post(link, data=form).status_code == 400
        assert person.browser.get(link).status_code == 200

    def test_an_unknown_invitation_is_a_page_that_says_so(self, administrator):
        answer = administrator.browser.get(f"/sign-in/enrol/{'x' * 43}")
        assert (answer.status_code, "invitation is unknown" in words(answer)) == (404, True)

    @pytest.mark.parametrize(
        ("form", "told"),
        [
            ({"name": OFFICER, "role": "model_manager"}, "There is an account of this name."),
            ({"name": "a b", "role": "model_manager"}, "A name has 3 to 63 letters"),
            ({"name": "max.mueller"}, "Choose one role at least."),
            ({"name": "max.mueller", "role": "radiologist"}, "Choose one role at least."),
        ],
    )
    def test_an_account_that_cannot_be_is_explained(self, administrator, form, told):
        assert told in words(administrator.browser.post("/staff/accounts", data=form))

    def test_disabling_ends_the_sessions(self, staff, administrator):
        staff.officer.sign_in()
        administrator.browser.post(f"/staff/accounts/{staff.account_id(OFFICER)}/disable")
        assert staff.officer.browser.get("/staff").headers["Location"] == "/sign-in"

    def test_a_reset_ends_the_sessions_and_invites_again(self, staff, administrator):
        staff.officer.sign_in()
        answer = administrator.browser.post(f"/staff/accounts/{staff.account_id(OFFICER)}/reset")
        assert "/sign-in/enrol/" in answer.text
        assert staff.officer.browser.get("/staff").headers["Location"] == "/sign-in"

    def test_an_enabled_account_signs_in_as_before(self, staff, administrator):
        for act in ("disable", "enable"):
            administrator.browser.post(f"/staff/accounts/{staff.account_id(OFFICER)}/{act}")
        assert staff.officer.sign_in().status_code == 303

    def test_new_roles_hold_at_the_next_request(self, staff, administrator):
        staff.officer.sign_in()
        account_id = staff.account_id(OFFICER)
        administrator.browser.post(f"/staff/accounts/{account_id}/roles", data={"role": "model_manager"})
        assert staff.officer.browser.get("/staff/roles").status_code == 403

    def test_a_change_of_roles_is_told_with_both(self, staff, administrator):
        account_id = staff.account_id(OFFICER)
        administrator.browser.post(f"/staff/accounts/{account_id}/roles", data={"role": "model_manager"})
        record = staff.world.audited()[0]
        assert (record.kind, record.agent, record.entities, record.detail) == (
            "auth:role:changed",
            f"urn:rayhook:staff:{ADMINISTRATOR}",
            (f"urn:rayhook:staff:{OFFICER}",),
            {"before": "compliance_officer", "after": "model_manager"},
        )

    @pytest.mark.parametrize("act", ["roles", "disable", "reset"])
    def test_nobody_changes_the_own_account(self, staff, administrator, act):
        account_id = staff.account_id(ADMINISTRATOR)
        form = {"role": "compliance_officer"}
        answer = administrator.browser.post(f"/staff/accounts/{account_id}/{act}", data=form)
        assert answer.status_code == 403

    @pytest.mark.parametrize("act", ["roles", "disable", "enable", "reset"])
    def test_an_account_that_is_not_there_is_not_found(self, administrator, act):
        form = {"role": "compliance_officer"}
        assert administrator.browser.post(f"/staff/accounts/{'0' * 32}/{act}", data=form).status_code == 404

    def test_each_act_is_told(self, staff, administrator):
        account_id = staff.account_id(OFFICER)
        self.invite(administrator, "max.mueller")
        for act in ("disable", "enable", "reset"):
            administrator.browser.post(f"/staff/accounts/{account_id}/{act}")
        administrator.browser.get("/staff/accounts")
        assert staff.kinds()[:5] == [
            "auth:account:listed",
            "auth:account:reset",
            "auth:account:enabled",
            "auth:account:disabled",
            "auth:account:created",
        ]


def test_the_roles_page_shows_the_table(staff):
    staff.officer.sign_in()
    page = staff.officer.browser.get("/staff/roles").text
    assert "smart_app:report:sign" in page
    assert "GET /staff/accounts" in page
