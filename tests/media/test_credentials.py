"""Clips are signed with what settings name, and what is wrong with a certificate is said before anything is made."""

from __future__ import annotations

import datetime as dt
import io
import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import c2pa
import guides
import numpy as np
import pytest
from authority import Authority, serve_time
from cryptography.x509.oid import ExtendedKeyUsageOID
from support import boxes

from flashvideo_ray import Settings
from flashvideo_ray.errors import InputError
from flashvideo_ray.graph import checks
from flashvideo_ray.graph.publishing import Publisher
from flashvideo_ray.ledger.keys import clip_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import credentials, provenance, video
from flashvideo_ray.settings import CredentialSettings, SettingsError

SAYS = {"clip_id": "ab", "prompt": "a star", "seed": "3", "model_fingerprints": "{}"}
FRAMES = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), dtype=np.uint8)
MP4 = video.encode_mp4(FRAMES, 8, metadata=SAYS, xmp=provenance.XMP)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def right(authority: Authority) -> dict[str, Any]:
    return authority.issue()


def signer(**settings: Any) -> credentials.Signer:
    return credentials.Signer(CredentialSettings(**settings))


@pytest.mark.parametrize("kind", ["ec", "ed25519", "rsa"])
def test_a_signed_clip_is_the_same_clip_and_says_who_made_it(authority: Authority, kind: str) -> None:
    signed = signer(**authority.issue(kind, kind=kind)).sign(MP4, SAYS)
    assert video.stream_sha256(signed) == video.stream_sha256(MP4)
    assert video.probe(signed).metadata == SAYS
    assert boxes(signed).index("moov") < boxes(signed).index("mdat")
    found = credentials.read(signed, authority.root.read_text())
    assert found is not None
    assert (found.holds, found.trusted, found.says) == (True, True, SAYS)
    assert found.signer == f"Example Studio {kind}, Example Studio"
    assert found.created is not None

    # And to the library's own reader.
    with c2pa.Reader("video/mp4", io.BytesIO(signed)) as reader:
        told = json.loads(reader.json())
    assert told["validation_state"] == "Valid"
    manifest = told["manifests"][told["active_manifest"]]
    [actions] = [each["data"]["actions"] for each in manifest["assertions"] if each["label"] == "c2pa.actions.v2"]
    assert [(each["action"], each["digitalSourceType"]) for each in actions] == [
        ("c2pa.created", provenance.DIGITAL_SOURCE_TYPE)
    ]
    assert manifest["claim_generator_info"][0]["name"] == "flashvideo-ray"


def test_a_changed_byte_and_a_foreign_certificate_are_seen(
    authority: Authority, right: dict[str, Any], tmp_path: Path
) -> None:
    signed = signer(**right).sign(MP4, SAYS)
    flipped = bytearray(signed)
    flipped[signed.index(b"mdat") + 40] ^= 1
    found = credentials.read(bytes(flipped), authority.root.read_text())
    assert found is not None
    assert found.faults == ("assertion.bmffHash.mismatch",)
    stranger = Authority(tmp_path, "Somebody")
    found = credentials.read(signed, stranger.root.read_text())
    assert found is not None
    assert (found.holds, found.trusted) == (True, False)
    assert credentials.read(signed).trusted is None  # type: ignore[union-attr]
    assert credentials.read(MP4) is None


