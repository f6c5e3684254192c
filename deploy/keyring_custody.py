"""What the keyring file is kept under: nothing but its mode, or a key of AWS KMS."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.keyring_file import KeyringFile
from rayhook.auth.kms import KMSWrap
from rayhook.deploy.kms import kms_wrap
from rayhook.deploy.maintenance import Installation
from rayhook.deploy.storage_settings import KEY_URI, StorageSettings
from rayhook.fhir.errors import Conflict, InvalidRequest, RayhookError

_AGENT = "rayhook command line"


@dataclass(frozen=True, slots=True)
class Custody:
    installation: Installation
    settings: StorageSettings

    def wrap(self, key_uri: str) -> None:
        """Raise Conflict for a keyring that is wrapped already."""
        if self._source.wrap is not None:
            raise Conflict("the keyring is wrapped already; rewrap it", code="keyring_wrapped")
        self._rewrite(self._wrap_of(key_uri), "wrap")

    def rewrap(self, key_uri: str | None) -> None:
        current = self._required()
        wrap = current if key_uri is None else self._wrap_of(key_uri)
        self._rewrite(wrap, "rewrap")

    def unwrap(self) -> None:
        self._required()
        self._rewrite(None, "unwrap")

    @property
    def _source(self) -> KeyringFile:
        return self.installation.keyring_file

    def _required(self) -> KMSWrap:
        if self._source.wrap is None:
            raise Conflict("the keyring is a plain file; wrap it first", code="keyring_not_wrapped")
        return self._source.wrap

    def _wrap_of(self, key_uri: str) -> KMSWrap:
        if not re.fullmatch(KEY_URI, key_uri):
            raise InvalidRequest(
                "must be aws-kms:// and the ARN of a key, not of an alias",
                code="invalid_setting",
                expression="--kms-key",
            )
        return kms_wrap(key_uri, self.settings.installation)

    def _rewrite(self, wrap: KMSWrap | None, act: str) -> None:
        """Replace the file by one with the same keys under `wrap`."""
        detail = {"act": act, "key": "" if wrap is None else wrap.key_uri}
        with self._recorded(detail), self._source.locked():
            content = self._source.read()
            target = KeyringFile(self._source.path, wrap)
            target.replace(content)
            self.installation.keyring.follow(target)

    @contextmanager
    def _recorded(self, detail: Mapping[str, str]) -> Iterator[None]:
        self._record({**detail, "phase": "begun"})
        try:
            yield
        except RayhookError as error:
            self._record({**detail, "phase": "refused", "code": error.code}, Outcome.MINOR_FAILURE)
            raise
        self._record({**detail, "phase": "done"})

    def _record(self, detail: Mapping[str, str], outcome: Outcome = Outcome.SUCCESS) -> None:
        kind = AuditKind.AUTH_KEYRING_WRAPPED
        entry = AuditEntry(kind, outcome, agent=_AGENT, detail=detail, purpose="HSYSADMIN")
        with self.installation.database.sessions() as session:
            self.installation.audit.record(session, entry)
            session.commit()
