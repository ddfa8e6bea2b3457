"""Settings: one YAML file describes a run.

Three kinds of settings live in three places, because they are treated differently when a run is started again:

- what decides pixels (`seed`, `candidates`, `text`, `preview`, `refine`, `video`) and numbers (`score`): the *recipe*,
  fixed by the first job that writes to an OUTPUT;
- what decides who is refined (`select`): may be changed at any time;
- how prompts are read, where and how work runs, what is signed, kept and paid (`prompts`, `pools`, `ledger`, `keep`,
  `credentials`, `prices`, `notify`, `max_attempts` and the seconds): operational, free.

All models are frozen and refuse unknown keys. A `null` in `preview` or `refine` means "as the model itself says": the
sizes, steps and guidance stored in its `model_index.json`.
"""

from flashvideo_ray.settings.kinds import STAGES, Frozen, Positive, Stage
from flashvideo_ray.settings.pools import BALANCED, Pool, Pools
from flashvideo_ray.settings.reading import SettingsError, presets
from flashvideo_ray.settings.schema import (
    AdapterSettings,
    CredentialSettings,
    DevicePrice,
    LedgerSettings,
    Metadata,
    NotifySettings,
    OptimizeSettings,
    PreviewSettings,
    RefineSettings,
    ScorerSettings,
    SelectSettings,
    Settings,
    VideoSettings,
)

__all__ = [
    "BALANCED",
    "STAGES",
    "AdapterSettings",
    "CredentialSettings",
    "DevicePrice",
    "Frozen",
    "LedgerSettings",
    "Metadata",
    "NotifySettings",
    "OptimizeSettings",
    "Pool",
    "Pools",
    "Positive",
    "PreviewSettings",
    "RefineSettings",
    "ScorerSettings",
    "SelectSettings",
    "Settings",
    "SettingsError",
    "Stage",
    "VideoSettings",
    "presets",
]
