"""FlashVideo's two stages as engines: model folders of this package, here or on the hub."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from flashvideo_ray.engines import shapes, weights
from flashvideo_ray.engines.engine import Description, Vocabulary
from flashvideo_ray.models import geometry
from flashvideo_ray.settings import OptimizeSettings, PreviewSettings, RefineSettings, Settings

if TYPE_CHECKING:
    from flashvideo_ray.engines.flashvideo_models import Preview, Refine
    from flashvideo_ray.engines.flashvideo_text import Text

_TEXT = ("text_encoder", "tokenizer")  # components


class FlashVideo:
    """See `engine.Engine`."""

    vocabulary: Vocabulary | None = None

    def __init__(self, settings: Settings, stage: weights.ModelStage):
        self.settings = settings
        self.stage = stage

    def resolved(self) -> PreviewSettings | RefineSettings:
        """See Engine."""
        own = self._own.model_copy(update={"model": weights.pinned(self._model)})
        defaults = {"vae_dtype": own.dtype, **weights.sampling_defaults(own.model, self.stage)}
        nulls = [name for name in type(own).model_fields if getattr(own, name) is None]
        known = {name: defaults[name] for name in nulls if name in defaults}
        try:
            return type(own).model_validate({**own.model_dump(), **known})
        except ValueError as error:
            raise weights.ModelNotFoundError(
                f"{own.model}: its {self.stage}/model_index.json states what no model can: {error}"
            ) from None

    def describe(self) -> Description:
        """See Engine."""
        own, stated = getattr(self.settings, self.stage), weights.sampling_defaults(self._model, self.stage)
        vae, spatial, unit = self._grid()
        handed = stated["preview_scaling_factor"] if self.stage == "refine" else vae["scaling_factor"]
        length: dict[str, Any] = {"num_frames": None, "fps": None}
        if self.stage == "preview":
            length = {"num_frames": own.num_frames or stated["num_frames"], "fps": stated["fps"]}
        return Description(
            height=(own.height or stated["height"]) // unit * unit,
            width=(own.width or stated["width"]) // unit * unit,
            **length,
            prompt_prefix=stated.get("prompt_prefix", ""),
            max_tokens=stated["max_sequence_length"],
            latent_space=(
                f"{vae['latent_channels']} channels, {spatial}x smaller, "
                f"{vae['temporal_compression_ratio']:g}x shorter, "
                f"scaled by {handed:g}"
            ),
            # Stage 1's folder holds the one text encoder, and both stages take what it makes.
            text_space=f"FlashVideo, {weights.config(self._model, self.stage, 'transformer')['text_embed_dim']} wide",
        )

    def problems(self) -> list[str]:
        """See Engine."""
        own, (vae, spatial, unit) = self._own, self._grid()
        stated = {**weights.sampling_defaults(self._model, self.stage), **own.model_dump(exclude_none=True)}
        ratio = int(vae["temporal_compression_ratio"])
        found = [f"{self.stage}.call.{key}: {self._model} takes no further arguments" for key in own.call]

        def ask(keys: str, check: Callable[..., Any], *values: Any) -> Any:
            try:
                return check(*values)
            except ValueError as error:
                found.append(f"{self.stage}.{keys}: {error}")

        size = ask(f"height, {self.stage}.width", geometry.floor_size, stated["height"], stated["width"], unit)
        if self.stage == "preview":
            ask("num_frames", geometry.generated_length, stated["num_frames"], ratio)
        if "encode_chunk_frames" in stated:
            ask("encode_chunk_frames", geometry.check_chunk, stated["encode_chunk_frames"], ratio)
        if size is not None:
            latent = [pixels // spatial for pixels in size]
            tiling = stated.get("decode_tiling", "none")
            if tiling != "none":
                ask("decode_tiles", geometry.check_tiles, *latent, stated["decode_tiles"], tiling == "blend")
            if "encode_tiles" in stated:
                ask("encode_tiles", geometry.check_tiles, *latent, stated["encode_tiles"])
        if self._own.optimize != OptimizeSettings() or self._own.adapters:
            # What `optimize` would do in vain, and adapters that do not fit; no card is looked for.
            from flashvideo_ray.engines import flashvideo_models as models

            parts = [weights.config(self._model, self.stage, part) for part in ("transformer", "scheduler")]
            found += models.problems(self._own, self.stage, *parts)
        return found

    def refusal(self, num_frames: int | None, height: int | None, width: int | None) -> str | None:
        """See Engine. The network redraws a video of any smaller size, if it has the shape of the clip."""
        vae, _, _ = self._grid()
        if num_frames is not None:
            try:
                geometry.generated_length(num_frames, int(vae["temporal_compression_ratio"]))
            except ValueError as error:
                return str(error)
        made = self.describe()
        return shapes.refusal((height, width), (made.height, made.width))

    def on_negative_prompts(self) -> str | None:
        """See Engine. Its own unconditional embedding is all zeros (paper §3.2)."""
        return "this model was trained without any"

    def source(self) -> weights.Source:
        """See Engine."""
        return weights.Source(self._model, self.stage, self._own.adapters)

    def fingerprint(self) -> str:
        """See Engine."""
        return weights.fingerprint(self._model, self.stage, self._own.adapters)

    def text_fingerprint(self) -> str:
        """See Engine."""
        return weights.fingerprint(self._model, "preview", only=_TEXT)

    def verify(self, fingerprint: str) -> None:
        """See Engine."""
        found = self.fingerprint()
        if found != fingerprint:
            raise weights.WeightsError(
                f"{self._model}: this node's {self.stage} weights are not those of the run (fingerprint {found}, the "
                f"run has {fingerprint}); bring the folder up to date on {socket.gethostname()}"
            )

    def networks(self) -> dict[str, Any]:
        """See Engine."""
        stated = weights.sampling_defaults(self._model, self.stage)
        none = 0 if self.stage == "preview" and stated.get("use_dynamic_cfg", True) else 1  # the scale of no guidance
        return {
            "transformer": weights.config(self._model, self.stage, "transformer"),
            "vae": weights.config(self._model, self.stage, "vae"),
            "tokens": stated["max_sequence_length"],
            "evaluations": 1 if self._own.guidance_scale == none else 2,
        }

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See Engine."""
        return weights.count_tokens(self._model, "preview", texts)

    def load_text(self) -> Text:
        """See Engine. The preview model's folder holds the one text encoder; nothing else of it is loaded."""
        from flashvideo_ray.engines.flashvideo_text import Text

        folder = weights.locate(self._model, "preview", _TEXT)
        length = weights.sampling_defaults(self._model, self.stage)["max_sequence_length"]
        return Text(folder, self.settings.text.dtype, length, self.settings.pools.text)

    def load_preview(self) -> Preview:
        """See Engine."""
        from flashvideo_ray.engines import flashvideo_models as models

        return models.Preview(self._folder, self.settings.preview, self.settings.pools.preview)

    def load_refine(self) -> Refine:
        """See Engine."""
        from flashvideo_ray.engines import flashvideo_models as models

        return models.Refine(self._folder, self.settings.refine, self.settings.pools.refine)

    def _grid(self) -> tuple[dict[str, Any], int, int]:
        """The VAE's configuration, pixels of a latent pixel on each axis, and those of a patch of the transformer."""
        vae = weights.config(self._model, self.stage, "vae")
        spatial = 2 ** (len(vae["block_out_channels"]) - 1)
        return vae, spatial, spatial * weights.config(self._model, self.stage, "transformer")["patch_size"]

    @property
    def _own(self) -> PreviewSettings | RefineSettings:
        return getattr(self.settings, self.stage)

    @property
    def _model(self) -> str:
        return self._own.model

    @property
    def _folder(self) -> Any:
        return weights.locate(self._model, self.stage)
