"""Content Credentials (C2PA): a signed statement in an MP4 of what made it, and whether such a statement holds.

The signing key comes from a file, an environment variable or a function of the user's (for a KMS), and stays in the
process that signs. c2pa-python does the work; it is in the extra `credentials`, and only imported where it is needed.
"""

from __future__ import annotations

import datetime as dt
import importlib
import io
import json
import logging
import os
import random
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from flashvideo_ray.errors import in_a_line
from flashvideo_ray.media import video
from flashvideo_ray.media.provenance import DIGITAL_SOURCE_TYPE
from flashvideo_ray.settings import CredentialSettings, SettingsError
from flashvideo_ray.versions import version_of

ASSERTION = "flashvideo-ray.provenance"
"""The label of what a manifest says of a file: the keys of its MP4."""
_PURPOSES = {  # what a certificate may be for, to sign media
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.36": "documentSigning",
    "1.3.6.1.4.1.62558.2.1": "C2PA claim signing",
}
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 15.0  # seconds between tries, where a timestamp authority or a KMS is away
_OF_CERTIFICATES = ("signingCredential.", "timeStamp.", "claimSignature.outsideValidity")
_UNTRUSTED = "signingCredential.untrusted"
_NO_TIME = "timeStamp.untrusted"
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)
log = logging.getLogger("flashvideo_ray")


@dataclass(frozen=True)
class Signature:
    """A signed manifest in a file, and whether it holds."""

    signer: str
    """Common name and organisation of the certificate, as it says itself."""
    faults: tuple[str, ...]
    """Why it does not hold, in C2PA's codes; empty where the file is what was signed."""
    trusted: bool | None
    """Whether the certificate leads to one that is trusted; None where nothing was given to trust."""
    created: str | None
    """The time that the manifest names."""
    timestamp: str | None
    """The time that a timestamp authority confirms: one that is trusted, where something was given to trust."""
    says: Mapping[str, str]
    """What it says of the file: the keys of its MP4, as they were signed."""

    @property
    def holds(self) -> bool:
        """Whether the file is what was signed, and the certificate was good for it."""
        return not self.faults

    @property
    def intact(self) -> bool:
        """Whether the file is what was signed; the certificate may have expired since, say."""
        return all(code.startswith(_OF_CERTIFICATES) for code in self.faults)


