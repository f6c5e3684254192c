"""Server certificates as they ought to be, and as they ought not to be, in files."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

NAME = "localhost"
FAULTS = ("expired", "of another name", "of nobody's authority", "self-signed")


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


class Certificates:
    """Pairs for `localhost`, from an authority whose certificate is in `ca`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def good(self, name: str = NAME, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> Pair:
        return self._written(f"good-{name}", self._authority.issue_cert(name, key_type=key_type))

    def bad(self, fault: str) -> Pair:
        if fault == "expired":
            ended = datetime.now(UTC) - timedelta(minutes=5)
            begun = ended - timedelta(days=9)
            return self._written(
                "expired", self._authority.issue_cert(NAME, not_before=begun, not_after=ended)
            )
        if fault == "of another name":
            return self._written("other", self._authority.issue_cert("other.example.org"))
        if fault == "of nobody's authority":
            return self._written("nobody", trustme.CA().issue_cert(NAME))
        return self._self_signed()

    def _written(self, stem: str, made: trustme.LeafCert) -> Pair:
        pair = Pair(self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        pair.certificate.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
        pair.key.touch(0o600)
        pair.key.write_bytes(made.private_key_pem.bytes())
        return pair

    def _self_signed(self) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pair = Pair(self.folder / "self-signed.pem", self.folder / "self-signed.key")
        pair.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        pair.key.touch(0o600)
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return pair
