"""Where the bytes of a video become final: encoded, marked as machine-made, signed, stored, with its poster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashvideo_ray.ledger.keys import poster_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import provenance, video
from flashvideo_ray.media.credentials import Signer, SigningError
from flashvideo_ray.settings import Settings


class Publisher:
    """Publishes the previews or the clips of one actor, in batch jobs and in the service alike."""

    def __init__(self, settings: Settings, store: Store, fps: float, run: Mapping[str, str]):
        self.settings = settings
        self.store = store
        self.fps = fps
        self.run = dict(run)
        self.signer: Signer | None = None

    def load(self, signed: bool) -> None:
        """Read the key, where videos are to be signed. Raises SettingsError where this node has none that fits."""
        if signed and self.settings.credentials is not None:
            self.signer = Signer(self.settings.credentials, self.settings.store_patience_seconds)

    def preview(self, key: str, row: Mapping[str, Any], frames: video.Frame) -> None:
        """Store a preview and its poster. Frames are RGB uint8 `[frames, height, width, 3]`."""
        said = self.metadata(row)
        mp4 = video.encode_mp4(frames, self.fps, crf=self.settings.video.preview_crf, metadata=said, xmp=provenance.XMP)
        self.store.put(key, self._signed(mp4, said))
        self.store.put(poster_key(key), video.poster_jpeg(frames))

    def clip(self, key: str, row: Mapping[str, Any], frames: video.Frame) -> bytes:
        """Store a clip after its poster; returns the clip's bytes.

        Raises SigningError where it cannot be signed. It is stored all the same: what it cost is kept, and `published`
        signs it when the candidate is tried again.
        """
        own, said = self.settings.video, self.metadata(row)
        mp4 = video.encode_mp4(
            frames,
            self.fps,
            crf=own.clip_crf,
            codec=own.codec,
            preset=own.encoder_preset,
            metadata=said,
            xmp=provenance.XMP,
        )
        self.store.put(poster_key(key), video.poster_jpeg(frames))
        try:
            mp4 = self._signed(mp4, said)
        except SigningError:
            self.store.put(key, mp4)
            raise
        self.store.put(key, mp4)
        return mp4

    def published(self, key: str, row: Mapping[str, Any]) -> tuple[bytes, video.VideoInfo] | None:
        """A clip that was stored by a job that died before the ledger had it, and what it holds.

        It counts if it decodes and says that it is this candidate, made with these settings and weights. One that is to
        be signed and is not yet, is signed; one whose signature does not hold, or is another's, does not count.
        """
        if not self.store.exists(key):
            return None
        mp4 = self.store.get(key)
        try:
            info = video.probe(mp4, count=True)
        except ValueError:
            return None
        said = self.metadata(row)
        if not provenance.says_the_same(info.metadata, said):
            return None
        if self.signer is not None:
            signature = self.signer.read(mp4)
            if signature is None:
                mp4 = self._signed(mp4, said)
                self.store.put(key, mp4)
            elif not self.signer.is_own(signature):
                return None
        if not self.store.exists(poster_key(key)):
            self.store.put(poster_key(key), video.poster_jpeg(video.decode_mp4(mp4)[0]))
        return mp4, info

    def _signed(self, mp4: bytes, said: Mapping[str, str]) -> bytes:
        return mp4 if self.signer is None else self.signer.sign(mp4, said)

    def metadata(self, row: Mapping[str, Any]) -> dict[str, str]:
        """What the video of a row says of itself."""
        return {**provenance.of_candidate(row, self.settings.video.metadata), **self.run}