class Signer:
    """Signs MP4s with one certificate. Calls may run side by side.

    Args:
        settings: what to sign with.
        patience_seconds: how long a call waits for a timestamp authority or a KMS that is away.

    Raises SettingsError, with what is wrong, for a certificate or a key that would not give credentials that hold, and
    where the authority or the KMS does not answer now.
    """

    def __init__(self, settings: CredentialSettings, patience_seconds: float = 0.0):
        self.settings = settings
        self.patience_seconds = patience_seconds
        self._c2pa = _library()
        self._chain = _read("certificate", settings.certificate)
        self._algorithm = self._checked()
        self._trust = trust_of(settings)
        self._try()

    def sign(self, mp4: bytes, says: Mapping[str, str]) -> bytes:
        """The MP4 with a signed manifest of what it says of itself. Its streams are as they were, and so is faststart.

        Raises SigningError where the timestamp authority or the KMS is away for longer than the patience.
        """
        deadline = time.monotonic() + self.patience_seconds
        delay = _FIRST_DELAY
        while True:
            try:
                return self._signed(mp4, says)
            except SigningError as error:
                if not error.may_pass or time.monotonic() + delay > deadline:
                    raise
                log.warning("%s.mp4 is not signed yet: %s; trying again", says["clip_id"], error)
            time.sleep(delay * random.uniform(0.5, 1.0))  # so that a hundred workers do not come back at once
            delay = min(2 * delay, _LONGEST_DELAY)

    def is_own(self, signature: Signature) -> bool:
        """Whether a signature holds, and its certificate is one of `trust`."""
        return signature.holds and bool(signature.trusted)

    def read(self, mp4: bytes) -> Signature | None:
        """As the function `read`, with what the settings trust."""
        return read(mp4, self._trust)

    def _signed(self, mp4: bytes, says: Mapping[str, str]) -> bytes:
        out = io.BytesIO()
        raised: list[Exception] = []  # by the user's function; the library does not say it
        try:
            # One of each a call: they are cheap, and none is shared between threads.
            with (
                self._c2pa.Context.from_dict({"verify": {"verify_after_sign": False}}) as context,
                self._native_signer(raised) as signer,
                self._c2pa.Builder(json.dumps(_manifest(says)), context) as builder,
            ):
                builder.sign(signer, "video/mp4", io.BytesIO(mp4), out)
        except self._c2pa.C2paError as error:
            raise self._error(str(error), raised) from None
        return out.getvalue()

    def _error(self, error: str, raised: list[Exception]) -> SigningError:
        """Why nothing was signed, with the name of whoever did not do its part."""
        authority = self.settings.timestamp_authority
        if raised:
            return SigningError(f"credentials.signer: {self.settings.signer}: {in_a_line(raised[-1])}", may_pass=True)
        if authority is not None and "http" in error.lower():  # nothing else is asked over the network
            return SigningError(f"credentials.timestamp_authority: {authority} gives no time: {error}", may_pass=True)
        return SigningError(f"credentials: {self.settings.certificate} cannot be signed with: {error}")

    def _native_signer(self, raised: list[Exception]) -> Any:
        authority = self.settings.timestamp_authority
        if self._key is not None:
            info = self._c2pa.C2paSignerInfo(self._algorithm.encode(), self._chain, self._key, authority)
            return self._c2pa.Signer.from_info(info)

        def call(data: bytes) -> bytes:
            try:
                return self._callback(data)
            except Exception as error:  # of whatever service it asks
                raised.append(error)
                return b""  # no signature: the library makes an error of it

        algorithm = getattr(self._c2pa.C2paSigningAlg, self._algorithm.upper())
        return self._c2pa.Signer.from_callback(call, algorithm, self._chain.decode(), authority)

    def _checked(self) -> str:
        """C2PA's name of the algorithm. Says what is wrong with certificate and key in words, where that is known."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

        where = f"credentials.certificate: {self.settings.certificate}"
        try:
            leaf = x509.load_pem_x509_certificates(self._chain)[0]
        except ValueError:
            raise SettingsError(f"{where}: holds no certificates in PEM") from None
        now = dt.datetime.now(dt.UTC)
        self.expires = leaf.not_valid_after_utc
        if self.expires < now:
            raise SettingsError(f"{where}: has expired on {self.expires:%Y-%m-%d}")
        if leaf.not_valid_before_utc > now:
            raise SettingsError(f"{where}: is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
        try:
            purposes = {
                one.dotted_string for one in leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            }
        except x509.ExtensionNotFound:
            purposes = set()
        if not purposes & {*_PURPOSES}:
            raise SettingsError(
                f"{where}: is not for signing media: its extended key usage must have one of "
                f"{', '.join(_PURPOSES.values())}"
            )
        public = leaf.public_key()
        if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in _CURVES:
            algorithm = _CURVES[public.curve.name]
        elif isinstance(public, rsa.RSAPublicKey):
            algorithm = "ps256"
        elif isinstance(public, ed25519.Ed25519PublicKey):
            algorithm = "ed25519"
        else:
            raise SettingsError(f"{where}: has a kind of key that C2PA does not know; use EC P-256, RSA or Ed25519")
        self._key: bytes | None = None
        if self.settings.key is None:
            self._callback = _function(str(self.settings.signer))
            return algorithm
        pem = _read("key", self.settings.key)
        try:
            key = serialization.load_pem_private_key(pem, None)
        except TypeError:
            raise SettingsError(
                f"credentials.key: {self.settings.key}: is encrypted; give it without a pass phrase"
            ) from None
        except ValueError:
            raise SettingsError(f"credentials.key: {self.settings.key}: holds no private key in PEM") from None
        if key.public_key() != public:
            raise SettingsError(f"credentials.key: {self.settings.key}: is not the key of {self.settings.certificate}")
        form = serialization.PrivateFormat.PKCS8
        self._key = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        return algorithm

    def _try(self) -> None:
        """Sign a small video and read it back: what C2PA demands beyond, it says itself."""
        mp4 = video.encode_mp4(np.full((1, 64, 64, 3), 128, np.uint8), 8)
        try:
            found = self.read(self._signed(mp4, {"clip_id": "a trial"}))
        except SigningError as error:
            raise SettingsError(str(error)) from None
        if found is None or found.faults:
            why = ", ".join(found.faults) if found is not None else "nothing was signed"
            raise SettingsError(f"credentials: {self.settings.certificate}: what it signs does not hold: {why}")
        if not found.trusted:
            raise SettingsError(
                f"credentials.trust: {self.settings.trust or self.settings.certificate}: holds no certificate that "
                f"{self.settings.certificate} leads to"
            )


class SigningError(RuntimeError):
    """A video could not be signed. `may_pass` where somebody was asked who may answer in a minute: a KMS, say."""

    def __init__(self, message: str, may_pass: bool = False):
        super().__init__(message)
        self.may_pass = may_pass


def read(mp4: bytes, trust: str | None = None) -> Signature | None:
    """The signed manifest of an MP4, and whether it holds; None where there is none. Nothing is fetched for it.

    Args:
        mp4: the file.
        trust: certificates in PEM that a signer's must lead to.

    Raises SettingsError where c2pa-python is not installed.
    """
    c2pa = _library()
    asked: dict[str, Any] = {
        "verify": {"verify_trust": trust is not None, "remote_manifest_fetch": False, "ocsp_fetch": False}
    }
    if trust is not None:
        asked["trust"] = {"trust_anchors": trust}
    with c2pa.Context.from_dict(asked) as context:
        try:
            with c2pa.Reader("video/mp4", io.BytesIO(mp4), context=context) as reader:
                told = json.loads(reader.json())
        except c2pa.C2paError.ManifestNotFound:
            return None
        except c2pa.C2paError as error:
            return Signature("unknown", (f"its manifest cannot be read: {error}",), None, None, None, {})
    return _signature(told, trust is not None)


def trust_of(settings: CredentialSettings) -> str:
    """The certificates that these settings trust, in PEM: those of `trust`, else the last one of `certificate`.

    Raises SettingsError.
    """
    if settings.trust is not None:
        return trusted(settings.trust)
    found = _CERTIFICATE.findall(_read("certificate", settings.certificate).decode(errors="replace"))
    if not found:
        raise SettingsError(f"credentials.certificate: {settings.certificate}: holds no certificates in PEM")
    return str(found[-1])


def trusted(source: str) -> str:
    """The certificates of a file, or of `env:NAME`, in PEM. Raises SettingsError."""
    text = _read("trust", source).decode(errors="replace")
    if not _CERTIFICATE.search(text):
        raise SettingsError(f"credentials.trust: {source}: holds no certificates in PEM")
    return text


def _signature(told: Mapping[str, Any], asked_for_trust: bool) -> Signature:
    manifest = told["manifests"][told["active_manifest"]]
    results = told.get("validation_results", {}).get("activeManifest", {})
    codes = [each["code"] for each in results.get("failure", [])]
    if not results and told.get("validation_state") == "Invalid":
        codes = [each["code"] for each in told.get("validation_status", [])] or ["invalid"]
    own = manifest.get("signature_info", {})
    noted = {each["code"] for each in results.get("informational", [])}
    assertions = {each["label"]: each["data"] for each in manifest.get("assertions", [])}
    actions: list[Mapping[str, Any]] = []
    for label, data in assertions.items():
        actions += data["actions"] if label.startswith("c2pa.actions") else []
    says = assertions.get(ASSERTION, {})
    return Signature(
        signer=", ".join(dict.fromkeys(filter(None, (own.get("common_name"), own.get("issuer"))))) or "unknown",
        faults=tuple(dict.fromkeys(code for code in codes if code != _UNTRUSTED)),
        trusted=_UNTRUSTED not in codes if asked_for_trust else None,
        created=next((action["when"] for action in actions if "when" in action), None),
        timestamp=own.get("time") if not (asked_for_trust and _NO_TIME in noted) else None,
        says={name: str(value) for name, value in says.items()} if isinstance(says, Mapping) else {},
    )


def _manifest(says: Mapping[str, str]) -> dict[str, Any]:
    software = {"name": "flashvideo-ray", "version": version_of("flashvideo-ray")}
    created = {
        "action": "c2pa.created",
        "when": f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "softwareAgent": software,
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
    }
    return {
        "claim_generator_info": [software],
        "title": f"{says['clip_id']}.mp4",
        "format": "video/mp4",
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}, "created": True},
            {"label": ASSERTION, "data": dict(says), "created": True},
        ],
    }


def _read(name: str, source: str) -> bytes:
    """A PEM, from a file or an environment variable. What is in it is never part of a message."""
    variable = source.removeprefix("env:")
    if variable != source:
        if variable not in os.environ:
            raise SettingsError(
                f"credentials.{name}: the variable {variable} is not set on {socket.gethostname()}; workers have the "
                "environment in which Ray was started"
            )
        return os.environ[variable].encode()
    try:
        with open(source, "rb") as file:
            return file.read()
    except OSError as error:
        raise SettingsError(
            f"credentials.{name}: {source}: {error.strerror} on {socket.gethostname()}; every node needs it"
        ) from None


def _function(path: str) -> Callable[[bytes], bytes]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"credentials.signer: {path} cannot be imported: {error}") from None
    if not callable(found):
        raise SettingsError(f"credentials.signer: {path} is no function")
    return found


@cache
def _library() -> Any:
    try:
        return importlib.import_module("c2pa")
    except ImportError:
        raise SettingsError("credentials need c2pa-python: pip install 'flashvideo-ray[credentials]'") from None
