"""The run that a command works on, and its settings."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from flashvideo_ray.errors import InputError
from flashvideo_ray.settings import Settings, SettingsError


def existing_run(store: Any) -> dict[str, Any]:
    """Its run.json; raises NoRunError where there is none."""
    from flashvideo_ray.ledger import run_file

    run = run_file.read_run(store)
    if run is None:
        raise run_file.NoRunError(f"{store.url}: no run here (no run.json); start one with render or preview")
    return run


def held_run(store: Any, takeover: bool) -> Any:
    """The run, to be written while the context lasts; as patient as its own settings say, if they can be read."""
    from flashvideo_ray.ledger import run_file
    from flashvideo_ray.ledger.held_store import hold

    settings = Settings()
    with suppress(InputError):  # damage is for `verify` to mend
        if (run := run_file.read_run(store)) is not None:
            settings = Settings.of_tree(run["settings"], where="run.json")
    return hold(store, settings, takeover)


def run_settings(output: str, config: str | None, overrides: list[str]) -> Settings:
    """The settings of the run at OUTPUT with overrides, unless a config is named."""
    from flashvideo_ray.ledger import jobs
    from flashvideo_ray.ledger.store import Store

    if config is not None:
        return Settings.load(config, overrides)
    store = Store(output)
    return Settings.of_tree(jobs.newest_settings(store, existing_run(store)), overrides, "run.json")


def columns_as_overrides(given: list[str] | None) -> list[str]:
    """`--column prompt=caption` as overrides of settings."""
    asked: dict[str, str] = {}
    for text in given or []:
        field, separator, name = text.partition("=")
        if not separator or not field.strip() or not name.strip():
            raise SettingsError(f"--column {text}: expected FIELD=NAME, for example --column prompt=caption")
        if field.strip() in asked:
            raise SettingsError(f"--column {text}: {field.strip()} is {asked[field.strip()]} already; give it once")
        asked[field.strip()] = name.strip()
    return [f"prompts.columns.{field}={json.dumps(name)}" for field, name in asked.items()]
