"""Another stage 2 over the same previews: a new run that begins with the previews of an old one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.compute as pc

from flashvideo_ray.graph import handover
from flashvideo_ray.graph.recipe import about, recipe_of
from flashvideo_ray.ledger import held_store, jobs, parquet_log, run_file, tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.texts import Texts
from flashvideo_ray.settings import Settings, SettingsError

_THREADS = 16
_AT_ONCE = 1000  # previews
_STAGE_1 = ("seed", "candidates", "text", "preview", "score")


def branch(
    old: Store,
    new: Store,
    settings: Settings,
    *,
    takeover: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Bring the previews of `old`, with their latents, to `new`. Returns how many are new there.

    The settings may differ from those of the old run in all but stage 1 and the scores. May be repeated: what is there
    is not copied again. Raises NoRunError where `old` is no run, SettingsError where it is `new` or keeps what this
    stage 2 cannot take, and RecipeError if stage 1 differs or `new` holds a run with another recipe.
    """
    if new.is_same_place(old):
        raise SettingsError(f"--from {old.url}: this is OUTPUT itself; give the new clips an OUTPUT of their own")
    run = run_file.read_run(old)
    if run is None:
        raise run_file.NoRunError(f"{old.url}: no run here (no run.json)")
    recipe = recipe_of(settings)
    there: dict[str, Any] = {name: run["recipe"][name] for name in _STAGE_1}
    there["fingerprints.preview"] = run["recipe"]["fingerprints"]["preview"]
    here: dict[str, Any] = {name: recipe[name] for name in _STAGE_1}
    here["fingerprints.preview"] = recipe["fingerprints"]["preview"]
    run_file.refuse_differences(
        f"{old.url} made its previews otherwise", there, here, "Use the settings of that run for them."
    )
    run_file.check_recipe(new, recipe)
    _check_handover(old, settings)
    with held_store.hold(new, settings, takeover) as held:
        return _copy(old, held, settings, recipe, progress)


def _check_handover(old: Store, settings: Settings) -> None:
    """Raise SettingsError if the old run has kept latents, and this stage 2 takes frames."""
    if handover.kind_of(settings) == "latents":
        return
    kept = tables.read(old, "previews", ["latents"])["latents"].drop_null().to_pylist()
    if latents := [key for key in kept if handover.is_latents(key)]:
        raise SettingsError(
            f"refine.model: {settings.refine.model} takes frames, and {old.url} has kept latents of "
            f"{len(latents):,} previews; render the prompts into an OUTPUT of their own"
        )


def _copy(
    old: Store, new: Store, settings: Settings, recipe: Mapping[str, Any], progress: Callable[[int, int], None]
) -> int:
    previews = Texts.read(old).present(tables.read(old, "previews"))
    previews = previews.filter(previews["latents"].is_valid())
    known = tables.read(new, "previews", ["clip_id"])["clip_id"].combine_chunks()
    previews = previews.filter(pc.invert(pc.is_in(previews["clip_id"], known)))
    columns = [name for name in ("latents", "preview", "poster") if name in previews.column_names]
    objects, done = sum(len(previews) - previews[name].null_count for name in columns), 0
    # None of the old run's seconds: this run did not pay for them.
    for name in tables.PREVIEW_SECONDS:
        if name in previews.column_names:
            previews = tables.with_column(previews, name, None)
    record = {**about(settings, previews.num_rows + len(known)), "from": old.url}
    jobs.note(new, run_file.open_run(new, recipe, record))
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, previews.num_rows, _AT_ONCE):
            some = previews.slice(first, _AT_ONCE)
            keys = [key for name in columns for key in some[name].drop_null().to_pylist()]
            for _ in pool.map(lambda key: new.put(key, old.get(key)), keys):
                done += 1
                progress(done, objects)
            parquet_log.write(new, tables.stem("previews"), some)  # after their objects; what has a row stays copied
    return previews.num_rows
