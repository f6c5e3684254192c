"""Every card that the run was given, rule by rule."""

import re
import uuid
from collections.abc import Iterator

from rayhook.deploy.conformance.discovery_checks import require_nothing_empty
from rayhook.deploy.conformance.registry import check
from rayhook.deploy.conformance.target import JSONObject, Skipped, Target, expect, require

_SUMMARY = 140
_HTML = re.compile(r"<[a-zA-Z/!]")
_REASONS = "http://terminology.hl7.org/CodeSystem/non-adherence-reason-codes"


def _each(target: Target, member: str) -> Iterator[JSONObject]:
    """Yield what stands in `member` of the cards; skip the check where no card has any."""
    found = [inner for card in target.cards for inner in card.get(member, ())]
    if not found:
        raise Skipped(f"no card of this run has {member}: needs --request of a patient with a finding")
    yield from found


def _is_url(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("https://", "http://"))


@check("R2")
def cards_have_no_empty_member(target: Target) -> None:
    require_nothing_empty(target.cards, "cards")


@check("R41")
def a_study_brings_a_card(target: Target) -> None:
    require(target.cards, "no card")


@check("R43")
def cards_have_uuids(target: Target) -> None:
    uuids = [uuid.UUID(card["uuid"]) for card in target.cards]
    require(len(set(uuids)) == len(uuids), "two cards have one uuid")


@check("R44")
def summaries_are_short(target: Target) -> None:
    require(
        all(0 < len(card["summary"]) < _SUMMARY for card in target.cards), "a summary is empty or too long"
    )


@check("R45")
def details_hold_no_HTML(target: Target) -> None:  # noqa: N802 - HTML is written so
    for card in target.cards:
        require(isinstance(card.get("detail", ""), str), "a detail is not text")
        require(not _HTML.search(card.get("detail", "")), "a detail holds HTML")


@check("R46")
def indicators_are_known(target: Target) -> None:
    require(
        all(card["indicator"] in {"info", "warning", "critical"} for card in target.cards),
        "another indicator",
    )


@check("R47")
def sources_have_labels_and_absolute_URLs(target: Target) -> None:  # noqa: N802 - URL is written so
    for card in target.cards:
        require(card["source"].get("label"), "a source has no label")
        for member in ("url", "icon"):
            require(member not in card["source"] or _is_url(card["source"][member]), f"source.{member}")


@check("R48")
def topics_are_codings(target: Target) -> None:
    for card in target.cards:
        topic = card["source"].get("topic")
        require(topic is None or (topic.get("code") and topic.get("system")), "a topic is no coding")


@check("R49")
def selection_behavior_stands_beside_suggestions(target: Target) -> None:
    for card in target.cards:
        allowed = {"at-most-one", "any"} if card.get("suggestions") else {None}
        require(
            card.get("selectionBehavior") in allowed,
            "selectionBehavior without suggestions, or none with them",
        )


@check("R50", "R53")
def suggestions_are_whole(target: Target) -> None:
    for suggestion in _each(target, "suggestions"):
        require(
            suggestion.get("label") and suggestion.get("actions"), "a suggestion has no label or no action"
        )
        require(isinstance(suggestion.get("isRecommended", False), bool), "isRecommended is not boolean")


@check("R51")
def no_action_selection_behavior(target: Target) -> None:
    for card in target.cards:
        for suggestion in card.get("suggestions", ()):
            require("actionSelectionBehavior" not in suggestion, "actionSelectionBehavior was sent unasked")


@check("R52")
def actions_carry_what_they_need(target: Target) -> None:
    for suggestion in _each(target, "suggestions"):
        for action in suggestion["actions"]:
            require(
                action.get("type") in {"create", "update", "delete"} and action.get("description"),
                "an action",
            )
            if action["type"] == "delete":
                require(action.get("resourceId"), "a deletion names nothing")
            else:
                require(
                    "resourceType" in action.get("resource", {}), f"a {action['type']} carries no resource"
                )


@check("R54", "R55")
def override_reasons_can_be_shown(target: Target) -> None:
    for reason in _each(target, "overrideReasons"):
        require(
            all(reason.get(member) for member in ("code", "system", "display")), "a reason lacks a member"
        )
        require(reason["system"] == _REASONS, "a reason is not of the example value set")


@check("R56", "R57", "R58")
def links_are_what_they_say(target: Target) -> None:
    for link in _each(target, "links"):
        require(link.get("label") and _is_url(link.get("url")), "a link has no label or no absolute URL")
        require(link.get("type") in {"absolute", "smart"}, "a link of another type")
        require("appContext" not in link or link["type"] == "smart", "appContext on an absolute link")
        require(not link.get("autolaunchable"), "a link launches by itself: that was not agreed upon")


@check("R59")
def there_are_no_system_actions(target: Target) -> None:
    require("systemActions" not in target.answer(target.body()), "systemActions were not agreed upon")


@check("R83")
def cards_are_not_to_be_stored_and_tell_their_age(target: Target) -> None:
    response = target.post(target.body())
    expect(response, 200)
    require("no-store" in response.headers.get("cache-control", ""), "the answer may be stored")
    require(
        all("Acquired:" in card.get("detail", "Acquired:") for card in target.cards), "a card tells no age"
    )
