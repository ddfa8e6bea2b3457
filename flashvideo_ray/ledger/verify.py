"""Does the ledger tell the truth? Every row against the objects it names, and every object against the rows.

A finding is a problem or a notice. Repair makes the ledger true again and leaves the work to the next job: what is
missing or damaged is taken back, so that it is made again; what is whole is kept.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.ledger import damage, decisions, jobs, parquet_log, requests, run_file, tables
from flashvideo_ray.ledger.keys import clip_key, frames_key, latents_key, poster_key, preview_key
from flashvideo_ray.ledger.objects import Objects, as_bytes
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video

Kind = Literal[
    "part",  # a part of the ledger cannot be read; repair sets it aside, under damaged/
    "run",  # run.json is lost or damaged; repair writes it as the newest job left it
    "paper",  # summary.json or audit.json cannot be read; repair deletes it, and `report` or `audit` makes it again
    "status",  # a clips row has a status that ends no candidate; repair takes it back
    "twice",  # a candidate ended again after it was rendered; repair keeps the newest row
    "missing",  # a row names an object that is not there; repair takes the row back, or what it says of the object
    "signature",  # a video that is whole has a signature that does not hold, or is not trusted; not for repair to mend
    "signed anew",  # a clip has another signature than when its row was written; repair writes its sha256 to the row
    "damaged",  # an object cannot be read or is not what its row says; repair deletes it, then as above
    "lost row",  # a preview has no row though its candidate ended; repair writes the row, without scores
    "orphan",  # an object that no row names and no job takes up; repair deletes it if it is named like media
    "adoptable",  # an object that no row names, for the next job to take up or write anew: a notice
    "leftover",  # a file that was being written when its process died; repair deletes it
    "upload",  # a multipart upload that was not completed; repair aborts it
]
FINAL = ("rendered", "rejected", "failed", "skipped")
_FOLDERS = ("previews", "latents", "clips")
# What is compared with the store, of rows that are read whole, so that damage in any column is found.
_KEYS_OF_CLIPS, _KEYS_OF_PREVIEWS = ("clip", "poster"), ("latents", "preview", "poster")
_TOLD_OF_CLIPS = ("bytes", "sha256", "stream_sha256", "frames", "height", "width", "fps")
_BATCH, _WORKERS = 4096, 8  # rows looked at together, and threads that do
Row = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    kind: Kind
    key: str  # of the object, or empty
    clip_id: str | None
    message: str
    repairable: bool = True
    repaired: bool = False

    @property
    def is_notice(self) -> bool:
        """Whether it only needs to be known."""
        return self.kind == "adoptable"


@dataclass(frozen=True)
class Report:
    """What `verify` looked at and found."""

    rows: int
    objects: int
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> list[Finding]:
        """What is wrong and was not repaired."""
        return [finding for finding in self.findings if not finding.is_notice and not finding.repaired]


def verify(
    store: Store,
    *,
    repair: bool = False,
    decode: bool = True,
    trust: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare ledger and store of a run at rest; while a job works, its uploads under way look like leftovers.

    Args:
        store: the run directory.
        repair: mend what can be mended. No job may work on the run meanwhile: hold its claim.
        decode: fetch, hash and decode every object. Otherwise only names and sizes are compared.
        trust: certificates in PEM; videos that are signed must be signed by one that leads to them. None: signatures
            are not looked at.
        progress: called with the number of rows that are done and of all rows.
    """
    check = _Check(store, decode, trust)
    check.papers()
    check.rows(progress or (lambda done, total: None))
    check.strangers()
    check.leftovers()
    if repair:
        check.repair()
    order = sorted(check.findings, key=lambda finding: (finding.kind, finding.key, finding.clip_id or ""))
    findings = tuple(replace(finding, repaired=repair and finding.repairable) for finding in order)
    return Report(check.clips.num_rows + check.previews.num_rows, len(check.objects), findings)


