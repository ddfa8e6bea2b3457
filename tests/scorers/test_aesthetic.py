import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor, CLIPModel

from flashvideo_ray import scorers
from flashvideo_ray.errors import InputError


def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 40, 64, 3), dtype=np.uint8)


def embeds(folder) -> torch.Tensor:
    model, processor = CLIPModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    pixels = processor(images=[Image.fromarray(frame) for frame in frames()], return_tensors="pt").pixel_values
    with torch.no_grad():
        return F.normalize(model.visual_projection(model.vision_model(pixels).pooler_output), dim=-1)


def test_it_is_the_heads_mean_rating(clip_folder, head_file):
    head = torch.nn.Linear(16, 1)
    head.load_state_dict(torch.load(head_file))
    ratings = head(embeds(clip_folder))
    score = scorers.load("aesthetic", {"head": str(head_file), "model": str(clip_folder)})(frames(), "")["aesthetic"]
    assert score == pytest.approx(ratings.mean().item(), abs=1e-5)
    assert ratings.std() > 1e-3


def test_a_head_of_several_linear_layers(clip_folder, tmp_path):
    """As LAION's second head is saved: `layers.0`, `layers.2`, ... with dropout between them."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(16, 8), torch.nn.Dropout(), torch.nn.Linear(8, 4), torch.nn.Dropout(), torch.nn.Linear(4, 1)
    ).eval()
    save_file({f"layers.{name}": value for name, value in layers.state_dict().items()}, tmp_path / "head.safetensors")
    scorer = scorers.load("aesthetic", {"head": str(tmp_path / "head.safetensors"), "model": str(clip_folder)})
    assert scorer(frames(), "")["aesthetic"] == pytest.approx(layers(embeds(clip_folder)).mean().item(), abs=1e-5)


def test_heads_that_do_not_fit(clip_folder, tmp_path):
    torch.save({"weight": torch.ones(1, 768), "bias": torch.ones(1)}, tmp_path / "large.pth")
    (tmp_path / "none.pth").write_bytes(b"nothing")
    for name, message in [
        ("large.pth", "made for embeddings of 768 numbers, .* gives 16"),
        ("none.pth", "no aesthetic head"),
        ("absent.safetensors", "no aesthetic head"),
    ]:
        with pytest.raises(InputError, match=message):
            scorers.load("aesthetic", {"head": str(tmp_path / name), "model": str(clip_folder)})
