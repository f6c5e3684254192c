import re
from dataclasses import replace
from html import unescape

import httpx
import pytest

from rayhook.auth.accounts import create_account
from rayhook.auth.roles import Role
from rayhook.inference.held_out import load_held_out
from rayhook.inference.registry import load_models
from rayhook.smart_app.model_card import card_view
from rayhook.smart_app.source_attributes import SOURCE_ATTRIBUTES
from tests.unit.smart_app.conftest import MANIFEST

# The regulation's own words, by number: what a reader of the rule looks for.
WORDS = {
    1: "Name and contact information for the intervention developer",
    2: "Funding source of the technical implementation",
    3: "value that the intervention produces as an output",
    4: "prediction, classification, recommendation, evaluation, analysis",
    5: "Intended use of the intervention",
    6: "Intended patient population(s)",
    7: "Intended user(s)",
    8: "Intended decision-making role",
    9: "user is cautioned against applying the intervention",
    10: "Known risks, inappropriate settings",
    11: "Exclusion and inclusion criteria",
    12: "Use of variables in paragraph (b)(11)(iv)(A)(5)-(13)",
    13: "demographic representativeness",
    14: "relevance of training data to intended deployed setting",
    15: "output is fair",
    16: "manage, reduce, or eliminate bias",
    17: "other than the source of training and testing data",
    18: "Party that conducted the external testing",
    19: "demographic representativeness of external data",
    20: "external validation process",
    21: "Validity of intervention in test data derived from the same source",
    22: "Fairness of intervention in test data derived from the same source",
    23: "Validity of intervention in data external to",
    24: "Fairness of intervention in data external to",
    25: "evaluation of use of the intervention on outcomes",
    26: "validity is monitored over time",
    27: "Validity of intervention in local data",
    28: "fairness is monitored over time",
    29: "Fairness of intervention in local data",
    30: "by which the intervention is updated",
    31: "performance is corrected when risks",
}
PACKAGES = load_models()


def attributes(card):
    return {one.number: one for group in card.groups for one in group.attributes}


def test_there_are_thirty_one_in_nine_paragraphs():
    counts = [len(group.attributes) for group in SOURCE_ATTRIBUTES]
    assert (sum(counts), counts) == (31, [4, 4, 2, 4, 2, 4, 5, 4, 2])


@pytest.mark.parametrize("number", WORDS)
def test_every_attribute_has_the_words_of_the_rule(number):
    found = {one.number: one.text for group in SOURCE_ATTRIBUTES for one in group.attributes}
    assert WORDS[number] in found[number]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.manifest.id)
def test_every_installed_model_says_all_of_them(package):
    said = attributes(card_view(package.manifest))
    assert sorted(said) == list(range(1, 32))
    assert not [n for n, one in said.items() if not one.value or one.value.startswith("Not known")]


def test_what_a_package_does_not_say_is_said_to_be_unknown():
    bare = replace(MANIFEST, card=())
    assert {one.value for one in attributes(card_view(bare)).values()} == {
        "Not known: the package says nothing of it."
    }


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.manifest.id)
def test_the_values_are_those_of_the_manifest(package):
    said = attributes(card_view(package.manifest))
    assert all(said[one.number].value == one.value.strip() for one in package.manifest.card)


def test_predictive_values_are_shown_by_prevalence():
    held_out = load_held_out(PACKAGES)
    package = next(p for p in PACKAGES if p.manifest.id == "mri-flair-tumour")
    card = card_view(package.manifest, held_out[package.manifest.weights_sha256])
    assert [row[0] for row in card.prevalences] == ["10.0%", "37.0%"]


def test_the_card_is_one_click_from_the_result(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        page = browser.get(f"{world.base_url}/results/{world.store('phantom-a')}").text
        link = unescape(re.search(r'href="(/models/[^"]+)"', page)[1])
        card = browser.get(f"{world.base_url}{link}")
    assert card.status_code == 200
    assert len(re.findall(r'id="attribute-\d+"', card.text)) == 31


def test_the_card_of_a_version_that_is_not_installed_is_not_another_ones(world):
    with world.browser() as browser:
        world.launch(browser, "phantom-a")
        assert browser.get(f"{world.base_url}/models/{MANIFEST.id}/9.9.9").status_code == 404


@pytest.fixture
def staff(world, request):
    """Return the address of a staff page as somebody in a role sees it."""
    from rayhook.auth.accounts import enrol_at_once
    from rayhook.auth.staff_sessions import open_account_session
    from rayhook.smart_app.staff_access import StaffCookies

    def page(path, role):
        with world.database.sessions() as session:
            session.connection().exec_driver_sql("DELETE FROM staff_account")
            account = create_account(session, world.keyring, "somebody", frozenset({role}))
            enrol_at_once(session, world.keyring, account.id, password="correct horse battery staple 9")
            session_id = open_account_session(session, account.id)
            session.commit()
        cookie = f"{StaffCookies(secure=False).session}={session_id}"
        return httpx.get(f"{world.base_url}{path}", headers={"Cookie": cookie}, timeout=20)

    return page


@pytest.mark.parametrize("path", ["/staff/models", f"/staff/models/{MANIFEST.id}/{MANIFEST.version}"])
def test_the_staff_read_cards(staff, path):
    answer = staff(path, Role.MODEL_MANAGER)
    assert answer.status_code == 200
    assert MANIFEST.title in answer.text


@pytest.mark.parametrize(
    ("role", "status"),
    [(Role.MODEL_MANAGER, 200), (Role.COMPLIANCE_OFFICER, 200), (Role.ADMINISTRATOR, 403)],
)
def test_performance_is_for_who_may_read_it(staff, role, status):
    assert staff("/staff/performance", role).status_code == status


def test_reading_performance_is_audited(staff, world):
    staff("/staff/performance", Role.MODEL_MANAGER)
    assert "inference:performance:read" in world.kinds()


def test_few_answers_are_not_told_on_the_page(staff, world):
    from tests.unit.smart_app.test_answers import Desk, enter

    with world.browser() as browser:
        enter(world, browser)
        Desk(world, browser, world.store("phantom-a", study="1.2.3.77")).accept()
    page = staff("/staff/performance", Role.MODEL_MANAGER).text
    assert "too few to tell" in page
    assert "By week" not in page
