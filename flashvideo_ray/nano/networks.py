"""Build the nano model's networks, and save or load them as an ordinary model folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from flashvideo_ray.models import (
    FlashVideoDPMScheduler,
    FlashVideoFlowScheduler,
    FlashVideoPreviewPipeline,
    FlashVideoRefinePipeline,
    FlashVideoTransformer3DModel,
)

from .captions import word_list
from .config import NANO, TINY, NanoConfig

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


def build_tokenizer(config: NanoConfig = NANO) -> PreTrainedTokenizerFast:
    """One token a word; capitals and punctuation make no difference; words outside the captions are `<unk>`."""
    vocabulary = {word: number for number, word in enumerate([PAD, EOS, UNKNOWN, *word_list()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(",", " "), normalizers.Replace(".", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=config.text_length,
    )


def build_text_encoder(config: NanoConfig = NANO) -> T5EncoderModel:
    """A T5 encoder of about 0.2 M parameters."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(word_list()) + 3,
            d_model=config.text_dim,
            d_kv=config.text_dim // 4,
            d_ff=2 * config.text_dim,
            num_layers=config.text_layers,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    ).eval()


def build_vae(config: NanoConfig = NANO) -> AutoencoderKLCogVideoX:
    """The video autoencoder; a latent frame for every frame."""
    levels = len(config.vae_channels)
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=2,
        temporal_compression_ratio=1,
        scaling_factor=1.0,
        sample_height=config.height,
        sample_width=config.width,
    ).eval()


def build_transformer(stage: int, config: NanoConfig = NANO) -> FlashVideoTransformer3DModel:
    """The network of stage 1 or 2."""
    return FlashVideoTransformer3DModel(
        num_attention_heads=config.heads[stage - 1],
        attention_head_dim=config.head_dim,
        in_channels=config.latent_channels,
        num_layers=config.layers[stage - 1],
        patch_size=config.patches[stage - 1],
        time_embed_dim=config.time_dim,
        text_embed_dim=config.text_dim,
        size_embedding=stage == 2,
        ref_step_embedding=stage == 2,
    ).eval()


def build_clip(config: NanoConfig = NANO) -> CLIPModel:
    """The scorer: an image is a 2 x 2 sheet of four frames, 64 pixels each."""
    heads = max(config.clip_dim // 24, 1)
    return CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": len(word_list()) + 3,
                "hidden_size": 2 * config.clip_dim // 3 // 4 * 4,
                "intermediate_size": 2 * config.clip_dim,
                "num_hidden_layers": 2 if config.clip_layers > 1 else 1,
                "num_attention_heads": 4,
                "max_position_embeddings": config.text_length,
                "pad_token_id": 0,
                "bos_token_id": 0,
                "eos_token_id": 1,
            },
            vision_config={
                "hidden_size": config.clip_dim,
                "intermediate_size": 4 * config.clip_dim,
                "num_hidden_layers": config.clip_layers,
                "num_attention_heads": heads,
                "image_size": 128,
                "patch_size": 16,
            },
            projection_dim=64,
        )
    ).eval()


def save_folder(
    dest: str | Path,
    *,
    vae: AutoencoderKLCogVideoX,
    text_encoder: T5EncoderModel,
    preview: FlashVideoTransformer3DModel,
    refine: FlashVideoTransformer3DModel,
    clip: Any = None,
    config: NanoConfig = NANO,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write `preview/`, `refine/` and `clip/` below `dest`, in `dtype`; each appears complete or not at all.

    The networks that are passed are converted to `dtype` in place.
    """
    dest = Path(dest)
    dest.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(config)
    stage1 = FlashVideoPreviewPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        transformer=preview,
        vae=vae,
        scheduler=FlashVideoDPMScheduler(),
        height=config.height,
        width=config.width,
        num_frames=config.frames,
        fps=config.fps,
        num_inference_steps=config.preview_steps,
        guidance_scale=config.preview_guidance,
        max_sequence_length=config.text_length,
    ).to(dtype)
    stage2 = FlashVideoRefinePipeline(
        transformer=refine,
        vae=vae,
        scheduler=FlashVideoFlowScheduler(shift=config.shift),
        height=config.height * config.scale,
        width=config.width * config.scale,
        num_inference_steps=config.refine_steps,
        guidance_scale=config.refine_guidance,
        noise_step=config.noise_step,
        prompt_prefix="",
        max_sequence_length=config.text_length,
        preview_scaling_factor=vae.config["scaling_factor"],
        decode_tiling="none",
    ).to(dtype)
    with tempfile.TemporaryDirectory(dir=dest, prefix=".part-") as part:
        stage1.save_pretrained(Path(part) / "preview")
        stage2.save_pretrained(Path(part) / "refine")
        if clip is not None:
            clip.to(dtype).save_pretrained(Path(part) / "clip")
            tokenizer.save_pretrained(Path(part) / "clip")
        for folder in sorted(Path(part).iterdir()):
            shutil.rmtree(dest / folder.name, ignore_errors=True)
            os.replace(folder, dest / folder.name)
    return dest


def build_random(dest: str | Path, seed: int = 0, config: NanoConfig = TINY) -> Path:
    """Save a complete model with random weights: of the shipped sizes with `config=NANO`, a toy otherwise.

    Equal seeds give equal files. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return save_folder(
            dest,
            vae=build_vae(config),
            text_encoder=build_text_encoder(config),
            preview=build_transformer(1, config),
            refine=build_transformer(2, config),
            clip=build_clip(config),
            config=config,
            dtype=torch.float32,
        )
