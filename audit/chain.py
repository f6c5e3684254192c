"""The check that nobody has touched the log.

Every event's hash covers its content and the hash before it; signed checkpoints cover the whole tree. The
verifier trusts neither the database nor a key beside it: the public key and the anchor file come from outside.

Spec: RFC 8785 (canonical JSON), RFC 6962 2.1 (tree), RFC 8032 (Ed25519).
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy.exc import DatabaseError
from sqlmodel import Session

from rayhook.audit.checkpoint import Anchor, Checkpoint, TreeHead, Witness, stored_trees
from rayhook.audit.handover import TrustedKeys, stored_hand_overs, trusted_keys
from rayhook.audit.report import MAX_PROBLEMS, ChainReport, Problem, ProblemKind
from rayhook.audit.scan import Scan, Sealed, name_displaced
from rayhook.audit.tombstone import sound_purges
from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import ServiceUnavailable

CHECKPOINT_EVERY: Final = 100


def verify(
    session: Session,
    public_key: Ed25519PublicKey,
    anchor: Path | Witness | None,
    *,
    keyring: Keyring | None = None,
    held: Iterable[Checkpoint] = (),
    started: Callable[[Scan], None] | None = None,
) -> ChainReport:
    """Read the whole log and compare it with its checkpoints in the database, in the anchor, and those `held`.

    `public_key` is the one that the caller has pinned. With `keyring`, events must also have been written by
    this installation, which leaves only the cutting off of events newer than the last checkpoint unseen.
    `held` are statements that the caller has kept, of this copy of the log or of another.
    `started` is given the scan, whose `size` tells how far it is. `anchor` is the anchor file or another
    witness; none is looked for where it is None.
    """
    keys = trusted_keys(public_key, stored_hand_overs(session))
    witness = Anchor(anchor) if isinstance(anchor, Path) else anchor
    problems, tree_heads = _read_checkpoints(session, keys, witness)
    problems += [Problem(size, ProblemKind.HAND_OVER_FORGED) for size in keys.refused]
    for checkpoint in held:
        if _is_sound(checkpoint, keys):
            tree_heads.add(checkpoint.tree_head)
        else:
            problems.append(Problem(_number(checkpoint.tree_head.size), ProblemKind.CHECKPOINT_FORGED))
    purges, unsound = sound_purges(session, keys)
    problems += [Problem(id_, ProblemKind.PURGE_FORGED) for id_ in unsound]
    scan = Scan(Sealed.of(((head.size, head.root) for head in tree_heads), purges), keyring)
    if started is not None:
        started(scan)
    try:
        scan.read(session)
        problems += name_displaced(session, scan)
    except (DatabaseError, ServiceUnavailable):
        problems += [*scan.problems, Problem(scan.size + 1, ProblemKind.UNREADABLE)]
    sealed_size = max((head.size for head in tree_heads), default=0)
    problems += _end_problems(scan.size, sealed_size)
    return ChainReport(
        intact=not problems,
        size=scan.size,
        sealed_size=sealed_size,
        problems=tuple(problems[:MAX_PROBLEMS]),
        notes=tuple(scan.notes[:MAX_PROBLEMS]),
        purged=scan.purged,
    )


def _end_problems(size: int, sealed_size: int) -> list[Problem]:
    if size < sealed_size:
        return [Problem(size + 1, ProblemKind.TRUNCATED, last=sealed_size)]
    due = size - size % CHECKPOINT_EVERY
    return [Problem(due, ProblemKind.CHECKPOINT_MISSING)] if sealed_size < due else []


def _read_checkpoints(
    session: Session, keys: TrustedKeys, anchor: Witness | None
) -> tuple[list[Problem], set[TreeHead]]:
    """Return what is wrong with the checkpoints, and all statements that are validly signed."""
    stored = stored_trees(session)
    sound = {
        tree.checkpoint for tree in stored if keys.verifies(tree.checkpoint.tree_head.size, tree.is_sound)
    }
    problems = [
        Problem(tree.checkpoint.tree_head.size, ProblemKind.CHECKPOINT_FORGED)
        for tree in stored
        if tree.checkpoint not in sound
    ]
    if anchor is None:
        return problems, {checkpoint.tree_head for checkpoint in sound}
    anchored, anchor_problems = _read_anchor(anchor, keys, is_expected=bool(stored))
    missing = sorted(checkpoint.tree_head.size for checkpoint in anchored - sound)
    problems += anchor_problems + [Problem(size, ProblemKind.CHECKPOINT_MISSING) for size in missing]
    return problems, {checkpoint.tree_head for checkpoint in sound | anchored}


def _read_anchor(
    anchor: Witness, keys: TrustedKeys, *, is_expected: bool
) -> tuple[set[Checkpoint], list[Problem]]:
    try:
        lines = list(anchor.checkpoints())
    except OSError:
        return set(), [Problem(0, ProblemKind.ANCHOR_MISSING)] if is_expected else []
    sound = {line for line in lines if line is not None and _is_sound(line, keys)}
    return sound, [
        Problem(number, ProblemKind.ANCHOR_DAMAGED)
        for number, line in enumerate(lines, start=1)
        if line not in sound
    ]


def _is_sound(checkpoint: Checkpoint, keys: TrustedKeys) -> bool:
    return keys.verifies(checkpoint.tree_head.size, checkpoint.is_signed_by)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
