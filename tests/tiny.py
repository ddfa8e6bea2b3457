"""A tiny model with random weights, saved the way every FlashVideo model is, and one whose network fails on request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from faulty_network import FaultyTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from flashvideo_ray import (
    FlashVideoDPMScheduler,
    FlashVideoFlowScheduler,
    FlashVideoPreviewPipeline,
    FlashVideoRefinePipeline,
    FlashVideoTransformer3DModel,
)

WORDS = [
    *("a", "the", "red", "blue", "green", "grey", "circle", "square", "star", "sand", "water"),
    *("moves", "left", "right", "up", "down", "slowly", "over", "on"),
]
FRAMES, FPS = 9, 8
PREVIEW_SIZE, CLIP_SIZE = (32, 48), (64, 96)


def save_model(folder: Path, faults: Sequence[tuple[str, str, str]] = ()) -> Path:
    """Save `preview/` and `refine/` below the folder. A fault: a stage, `raise`, `nan`, `hang` or `kill`, a prompt."""
    torch.manual_seed(0)
    tokenizer, text_encoder = _text()
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.7,
    ).eval()
    common = {"vae": vae, "tokenizer": tokenizer, "text_encoder": text_encoder, "max_sequence_length": 16}
    preview = FlashVideoPreviewPipeline(
        transformer=_transformer(),
        scheduler=FlashVideoDPMScheduler(),
        height=PREVIEW_SIZE[0],
        width=PREVIEW_SIZE[1],
        num_frames=FRAMES,
        fps=FPS,
        num_inference_steps=4,
        guidance_scale=3.0,
        **common,
    )
    refine = FlashVideoRefinePipeline(
        transformer=_transformer(size_embedding=True, ref_step_embedding=True),
        scheduler=FlashVideoFlowScheduler(),
        height=CLIP_SIZE[0],
        width=CLIP_SIZE[1],
        num_inference_steps=2,
        guidance_scale=3.0,
        prompt_prefix="medium motion,",
        **common,
    )
    for stage, pipe in (("preview", preview), ("refine", refine)):
        own = [(fault, prompt) for where, fault, prompt in faults if where == stage]
        if own:
            pipe.register_modules(transformer=_faulty(pipe, own))
    refine.tokenizer = refine.text_encoder = None
    preview.save_pretrained(folder / "preview")
    refine.save_pretrained(folder / "refine")
    return folder


def _faulty(pipe: Any, faults: Sequence[tuple[str, str]]) -> FaultyTransformer:
    sound = pipe.transformer
    faulty = FaultyTransformer(
        triggers=tuple(pipe.encode_prompt(prompt).double().sum().item() for _, prompt in faults),
        faults=tuple(fault for fault, _ in faults),
        size_embedding=sound.config.size_embedding,
        ref_step_embedding=sound.config.ref_step_embedding,
    )
    faulty.load_state_dict(sound.state_dict())
    return faulty


def _transformer(**config: Any) -> FlashVideoTransformer3DModel:
    return FlashVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        time_embed_dim=16,
        text_embed_dim=32,
        num_layers=2,
        **config,
    ).eval()


def _text() -> tuple[PreTrainedTokenizerFast, T5EncoderModel]:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
    config = T5Config(vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    return fast, T5EncoderModel(config).eval()
