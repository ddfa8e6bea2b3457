"""The run as the service sees it: ledger, decisions and requests joined, in memory, refreshed from new parts.

`RunState.refresh` reads the parts that came since the last look and makes a new `Snapshot`, which never changes: who
holds one reads it without a lock. Selection is asked anew whenever previews change, as a batch `refine` would ask it.
Candidates whose prompt has another text by now are not in a snapshot.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flashvideo_ray.graph.verdicts import table_of
from flashvideo_ray.ledger import decisions, parquet_log, requests, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.scorers import columns
from flashvideo_ray.selection.survivors import select
from flashvideo_ray.serve.snapshot import Candidate, Snapshot
from flashvideo_ray.settings import Settings

_CANDIDATES = "ledger/candidates-"
_TABLES = {
    "previews": "ledger/previews-",
    "clips": "ledger/clips-",
    "decisions": decisions.PREFIX,
    "requests": requests.PREFIX,
}
# A listing of an object store is paid for, and another replica tells of what it did itself.
LOOK_SECONDS = {"local": 0.5, "remote": 5.0}
# What is taken from each row; other columns (those that prompts brought along, say) need no place in memory.
_COLUMNS = frozenset(
    {
        *(
            "clip_id",
            "id",
            "prompt",
            "negative_prompt",
            "seed",
            "candidate",
            "status",
            "reason",
            "at",
            *tables.PREVIEW_SECONDS,
        ),
        *("latents", "preview", "poster", "scorer_errors", "clip", "sha256", "refine_seconds", "device", "error"),
        *("memory_note", "by", "note", "job", "key", "body"),
    }
)
_NO_VERDICT: tuple[str, str | None, float | None] = ("previewed", None, None)
_NOTHING: Mapping[str, Any] = {}


@dataclass
class _Table:
    """The newest row of each clip_id, and which parts were read. A row that is `open` takes back those before it."""

    prefix: str
    known: set[str] = field(default_factory=set)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, None] = field(default_factory=dict)
    """The score columns there are, in the order in which they came."""
    stated: set[tuple[Any, ...]] | None = None
    """All that people ever said, where that is kept: clip_id, word, by, note."""

    def read(self, store: Store) -> set[str]:
        """Take in new parts; the clip_ids whose row changed."""
        touched, rows = set(), self.rows
        for key, part in parquet_log.read_new(store, self.prefix, self.known).items():
            self.known.add(key)
            self.scores.update(dict.fromkeys(columns.those_in(part.column_names)))
            wanted = [name for name in part.column_names if name in _COLUMNS or name in self.scores]
            for row in part.select(wanted).to_pylist():
                clip_id, at = row["clip_id"], row["at"]
                old = rows.get(clip_id)
                if old is None or at > old["at"] or (at == old["at"] and row != old):
                    rows[clip_id] = row
                    touched.add(clip_id)
                if self.stated is not None:
                    self.stated.add((clip_id, row["status"], row["by"], row["note"]))
        return touched

    def get(self, clip_id: str) -> dict[str, Any] | None:
        """The row that counts, or None."""
        row = self.rows.get(clip_id)
        return None if row is None or row["status"] == "open" else row


class RunState:
    """The state of one run. `refresh` may be called from any thread; `snapshot` is always a whole one."""

    def __init__(self, store: Store, settings: Settings):
        self.store = store
        self.settings = settings
        self.snapshot = Snapshot({}, ())
        self._tables = {name: _Table(prefix) for name, prefix in _TABLES.items()}
        self._tables["decisions"].stated = set()
        self._wanted = _Table(_CANDIDATES)
        self._texts: dict[str, tuple[dt.datetime, tuple[str, str]]] = {}  # of each prompt id, and since when
        self._of: dict[str, set[str]] = {}  # candidates by prompt id
        self._verdicts: dict[str, tuple[str, str | None, float | None]] = {}
        self._scores: tuple[str, ...] = ()
        self._columns: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self.look_seconds = LOOK_SECONDS["local" if store.is_local else "remote"]

    def refresh(self) -> Snapshot:
        """Take in what is new in the run directory. Raises what the store raises; the state stays as it was then."""
        with self._lock:
            touched = {name: table.read(self.store) for name, table in self._tables.items()}
            changed = set().union(*touched.values())
            edited = self._read_texts(touched)
            changed |= edited
            if touched["previews"] or edited:
                changed |= self._judge()
            if changed:
                candidates = dict(self.snapshot.candidates)
                for clip_id in changed:
                    made = self._candidate(clip_id)
                    if made is not None:
                        candidates[clip_id] = made
                    else:
                        candidates.pop(clip_id, None)
                self.snapshot = Snapshot(candidates, self._scores)
            return self.snapshot

    def said(self, clip_id: str, word: str, by: str, note: str | None) -> bool:
        """Whether that person once said that of the candidate, as far as the run directory still tells."""
        return (clip_id, word, by, note) in (self._tables["decisions"].stated or ())

    def _read_texts(self, touched: Mapping[str, set[str]]) -> set[str]:
        """Take in which text each prompt id has now; the candidates of those that have another one than before."""
        edited = set[str]()
        rows = [self._wanted.rows[clip_id] for clip_id in self._wanted.read(self.store)]
        for name in ("previews", "clips", "requests"):
            rows += [self._tables[name].rows[clip_id] for clip_id in touched[name]]
        for row in rows:
            prompt, text = row["id"], _text(row)
            self._of.setdefault(prompt, set()).add(row["clip_id"])
            since, before = self._texts.get(prompt, (row["at"], text))
            if row["at"] >= since:
                self._texts[prompt] = row["at"], text
                edited |= self._of[prompt] if text != before else set()
        return edited

    def _is_present(self, row: Mapping[str, Any]) -> bool:
        return self._texts[row["id"]][1] == _text(row)

    def _judge(self) -> set[str]:
        """Ask selection about all previews; the clip_ids of which it now says something else."""
        rows = [
            row for row in self._tables["previews"].rows.values() if row["status"] != "open" and self._is_present(row)
        ]
        names = self._tables["previews"].scores
        # What earlier texts alone have is nothing to filter by.
        self._columns = tuple(name for name in names if any(row.get(name) is not None for row in rows))
        self._scores = tuple(columns.name_of(name) for name in self._columns)
        found = select(table_of(rows, names), self.settings.select)
        said = zip(*(found[name].to_pylist() for name in ("status", "reason", "rank")), strict=True)
        verdicts = dict(zip((row["clip_id"] for row in rows), said, strict=True))
        changed = {clip_id for clip_id, verdict in verdicts.items() if self._verdicts.get(clip_id) != verdict}
        self._verdicts = verdicts
        return changed

    def _candidate(self, clip_id: str) -> Candidate | None:
        preview, clip, decision, request = (table.get(clip_id) for table in self._tables.values())
        own = preview or clip or request
        if own is None or not self._is_present(own):
            return None
        made, ended, asked = preview or _NOTHING, clip or _NOTHING, request or _NOTHING
        rendered = ended.get("clip")  # of a rejected candidate the ledger has its preview's media
        word = decision["status"] if decision is not None and decision["status"] != "cleared" else None
        by = decision["by"] if decision is not None else ""
        verdict = self._verdicts.get(clip_id, _NO_VERDICT) if preview is not None else None
        status, reason = _status(preview, clip, request, verdict, word, by)
        wish = request["status"] if request is not None else None
        return Candidate(
            clip_id=clip_id,
            prompt_id=own["id"],
            prompt=own["prompt"],
            negative_prompt=own["negative_prompt"],
            seed=own["seed"],
            candidate=own["candidate"],
            status=status,
            reason=reason,
            rank=verdict[2] if verdict is not None else None,
            scores={name: made.get(column) for name, column in zip(self._scores, self._columns, strict=True)},
            decision=decision,
            latents=made.get("latents"),
            preview=made.get("preview"),
            preview_poster=made.get("poster"),
            clip=rendered,
            clip_poster=ended.get("poster") if rendered is not None else None,
            sha256=ended.get("sha256"),
            preview_seconds=_sum(made.get(name) for name in tables.PREVIEW_SECONDS),
            refine_seconds=ended.get("refine_seconds"),
            preview_note=made.get("memory_note"),
            refine_note=ended.get("memory_note") if rendered is not None else None,
            preview_device=made.get("device"),
            refine_device=ended.get("device"),
            error=ended.get("error") if status == "failed" else None,
            at=max(row["at"] for row in (preview, clip, decision, request) if row is not None),
            made=own["at"],
            wish=wish,
            wished_at=asked.get("at"),
            job=asked.get("job"),
            key=asked.get("key"),
            body=asked.get("body"),
            has_preview=preview is not None,
        )


def _status(
    preview: Mapping[str, Any] | None,
    clip: Mapping[str, Any] | None,
    request: Mapping[str, Any] | None,
    verdict: tuple[str, str | None, float | None] | None,
    word: str | None,
    by: str,
) -> tuple[str, str | None]:
    """A candidate's status and its reason, as the next batch job would see it."""
    if clip is not None and clip["status"] == "rendered":
        return "rendered", clip["reason"]
    if clip is not None and clip["status"] == "failed" and not _asked_again(request, clip):
        return "failed", clip["reason"]
    if verdict is not None:
        if word is not None:
            return word, f"rejected by {by}" if word == "rejected" else None
        return verdict[0], verdict[1]
    if request is not None:
        return ("cancelled" if request["status"] == "cancelled" else "queued"), None
    return (clip["status"], clip["reason"]) if clip is not None else ("skipped", None)


def _text(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["prompt"], row.get("negative_prompt") or ""


def _asked_again(request: Mapping[str, Any] | None, clip: Mapping[str, Any]) -> bool:
    """Whether somebody wanted the candidate after it had failed. The ledger's clock has milliseconds."""
    if request is None or request["status"] == "cancelled":
        return False
    wished: dt.datetime = request["at"]
    return wished.replace(microsecond=wished.microsecond // 1000 * 1000) > clip["at"]


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
