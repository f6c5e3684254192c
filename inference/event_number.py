"""Which events of a subscription were heard, whatever their order and however often each came.

Spec: HL7 Subscriptions R5 Backport 1.1.0, "Handling Errors": a gap in the event numbers is a missed notification
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Self, TypeVar

_State = TypeVar("_State", bound="EventNumbers")

_MAX_AHEAD: Final = 500


@dataclass(frozen=True, slots=True)
class EventNumbers:
    """All events up to `complete` were heard, and those of `ahead` beyond a gap; `told` is the last there is.

    `complete` is None before anything was heard.  `is_lost`: that some were missed for good, or may have been.
    """

    complete: int | None = None
    ahead: tuple[int, ...] = ()
    told: int = 0
    is_lost: bool = False

    @property
    def missing(self) -> range:
        """Return the numbers of the first gap, empty where there is none."""
        end = min(self.ahead) if self.ahead else self.told + 1
        return (
            range(end, end)
            if self.complete is None
            else range(self.complete + 1, max(self.complete + 1, end))
        )

    @property
    def is_behind(self) -> bool:
        return self.is_lost or bool(self.missing)

    def knows(self, number: int) -> bool:
        return self.complete is not None and (number <= self.complete or number in self.ahead)

    def begun(self, count: int) -> Self:
        """Return the state after a handshake: counting begins at `count`; what was before is over."""
        return replace(self, complete=count, ahead=(), told=count, is_lost=self.complete not in (None, count))

    def heard(self, numbers: Iterable[int]) -> Self:
        """Return the state after these events."""
        state = self
        for number in sorted(numbers):
            if state.complete is None:
                # Whatever came before was told to nobody that we know of.
                state = replace(state, complete=number, told=number, is_lost=number > 1)
            elif not state.knows(number):
                state = _closed(replace(state, ahead=(*state.ahead, number), told=max(state.told, number)))
        return state if len(state.ahead) <= _MAX_AHEAD else state.given_up()

    def counted(self, count: int) -> Self:
        """Return the state after a word that there were `count` events so far."""
        if self.complete is None:
            return replace(self, complete=count, told=count, is_lost=count > 0)
        if count < self.complete:
            # The server began to count anew, and nobody knows what it told meanwhile.
            return replace(self, complete=count, ahead=(), told=count, is_lost=True)
        return replace(self, told=max(self.told, count))

    def given_up(self) -> Self:
        """Return the state in which nobody waits for what is missing any more: it has to be searched for."""
        last = max((self.told, self.complete or 0, *self.ahead))
        return replace(self, complete=last, ahead=(), told=last, is_lost=True)

    def at_least(self, count: int) -> Self:
        """Return the state after an event that says how many there were when it was sent; it may be an old one."""
        return self if self.complete is None else replace(self, told=max(self.told, count))

    def missed(self) -> Self:
        """Return the state after something happened, and nobody said to what."""
        return replace(self, is_lost=True)

    def caught_up(self) -> Self:
        return replace(self, is_lost=False)


def _closed(state: _State) -> _State:
    """Return the state without the gap that its last event has filled."""
    complete, ahead = state.complete or 0, set(state.ahead)
    while complete + 1 in ahead:
        complete += 1
        ahead.remove(complete)
    return replace(state, complete=complete, ahead=tuple(sorted(ahead)))
