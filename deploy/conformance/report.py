"""Every check against one target, told by requirement."""

import importlib
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

from rayhook.deploy.conformance.registry import CHECKS, Check
from rayhook.deploy.conformance.requirements import REQUIREMENTS, Level, Requirement
from rayhook.deploy.conformance.target import Failed, Skipped, Target

_MODULES = ("discovery_checks", "call_checks", "card_checks", "trust_checks")


class Outcome(StrEnum):
    """`unseen`: nothing that a call from outside could show."""

    FAILED = "failed"
    PASSED = "passed"
    SKIPPED = "skipped"
    UNSEEN = "unseen"


@dataclass(frozen=True, slots=True)
class Result:
    requirement: Requirement
    outcome: Outcome
    checks: int
    detail: str = ""

    @property
    def is_breach(self) -> bool:
        """A MUST that does not hold."""
        return self.outcome is Outcome.FAILED and self.requirement.level in {
            Level.MUST,
            Level.MUST_NOT,
            Level.OURS,
        }

    def json(self) -> dict[str, Any]:
        told = {
            "id": self.requirement.id,
            "level": self.requirement.level,
            "requirement": self.requirement.text,
            "result": self.outcome,
            "checks": self.checks,
        }
        return told | ({"detail": self.detail} if self.detail else {})


def run_checks(target: Target) -> list[Result]:
    """Return one result a requirement: failed where any of its checks did, passed where at least one could be made."""
    for module in _MODULES:
        importlib.import_module(f"rayhook.deploy.conformance.{module}")
    made: dict[str, list[tuple[Outcome, str]]] = {}
    done: dict[int, tuple[Outcome, str]] = {}
    for check in CHECKS:
        if id(check.act) not in done:
            done[id(check.act)] = _made(check, target)
        made.setdefault(check.requirement, []).append(done[id(check.act)])
    return [_result(requirement, made.get(requirement.id, [])) for requirement in REQUIREMENTS]


def _made(check: Check, target: Target) -> tuple[Outcome, str]:
    try:
        check.act(target)
    except Skipped as skipped:
        return Outcome.SKIPPED, str(skipped)
    except Failed as failed:
        return Outcome.FAILED, f"{check.name}: {failed}"
    except httpx.HTTPError as error:
        return Outcome.FAILED, f"{check.name}: {type(error).__name__}"
    except (KeyError, TypeError, ValueError) as error:
        return Outcome.FAILED, f"{check.name}: the answer has not the expected form ({type(error).__name__})"
    return Outcome.PASSED, ""


def _result(requirement: Requirement, made: list[tuple[Outcome, str]]) -> Result:
    if not made:
        # What is only permitted holds whatever a service does.
        is_met = requirement.level is Level.MAY and not requirement.unseen
        return Result(requirement, Outcome.PASSED if is_met else Outcome.UNSEEN, 0, requirement.unseen)
    told = dict(reversed(made))
    for outcome in (Outcome.FAILED, Outcome.PASSED, Outcome.SKIPPED):
        if outcome in told:
            return Result(requirement, outcome, len(made), told[outcome])
    raise AssertionError(made)


def summary(results: list[Result]) -> dict[str, int]:
    told = Counter(result.outcome for result in results)
    return {outcome.value: told[outcome] for outcome in Outcome}
