"""What a ledger shows: studies lost, writes doubled, and how long work stood still after a fault."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rayhook.deploy.demo.ledger import Act, Entry, Outcome

_BEFORE_S = 2.0  # what was fetched just before is still in hand as the trouble begins
_PARTS = frozenset({"DiagnosticReport", "Observation", "Provenance"})


@dataclass(frozen=True)
class Account:
    """`reported`, `lost` and `doubled` name patients; `strange` are writes that nobody asked for or that were not conditional.

    `repeated` counts the reports that were written again, and found there already.
    """

    asked: int
    reported: frozenset[str]
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    strange: tuple[str, ...]
    repeated: int

    @property
    def is_settled(self) -> bool:
        return not (self.lost or self.doubled or self.strange)

    def of(self, subjects: set[str]) -> "Account":
        """Return the account with only the losses and doubles of these."""
        return replace(
            self,
            lost=tuple(one for one in self.lost if one in subjects),
            doubled=tuple(one for one in self.doubled if one in subjects),
        )


def settle(entries: Iterable[Entry]) -> Account:
    """Compare what was asked and taken on with what was written: one report each, whole, and nothing else.

    A result's resources share the key that their identifiers begin with; the Device is that of every result.
    """
    asked: set[str] = set()
    tried: set[str] = set()
    keys: dict[str, set[str]] = defaultdict(set)
    made: dict[str, Counter[str]] = defaultdict(Counter)
    strange: list[str] = []
    repeated = 0
    for entry in entries:
        if entry.act is Act.ASKED:
            tried.add(entry.subject)
            if entry.outcome is Outcome.CREATED:
                asked.add(entry.subject)
        elif entry.act is Act.WRITTEN:
            key = entry.identifier.partition(".")[0]
            if not entry.conditional:
                strange.append(f"{entry.what} {entry.identifier}: not a conditional create")
            if entry.what == "DiagnosticReport":
                keys[entry.subject].add(key)
            if entry.outcome is Outcome.EXISTING:
                repeated += entry.what == "DiagnosticReport"
            else:
                made[key][f"{entry.what} {entry.identifier}"] += 1
    strange += [f"{subject}: nobody asked" for subject in sorted(set(keys) - tried)]
    reported = frozenset(one for one, own in keys.items() if _is_whole(own, made))
    return Account(
        asked=len(asked),
        reported=reported,
        lost=tuple(sorted(asked - reported)),
        doubled=tuple(sorted(one for one, own in keys.items() if _is_doubled(own, made))),
        strange=tuple(strange),
        repeated=repeated,
    )


def _is_whole(keys: set[str], made: dict[str, Counter[str]]) -> bool:
    return any({name.split()[0] for name in made[key]} >= _PARTS for key in keys)


def _is_doubled(keys: set[str], made: dict[str, Counter[str]]) -> bool:
    return len(keys) > 1 or any(count > 1 for key in keys for count in made[key].values())


def reclaims(
    entries: Sequence[Entry], kills: Iterable[float], troubles: Sequence[tuple[float, float]] = ()
) -> list[float]:
    """Return the seconds from each kill to when a study that was in hand is fetched again.

    In hand were those that had been fetched and are fetched once more later, with no report between.
    troubles: spans in which a server failed: who fetched then, or could not fetch again then, does not count.
    """
    killed = sorted(kills)
    found = []
    fetched: dict[str, float] = {}
    written: dict[str, float] = {}
    for entry in entries:
        if entry.act is Act.WRITTEN and entry.request_id:
            written[entry.request_id] = entry.at
        if entry.act is not Act.RETRIEVED:
            continue
        before = fetched.get(entry.study)
        fetched[entry.study] = entry.at
        if before is None or written.get(entry.request_id, 0.0) > before:
            continue
        if any(begin - _BEFORE_S <= entry.at and before <= end + _BEFORE_S for begin, end in troubles):
            continue
        at = next((kill for kill in killed if before <= kill <= entry.at), None)
        if at is not None:
            found.append(entry.at - at)
    return found


def recovery_s(entries: Iterable[Entry], back_at: float) -> float | None:
    """Return the seconds until the service worked again: fetched a study or wrote a report; None if it never did."""
    acts = (one.at for one in entries if one.act in {Act.RETRIEVED, Act.WRITTEN})
    first = min((at for at in acts if at > back_at), default=None)
    return None if first is None else first - back_at
