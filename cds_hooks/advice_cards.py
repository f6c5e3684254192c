"""Cards on orders: what a rule says, where the rule comes from, and what can be done about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from rayhook.cds_hooks.answers import Topic
from rayhook.cds_hooks.cards import CardWriter, named
from rayhook.cds_hooks.contexts import Context
from rayhook.cds_hooks.guidelines import (
    DUPLICATE_DAYS,
    IONISING,
    PREVIOUS_EXPOSURE,
    PREVIOUS_IMAGES,
    Citation,
)
from rayhook.cds_hooks.markdown import escape
from rayhook.cds_hooks.models import Card, Link, Suggestion
from rayhook.cds_hooks.review_words import fitted, in_sentence
from rayhook.cds_hooks.rules import Advice, Duplicate, FollowUp, Misfit
from rayhook.cds_hooks.suggestions import draft_follow_up, order_instead, remove_draft
from rayhook.inference.statement import cautions, probability_text

_DUPLICATE = (
    "A study of the same kind and part of the body is there already. Whether it answers the question is for the "
    "clinician to say: this rule compares modality, part of the body and date, nothing else. The {days} days are "
    "this service's own choice."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceWriter:
    """Writes the cards of one call."""

    writer: CardWriter
    context: Context
    now: datetime

    def card(self, advice: Advice) -> Card:
        if isinstance(advice, Duplicate):
            return self._duplicate(advice)
        return self._misfit(advice) if isinstance(advice, Misfit) else self._follow_up(advice)

    def finding(self, follow_up: FollowUp) -> Card:
        """Return the card of the finding itself, with what its guideline asks for next."""
        cited = follow_up.guideline.citation
        return self.writer.card(
            follow_up.answer,
            suggestion=draft_follow_up(follow_up, self.context, now=self.now),
            guidance=f"Next: {follow_up.guideline.advice}.\n\n{_sources((cited,))}",
            more_links=_links((cited,)),
        )

    def _duplicate(self, advice: Duplicate) -> Card:
        cited = [PREVIOUS_IMAGES]
        if advice.order.modality in IONISING:
            cited.insert(0, PREVIOUS_EXPOSURE)
        ago = "today" if advice.days == 0 else f"{advice.days} day{'s' if advice.days > 1 else ''} ago"
        return self._card(
            Topic.DUPLICATE_IMAGING,
            summary=f"Like imaging exists: {named(advice.study)} ({ago}) shows the same part of the body",
            paragraphs=(
                _DUPLICATE.format(days=DUPLICATE_DAYS),
                f"- Ordered: {escape(advice.order.title)}\n- There already: {self._study(advice)}",
            ),
            cited=tuple(cited),
            suggestion=remove_draft(advice),
            follow_up=None,
        )

    def _study(self, advice: Duplicate) -> str:
        description = f": {escape(advice.study.description)}" if advice.study.description else ""
        return f"{named(advice.study)}{description}"

    def _misfit(self, advice: Misfit) -> Card:
        follow_up = advice.follow_up
        name = in_sentence(follow_up.finding.display)
        procedure = follow_up.guideline.procedure.text
        return self._card(
            Topic.MODALITY,
            summary=fitted(
                "For possible ", name, f", told by AI, guidance names {procedure}, not what is ordered"
            ),
            paragraphs=(f"- Ordered: {escape(advice.order.title)}", "\n".join(_facts(follow_up))),
            cited=(follow_up.guideline.citation,),
            suggestion=order_instead(advice, self.context, now=self.now),
            follow_up=follow_up,
        )

    def _follow_up(self, advice: FollowUp) -> Card:
        name = in_sentence(advice.finding.display)
        return self._card(
            Topic.FOLLOW_UP_DUE,
            summary=fitted(
                "Possible ", name, f", told by AI on {named(advice.answer.study)}, has no follow-up yet"
            ),
            paragraphs=("\n".join(_facts(advice)),),
            cited=(advice.guideline.citation,),
            suggestion=draft_follow_up(advice, self.context, now=self.now),
            follow_up=advice,
        )

    def _card(
        self,
        topic: Topic,
        *,
        summary: str,
        paragraphs: tuple[str, ...],
        cited: tuple[Citation, ...],
        suggestion: Suggestion | None,
        follow_up: FollowUp | None,
    ) -> Card:
        """Rules only inform: no indicator above `info` while nobody has validated what they rest on."""
        result = None if follow_up is None else follow_up.answer.result
        warned = cautions(None if result is None else result.model)
        return self.writer.written(
            topic,
            summary=summary,
            indicator="info",
            detail="\n\n".join((*paragraphs, _sources(cited), *(f"**{caution}**" for caution in warned))),
            suggestion=suggestion,
            links=(
                *self.writer.links(None if follow_up is None else follow_up.answer.result_id),
                *_links(cited),
            ),
            is_overridable=True,
        )


def _facts(follow_up: FollowUp) -> Iterator[str]:
    finding, result = follow_up.finding, follow_up.answer.result
    yield f"- Finding: possible {escape(in_sentence(finding.display))}"
    yield f"- Calibrated probability: {probability_text(finding.probability)}"
    yield f"- On: {named(follow_up.answer.study)}"
    if result is not None and result.model is not None:
        yield f"- Model: {escape(result.model.id)}, version {escape(result.model.version)}"
        yield f"- Analysed: {result.analysed_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    yield f"- Guidance: {follow_up.guideline.advice}"
    yield f"- Meant from: {follow_up.due.astimezone(UTC):%Y-%m-%d}"


def _sources(cited: tuple[Citation, ...]) -> str:
    return "\n".join(f"- Source: {escape(one.title)}" for one in cited)


def _links(cited: tuple[Citation, ...]) -> tuple[Link, ...]:
    return tuple(Link(label=one.title, url=one.url, type="absolute") for one in cited)
