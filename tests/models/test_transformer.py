"""The network takes any shape, trains, compiles, and does nothing twice."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from flashvideo_ray.models import FlashVideoTransformer3DModel
from flashvideo_ray.models.transformer import rotary_embedding


def network(**config) -> FlashVideoTransformer3DModel:
    torch.manual_seed(0)
    defaults = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "time_embed_dim": 8}
    return FlashVideoTransformer3DModel(**{**defaults, "in_channels": 4, "text_embed_dim": 12, **config}).eval()


def inputs(frames=3, height=4, width=6, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, frames, 4, height, width), torch.randn(batch, 7, 12), torch.full((batch,), 300.0)


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("head_dim", [2, 6, 8, 24, 32, 64])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_any_shape(patch_size, head_dim, frames):
    video, text, step = inputs(frames)
    model = network(patch_size=patch_size, attention_head_dim=head_dim)
    assert model(video, text, step).sample.shape == video.shape


def test_stage_2_needs_its_noise_step_and_reads_it():
    model = network(size_embedding=True, ref_step_embedding=True)
    video, text, step = inputs()
    with pytest.raises(ValueError, match="ref_noise_step"):
        model(video, text, step)
    outputs = [model(video, text, step, ref_noise_step=noise_step).sample for noise_step in (600, 675.0, 676)]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_rotary_positions_are_whole_numbers_at_every_size():
    device = torch.device("cpu")
    small, large = rotary_embedding(64, 3, 4, 5, device), rotary_embedding(64, 5, 8, 10, device)
    for table_small, table_large in zip(small, large, strict=True):
        corner = table_large.view(5, 8, 10, 64)[:3, :4, :5].reshape(-1, 64)
        assert torch.equal(table_small, corner)
    # Made once for each shape.
    assert rotary_embedding(64, 3, 4, 5, device)[0] is small[0]


def test_text_is_projected_once_for_all_steps():
    model, (video, text, step) = network(), inputs()
    projections = []
    model.patch_embed.text_proj.register_forward_hook(lambda *_: projections.append(1))
    tokens = model.project_text(text)
    for _ in range(3):
        out = model(video, tokens, step, text_is_projected=True).sample
    assert len(projections) == 1
    assert torch.equal(out, model(video, text, step).sample)


def test_latents_that_do_not_fill_patches_are_refused():
    with pytest.raises(ValueError, match="patches"):
        network()(torch.randn(1, 1, 4, 3, 4), torch.randn(1, 7, 12), 5.0)
    with pytest.raises(ValueError, match="even"):
        network(attention_head_dim=3)


def test_it_trains_with_and_without_checkpointing():
    video, text, step = inputs()
    gradients = []
    for checkpointing in (False, True):
        model = network().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        with torch.inference_mode():
            model(video, text, step)  # sampling between training steps leaves nothing behind
        model(video, text, step).sample.square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_compiled_blocks_compute_the_same():
    model, (video, text, step) = network(), inputs()
    with torch.no_grad():
        plain = model(video, text, step).sample
        model.compile_repeated_blocks(fullgraph=True)
        torch.testing.assert_close(model(video, text, step).sample, plain, atol=1e-5, rtol=1e-5)


def test_caches_of_diffusers_save_work():
    model, (video, text, step) = network(num_layers=4), inputs()
    model.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    calls = []
    query = model.transformer_blocks[-1].attn1.to_q
    forward = query.forward
    query.forward = lambda hidden: calls.append(1) or forward(hidden)
    with torch.no_grad(), model.cache_context("cond"):
        for _ in range(3):
            model(video, text, step)
    assert len(calls) == 1


def test_saved_and_loaded_it_computes_the_same(tmp_path):
    model, (video, text, step) = network(ref_step_embedding=True), inputs()
    model.save_pretrained(tmp_path)
    again = FlashVideoTransformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(model(video, text, step, 675).sample, again(video, text, step, 675).sample)