def test_the_key_may_be_in_variables_and_in_a_vault(
    authority: Authority, right: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, file in right.items():
        monkeypatch.setenv(f"CLIPS_{name.upper()}", Path(file).read_text())
    in_variables = {"certificate": "env:CLIPS_CERTIFICATE", "key": "env:CLIPS_KEY"}
    monkeypatch.setenv("FLASHVIDEO_TEST_VAULT", right["key"])
    in_vault = {"certificate": right["certificate"], "signer": "authority.in_a_vault"}
    for each in (in_variables, in_vault):
        found = credentials.read(signer(**each).sign(MP4, SAYS), authority.root.read_text())
        assert found is not None
        assert (found.holds, found.trusted) == (True, True)


def wrong(authority: Authority, case: str, folder: Path) -> dict[str, Any]:
    """Settings with one thing wrong."""
    good = authority.issue()
    other = {"another's key": lambda: {**good, "key": authority.issue("other")["key"]}}
    other |= {
        "expired": lambda: authority.issue("expired", days=(-30, -1)),
        "not yet": lambda: authority.issue("early", days=(1, 30)),
        "no purpose": lambda: authority.issue("none", purposes=()),
        "of a server": lambda: authority.issue("server", purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)),
        "signs nothing": lambda: authority.issue("mute", signs=False),
        "no file": lambda: {**good, "certificate": str(folder / "none.pem")},
        "no variable": lambda: {**good, "key": "env:FLASHVIDEO_NO_SUCH"},
        "key for certificate": lambda: {**good, "certificate": good["key"]},
        "certificate for key": lambda: {**good, "key": good["certificate"]},
        "untrusted": lambda: {**good, "trust": str(Authority(folder / "b", "Somebody").root)},
        "no time": lambda: {**good, "timestamp_authority": "http://127.0.0.1:9/time"},
        "no vault": lambda: {
            "certificate": good["certificate"],
            "signer": "authority.in_a_vault_that_is_away",
        },
        "no function": lambda: {"certificate": good["certificate"], "signer": "authority.nothing"},
        "signs with another": lambda: {"certificate": good["certificate"], "signer": "os.urandom"},
    }
    return other[case]()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("another's key", "credentials.key: .*other.key: is not the key of .*clips.pem"),
        ("expired", "credentials.certificate: .*expired.pem: has expired on"),
        ("not yet", "credentials.certificate: .*early.pem: is not valid before"),
        ("no purpose", "credentials.certificate: .*none.pem: is not for signing media: .* emailProtection"),
        ("of a server", "credentials.certificate: .*server.pem: is not for signing media"),
        ("signs nothing", "credentials: .*mute.pem"),
        ("no file", "credentials.certificate: .*none.pem: No such file"),
        ("no variable", "credentials.key: the variable FLASHVIDEO_NO_SUCH is not set"),
        ("key for certificate", "credentials.certificate: .*clips.key: holds no certificates"),
        ("certificate for key", "credentials.key: .*clips.pem: holds no private key"),
        ("untrusted", "credentials.trust: .*root.pem: holds no certificate that .*clips.pem leads to"),
        ("no time", "credentials.timestamp_authority: http://127.0.0.1:9/time gives no time: "),
        ("no vault", "credentials.signer: authority.in_a_vault_that_is_away: ConnectionError: the vault is away"),
        ("no function", "credentials.signer: authority.nothing cannot be imported"),
        ("signs with another", "credentials.signer: os.urandom: TypeError"),
    ],
)
def test_what_would_not_hold_is_refused_in_one_message_before_anything_is_started(
    authority: Authority, case: str, message: str, tmp_path: Path
) -> None:
    settings = Settings.of_tree({"credentials": wrong(authority, case, tmp_path)})
    with pytest.raises(InputError, match=message) as error:
        checks.check(settings)
    assert "\n" not in str(error.value)
    assert "-----" not in str(error.value)
    checks.check(settings, ("text", "preview", "score"))  # nothing would be signed there


def test_a_signed_clip_holds_the_time_that_an_authority_confirms(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "Example Time")
    both = tmp_path / "both.pem"
    both.write_text(authority.root.read_text() + other.root.read_text())
    ends = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=3)
    with serve_time(other) as url:
        own = authority.issue("short", until=ends)
        signed = signer(**own, timestamp_authority=url, trust=str(both)).sign(MP4, SAYS)
        without = signer(**own).sign(MP4, SAYS)
    found = credentials.read(signed, both.read_text())
    assert found is not None
    assert (found.holds, found.trusted) == (True, True)
    assert found.timestamp is not None
    assert dt.datetime.fromisoformat(found.timestamp) < ends
    assert credentials.read(signed).timestamp == found.timestamp  # type: ignore[union-attr]
    for mp4, trust in ((without, both), (signed, authority.root)):
        assert credentials.read(mp4, trust.read_text()).timestamp is None  # type: ignore[union-attr]

    # It is what a signature lives on when its certificate has expired.
    while dt.datetime.now(dt.UTC) < ends + dt.timedelta(seconds=1):
        time.sleep(0.1)
    assert credentials.read(signed, both.read_text()).holds  # type: ignore[union-attr]
    assert not credentials.read(without, both.read_text()).holds  # type: ignore[union-attr]
    assert not credentials.read(signed, authority.root.read_text()).holds  # type: ignore[union-attr]


