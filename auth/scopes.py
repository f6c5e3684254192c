"""SMART scopes, versions 1 and 2: what a token allows.

Spec: SMART App Launch 2.2.0, "Scopes for requesting FHIR Resources".
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Self

Context = Literal["patient", "user", "system"]

_V1 = {"read": "rs", "write": "cud", "*": "cruds"}
_SCOPE = re.compile(
    r"(?P<context>patient|user|system)/(?P<type>\*|[A-Z][A-Za-z]{0,63})"
    r"\.(?:(?P<v1>read|write|\*)|(?P<v2>(?=[cruds])c?r?u?d?s?)(?:\?(?P<query>.+))?)"
)


@dataclass(frozen=True, slots=True)
class ResourceScope:
    """One clinical scope. `query` limits it to the resources that a search would find."""

    context: str
    resource_type: str
    interactions: str
    query: str | None = None

    def covers(self, resource_type: str) -> bool:
        return self.resource_type in ("*", resource_type)

    def __str__(self) -> str:
        limit = "" if self.query is None else f"?{self.query}"
        return f"{self.context}/{self.resource_type}.{self.interactions}{limit}"


@dataclass(frozen=True, slots=True)
class ScopeSet:
    """What was granted. `others` holds `openid`, `launch` and whatever is not a clinical scope."""

    resources: frozenset[ResourceScope] = frozenset()
    others: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a space-separated list; what does not match the grammar grants nothing."""
        tokens = text.split()
        clinical = {token: scope for token in tokens if (scope := _read(token)) is not None}
        others = frozenset(token for token in tokens if token not in clinical)
        return cls(frozenset(clinical.values()), others)

    def permits(self, context: Context | None, resource_type: str, interaction: str) -> bool:
        """Say whether all letters of `interaction` (of "cruds") are granted for all of the type's resources.

        A scope limited by a query grants nothing here: we could not show that it covers a resource.
        """
        if not interaction or not set(interaction) <= set("cruds"):
            return False
        return set(interaction) <= self._granted(context, resource_type)

    def _granted(self, context: Context | None, resource_type: str) -> set[str]:
        scopes = (s for s in self.resources if s.query is None and s.covers(resource_type))
        return {letter for s in scopes if context in (None, s.context) for letter in s.interactions}

    def within(self, limit: Self) -> Self:
        """Return what of these scopes `limit` has too: a renewed grant may be narrower, never wider."""
        resources = (scope for one in self.resources if (scope := _limited(one, limit)) is not None)
        return type(self)(frozenset(resources), self.others & limit.others)

    def granting(
        self, resource_type: str, interaction: str, *, contexts: Collection[str]
    ) -> tuple[ResourceScope, ...]:
        """Return the scopes of these contexts that grant one letter of "cruds", those limited by a query too.

        Who uses a limited one has to show for each resource that the query finds it.
        """
        return tuple(
            scope
            for scope in sorted(self.resources, key=str)
            if scope.context in contexts and scope.covers(resource_type) and interaction in scope.interactions
        )

    def __contains__(self, scope: str) -> bool:
        return scope in self.others

    def __str__(self) -> str:
        return " ".join(sorted([*self.others, *map(str, self.resources)]))


def as_version_1(token: str) -> str:
    """Return a clinical scope as a server of version 1 knows it; it may be wider, as version 1 has fewer words.

    Spec: SMART App Launch 2.2.0, "Scopes for requesting FHIR Resources", version 1 equivalents
    """
    scope = _read(token)
    if scope is None or scope.query is not None:
        return token
    reads, writes = (bool(set(scope.interactions) & set(letters)) for letters in ("rs", "cud"))
    permission = "*" if reads and writes else "read" if reads else "write"
    return f"{scope.context}/{scope.resource_type}.{permission}"


def _limited(scope: ResourceScope, limit: ScopeSet) -> ResourceScope | None:
    if scope in limit.resources:
        return scope
    wide = (
        one
        for one in limit.resources
        if one.query is None and one.context == scope.context and one.covers(scope.resource_type)
    )
    allowed = {letter for one in wide for letter in one.interactions}
    kept = "".join(letter for letter in scope.interactions if letter in allowed)
    return ResourceScope(scope.context, scope.resource_type, kept, scope.query) if kept else None


def _read(token: str) -> ResourceScope | None:
    match = _SCOPE.fullmatch(token)
    if match is None:
        return None
    interactions = _V1[match["v1"]] if match["v1"] else match["v2"]
    return ResourceScope(match["context"], match["type"], interactions, match["query"])
