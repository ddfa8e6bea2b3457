"""A certificate authority for tests: certificates that are right, and ones with all that can be wrong."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


class Authority:
    """A root, and what it issues, as files in a folder."""

    def __init__(self, folder: Path, name: str = "Example Studio"):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        own = _name(f"{name} root", name)
        builder = _builder(own, own, self._key.public_key(), NOW - 400 * DAY, NOW + 400 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(True, None), True).add_extension(_usage(True), True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._root = builder.add_extension(identifier, False).sign(self._key, hashes.SHA256())
        self.root = folder / "root.pem"
        self.root.write_bytes(_pem(self._root))

    def issue(
        self,
        name: str = "clips",
        *,
        kind: str = "ec",
        days: tuple[int, int] = (-1, 300),
        until: dt.datetime | None = None,
        purposes: Sequence[Any] = (ExtendedKeyUsageOID.EMAIL_PROTECTION,),
        signs: bool = True,
    ) -> dict[str, Any]:
        """A certificate with its chain, and its key: what `credentials` in settings names."""
        key: Any = {
            "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
            "ed25519": ed25519.Ed25519PrivateKey.generate,
            "rsa": lambda: rsa.generate_private_key(65537, 2048),
        }[kind]()
        public = key.public_key()
        subject = _name(f"{self.name} {name}", self.name)
        builder = _builder(subject, self._root.subject, public, NOW + days[0] * DAY, until or NOW + days[1] * DAY)
        builder = builder.add_extension(x509.BasicConstraints(False, None), True)
        builder = builder.add_extension(_usage(False, signs), True)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        leaf = builder.add_extension(issuer, False).sign(self._key, hashes.SHA256())
        certificate, file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(_pem(leaf) + _pem(self._root))
        form = serialization.PrivateFormat.PKCS8
        file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        return {"certificate": str(certificate), "key": str(file)}


def in_a_vault(data: bytes) -> bytes:
    """A signer such as users write for their KMS; its vault is the file that FLASHVIDEO_TEST_VAULT names."""
    import os

    key: Any = serialization.load_pem_private_key(Path(os.environ["FLASHVIDEO_TEST_VAULT"]).read_bytes(), None)
    r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, start: Any, end: Any) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)


def _name(common: str, organisation: str) -> x509.Name:
    own = ((NameOID.COMMON_NAME, common), (NameOID.ORGANIZATION_NAME, organisation))
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in own])


def _usage(of_authority: bool, signs: bool = True) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not of_authority and signs,
        key_encipherment=not of_authority and not signs,
        key_cert_sign=of_authority,
        crl_sign=of_authority,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