def test_an_authority_that_is_away_is_waited_for_and_costs_no_clip(
    authority: Authority, right: dict[str, Any], tmp_path: Path
) -> None:
    def publisher(url: str, patience: float) -> Publisher:
        tree = {"credentials": {**right, "timestamp_authority": url}, "store_patience_seconds": patience}
        made = Publisher(Settings.of_tree(tree), Store(str(tmp_path)), 8, {})
        made.load(signed=True)
        return made

    one, other = ({"clip_id": name * 20, "prompt": "a star", "seed": 1} for name in "ab")
    with serve_time(authority) as url:
        hurried, patient = publisher(url, 0.0), publisher(url, 30.0)
    with pytest.raises(credentials.SigningError, match=f"credentials.timestamp_authority: {url} gives no time"):
        hurried.clip(clip_key(one["clip_id"]), one, FRAMES)
    kept = Store(str(tmp_path)).get(clip_key(one["clip_id"]))
    assert credentials.read(kept) is None

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(patient.clip, clip_key(other["clip_id"]), other, FRAMES)
        time.sleep(0.1)
        assert not waiting.done()
        with serve_time(authority, int(url.rstrip("/").rpartition(":")[2])):
            mp4s = [waiting.result(), *(hurried.published(clip_key(one["clip_id"]), one) or ())[:1]]
    for mp4, row in zip(mp4s, (other, one), strict=True):
        assert Store(str(tmp_path)).get(clip_key(row["clip_id"])) == mp4
        found = credentials.read(mp4, authority.root.read_text())
        assert found is not None
        assert (found.holds, found.says["clip_id"], found.timestamp is None) == (True, row["clip_id"], False)
    assert video.stream_sha256(mp4s[1]) == video.stream_sha256(kept)


@pytest.mark.parametrize("name", ["certificate", "key", "trust"])
def test_a_key_in_the_settings_themselves_is_refused_and_not_shown(right: dict[str, Any], name: str) -> None:
    pem = Path(right["key"]).read_text()
    for tree in ({**right, name: pem}, {**right, name: pem.replace("\n", " ")}):
        with pytest.raises(SettingsError, match=rf"credentials\.{name}: is the path of a file") as error:
            Settings.of_tree({"credentials": tree})
        assert pem.splitlines()[1][:8] not in str(error.value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"certificate": "a.pem"}, "needs a key or a signer"),
        ({"certificate": "a.pem", "key": "a.key", "signer": "a.b"}, "one of them alone"),
        ({"certificate": "a.pem", "key": "a.key", "timestamp_authority": "ftp://a"}, "timestamp_authority: is a URL"),
        ({"certificate": "a.pem", "keys": "a.key"}, "did you mean credentials.key?"),
    ],
)
def test_how_to_sign_is_said_in_one_way(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        Settings.of_tree({"credentials": tree})


def test_credentials_are_no_part_of_the_recipe_and_files_are_named_in_full(
    right: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(right["key"]).parent)
    settings = Settings.of_tree({"credentials": {"certificate": "clips.pem", "key": "clips.key"}})
    assert settings.credentials == CredentialSettings(**right)
    assert settings.recipe() == Settings().recipe()


def test_the_certificate_of_the_guide_signs(tmp_path: Path) -> None:
    commands = guides.block("docs/credentials.md", "openssl")
    done = subprocess.run(["bash", "-e"], input=commands, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own = {"certificate": str(tmp_path / "clips.pem"), "key": str(tmp_path / "clips.key")}
    found = credentials.read(signer(**own).sign(MP4, SAYS), (tmp_path / "root.pem").read_text())
    assert found is not None
    assert (found.holds, found.trusted) == (True, True)
