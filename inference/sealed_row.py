"""A row of the clinical tables: its columns are sealed under the key of the patient that it is about."""

from dataclasses import dataclass

from sqlmodel import Session, SQLModel

from rayhook.auth import patient_keys
from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import clinical


@dataclass(frozen=True, slots=True)
class SealedRow:
    """One row, by its table and its id."""

    session: Session
    keyring: Keyring
    model: type[SQLModel]
    id: str

    def seal(self, column: str, plaintext: bytes, *, patient_index: str) -> bytes:
        """Seal under the patient's key, which is made in the same transaction where there is none.

        Raises Erased where `patient_index` is that of an erased row.
        """
        return patient_keys.seal(
            self.session, self.keyring, clinical(patient_index), plaintext, **self._place(column)
        )

    def open(self, column: str, ciphertext: bytes) -> bytes:
        """Raise Erased where the patient's key was destroyed."""
        return patient_keys.unseal(self.session, self.keyring, ciphertext, **self._place(column))

    def _place(self, column: str) -> dict[str, str]:
        return {"table": str(self.model.__tablename__), "column": column, "row": self.id}
