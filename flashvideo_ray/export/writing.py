"""Writing one shard: videos are fetched and checked, and when the shard is whole in DEST its index is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from flashvideo_ray.errors import JobError
from flashvideo_ray.export import formats
from flashvideo_ray.export.destination import index_key, parquet
from flashvideo_ray.export.options import Format
from flashvideo_ray.export.samples import Medium
from flashvideo_ray.ledger.store import Store

_CONNECTIONS = 8


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of one export, in this process or in a task of Ray; the bytes are the same."""

    source: Store
    target: Store
    format: Format
    key: str
    media: tuple[Medium, ...]
    copies: bool

    def __call__(self, shard: str, rows: pa.Table, keys: pa.Table) -> int:
        """Write a shard and its index. Returns how many bytes it has.

        Args:
            shard: its key in DEST.
            rows: what it holds, without videos.
            keys: of the same rows, where their videos are in the run, and what the ledger says of their bytes.

        Raises JobError for a video that is not what the ledger says.
        """
        places = keys.to_pylist()
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            videos = list(pool.map(self._videos, places))
            if self.copies:
                list(pool.map(self._copy, rows[self.key].to_pylist(), videos))
        embedded = [] if self.copies else [medium.column for medium in self.media]
        data = formats.encode(self.format, rows, embedded, videos)
        self.target.put(shard, data)
        columns = {
            self.key: rows[self.key],
            "split": rows["split"],
            "shard": pa.array([shard] * rows.num_rows, pa.string()),
            "shard_bytes": pa.array([len(data)] * rows.num_rows, pa.int64()),
            "shard_sha256": pa.array([hashlib.sha256(data).hexdigest()] * rows.num_rows, pa.string()),
        }
        for medium in self.media:
            sums = [hashlib.sha256(video[medium.column]).hexdigest() for video in videos]
            columns[f"{medium.column}_sha256"] = pa.array(sums, pa.string())
        if not self.media and "sha256" in keys.column_names:
            columns["video_sha256"] = keys["sha256"]
        self.target.put(index_key(shard), parquet(pa.table(columns)))
        return len(data)

    def _videos(self, place: Mapping[str, str | None]) -> formats.Video:
        return {medium.column: self._video(medium, place) for medium in self.media}

    def _video(self, medium: Medium, place: Mapping[str, str | None]) -> bytes:
        key = place[medium.key]
        assert key is not None, "rows without a video are left out before"
        mend = f"`flashvideo-ray verify {self.source.url} --repair` mends it, and the same export goes on"
        try:
            data = self.source.get(key)
        except FileNotFoundError:
            raise JobError(f"{self.source.url}/{key} is not there any more; {mend}") from None
        told = None if medium.sha256 is None else place[medium.sha256]
        if told is not None and hashlib.sha256(data).hexdigest() != told:
            raise JobError(f"{self.source.url}/{key} has other bytes than the ledger says (sha256 {told}); {mend}")
        return data

    def _copy(self, name: str, video: formats.Video) -> None:
        for data in video.values():
            self.target.put(media_key(name), data)


def media_key(clip_id: str) -> str:
    """Where a copied video is in DEST."""
    return f"media/{clip_id[:2]}/{clip_id}.mp4"
