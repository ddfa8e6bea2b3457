"""Tiny text-to-video pipelines of other families, with random weights, saved as diffusers saves them.

Tokenizers are built here, too, so that nothing is asked of a hub. `python tests/tiny_pipelines.py FOLDER` writes all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from tiny import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

_VOCABULARY = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "<s>", *WORDS])}
_WIDTH = 32  # of embeddings


def save_wan(folder: Path) -> Path:
    """Sizes in steps of 16, lengths of 4k + 1 frames."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=_WIDTH,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    config = UMT5Config(vocab_size=len(_VOCABULARY), d_model=_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    return _save(
        diffusers.WanPipeline(
            tokenizer=_tokenizer(),
            text_encoder=UMT5EncoderModel(config),
            transformer=transformer,
            vae=vae,
            scheduler=diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        ),
        folder,
    )


def save_ltx(folder: Path) -> Path:
    """Sizes in steps of 32, lengths of 4k + 1 frames (8k + 1 of the released ones)."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=_WIDTH,
    )
    return _save(
        diffusers.LTXPipeline(
            tokenizer=_tokenizer(),
            text_encoder=_t5(),
            transformer=transformer,
            vae=vae,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        ),
        folder,
    )


def save_cogvideox(folder: Path) -> Path:
    """Sizes in steps of 16, lengths of 4k + 1 frames."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=_WIDTH,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=16,
    )
    return _save(
        diffusers.CogVideoXPipeline(
            tokenizer=_tokenizer(),
            text_encoder=_t5(),
            transformer=transformer,
            vae=vae,
            scheduler=diffusers.CogVideoXDDIMScheduler(),
        ),
        folder,
    )


def save_hunyuan_video(folder: Path) -> Path:
    """Sizes in steps of 16, lengths of 4k + 1 frames; two text encoders."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=_WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    common = {"vocab_size": len(_VOCABULARY), "bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0}
    common |= {"num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 32}
    llama = LlamaModel(LlamaConfig(**common, hidden_size=_WIDTH, max_position_embeddings=512))
    clip = CLIPTextModel(CLIPTextConfig(**common, hidden_size=8, max_position_embeddings=77))
    return _save(
        diffusers.HunyuanVideoPipeline(
            tokenizer=_tokenizer(512),
            text_encoder=llama,
            tokenizer_2=_tokenizer(77),
            text_encoder_2=clip,
            transformer=transformer,
            vae=vae,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        ),
        folder,
    )


def save_mochi(folder: Path) -> Path:
    """Sizes in steps of 16, lengths of 6k + 1 frames."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=_WIDTH,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    return _save(
        diffusers.MochiPipeline(
            tokenizer=_tokenizer(),
            text_encoder=_t5(),
            transformer=transformer,
            vae=vae,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        ),
        folder,
    )


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "wan": save_wan,
    "ltx": save_ltx,
    "cogvideo": save_cogvideox,
    "hunyuan_video": save_hunyuan_video,
    "mochi": save_mochi,
}


def _save(pipeline: Any, folder: Path) -> Path:
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.save_pretrained(folder)
    return folder


def _tokenizer(length: int = 16) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(_VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        model_max_length=length,
    )


def _t5() -> T5EncoderModel:
    config = T5Config(vocab_size=len(_VOCABULARY), d_model=_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    return T5EncoderModel(config)


if __name__ == "__main__":
    for name, save in FAMILIES.items():
        print(save(Path(sys.argv[1]) / name))
