"""What is checked before a job starts anything: scorers, rules, encoder, prompts, what to retry."""

from __future__ import annotations

import logging
from collections import Counter

import pyarrow as pa

from flashvideo_ray import engines, prompts, scorers, video
from flashvideo_ray.selection.rules import check_rules
from flashvideo_ray.settings import Settings, SettingsError

log = logging.getLogger("flashvideo_ray")


def check_scoring(settings: Settings) -> None:
    """Raise SettingsError or RuleError if a scorer or a requirement of the settings cannot be used."""
    try:
        known = [name for spec in settings.score.scorers for name in scorers.check(spec.name, spec.options)]
    except ValueError as error:
        raise SettingsError(f"score.scorers: {error}") from None
    twice = sorted(name for name, count in Counter(known).items() if count > 1)
    if twice:
        raise SettingsError(f"score.scorers: {', '.join(twice)} would be given by two scorers; leave one out")
    check_rules(settings.select, known)


def check_video(settings: Settings) -> None:
    """Raise SettingsError if clips cannot be encoded so. NVENC is looked for where the clips are made, not here."""
    own = settings.video
    if own.codec != "libx264":
        return
    try:
        video.check_encoder(own.codec, own.encoder_preset)
    except RuntimeError as error:
        raise SettingsError(f"video.encoder_preset: {error}") from None


def check_models(settings: Settings) -> None:
    """Raise SettingsError for options and adapters that a model cannot use."""
    for stage in ("preview", "refine"):
        engines.of(settings, stage).check()


def check_handover(settings: Settings) -> None:
    """Raise SettingsError if stage 2 cannot take what stage 1 makes."""
    made, taken = (engines.of(settings, stage).describe() for stage in ("preview", "refine"))
    if made.latent_space != taken.latent_space:
        raise SettingsError(
            f"refine.model: {settings.refine.model} takes previews of {taken.latent_space}, "
            f"and {settings.preview.model} (preview.model) makes them of {made.latent_space}"
        )


def warn_of_prompts(table: pa.Table, settings: Settings) -> None:
    """Say what will be cut or has no trained meaning; nothing of it stops a run."""
    engine = engines.of(settings, "preview")
    told = engine.describe()
    longest = max((told.prompt_prefix, engines.of(settings, "refine").describe().prompt_prefix), key=len)
    counts = engine.count_tokens([longest + prompt for prompt in table["prompt"].to_pylist()])
    cut = [(row, count) for row, count in enumerate(counts, start=1) if count > told.max_tokens]
    if cut:
        shown = ", ".join(f"row {row} ({count})" for row, count in cut[: prompts.SHOWN])
        more = f" and {len(cut) - prompts.SHOWN} more" if len(cut) > prompts.SHOWN else ""
        log.warning(
            "%d of %d prompts have more than %d tokens and are cut there: %s%s",
            len(cut),
            len(counts),
            told.max_tokens,
            shown,
            more,
        )
    if engine.vocabulary is not None:
        known = engine.vocabulary
        unknown = Counter(word for prompt in table["prompt"].to_pylist() for word in known.unknown_words(prompt))
        if unknown:
            log.warning(
                "the %s model does not know %d words of these prompts: %s; it was trained on prompts such as: %s",
                settings.preview.model,
                len(unknown),
                ", ".join(word for word, _ in unknown.most_common(20)) + (" …" if len(unknown) > 20 else ""),
                known.examples[0],
            )
    negatives = sum(bool(text) for text in table["negative_prompt"].to_pylist())
    if negatives and engine.ignores_negative_prompt:
        log.warning("%d prompts have a negative_prompt: this model was trained without any", negatives)


def check_retry(retry: str | None) -> None:
    """Raise SettingsError unless it is None, `failed` or `failed:ErrorClass`."""
    if retry is not None and (retry.partition(":")[0] != "failed" or retry.endswith(":")):
        raise SettingsError(f"--retry {retry}: write failed, or failed:ErrorClass as `status` and the report show it")
