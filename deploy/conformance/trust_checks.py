"""Who is let in, and feedback."""

import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
from joserfc.jwk import RSAKey

from rayhook.deploy.conformance.discovery_checks import require_outcome
from rayhook.deploy.conformance.registry import check
from rayhook.deploy.conformance.target import (
    PATIENT_VIEW,
    Failed,
    JSONObject,
    Skipped,
    Target,
    expect,
    require,
)
from rayhook.deploy.conformance.tokens import forgeries

_PARALLEL = 50
_FEEDBACK = f"{PATIENT_VIEW}/feedback"


@check("R66", "R79")
def without_a_token_a_bare_401(target: Target) -> None:
    answers = set()
    for path in (PATIENT_VIEW, _FEEDBACK):
        for headers in (
            {},
            {"Authorization": ""},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic YTpi"},
        ):
            response = target.client.post(path, content=b"{}", headers=headers)
            expect(response, 401)
            require_outcome(response)
            answers.add(response.content)
    require(len(answers) == 1, "the body of a 401 tells what was wrong")


def _all_refused(target: Target, requirement: str) -> None:
    target.signer  # noqa: B018 - raises Skipped without a key
    let_in = [
        forgery.name
        for forgery in forgeries(requirement)
        if target.post(target.body(), token=forgery.token(target, PATIENT_VIEW)).status_code
        != httpx.codes.UNAUTHORIZED
    ]
    if let_in:
        raise Failed("not refused with 401: " + "; ".join(let_in))


@check("R68")
def headers_that_are_wrong_or_missing(target: Target) -> None:
    _all_refused(target, "R68")


@check("R69")
def claims_that_are_wrong_or_missing(target: Target) -> None:
    _all_refused(target, "R69")


@check("R70")
def audiences_that_are_not_the_endpoint(target: Target) -> None:
    _all_refused(target, "R70")


@check("R71")
def issuers_and_key_addresses_off_the_list(target: Target) -> None:
    _all_refused(target, "R71")


@check("R72")
def signatures_and_times_that_do_not_hold(target: Target) -> None:
    _all_refused(target, "R72")


@check("R75")
def none_and_symmetric_algorithms(target: Target) -> None:
    _all_refused(target, "R75")


@check("R73")
def a_token_is_good_once(target: Target) -> None:
    token = target.token(PATIENT_VIEW)
    expect(target.post(target.body(), token=token), 200)
    expect(target.post(target.body(), token=token), 401)


@check("R73")
def of_many_at_once_one_is_let_in(target: Target) -> None:
    token = target.token(PATIENT_VIEW)
    with ThreadPoolExecutor(_PARALLEL) as pool:
        answers = pool.map(lambda _: target.post(target.body(), token=token).status_code, range(_PARALLEL))
        told = Counter(answers)
    require(told == {200: 1, 401: _PARALLEL - 1}, f"answers by status: {dict(told)}")


@check("R74")
def an_unknown_tenant(target: Target) -> None:
    if target.tenant is None:
        raise Skipped("needs --tenant of a client that has tenants")
    expect(target.post(target.body(), token=target.token(PATIENT_VIEW, tenant="another")), 401)


@check("R76")
def the_recommended_algorithm_is_taken(target: Target) -> None:
    """The key decides which: run once with each kind to see both."""
    response = target.post(target.body())
    expect(response, 200)
    if isinstance(target.signer, RSAKey):
        require(target.header()["alg"] == "RS384", "RS384 was not used")


@check("R79")
def every_refused_token_gets_the_same_answer(target: Target) -> None:
    target.signer  # noqa: B018 - raises Skipped without a key
    answers = {
        target.post(target.body(), token=forgery.token(target, PATIENT_VIEW)).content
        for forgery in forgeries("R69")
    }
    require(len(answers) == 1, "the body of a 401 tells what was wrong")


def _card(target: Target) -> str:
    if not target.cards:
        raise Skipped("no card to speak of")
    return str(target.cards[0]["uuid"])


def _item(card: str, **members: object) -> JSONObject:
    return {"card": card, "outcome": "overridden", "outcomeTimestamp": "2026-01-01T00:00:00Z"} | members


def _give(target: Target, *items: JSONObject) -> httpx.Response:
    return target.post({"feedback": list(items)}, path=_FEEDBACK)


@check("R60", "R61", "R64")
def feedback_is_taken_and_may_be_repeated(target: Target) -> None:
    card = _card(target)
    for _ in range(2):
        expect(_give(target, _item(card), _item(card, overrideReason={"userComment": "conformance"})), 200)


@check("R61", "R62", "R63")
def malformed_feedback_is_refused(target: Target) -> None:
    card = _card(target)
    for item in (
        _item(card, outcome="ignored"),
        _item(card, outcome="accepted"),
        _item(card, outcomeTimestamp="yesterday"),
        _item(card, overrideReason={}),
        _item("no-uuid"),
    ):
        response = _give(target, item)
        expect(response, 400)
        require_outcome(response)
    expect(target.post(_item(card), path=_FEEDBACK), 400)


@check("R62")
def accepted_suggestions_are_taken(target: Target) -> None:
    accepted = [{"id": str(uuid.uuid4())}]
    expect(_give(target, _item(_card(target), outcome="accepted", acceptedSuggestions=accepted)), 200)


@check("R63")
def an_override_with_a_reason_is_taken(target: Target) -> None:
    reason = {"code": "patient-ineligible", "system": "http://example.org/reasons"}
    for given in ({"reason": reason}, {"userComment": "x"}, {"reason": reason, "userComment": "x"}):
        expect(_give(target, _item(_card(target), overrideReason=given)), 200)


@check("R64")
def feedback_on_a_card_that_never_was(target: Target) -> None:
    expect(_give(target, _item(str(uuid.uuid4()))), 404)


@check("R65")
def feedback_wants_a_token_of_its_own(target: Target) -> None:
    body = {"feedback": [_item(_card(target))]}
    expect(target.post(body, path=_FEEDBACK, token=target.token(PATIENT_VIEW)), 401)
    expect(target.post(body, path=_FEEDBACK, token="not-a-token"), 401)  # noqa: S106 - it is none
