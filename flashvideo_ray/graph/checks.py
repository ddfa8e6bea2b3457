"""What is checked before a job starts anything: scorers, rules, encoder, prompts, what to retry."""

from __future__ import annotations

import logging
from collections import Counter

import pyarrow as pa

from flashvideo_ray import prompts, scorers, video
from flashvideo_ray.engines import weights
from flashvideo_ray.nano import vocabulary
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


def warn_of_prompts(table: pa.Table, settings: Settings) -> None:
    """Say what will be cut or have no trained meaning; nothing of it stops a run."""
    longest = max((_prefix(settings, "preview"), _prefix(settings, "refine")), key=len)
    texts = [longest + prompt for prompt in table["prompt"].to_pylist()]
    counts, limit = weights.count_tokens(settings.preview.model, texts)
    cut = [(row, count) for row, count in enumerate(counts, start=1) if count > limit]
    if cut:
        shown = ", ".join(f"row {row} ({count})" for row, count in cut[: prompts.SHOWN])
        more = f" and {len(cut) - prompts.SHOWN} more" if len(cut) > prompts.SHOWN else ""
        log.warning(
            "%d of %d prompts have more than %d tokens and are cut there: %s%s",
            len(cut),
            len(counts),
            limit,
            shown,
            more,
        )
    if settings.preview.model == "nano":
        unknown = Counter(word for prompt in table["prompt"].to_pylist() for word in vocabulary.unknown_words(prompt))
        if unknown:
            log.warning(
                "the nano model does not know %d words of these prompts: %s; it was trained on prompts such as: %s",
                len(unknown),
                ", ".join(word for word, _ in unknown.most_common(20)) + (" …" if len(unknown) > 20 else ""),
                vocabulary.EXAMPLES[0],
            )
    negatives = sum(bool(text) for text in table["negative_prompt"].to_pylist())
    if negatives:
        log.warning(
            "%d prompts have a negative_prompt: FlashVideo was trained without any, its own is all zeros", negatives
        )


def _prefix(settings: Settings, stage: weights.ModelStage) -> str:
    return weights.sampling_defaults(getattr(settings, stage).model, stage).get("prompt_prefix", "")


def check_retry(retry: str | None) -> None:
    """Raise SettingsError unless it is None, `failed` or `failed:ErrorClass`."""
    if retry is not None and (retry.partition(":")[0] != "failed" or retry.endswith(":")):
        raise SettingsError(f"--retry {retry}: write failed, or failed:ErrorClass as `status` and the report show it")