class _Check:
    """Ledger and store as they are, the findings so far, and what would mend them."""

    def __init__(self, store: Store, decode: bool, trust: str | None):
        self.store, self.decode, self.trust = store, decode, trust
        self.digests: dict[str, dict[str, Any]] = {}  # what is to be in the clips rows of candidates, by clip_id
        self.findings: list[Finding] = []
        self.delete: set[str] = set()
        self.mend: list[Callable[[], object]] = []
        self.reopen: dict[tables.Table, set[str]] = {"previews": set(), "clips": set()}
        self.forget: dict[str, set[str]] = defaultdict(set)  # columns whose objects are gone: preview rows by clip_id
        self.lost: set[str] = set()  # candidates whose preview row is to be restored
        # The ledger first: whatever a row names was in the store before the row.
        tables.read(store, "candidates", ["clip_id"], damaged=self._damaged_part)
        previews = self._read("previews", _KEYS_OF_PREVIEWS)
        clips = self._read("clips", (*_KEYS_OF_CLIPS, *_TOLD_OF_CLIPS))
        self.objects = Objects(store, _FOLDERS)
        self.previews = self._with_sizes(previews, _KEYS_OF_PREVIEWS)
        self.clips = self._with_sizes(clips, _KEYS_OF_CLIPS)

    def found(self, kind: Kind, key: str | None, clip_id: str | None, message: str, repairable: bool = True) -> None:
        self.findings.append(Finding(kind, key or "", clip_id, message, repairable and kind != "adoptable"))
        if kind in ("damaged", "orphan", "leftover") and repairable and key:
            self.delete.add(key)

    def papers(self) -> None:
        """What describes the run as a whole, and what people have said about it."""
        for prefix in (decisions.PREFIX, requests.PREFIX):
            parquet_log.read_all(self.store, prefix, damaged=self._damaged_part)
        known = jobs.read(self.store, damaged=self._damaged_part)
        try:
            run_file.read_run(self.store)
        except run_file.DamagedRunError as error:
            self.found("run", "run.json", None, str(error), repairable=bool(known))
            if known:
                self.mend.append(partial(self.store.put, "run.json", jobs.restored_run(known)))
        for key in ("summary.json", "audit.json"):
            try:
                if not isinstance(json.loads(self.store.get(key)), dict):
                    raise ValueError("it holds no keys")
            except FileNotFoundError:
                continue
            except ValueError as error:
                self.found("paper", key, None, f"it cannot be read: {error}")
                self.delete.add(key)

    def rows(self, progress: Progress) -> None:
        """Every row. Clips come first: a candidate whose clip is taken back needs its latents again."""
        self._twice()
        done, total = 0, self.clips.num_rows + self.previews.num_rows
        with ThreadPoolExecutor(_WORKERS) as pool:
            for judged, look in ((self._judged_clips, self._clip), (self._judged_previews, self._preview)):
                rows, sound = judged()
                if not self.decode:  # names and sizes were compared in columns; what is sound so needs no look
                    done += pc.sum(sound, min_count=0).as_py()
                    rows = rows.filter(pc.invert(sound))
                for batch in rows.to_batches(_BATCH):
                    for _ in pool.map(look, batch.to_pylist()):
                        done += 1
                        progress(done, total)

    def strangers(self) -> None:
        """Every object that no row names."""
        named = [self.clips[name] for name in _KEYS_OF_CLIPS] + [self.previews[name] for name in _KEYS_OF_PREVIEWS]
        strange = [(key, size) for key, size in self.objects.without(named) if not _is_partial(key)]
        ids = pa.array([as_bytes(_candidate_of(key)) for key, _ in strange], pa.binary())
        statuses = pc.fill_null(self._ended(ids), "open")
        previewed = pc.is_in(ids, self.previews["clip_id"].cast(pa.binary()).combine_chunks())
        with ThreadPoolExecutor(_WORKERS) as pool:
            for at in range(0, len(strange), _BATCH):
                own = (of.slice(at, _BATCH).to_pylist() for of in (statuses, previewed))
                list(pool.map(self._stranger, strange[at : at + _BATCH], *own))

    def leftovers(self) -> None:
        """What dead processes left half written."""
        root = self.store.path()
        for folder, _, names in os.walk(root) if self.store.is_local else ():
            for path in (f"{folder}/{name}" for name in names if _is_partial(name)):
                with suppress(FileNotFoundError):
                    key = path.removeprefix(root).lstrip("/")
                    message = f"a file that was being written ({os.path.getsize(path)} bytes)"
                    self.found("leftover", key, None, message)
        for key, upload in _uploads(self.store):
            self.found("upload", key, None, f"a multipart upload that was not completed ({upload['Initiated']})")
            self.mend.append(partial(_abort, self.store, upload))

    def repair(self) -> None:
        """Objects first, rows after: stopped in between, the next `verify` finds what is left to do."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(self.store.delete, self.delete))
            list(pool.map(lambda mend: mend(), self.mend))
        clips = self._whole("clips", {*self.digests} | self.reopen["clips"] | self.lost)
        previews = self._whole("previews", {*self.forget} | self.reopen["previews"])
        signed = _of(clips, {*self.digests})
        told = [{**row, **self.digests[row["clip_id"]]} for row in signed.to_pylist()]
        tables.supersede(self.store, "clips", pa.Table.from_pylist(told, schema=clips.schema))
        if self.digests or any(finding.kind == "twice" for finding in self.findings):
            tables.compact(self.store)
        tables.reopen(self.store, "clips", _of(clips, self.reopen["clips"]))
        tables.reopen(self.store, "previews", _of(previews, self.reopen["previews"]))
        kept = _of(previews, self.forget.keys() - self.reopen["previews"])
        blank = [{**row, **dict.fromkeys(self.forget[row["clip_id"]])} for row in kept.to_pylist()]
        tables.supersede(self.store, "previews", pa.Table.from_pylist(blank, schema=previews.schema))
        tables.supersede(self.store, "previews", self._restored(_of(clips, self.lost)))

    def _read(self, name: tables.Table, columns: Iterable[str]) -> pa.Table:
        return tables.read(self.store, name, made=partial(_only, names=columns), damaged=self._damaged_part)

    def _whole(self, name: tables.Table, clip_ids: set[str]) -> pa.Table:
        """All columns of some rows; parts that cannot be read were set aside."""
        return tables.read(self.store, name, only=pa.array(sorted(clip_ids), pa.string()))

    def _with_sizes(self, rows: pa.Table, columns: Iterable[str]) -> pa.Table:
        """Rows, and beside each column of keys how large those objects are; null where there is none."""
        for name in columns:
            rows = rows.append_column(_size_of(name), self.objects.sizes(rows[name]))
        return rows

    def _damaged_part(self, key: str, error: Exception) -> None:
        self.found("part", key, None, str(error))
        self.mend.append(partial(_set_aside, self.store, key))

    def _twice(self) -> None:
        columns = ["clip_id", "status", "at"]
        found = parquet_log.read_all(self.store, "ledger/clips-", columns, damaged=lambda key, error: None)
        if sum(part.num_rows for part in found.values()) == self.clips.num_rows:
            return
        rows = pa.concat_tables(found.values(), promote_options="permissive")
        counts = pc.value_counts(rows["clip_id"])
        several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        # The same row in two parts is only what a compaction leaves that was killed.
        rows = rows.filter(pc.is_in(rows["clip_id"], several)).group_by(columns).aggregate([])
        last: dict[str, Row] = {}
        for row in rows.sort_by("at").to_pylist():
            before = last.get(row["clip_id"])
            ended = before is not None and before["status"] == "rendered" and row["status"] != "open"
            if before is not None and ended and not tables.is_newer_version(row, before):
                self.found("twice", None, row["clip_id"], f"it was rendered, and ended again as {row['status']}")
            last[row["clip_id"]] = row

    def _ended(self, clip_ids: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """How candidates ended, in the clips table; null for those that have not."""
        known = self.clips["clip_id"].cast(pa.binary()).combine_chunks()
        return self.clips["status"].take(pc.index_in(clip_ids.cast(pa.binary()), known))

    def _judged_clips(self) -> tuple[pa.Table, pa.Array]:
        """Clips rows, and of each whether it is as it should be by names and sizes."""
        rows = self.clips
        has_clip = pc.or_(pc.equal(rows["status"], "rendered"), rows["clip"].is_valid())
        there = rows[_size_of("clip")]
        right = pc.and_(there.is_valid(), pc.fill_null(pc.equal(there, rows["bytes"]), True))
        sound = pc.or_(pc.invert(has_clip), pc.and_(right, _there_or_none(rows, "poster")))
        return rows, pc.and_(pc.is_in(rows["status"], pa.array(FINAL)), sound)

    def _judged_previews(self) -> tuple[pa.Table, pa.Array]:
        """The same of previews. `is open`: whether the candidate's clip is still to be made."""
        rows = self.previews
        taken_back = pc.is_in(rows["clip_id"], pa.array(sorted(self.reopen["clips"]), pa.string()))
        is_open = pc.or_(pc.equal(pc.fill_null(self._ended(rows["clip_id"]), "skipped"), "skipped"), taken_back)
        missed = pc.and_(rows["latents"].is_null(), pc.and_(is_open, pc.not_equal(rows["status"], "rejected")))
        sound = pc.invert(missed)
        for name in _KEYS_OF_PREVIEWS:
            sound = pc.and_(sound, _there_or_none(rows, name))
        return rows.append_column("is open", is_open), sound

    def _clip(self, row: Row) -> None:
        clip_id, key = row["clip_id"], row["clip"]
        if row["status"] not in FINAL:
            self.found("status", None, clip_id, f"its clips row has the status {row['status']!r}")
            self.reopen["clips"].add(clip_id)
        elif row["status"] == "rendered" or key is not None:  # what was audited has a clip, too
            # A clip that was signed anew may have another size.
            size = row["bytes"] if self.trust is None or not self.decode else None
            if self._good(key, row[_size_of("clip")], clip_id, partial(self._clip_fault, row), size):
                self._poster(row, key)
            else:
                self.reopen["clips"].add(clip_id)

    def _clip_fault(self, row: Row, data: bytes) -> str | None:
        """What is wrong with the bytes of a clip; what is wrong with its signature alone is a finding of its own."""
        message = damage.clip_fault(data, row, self.trust)
        if message == damage.OTHER_BYTES and damage.is_signed_anew(data, row, self.trust):
            self.found(
                "signed anew", row["clip"], row["clip_id"], "its signature is another than when its row was written"
            )
            self.digests[row["clip_id"]] = video.digests(data)
            return None
        if message is None:
            self._signature(row["clip"], row["clip_id"], data)
        return message

    def _video_fault(self, key: str, clip_id: str, data: bytes) -> str | None:
        message = damage.video_fault(data, clip_id, self.trust)
        if message is None:
            self._signature(key, clip_id, data)
        return message

    def _signature(self, key: str, clip_id: str, data: bytes) -> None:
        if message := damage.signature_fault(data, clip_id, self.trust):
            self.found("signature", key, clip_id, message, repairable=False)

    def _preview(self, row: Row) -> None:
        clip_id, key, is_open = row["clip_id"], row["preview"], row["is open"]
        gone = set()
        if row["latents"] is None:
            if is_open and row["status"] != "rejected":
                self.found("missing", None, clip_id, "its latents were not kept, and its clip is still to be made")
                gone.add("latents")
        elif not self._good(
            row["latents"], row[_size_of("latents")], clip_id, damage.fault_of(row["latents"], clip_id)
        ):
            gone.add("latents")
        if key is not None and not self._good(
            key, row[_size_of("preview")], clip_id, partial(self._video_fault, key, clip_id)
        ):
            gone.add("preview")
        if not self._poster(row, key if "preview" not in gone else None):
            gone.add("poster")
        if gone and is_open:
            self.reopen["previews"].add(clip_id)
        elif gone:
            self.forget[clip_id] = gone

    def _poster(self, row: Row, source: str | None) -> bool:
        """Whether a poster is good, or can be made again from its video."""
        key = row["poster"]
        if key is None or self._good(key, row[_size_of("poster")], row["clip_id"], damage.image_fault):
            return True
        if source is not None:
            self.delete.discard(key)
            self.mend.append(
                lambda: self.store.put(key, video.poster_jpeg(video.decode_mp4(self.store.get(source))[0]))
            )
        return source is not None

    def _stranger(self, of: tuple[str, int], ended: str, is_previewed: bool) -> None:
        key, there = of
        clip_id, suffix = _candidate_of(key), posixpath.splitext(key)[1]
        own = (latents_key(clip_id), frames_key(clip_id), preview_key(clip_id), clip_key(clip_id))
        status = "open" if clip_id in self.reopen["clips"] else ended
        if key not in (*own, poster_key(own[2]), poster_key(own[3])):
            repairable = suffix in (".mp4", ".mkv", ".jpg", ".safetensors")
            self.found("orphan", key, None, "no row names it", repairable=repairable)
        elif not self._good(key, there, clip_id, damage.fault_of(key, clip_id, self.trust)):
            return
        elif status in ("open", "skipped", "failed"):
            when = "a job that retries failures" if status == "failed" else "the next job"
            self.found("adoptable", key, clip_id, f"no row names it; {when} takes it up or writes it anew")
        elif not key.startswith("clips/") and not is_previewed:
            self.found("lost row", key, clip_id, f"its candidate is {status}, and its preview has no row")
            self.lost.add(clip_id)
        else:
            self.found("orphan", key, clip_id, f"no row names it, and its candidate is {status}")

    def _good(
        self, key: str | None, there: int | None, clip_id: str, fault: damage.Check, size: int | None = None
    ) -> bool:
        """Whether an object is there (then it has so many bytes) and as it should be; if not, that is a finding."""
        if key is None or there is None:
            self.found("missing", key, clip_id, "its row names no object" if key is None else "there is no such object")
            return False
        message: str | None = None
        if size is not None and size != there:
            message = f"{there} bytes, and {size} in its row"
        elif self.decode:
            message = fault(self.store.get(key))
        if message is not None:
            self.found("damaged", key, clip_id, message)
        return message is None

    def _there(self, keys: list[str]) -> list[str | None]:
        """The keys, without those that there is no object of."""
        sizes = self.objects.sizes(pa.array(keys, pa.string())).to_pylist()
        return [key if size is not None else None for key, size in zip(keys, sizes, strict=True)]

    def _restored(self, clips: pa.Table) -> pa.Table:
        """Preview rows, from what these clips rows say and what is in the store."""
        extra = [field for field in clips.schema if field.name not in tables.CLIPS.names]
        ids = clips["clip_id"].to_pylist()
        previews = [*map(preview_key, ids)]
        frames, latents, preview, poster = (
            self._there(keys)
            for keys in ([*map(frames_key, ids)], [*map(latents_key, ids)], previews, [*map(poster_key, previews)])
        )
        rows = []
        for place, row in enumerate(clips.to_pylist()):
            keys = {"latents": frames[place] or latents[place], "preview": preview[place], "poster": poster[place]}
            there = {name: None if key in self.delete else key for name, key in keys.items()}
            survived = {} if row["status"] == "rejected" else {"status": "previewed", "reason": None}
            rows.append({**row, **there, **survived, "device": None, "host": None})
        return pa.Table.from_pylist(rows, schema=tables.extended(tables.PREVIEWS, extra))


