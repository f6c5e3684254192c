"""What is done with the audit from the command line: each act is itself recorded."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from rayhook.audit.balp import Observer
from rayhook.audit.chain import verify
from rayhook.audit.checkpoint import Anchor, Checkpoint, TreeHead, Witness, latest_tree, parse_checkpoint
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.export import ExportFormat, Frame, Manifest, write_export
from rayhook.audit.proof import Proof, prove
from rayhook.audit.record import AuditEntry
from rayhook.audit.report import ChainReport, report_detail
from rayhook.audit.retention import Hold, HoldSubject, PurgePlan, Retention, RetentionPolicy
from rayhook.audit.review import AuditRecord, AuditSearch, recent, timestamp, walk
from rayhook.auth.key_rotation import rotate_audit_key
from rayhook.deploy.database import create_database, parse_url
from rayhook.deploy.maintenance import Installation
from rayhook.deploy.storage_settings import StorageSettings
from rayhook.fhir.errors import InvalidRequest, NotFound

AGENT = "rayhook command line"


@dataclass(frozen=True, slots=True)
class AuditDesk:
    installation: Installation
    policy: RetentionPolicy = field(default_factory=RetentionPolicy)

    def verify(
        self,
        public_key: Path | None,
        *,
        anchor: Path | Witness | None = None,
        checkpoints: Iterable[Path] = (),
    ) -> ChainReport:
        """Return what `audit.chain.verify` finds; `public_key` is a PEM file, our own key by default.

        `checkpoints` are statements kept elsewhere, `anchor` another copy of the anchor.
        The verification is itself recorded, after it.
        """
        parts = self.installation
        key = parts.keyring.audit_public_key if public_key is None else read_public_key(public_key)
        held = [checkpoint for path in checkpoints for checkpoint in read_checkpoints(path)]
        with parts.database.reading() as session:
            report = verify(session, key, anchor or parts.anchor, keyring=parts.keyring, held=held)
        outcome = Outcome.SUCCESS if report.intact else Outcome.MAJOR_FAILURE
        compared = {
            "checkpoints": True,
            "keyring": True,
            "public key of a file": public_key is not None,
            "anchor file": anchor is None and parts.anchor is not None,
            "anchor kept elsewhere": anchor is not None,
            "statements kept elsewhere": bool(held),
        }
        how = ", ".join(name for name, is_so in compared.items() if is_so)
        self._record(AuditKind.AUDIT_CHAIN_VERIFIED, {**report_detail(report), "how": how}, outcome)
        return report

    def recent_events(self, limit: int) -> list[AuditRecord]:
        """Return the newest events; the reading is recorded before they are."""
        self._record(AuditKind.AUDIT_LOG_READ, {"limit": str(limit)})
        with self.installation.database.reading() as session:
            return recent(session, self.installation.keyring, limit=limit)

    def digest(self) -> Checkpoint:
        """Sign the log as it is, and return the statement."""
        parts = self.installation
        with parts.database.sessions() as session:
            parts.audit.checkpoint(session)
            session.commit()
        return self._latest()

    def prove(self, seq: int, *, since: Path | None) -> Proof:
        """Return the proof that event `seq` is in the log; with `since`, that the log only grew since then."""
        older = None if since is None else read_checkpoints(since)[-1]
        checkpoint = self.digest()
        self._record(AuditKind.AUDIT_PROOF_MADE, {"event": str(seq)})
        with self.installation.database.reading() as session:
            return prove(session, seq, checkpoint, since=older)

    def export(
        self, path: Path, *, form: ExportFormat, wanted: AuditSearch, made_at: datetime, address: str
    ) -> Manifest:
        """Write the events that fit to `path`, and the signed manifest beside it; recorded before it is done."""
        parts = self.installation
        since, until = (
            None if moment is None else timestamp(moment) for moment in (wanted.since, wanted.until)
        )
        detail = {"format": form.value, "from": since or "", "to": until or ""}
        checkpoint = self.digest()
        self._record(AuditKind.AUDIT_LOG_EXPORTED, detail)
        with parts.database.reading() as session:
            frame = Frame(
                form=form,
                observer=observer(address),
                checkpoint=checkpoint,
                since=since,
                until=until,
                made_at=timestamp(made_at),
            )
            manifest = write_export(walk(session, parts.keyring, wanted), path, frame)
        manifest_path(path).write_text(manifest.to_json(parts.keyring.audit_signing_key))
        return manifest

    def purge(self, *, now: datetime, dry_run: bool) -> PurgePlan:
        with self.installation.database.sessions() as session:
            plan = (
                self._retention().plan(session, now=now)
                if dry_run
                else self._retention().purge(session, now=now)
            )
            session.commit()
        return plan

    def place_hold(self, subject: HoldSubject, *, reason: str, now: datetime) -> str:
        with self.installation.database.sessions() as session:
            id_ = self._retention().place(session, subject, reason=reason, now=now)
            session.commit()
        return id_

    def release_hold(self, id_: str, *, now: datetime) -> None:
        with self.installation.database.sessions() as session:
            self._retention().release(session, id_, now=now)
            session.commit()

    def holds(self) -> list[Hold]:
        with self.installation.database.reading() as session:
            return self._retention().holds(session)

    def rotate_key(self) -> None:
        """Hand over to a new key; a service that runs takes it up with its next checkpoint."""

        def hand_over(key: Ed25519PrivateKey) -> None:
            with self.installation.database.sessions() as session:
                self.installation.audit.hand_over(session, key, agent=AGENT)
                session.commit()

        rotate_audit_key(self.installation.keyring_file, hand_over)

    def _latest(self) -> Checkpoint:
        with self.installation.database.reading() as session:
            tree = latest_tree(session)
        if tree is None:
            raise NotFound("the log has no checkpoint yet", code="no_checkpoint")
        return tree.checkpoint

    def _retention(self) -> Retention:
        parts = self.installation
        return Retention(parts.keyring, parts.audit, self.policy, agent=AGENT)

    def _record(self, kind: AuditKind, detail: Mapping[str, str], outcome: Outcome = Outcome.SUCCESS) -> None:
        entry = AuditEntry(kind, outcome, agent=AGENT, detail=detail, purpose="HOPERAT")
        with self.installation.database.sessions() as session:
            self.installation.audit.record(session, entry)
            session.commit()


def verify_elsewhere(
    settings: StorageSettings, public_key: Path, *, anchor: Path | Witness | None, checkpoints: Iterable[Path]
) -> ChainReport:
    """Verify a copy of the database where there is no keyring: with the pinned key alone, and without a trace.

    Raises InvalidRequest where there is no such database.
    """
    url = parse_url(settings.resolved_database_url)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise InvalidRequest("there is no database to verify", code="no_installation")
    held = [checkpoint for path in checkpoints for checkpoint in read_checkpoints(path)]
    database = create_database(
        settings.resolved_database_url, settings.connection_settings, application="rayhook command"
    )
    try:
        with database.reading() as session:
            return verify(session, read_public_key(public_key), anchor or settings.anchor_path, held=held)
    finally:
        database.close()


def observer(address: str, fhir_bases: Mapping[str, str] | None = None) -> Observer:
    return Observer("Rayhook", address, version("rayhook"), fhir_bases or {})


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.manifest.json")


def read_checkpoints(path: Path) -> list[Checkpoint]:
    """Return the statements of a file: lines of an anchor, a printed digest, or one proof's checkpoint.

    Raises InvalidRequest for a file without any.
    """
    text = path.read_text(errors="replace")
    found = [one for one in Anchor(path).checkpoints() if one is not None]
    found += [one for line in text.splitlines() if (one := parse_checkpoint(line)) is not None]
    if not found:
        found = _checkpoint_of_a_proof(text)
    if not found:
        raise InvalidRequest("the file holds no checkpoint", code="no_checkpoint", expression="--checkpoint")
    return list(dict.fromkeys(found))


def _checkpoint_of_a_proof(text: str) -> list[Checkpoint]:
    try:
        content = json.loads(text)["checkpoint"]
        return [Checkpoint(TreeHead(**content["tree_head"]), content["signature"])]
    except (KeyError, TypeError, ValueError):
        return []


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Raise InvalidRequest for a file that is no Ed25519 public key in PEM."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except ValueError as error:
        raise InvalidRequest("the public key must be a PEM file", expression="--public-key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidRequest("the public key must be Ed25519", expression="--public-key")
    return key
