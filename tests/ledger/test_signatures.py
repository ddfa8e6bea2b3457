"""`verify` where clips are signed: what was changed, exchanged or signed by somebody else is named."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from authority import Authority

from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.keys import clip_key, poster_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.verify import verify
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.media import credentials, video
from flashvideo_ray.settings import CredentialSettings, LedgerSettings

ONE, OTHER, PLAIN = "aa" * 10, "bb" * 10, "cc" * 10
FRAMES = {name: np.full((3, 32, 48, 3), 60 * k, np.uint8) for k, name in enumerate((ONE, OTHER, PLAIN), start=1)}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def signer(authority: Authority) -> credentials.Signer:
    return credentials.Signer(CredentialSettings(**authority.issue()))


def mp4(clip_id: str) -> bytes:
    return video.encode_mp4(FRAMES[clip_id], 8, metadata={"clip_id": clip_id})


@pytest.fixture
def run(tmp_path: Path, signer: credentials.Signer) -> Store:
    """Two signed clips, and one from before."""
    store = Store(str(tmp_path / "run"))
    writer = Writer(store, "clips", tables.CLIPS, LedgerSettings())
    for clip_id in FRAMES:
        data = mp4(clip_id) if clip_id == PLAIN else signer.sign(mp4(clip_id), {"clip_id": clip_id})
        key = clip_key(clip_id)
        store.put(poster_key(key), video.poster_jpeg(FRAMES[clip_id]))
        store.put(key, data)
        row = {"clip_id": clip_id, "id": clip_id, "prompt": "a", "seed": 1, "candidate": 0, "status": "rendered"}
        writer.append({**row, "clip": key, "poster": poster_key(key), "fps": 8.0, **video.digests(data)})
    writer.flush()
    return store


def flip(store: Store, signer: credentials.Signer, folder: Path) -> None:
    data = bytearray(store.get(clip_key(ONE)))
    data[data.index(b"mdat") + 40] ^= 1
    store.put(clip_key(ONE), bytes(data))


def swap(store: Store, signer: credentials.Signer, folder: Path) -> None:
    store.put(clip_key(ONE), store.get(clip_key(OTHER)))


def forge(store: Store, signer: credentials.Signer, folder: Path) -> None:
    other = credentials.Signer(CredentialSettings(**Authority(folder, "Somebody").issue()))
    store.put(clip_key(ONE), other.sign(mp4(ONE), {"clip_id": ONE}))


def relabel(store: Store, signer: credentials.Signer, folder: Path) -> None:
    """The keys of its container say what is expected, and the signed manifest does not."""
    store.put(clip_key(ONE), signer.sign(mp4(ONE), {"clip_id": OTHER}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (flip, "it is not what was signed: assertion.bmffHash.mismatch"),
        (swap, f"its signed manifest names the candidate {OTHER}"),
        (forge, "it is signed with a certificate that is not trusted: Somebody clips, Somebody"),
        (relabel, f"its signed manifest names the candidate {OTHER}"),
    ],
)
def test_what_is_wrong_with_a_signed_clip_is_named(
    run: Store,
    signer: credentials.Signer,
    authority: Authority,
    tmp_path: Path,
    harm: Callable[..., None],
    message: str,
) -> None:
    trust = authority.root.read_text()
    assert verify(run, trust=trust).findings == ()
    harm(run, signer, tmp_path)
    [finding] = verify(run, trust=trust).findings
    assert (finding.kind, finding.key, finding.message) == ("damaged", clip_key(ONE), message)


def test_a_clip_that_was_stored_once_more_is_no_damage_and_its_row_is_mended(
    run: Store, signer: credentials.Signer, authority: Authority
) -> None:
    trust = authority.root.read_text()
    again = signer.sign(mp4(ONE), {"clip_id": ONE})
    assert again != run.get(clip_key(ONE))
    run.put(clip_key(ONE), again)
    [finding] = verify(run, trust=trust, repair=True).findings
    assert (finding.kind, finding.clip_id, finding.repaired) == ("signed anew", ONE, True)
    assert verify(run, trust=trust).findings == verify(run).findings == ()
    rows: dict[str, Any] = {row["clip_id"]: row for row in tables.read(run, "clips").to_pylist()}
    assert {name: rows[ONE][name] for name in ("bytes", "sha256", "stream_sha256")} == video.digests(again)
    assert run.get(clip_key(ONE)) == again


def test_a_certificate_that_has_expired_costs_no_clip(run: Store, tmp_path: Path) -> None:
    trust = Authority(tmp_path / "b", "Somebody").root.read_text()
    before = {row["clip_id"]: row["status"] for row in tables.read(run, "clips").to_pylist()}
    short = Authority(tmp_path / "c")
    ends = time.time() + 3
    own = short.issue("short", until=dt.datetime.fromtimestamp(ends, dt.UTC))
    data = credentials.Signer(CredentialSettings(**own)).sign(mp4(ONE), {"clip_id": ONE})
    run.put(preview_key(ONE), data)
    preview = {"clip_id": ONE, "id": ONE, "prompt": "a", "seed": 1, "candidate": 0, "status": "previewed"}
    writer = Writer(run, "previews", tables.PREVIEWS, LedgerSettings())
    writer.append({**preview, "preview": preview_key(ONE), "latents": None})
    writer.flush()
    while time.time() < ends + 1:
        time.sleep(0.1)
    found = {(each.kind, each.key): each.message for each in verify(run, trust=short.root.read_text()).findings}
    assert found["signature", preview_key(ONE)] == "its signature does not hold: signingCredential.expired"

    # Nor does a certificate that is not trusted.
    report = verify(run, trust=trust, repair=True)
    assert {(each.kind, each.key) for each in report.problems} >= {("signature", clip_key(k)) for k in (ONE, OTHER)}
    assert {row["clip_id"]: row["status"] for row in tables.read(run, "clips").to_pylist()} == before
    assert run.exists(clip_key(ONE))
    assert run.exists(preview_key(ONE))
