"""The checks by requirement, in the order they were written."""

from collections.abc import Callable
from dataclasses import dataclass

from rayhook.deploy.conformance.target import Target

Act = Callable[[Target], None]


@dataclass(frozen=True, slots=True)
class Check:
    """`act` returns where all is well, and raises Failed or Skipped where it is not."""

    requirement: str
    name: str
    act: Act


CHECKS: list[Check] = []


def check(*requirements: str) -> Callable[[Act], Act]:
    """Enter a function as the check of `requirements`; its name tells what it looks at."""

    def enter(act: Act) -> Act:
        name = act.__name__.replace("_", " ")
        CHECKS.extend(Check(requirement, name, act) for requirement in requirements)
        return act

    return enter
