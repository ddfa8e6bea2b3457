"""Authorities for tests: one of certificates, right ones and ones with all that can be wrong, and one of time."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from asn1crypto import algos, cms, core, pem, tsp
from asn1crypto.x509 import Certificate
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


@contextmanager
def serve_time(authority: Authority, port: int = 0) -> Iterator[str]:
    """The URL of a timestamp authority (RFC 3161) on this machine, which tells the time as it is now."""
    own = authority.issue("time", purposes=(ExtendedKeyUsageOID.TIME_STAMPING,))
    chain = [Certificate.load(der) for _, _, der in pem.unarmor(Path(own["certificate"]).read_bytes(), multiple=True)]
    key = serialization.load_pem_private_key(Path(own["key"]).read_bytes(), None)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = tsp.TimeStampReq.load(self.rfile.read(int(self.headers["Content-Length"])))
            answer = _time_stamp(asked, chain, key)
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def _time_stamp(asked: tsp.TimeStampReq, chain: list[Certificate], key: Any) -> bytes:
    """A signed statement that the digest in the request was there now."""
    sha256 = algos.DigestAlgorithm({"algorithm": "sha256"})
    info = {
        "version": "v1",
        "policy": "1.2.3.4.1",
        "message_imprint": asked["message_imprint"],
        "serial_number": x509.random_serial_number(),
        "gen_time": dt.datetime.now(dt.UTC).replace(microsecond=0),
        "nonce": asked["nonce"],
    }
    content = tsp.TSTInfo(info).dump()
    certificate = {"hash_algorithm": sha256, "cert_hash": hashlib.sha256(chain[0].dump()).digest()}
    attributes = {
        "content_type": "tst_info",
        "message_digest": hashlib.sha256(content).digest(),
        "signing_certificate_v2": tsp.SigningCertificateV2({"certs": [certificate]}),
    }
    signed = cms.CMSAttributes([{"type": name, "values": [value]} for name, value in attributes.items()])
    issuer = {"issuer": chain[0].issuer, "serial_number": chain[0].serial_number}
    signer = {
        "version": "v1",
        "sid": cms.SignerIdentifier("issuer_and_serial_number", issuer),
        "digest_algorithm": sha256,
        "signed_attrs": signed,
        "signature_algorithm": {"algorithm": "sha256_ecdsa"},
        "signature": key.sign(signed.dump(), ec.ECDSA(hashes.SHA256())),
    }
    token = {
        "version": "v3",
        "digest_algorithms": [sha256],
        "encap_content_info": {"content_type": "tst_info", "content": core.ParsableOctetString(content)},
        "certificates": chain,
        "signer_infos": [signer],
    }
    wrapped = cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData(token)})
    return bytes(tsp.TimeStampResp({"status": {"status": "granted"}, "time_stamp_token": wrapped}).dump())


def in_a_vault_that_is_away(data: bytes) -> bytes:
    raise ConnectionError("the vault is away")


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
