"""What is checked before a job starts anything: one pass over all settings (`check`), prompts, what to retry."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa

from flashvideo_ray import engines, prompts, scorers
from flashvideo_ray.engines import weights
from flashvideo_ray.engines.engine import Engine
from flashvideo_ray.errors import InputError
from flashvideo_ray.graph import handover
from flashvideo_ray.graph.quota import Quota, QuotaError
from flashvideo_ray.graph.recipe import sizes, versions
from flashvideo_ray.graph.stage_base import row_schema
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.media import video
from flashvideo_ray.media.credentials import Signer
from flashvideo_ray.scorers import columns
from flashvideo_ray.selection.survivors import check_rules
from flashvideo_ray.settings import STAGES, PreviewSettings, Settings, SettingsError, Stage

MOST_CANDIDATES = 1_000_000  # of a run; the driver holds them all
_MODELS: tuple[weights.ModelStage, ...] = ("preview", "refine")
_PROMPTS_AT_ONCE = 4096  # whose tokens are in memory
_LOOKED_AT = 50_000  # prompts of a job: counting the tokens of a million takes minutes
log = logging.getLogger("flashvideo_ray")


def check(settings: Settings, stages: Collection[Stage] = STAGES) -> Settings:
    """One pass over all settings against what will be called, before anything is started, written or paid for.

    Args:
        settings: as they were given.
        stages: those that will run. Where none of them has a model (`select` has no stage at all, `score` one without),
            the models need not even be on this machine.

    Returns the settings with what the models themselves state in the place of every null, so that a recipe holds what
    is really used. Raises an InputError of its kind, or a SettingsError with a line for each problem if there are more.
    """
    problems = list(_problems_of(lambda: check_scoring(settings)))
    problems += _problems_of(lambda: check_credentials(settings, stages))
    models = bool({"text", "preview", "refine"} & {*stages})
    if models:
        versions()  # that all that is made can tell
        settings = engines.with_model_defaults(settings)
        wrong = [line for stage in _MODELS for line in engines.of(settings, stage).problems()]
        problems += map(SettingsError, wrong)
        if not wrong:
            problems += _problems_of(lambda: check_handover(settings))
            problems += _problems_of(lambda: check_video(settings, stages))
    if problems:
        raise problems[0] if len(problems) == 1 else SettingsError("\n".join(map(str, problems)))
    if models:
        _warn_of_sizes(settings)
    return settings


def with_previews(settings: Settings, rows: pa.Table) -> Settings:
    """The settings of prompts whose previews exist already, or as they are.

    Raises SettingsError where these settings would draw others.
    """
    own = settings.preview
    if prompts.PREVIEW_URL not in rows.column_names:
        if own.model == engines.EXISTING:
            raise SettingsError(
                f"preview.model: {own.model} takes previews from a column {prompts.PREVIEW_URL} of the prompts, "
                "and they have none"
            )
        if own.resample:
            raise SettingsError(
                f"preview.resample: it is for previews that exist, and the prompts have no column {prompts.PREVIEW_URL}"
            )
        return settings
    for key, value, plain in (
        ("candidates", settings.candidates, 1),
        ("select.draw", settings.select.draw, 0),
    ):
        if value > plain:
            raise SettingsError(
                f"{key}: the prompts have a column {prompts.PREVIEW_URL}, each row of which is one candidate, and no "
                f"others are drawn; set it to {plain}"
            )
    kept = {key: getattr(own, key) for key in ("height", "width", "num_frames", "resample")}
    return settings.model_copy(update={"preview": PreviewSettings(model=engines.EXISTING, **kept)})


def read_prompts(url: str, settings: Settings, only: str | None = None) -> pa.Table:
    """The prompts at a URL as `prompts.read_prompts` gives them, read as the settings say.

    Raises what that raises; a carried column with a name of the ledger's or of the graph's rows is a PromptError.
    """
    return prompts.read_prompts(
        url,
        base_seed=settings.seed,
        reserved=[*row_schema().names, "at", f"{columns.PREFIX}*"],
        duplicates=settings.prompts.duplicates,
        span=settings.candidates + settings.select.draw,
        columns=settings.prompts.columns.named,
        only=only,
    )


def check_scoring(settings: Settings) -> None:
    """Raise SettingsError or RuleError if a scorer or a rule of the settings cannot be used."""
    try:
        known = [name for spec in settings.score.scorers for name in scorers.check(spec.name, spec.options)]
    except ValueError as error:
        raise SettingsError(f"score.scorers: {error}") from None
    twice = sorted(name for name, count in Counter(known).items() if count > 1)
    if twice:
        raise SettingsError(f"score.scorers: {', '.join(twice)} would be given by two scorers; leave one out")
    check_rules(settings.select, known)


def check_credentials(settings: Settings, stages: Collection[Stage]) -> None:
    """Raise SettingsError if videos that these stages publish are to be signed and cannot be, here."""
    if settings.credentials is not None and signs(settings, stages):
        Signer(settings.credentials)


def signs(settings: Settings, stages: Collection[Stage]) -> bool:
    """Whether one of these stages signs what it publishes."""
    own = settings.credentials
    return own is not None and ("refine" in stages or (own.previews and "preview" in stages))


def check_count(prompts: int, settings: Settings) -> None:
    """Raise SettingsError for more candidates than one run can hold."""
    count = prompts * (settings.candidates + settings.select.draw)
    if count > MOST_CANDIDATES:
        raise SettingsError(
            f"candidates: {prompts:,} prompts with {settings.candidates + settings.select.draw:,} candidates each "
            f"(select.draw included) are {count:,}, and a run holds {MOST_CANDIDATES:,} at most; make several of it"
        )


def _problems_of(check_: Callable[[], None]) -> Iterator[InputError]:
    try:
        check_()
    except InputError as error:
        yield error


def check_handover(settings: Settings) -> None:
    """Raise SettingsError if stage 2 cannot take what stage 1 makes, or a card waits for texts that nobody reads."""
    if settings.pools.text.num_gpus and not any(engines.text_readers(settings).values()):
        raise SettingsError(
            "pools.text.num_gpus: these models read no text in that pool, and a card would idle; set it to 0"
        )
    made = engines.of(settings, "preview").describe()
    if handover.kind_of(settings) == "latents":
        return
    why = engines.of(settings, "refine").refusal(made.num_frames, made.height, made.width)
    if why is not None:
        raise SettingsError(
            f"refine.model: {settings.refine.model} cannot refine what {settings.preview.model} (preview.model) makes: "
            f"{why}; change preview.num_frames or the height and width of either"
        )


def check_video(settings: Settings, stages: Collection[Stage]) -> None:
    """Raise SettingsError if clips cannot be encoded so, as far as it can be known here: see `cluster.try_encoder`."""
    from flashvideo_ray.graph import cluster

    for stage in _MODELS:
        made = engines.of(settings, stage).describe()
        if (made.height or 0) % 2 or (made.width or 0) % 2:
            raise SettingsError(
                f"{stage}.height, {stage}.width: {made.height}x{made.width} cannot be encoded; both must be even"
            )
    own = settings.video
    if own.codec == "libx264":
        try:
            video.check_encoder(own.codec, own.encoder_preset)
        except RuntimeError as error:
            raise SettingsError(f"video.encoder_preset: {error}") from None
    elif "refine" in stages:
        if not settings.pools.refine.num_gpus:
            raise SettingsError(
                f"video.codec: {own.codec} encodes on the card of a refine actor, and pools.refine.num_gpus is 0; "
                "give it a card, or set video.codec to libx264"
            )
        if cluster.is_this_machine():
            cluster.open_encoder(own)


def _warn_of_sizes(settings: Settings) -> None:
    for stage, size in sizes(settings).items():
        if None not in size["used"] and size["asked"] != size["used"]:
            asked, used = ("x".join(map(str, size[which])) for which in ("asked", "used"))
            log.warning(
                "%s: %s is asked for and %s made, the next size below that the model can make", stage, asked, used
            )


def warn_of_prompts(table: pa.Table, settings: Settings) -> None:
    """Say what will be cut or has no trained meaning. Nothing of it stops a run; of many only some are looked at."""
    if table.num_rows > _LOOKED_AT:
        log.warning("of %d prompts, %d spread over them all were looked at for what follows", len(table), _LOOKED_AT)
        table = _spread(table.select(["id", "prompt", "negative_prompt"]), _LOOKED_AT)
    engine = engines.of(settings, "preview")
    readers = engines.text_readers(settings)
    prefixes: dict[weights.ModelStage, str] = {}  # by the stage whose encoder reads them: the longest
    for stage in _MODELS:
        reader, prefix = readers[stage] or stage, engines.of(settings, stage).describe().prompt_prefix
        prefixes[reader] = max(prefixes.get(reader, ""), prefix, key=len)
    for reader, prefix in prefixes.items():
        _warn_of_cut(table, engines.of(settings, reader), prefix)
    negatives = 0
    unknown: Counter[str] = Counter()
    for batch in table.select(["prompt", "negative_prompt"]).to_batches(max_chunksize=_PROMPTS_AT_ONCE):
        if engine.vocabulary is not None:
            unknown.update(
                word for text in batch["prompt"].to_pylist() for word in engine.vocabulary.unknown_words(text)
            )
        negatives += sum(bool(text) for text in batch["negative_prompt"].to_pylist())
    if unknown and engine.vocabulary is not None:
        log.warning(
            "the %s model does not know %d words of these prompts: %s; it was trained on prompts such as: %s",
            settings.preview.model,
            len(unknown),
            ", ".join(word for word, _ in unknown.most_common(20)) + (" …" if len(unknown) > 20 else ""),
            engine.vocabulary.examples[0],
        )
    if negatives and (why := engine.on_negative_prompts()) is not None:
        log.warning("%d prompts have a negative_prompt: %s", negatives, why)


def _spread(table: pa.Table, count: int) -> pa.Table:
    """So many rows, spread over all. Chunk by chunk: Arrow would join all chunks for it."""
    places, start = np.linspace(0, table.num_rows - 1, count).astype(np.int64), 0
    found = []
    for batch in table.to_batches():
        own = places[(places >= start) & (places < start + batch.num_rows)] - start
        found.append(batch.take(pa.array(own)))
        start += batch.num_rows
    return pa.Table.from_batches(found)


def _warn_of_cut(table: pa.Table, engine: Engine, prefix: str) -> None:
    most = engine.describe().max_tokens
    if most is None:
        return
    cut: list[str] = []
    too_long = 0
    for batch in table.select(["id", "prompt"]).to_batches(max_chunksize=_PROMPTS_AT_ONCE):
        counts = engine.count_tokens([prefix + text for text in batch["prompt"].to_pylist()])
        for count, name in zip(counts, batch["id"].to_pylist(), strict=True):
            if count > most:
                too_long += 1
                cut += [f"{name!r} ({count})"] if len(cut) < prompts.SHOWN else []
    if cut:
        more = f" and {too_long - len(cut)} more" if too_long > len(cut) else ""
        log.warning(
            "%d of %d prompts have more than %d tokens and are cut there: %s%s",
            too_long,
            table.num_rows,
            most,
            ", ".join(cut),
            more,
        )


def check_shard(shard: Shard | None, settings: Settings, until: Literal["preview", "refine"]) -> None:
    """Raise SettingsError where a job on a share of the prompts would have to know the previews of all the others."""
    if shard is not None and until == "refine" and settings.select.needs_whole_run:
        raise SettingsError(
            f"--shard {shard}: select compares each preview with those of the whole run (percentiles, or duplicates "
            "within the run), which no share has; render the shares with --until preview, then `refine OUTPUT`"
        )


def check_quota(quota: Quota | None, until: str) -> None:
    """Raise QuotaError where clips are to be counted and none is made."""
    if quota is not None and quota.accept is not None and until != "refine":
        raise QuotaError(f"--accept {quota.accept} counts clips, and --until {until} makes none: leave one of them out")


def check_retry(retry: str | None) -> None:
    """Raise SettingsError unless it is None, `failed` or `failed:ErrorClass`."""
    if retry is not None and (retry.partition(":")[0] != "failed" or retry.endswith(":")):
        raise SettingsError(f"--retry {retry}: write failed, or failed:ErrorClass as `status` and the report show it")
