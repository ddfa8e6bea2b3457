"""Models that look at pictures, tiny and random, saved as transformers saves them: real classes, no download."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTokenizer,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIZE = 32  # pixels that every model sees
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
EYE = {**SMALL, "image_size": SIZE, "patch_size": 8}
TEXT = "is the video yes no Yes No YES NO a red circle glides to the left please answer show does frames of one . , ?"
CHAT = (
    "{% for message in messages %}<|im_start|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def loud(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights that are large enough for the output to depend on the input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return model.eval()


def save_clip(folder: Path) -> Path:
    """A CLIP that reads 77 tokens; every character is one."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=77)
    end = len(words) - 1
    text = {**SMALL, "vocab_size": len(words), "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=EYE, projection_dim=16))
    loud(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE).save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    """A SigLIP that reads 16 tokens."""
    spoken = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT.lower()] * 3),
        model_writer=spoken,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.mkdir(exist_ok=True)
    (folder / "spiece.model").write_bytes(spoken.getvalue())
    tokenizer = SiglipTokenizer(vocab_file=str(folder / "spiece.model"), model_max_length=16)
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=EYE))
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-1.0)
    loud(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def save_classifier(folder: Path, *labels: str) -> Path:
    """A ViT that tells these labels apart."""
    config = ViTConfig(**EYE, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    loud(ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def save_video_lm(folder: Path, template: str | None = CHAT) -> Path:
    """An Idefics3, the family of SmolVLM, that knows "yes" and "no" in several spellings."""
    special = ["<unk>", "<pad>", "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>"]
    special += ["<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))]
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT] * 3 + ["yes", "no", "Yes", "No"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    eye = Idefics3ImageProcessorPil(size={"longest_edge": SIZE}, max_image_size={"longest_edge": SIZE})
    processor = Idefics3Processor(eye, tokenizer, image_seq_len=4, chat_template=template)
    config = Idefics3Config(
        text_config={**SMALL, "model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 4},
        vision_config=EYE,
        scale_factor=2,
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    loud(Idefics3ForConditionalGeneration(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
