"""Both solvers: their tables, their ends, and what training asks of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvideo_ray.models import FlashVideoDPMScheduler, FlashVideoFlowScheduler


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 120))
def test_any_number_of_steps_ends_at_the_clean_sample(steps):
    """With a network that knows the answer, every run arrives at it, whatever the noise."""
    scheduler = FlashVideoDPMScheduler()
    scheduler.set_timesteps(steps)
    clean, sample = torch.full((1, 4), 0.7), torch.randn(1, 4)
    assert len(set(scheduler.timesteps.tolist())) == steps
    for i, t in enumerate(scheduler.timesteps):
        q = scheduler.denoiser_alphas[i]
        velocity = (q * sample - clean) / (1 - q**2).sqrt()
        out = scheduler.step(velocity, t, sample)
        torch.testing.assert_close(out.pred_original_sample, clean, atol=1e-4, rtol=0)
        sample = out.prev_sample
    torch.testing.assert_close(sample, clean, atol=1e-4, rtol=0)


def test_the_same_noise_gives_the_same_sample():
    def run(**noise):
        scheduler = FlashVideoDPMScheduler()
        scheduler.set_timesteps(3)
        sample = torch.ones(1, 2, 3)
        for t in scheduler.timesteps:
            sample, _ = scheduler.step(0.1 * sample, t, sample, return_dict=False, **noise)
        return sample

    first = run(generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, run(generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(first, run(generator=torch.Generator().manual_seed(4)))


def test_noise_and_velocity_for_training_invert_each_other():
    scheduler = FlashVideoDPMScheduler()
    clean, noise, steps = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.tensor([0, 500, 999])
    noisy, velocity = scheduler.add_noise(clean, noise, steps), scheduler.get_velocity(clean, noise, steps)
    signal = scheduler.sqrt_alphas_cumprod[steps][:, None, None]
    torch.testing.assert_close(signal * noisy - (1 - signal**2).sqrt() * velocity, clean)
    # The last step holds nothing of the clean sample.
    assert torch.equal(noisy[2], noise[2])


@pytest.mark.parametrize("steps", [0, 1000])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match="num_inference_steps"):
        FlashVideoDPMScheduler().set_timesteps(steps)


def test_a_straight_flow_is_followed_exactly():
    start, end = torch.randn(1, 5), torch.randn(1, 5)
    for steps in (1, 4, 5, 6):
        scheduler = FlashVideoFlowScheduler(shift=2.5)
        scheduler.set_timesteps(steps)
        sample = start
        for t in scheduler.timesteps:
            out = scheduler.step(end - start, t, sample)
            torch.testing.assert_close(out.pred_original_sample, end)
            sample = out.prev_sample
        torch.testing.assert_close(sample, end)


def test_the_official_run_rounds_its_times():
    """In bfloat16 the network sees 904 for 909.09, and noise step 676 for 675."""
    scheduler = FlashVideoFlowScheduler(shift=2.5, time_dtype="bfloat16")
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [1000, 904, 784, 624, 384]
    assert [scheduler.model_noise_step(step) for step in (650, 675, 700, 750)] == [648, 676, 700, 752]
    assert FlashVideoFlowScheduler().model_noise_step(675) == 675
    with pytest.raises(ValueError, match="time_dtype"):
        FlashVideoFlowScheduler(time_dtype="float16")


def test_degradation_takes_one_step_or_one_a_sample():
    scheduler, clean = FlashVideoFlowScheduler(), torch.ones(2, 3)
    one = scheduler.add_noise(clean, torch.zeros(2, 3), 675)
    each = scheduler.add_noise(clean, torch.zeros(2, 3), torch.tensor([675, 900]))
    assert one[0, 0].item() == pytest.approx(0.263958722)
    assert torch.equal(one[0], each[0])
    assert each[1, 0].item() == pytest.approx(0.054409500)


def test_schedulers_are_saved_with_their_settings(tmp_path):
    FlashVideoFlowScheduler(shift=3.0, time_dtype="bfloat16").save_pretrained(tmp_path)
    again = FlashVideoFlowScheduler.from_pretrained(tmp_path)
    assert (again.config.shift, again.config.time_dtype) == (3.0, "bfloat16")
