"""Section on the text encoder: what a text takes on the card, and on one core."""

from collections.abc import Iterator
from typing import Any

import torch
from gpu_bench import TEXT_TOKENS, Bench, Result
from transformers import T5Config, T5EncoderModel

_LAYERS = 24
_RELEASED = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64}
_SMALL = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_heads": 4}


def text(bench: Bench) -> Iterator[Result]:
    """One text through an encoder of T5-XXL's size on the card, and on one core, where one layer stands for all."""
    bench.forget()
    taken = _seconds(bench, _LAYERS if bench.card else 1, bench.device)
    yield Result("one text on the card", taken, "s", about={"what": "text", "where": "card"})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken = _LAYERS * _seconds(bench, 1, torch.device("cpu"))
    torch.set_num_threads(threads)
    yield Result("one text on one core", taken, "s", about={"what": "text", "where": "core"})


def _seconds(bench: Bench, layers: int, device: torch.device) -> float:
    encoder, tokens = _encoder(bench, layers, device), torch.randint(1, 60, (1, TEXT_TOKENS), device=device)
    return bench.seconds(lambda: encoder(input_ids=tokens))


def _encoder(bench: Bench, layers: int, device: torch.device) -> Any:
    config: dict[str, Any] = {
        **(_SMALL if bench.tiny else _RELEASED),
        "num_layers": layers,
        "feed_forward_proj": "gated-gelu",
    }
    with torch.device("meta"):
        network = torch.nn.Module.to(T5EncoderModel(T5Config(**config)), bench.dtype)
    network = network.to_empty(device=device).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_(0, 0.02)
    return network