def _only(rows: pa.Table, names: Iterable[str]) -> pa.Table:
    return rows.select([name for name in ("clip_id", "status", "at", *names) if name in rows.column_names])


def _size_of(column: str) -> str:
    return f"{column} size"


def _there_or_none(rows: pa.Table, column: str) -> pa.ChunkedArray:
    return pc.or_(rows[column].is_null(), rows[_size_of(column)].is_valid())


def _candidate_of(key: str) -> str:
    return posixpath.splitext(posixpath.basename(key))[0]


def _of(table: pa.Table, clip_ids: set[str]) -> pa.Table:
    return table.filter(pc.is_in(table["clip_id"], pa.array(sorted(clip_ids), pa.string())))


def _is_partial(key: str) -> bool:
    return posixpath.basename(key).startswith(".") and key.endswith(".partial")


def _uploads(store: Store) -> Iterator[tuple[str, dict[str, Any]]]:
    """Multipart uploads below the run that were begun and not completed; none where the store is not S3."""
    if not hasattr(store.fs, "call_s3"):
        return
    bucket, _, prefix = store.path().partition("/")
    page: dict[str, Any] = {}
    while True:
        answer = store.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/", **page)
        for upload in answer.get("Uploads", []):
            if upload["Key"].startswith(f"{prefix}/"):
                yield upload["Key"].removeprefix(f"{prefix}/"), upload
        if not answer.get("IsTruncated"):
            return
        page = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def _set_aside(store: Store, key: str) -> None:
    store.put(f"damaged/{posixpath.basename(key)}", store.get(key))
    store.delete(key)


def _abort(store: Store, upload: dict[str, Any]) -> None:
    bucket = store.path().partition("/")[0]
    store.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
