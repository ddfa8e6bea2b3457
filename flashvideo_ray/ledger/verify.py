"""Does the ledger tell the truth? Every row against the objects it names, and every object against the rows.

A finding is a problem or a notice. Repair makes the ledger true again and leaves the work to the next job: what is
missing or damaged is taken back, so that it is made again; what is whole is kept.
"""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.ledger import damage, decisions, jobs, parquet_log, requests, run_file, tables
from flashvideo_ray.ledger.keys import clip_key, frames_key, latents_key, poster_key, preview_key
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
        self.previews = tables.read(store, "previews", damaged=self._damaged_part)
        self.clips = tables.read(store, "clips", damaged=self._damaged_part)
        self.ended = dict(zip(self.clips["clip_id"].to_pylist(), self.clips["status"].to_pylist(), strict=True))
        self.previewed = set(self.previews["clip_id"].to_pylist())
        self.objects = {key: size for folder in ("previews", "latents", "clips") for key, size in self._list(folder)}

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
            for table, look in ((self.clips, self._clip), (self.previews, self._preview)):
                for batch in table.to_batches(_BATCH):
                    for _ in pool.map(look, batch.to_pylist()):
                        done += 1
                        progress(done, total)

    def strangers(self) -> None:
        """Every object that no row names."""
        named = set[str]()
        for table, columns in ((self.clips, ("clip", "poster")), (self.previews, ("latents", "preview", "poster"))):
            for column in columns:
                named.update(table[column].drop_null().to_pylist())
        strange = [key for key in self.objects.keys() - named if not _is_partial(key)]
        with ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(self._stranger, strange))

    def leftovers(self) -> None:
        """What dead processes left half written."""
        if self.store.is_local:
            for key, size in self._list(""):
                if _is_partial(key):
                    self.found("leftover", key, None, f"a file that was being written ({size} bytes)")
        for key, upload in _uploads(self.store):
            self.found("upload", key, None, f"a multipart upload that was not completed ({upload['Initiated']})")
            self.mend.append(partial(_abort, self.store, upload))

    def repair(self) -> None:
        """Objects first, rows after: stopped in between, the next `verify` finds what is left to do."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(self.store.delete, self.delete))
            list(pool.map(lambda mend: mend(), self.mend))
        signed = _of(self.clips, {*self.digests})
        told = [{**row, **self.digests[row["clip_id"]]} for row in signed.to_pylist()]
        tables.supersede(self.store, "clips", pa.Table.from_pylist(told, schema=self.clips.schema))
        if self.digests or any(finding.kind == "twice" for finding in self.findings):
            tables.compact(self.store)
        for name, table in (("clips", self.clips), ("previews", self.previews)):
            tables.reopen(self.store, name, _of(table, self.reopen[name]))  # type: ignore[arg-type,index]
        kept = _of(self.previews, self.forget.keys() - self.reopen["previews"])
        blank = [{**row, **dict.fromkeys(self.forget[row["clip_id"]])} for row in kept.to_pylist()]
        tables.supersede(self.store, "previews", pa.Table.from_pylist(blank, schema=self.previews.schema))
        tables.supersede(self.store, "previews", self._restored())

    def _list(self, folder: str) -> Iterator[tuple[str, int]]:
        root = self.store.path()
        for path, info in self.store.fs.find(self.store.path(folder), detail=True).items():
            yield path.removeprefix(root).lstrip("/"), info["size"]

    def _damaged_part(self, key: str, error: Exception) -> None:
        self.found("part", key, None, str(error))
        self.mend.append(partial(_set_aside, self.store, key))

    def _twice(self) -> None:
        columns = ["clip_id", "status", "at"]
        found = parquet_log.read_all(self.store, "ledger/clips-", columns, damaged=lambda key, error: None)
        if sum(part.num_rows for part in found.values()) == self.clips.num_rows:
            return
        # The same row in two parts is only what a compaction leaves that was killed.
        rows = pa.concat_tables(found.values(), promote_options="permissive").group_by(columns).aggregate([])
        last: dict[str, Row] = {}
        for row in rows.sort_by("at").to_pylist():
            before = last.get(row["clip_id"])
            ended = before is not None and before["status"] == "rendered" and row["status"] != "open"
            if before is not None and ended and not tables.is_newer_version(row, before):
                self.found("twice", None, row["clip_id"], f"it was rendered, and ended again as {row['status']}")
            last[row["clip_id"]] = row

    def _clip(self, row: Row) -> None:
        clip_id, key = row["clip_id"], row["clip"]
        if row["status"] not in FINAL:
            self.found("status", None, clip_id, f"its clips row has the status {row['status']!r}")
            self.reopen["clips"].add(clip_id)
        elif row["status"] == "rendered" or key is not None:  # what was audited has a clip, too
            # A clip that was signed anew may have another size.
            size = row["bytes"] if self.trust is None or not self.decode else None
            if self._good(key, clip_id, partial(self._clip_fault, row), size):
                self._poster(row["poster"], key, clip_id)
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
        clip_id, key = row["clip_id"], row["preview"]
        is_open = self.ended.get(clip_id, "skipped") == "skipped" or clip_id in self.reopen["clips"]
        gone = set()
        if row["latents"] is None:
            if is_open and row["status"] != "rejected":
                self.found("missing", None, clip_id, "its latents were not kept, and its clip is still to be made")
                gone.add("latents")
        elif not self._good(row["latents"], clip_id, damage.fault_of(row["latents"], clip_id)):
            gone.add("latents")
        if key is not None and not self._good(key, clip_id, partial(self._video_fault, key, clip_id)):
            gone.add("preview")
        if not self._poster(row["poster"], key if "preview" not in gone else None, clip_id):
            gone.add("poster")
        if gone and is_open:
            self.reopen["previews"].add(clip_id)
        elif gone:
            self.forget[clip_id] = gone

    def _poster(self, key: str | None, source: str | None, clip_id: str) -> bool:
        """Whether a poster is good, or can be made again from its video."""
        if key is None or self._good(key, clip_id, damage.image_fault):
            return True
        if source is not None:
            self.delete.discard(key)
            self.mend.append(
                lambda: self.store.put(key, video.poster_jpeg(video.decode_mp4(self.store.get(source))[0]))
            )
        return source is not None

    def _stranger(self, key: str) -> None:
        clip_id, suffix = posixpath.splitext(posixpath.basename(key))
        own = (latents_key(clip_id), frames_key(clip_id), preview_key(clip_id), clip_key(clip_id))
        status = "open" if clip_id in self.reopen["clips"] else self.ended.get(clip_id, "open")
        if key not in (*own, poster_key(own[2]), poster_key(own[3])):
            repairable = suffix in (".mp4", ".mkv", ".jpg", ".safetensors")
            self.found("orphan", key, None, "no row names it", repairable=repairable)
        elif not self._good(key, clip_id, damage.fault_of(key, clip_id, self.trust)):
            return
        elif status in ("open", "skipped", "failed"):
            when = "a job that retries failures" if status == "failed" else "the next job"
            self.found("adoptable", key, clip_id, f"no row names it; {when} takes it up or writes it anew")
        elif not key.startswith("clips/") and clip_id not in self.previewed:
            self.found("lost row", key, clip_id, f"its candidate is {status}, and its preview has no row")
            self.lost.add(clip_id)
        else:
            self.found("orphan", key, clip_id, f"no row names it, and its candidate is {status}")

    def _good(self, key: str | None, clip_id: str, fault: damage.Check, size: int | None = None) -> bool:
        """Whether an object is there and as it should be; if not, that is a finding."""
        if key is None or key not in self.objects:
            self.found("missing", key, clip_id, "its row names no object" if key is None else "there is no such object")
            return False
        message: str | None = None
        if size is not None and size != self.objects[key]:
            message = f"{self.objects[key]} bytes, and {size} in its row"
        elif self.decode:
            message = fault(self.store.get(key))
        if message is not None:
            self.found("damaged", key, clip_id, message)
        return message is None

    def _restored(self) -> pa.Table:
        """Preview rows, from what the clips rows say and what is in the store."""
        extra = [field for field in self.clips.schema if field.name not in tables.CLIPS.names]
        rows = []
        for row in _of(self.clips, self.lost).to_pylist():
            kept = [key for key in (frames_key(row["clip_id"]), latents_key(row["clip_id"])) if key in self.objects]
            keys = {"latents": (kept or [""])[0], "preview": preview_key(row["clip_id"])}
            keys["poster"] = poster_key(keys["preview"])
            there = {name: key if key in self.objects.keys() - self.delete else None for name, key in keys.items()}
            survived = {} if row["status"] == "rejected" else {"status": "previewed", "reason": None}
            rows.append({**row, **there, **survived, "device": None, "host": None})
        return pa.Table.from_pylist(rows, schema=tables.extended(tables.PREVIEWS, extra))


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
