"""run.json: what a run is. One recipe for its life; the rest is recorded anew by each job."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from flashvideo_ray import scorers
from flashvideo_ray.errors import InputError
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.tables import now
from flashvideo_ray.media import video


class RecipeError(InputError):
    """OUTPUT holds a run with another recipe. The message shows the differences."""


class NoRunError(InputError):
    """There is no run at OUTPUT."""


class DamagedRunError(NoRunError):
    """There is a run, and its run.json is lost or damaged. The message says what mends it."""


def read_run(store: Store) -> dict[str, Any] | None:
    """The content of run.json, or None where there is no run.

    Raises NoRunError if the place cannot be read, DamagedRunError if run.json is damaged, or lost where the ledger has
    jobs.
    """
    mend = f"`flashvideo-ray verify {store.url} --repair` writes it anew from the ledger"
    try:
        content = store.get("run.json")
    except FileNotFoundError:
        if any(key.startswith("ledger/jobs-") for key in store.keys("ledger")):
            raise DamagedRunError(f"{store.url}: its run.json is lost; {mend}") from None
        return None
    except Exception as error:  # each file system has its own: no credentials, no such bucket, unknown protocol, …
        raise NoRunError(f"{store.url}: cannot be read: {type(error).__name__}: {error}") from error
    try:
        run = json.loads(content)
    except ValueError as error:  # not JSON, not even text
        raise DamagedRunError(f"{store.url}: its run.json is damaged ({error}); {mend}") from None
    if not isinstance(run, dict) or not {"recipe", "settings", "candidates"} <= set(run):
        raise DamagedRunError(f"{store.url}: its run.json is not one of this program; use another OUTPUT, or {mend}")
    for part in ("settings", "recipe"):
        _name_scorers_once(run[part].get("score", {}))
    return run


def _name_scorers_once(score: dict[str, Any]) -> None:
    """Runs were once let have a scorer twice, by its short name and by its path: the first one gave the numbers."""
    if "scorers" in score:
        first: dict[str, Any] = {}
        for spec in score["scorers"]:
            first.setdefault(scorers.path_of(spec["name"]), spec)
        score["scorers"] = [*first.values()]


def check_recipe(store: Store, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run that is there, or None. Raises RecipeError if it has another recipe."""
    run = read_run(store)
    if run is not None:
        hint = (
            "Use another OUTPUT, or the settings of that run; refine NEW --from OLD makes other clips of its previews."
        )
        scorers = run["recipe"].get("score"), recipe.get("score")
        if scorers[0] != scorers[1] and all(scorers):
            hint = f"The scorers of that run: --set 'score.scorers={json.dumps(scorers[0]['scorers'])}'\n{hint}"
        refuse_differences(f"{store.url} holds a run with another recipe", run["recipe"], recipe, hint)
    elif store.keys("ledger"):
        _check_files(store, recipe)
    return run


def _check_files(store: Store, recipe: Mapping[str, Any]) -> None:
    """Raise RecipeError if what is left of a run that lost its run.json, and has no jobs, was made otherwise.

    The same command writes run.json anew; its MP4s say of themselves how they were made.
    """
    for key in (*store.keys("clips", ".mp4")[:1], *store.keys("previews", ".mp4")[:1]):
        try:
            made = video.probe(store.get(key)).metadata
            there = {**json.loads(made["settings"]), "fingerprints": json.loads(made["model_fingerprints"])}
        except (KeyError, ValueError):
            continue
        what = f"{store.url} has lost its run.json, and {key} was made otherwise"
        now = {name: recipe.get(name) for name in there}
        refuse_differences(what, there, now, "Use the settings of that run, which write its run.json anew.")


def refuse_differences(what: str, there: Mapping[str, Any], now: Mapping[str, Any], hint: str) -> None:
    """Raise RecipeError with all keys that differ, if any does."""
    differences = list(_differences(dict(there), dict(now)))
    if differences:
        lines = [f"  {key}: {old!r} there, {new!r} now" for key, old, new in differences]
        raise RecipeError("\n".join([f"{what}:", *lines, hint]))


def check_writable(store: Store) -> None:
    """Raise NoRunError if nothing can be written there. In a local folder it looks at the rights and makes nothing."""
    if store.is_local:
        folder = store.path()
        while not os.path.exists(folder):
            folder = os.path.dirname(folder)
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
            raise NoRunError(f"{store.url}: cannot be written: {folder} is no folder that this user may write to")
        return
    key = f".writable-{uuid.uuid4().hex[:8]}"
    try:
        store.put(key, b"")
        store.delete(key)
    except Exception as error:  # each file system has its own
        raise NoRunError(f"{store.url}: cannot be written: {type(error).__name__}: {error}") from error


def open_run(store: Store, recipe: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Start a run or take up the one that is there.

    `recipe` is what must stay the same; `about` is recorded anew by each job. Raises RecipeError if the run that is
    there has another recipe.
    """
    run = check_recipe(store, recipe)
    if run is None:
        run = {"recipe": dict(recipe), "created": now().isoformat(), **about}
        if store.create("run.json", json.dumps(run, indent=2).encode()):
            return run
        run = check_recipe(store, recipe) or run  # a job on another share was first
    run |= about
    store.put("run.json", json.dumps(run, indent=2).encode())
    return run


def _differences(old: Any, new: Any, key: str = "") -> Iterable[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif _are_named(old) and _are_named(new):
        yield from _differences({item["name"]: item for item in old}, {item["name"]: item for item in new}, key)
    elif old != new:
        yield key, old, new


def _are_named(items: Any) -> bool:
    """Whether it is a list of things with names of their own, as scorers are: their order decides nothing."""
    names = [item.get("name") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return bool(names) and None not in names and len({*names}) == len(items)
