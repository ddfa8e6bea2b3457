"""The two solvers: SDE-DPM-Solver++(2M) for the preview, shifted Euler along a straight flow for the refinement.

Both rest on one noise table: `sqrt_alphas_cumprod`, the signal level of the 1000 training steps with zero terminal
SNR. All tables and coefficients are made on the host when the steps are set, so that a step reads plain numbers and
never waits for the device.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput

from .noise import draw_noise


def rescale_zero_terminal_snr(signal: torch.Tensor) -> torch.Tensor:
    """Shift and scale signal levels, ordered from clean to noisy, so that the last is zero and the first is kept."""
    return (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))


def raw_signal_levels(num_train_timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """Return sqrt(cumprod(1 - beta)) `[num_train_timesteps]` float32, before the zero-SNR rescaling."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float().sqrt()


def at_steps(table: torch.Tensor, steps: torch.Tensor | int, like: torch.Tensor) -> torch.Tensor:
    """Look `steps` (`[batch]` or one number) up in a table, ready to be multiplied with `like` `[batch, ...]`."""
    values = table.to(like.device, like.dtype)[steps]
    return values.reshape(-1, *[1] * (like.ndim - 1)) if values.ndim else values


@dataclass
class FlashVideoSchedulerOutput(BaseOutput):
    """What one step gives: the next sample and the solver's present estimate of the clean one."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class FlashVideoDPMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """SDE-DPM-Solver++(2M) for velocity prediction, as stage 1 of FlashVideo samples (Lu et al., arXiv 2211.01095).

    Any number of steps. Against `CogVideoXDPMScheduler`: steps are `floor(linspace)`, the signal levels are rescaled to
    zero terminal SNR *after* subsampling, each step goes to the next level in the list, the estimate of the clean
    sample uses the nearest level of the full table (on which the network was trained), and the last step returns that
    estimate without noise.

    Attributes:
        timesteps: `[num_inference_steps]` int64, descending.
        sqrt_alphas_cumprod: `[num_train_timesteps]` float32, the full table, 1 → 0.
        sampler_alphas: `[num_inference_steps + 1]` float32, the solver's levels, 0 → 1.
        denoiser_alphas: `[num_inference_steps]` float32, the levels at which velocity becomes a clean sample.
    """

    order = 1
    init_noise_sigma = 1.0
    config: Any

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> None:
        self._raw_levels = raw_signal_levels(num_train_timesteps, beta_start, beta_end)
        self.sqrt_alphas_cumprod = rescale_zero_terminal_snr(self._raw_levels)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the steps and work out every coefficient of the run."""
        last = self.config.num_train_timesteps - 1
        if not 1 <= num_inference_steps <= last:
            raise ValueError(f"num_inference_steps must be 1 to {last}, got {num_inference_steps}")
        steps = torch.from_numpy(np.linspace(last, 0, num_inference_steps, endpoint=False).astype(np.int64))

        levels = rescale_zero_terminal_snr(self._raw_levels[steps.flip(0)]).flip(0)
        if num_inference_steps == 1:
            levels = torch.zeros(1)  # a single step starts from pure noise
        alphas = torch.cat([levels, torch.ones(1)])
        nearest = (levels[:, None] - self.sqrt_alphas_cumprod).abs().argmin(dim=1)

        self.num_inference_steps = num_inference_steps
        self.timesteps = steps.to(device)
        self.sampler_alphas = alphas
        self.denoiser_alphas = self.sqrt_alphas_cumprod[nearest]
        self._set_coefficients(alphas.double())
        self._step_index = 0
        self._previous_x0: torch.Tensor | None = None

    def _set_coefficients(self, alpha: torch.Tensor) -> None:
        """Coefficients of `x <- c_x * x + c_x0 * d + c_noise * noise`, `d = x0 + c_history * (x0 - previous x0)`.

        The first level is 0 and the last is 1, so log-SNR runs from -inf to inf. IEEE arithmetic carries that through:
        step 1 sees an infinite last step and is first order by itself.
        """
        log_snr = 0.5 * torch.log(alpha**2 / (1 - alpha**2))
        h = log_snr.diff()
        sigma, sigma_next = (1 - alpha[:-1] ** 2).sqrt(), (1 - alpha[1:] ** 2).sqrt()
        history = torch.zeros_like(h)
        history[1:-1] = h[1:-1] / (2 * h[:-2])
        self._c_history = history.tolist()
        self._c_x = (sigma_next / sigma * torch.exp(-h)).tolist()
        self._c_x0 = (-torch.expm1(-2 * h) * alpha[1:]).tolist()
        self._c_noise = (sigma_next * (1 - torch.exp(-2 * h)).sqrt()).tolist()
        q = self.denoiser_alphas.double()
        self._q_sample, self._q_velocity = q.tolist(), (1 - q**2).sqrt().tolist()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> FlashVideoSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Advance `sample` by one step. Call once for each of `timesteps`, in order.

        Args:
            model_output: velocity, after guidance.
            timestep: ignored; the scheduler counts its steps, which needs no value from the device.
            sample: `[batch, ...]` float32.
            generator: for the noise, when `noise` is not given; drawn on its own device.
            noise: standard normal, of the shape of `sample`. The last step uses none.
            return_dict: return `FlashVideoSchedulerOutput` instead of a tuple.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps first")
        i = self._step_index
        x0 = self._q_sample[i] * sample - self._q_velocity[i] * model_output
        if i == self.num_inference_steps - 1:
            prev_sample = x0
            self._previous_x0 = None
        else:
            if noise is None:
                noise = draw_noise(sample.shape, generator, sample.device)
            d = x0
            if self._c_history[i] and self._previous_x0 is not None:
                d = x0 + self._c_history[i] * (x0 - self._previous_x0)
            prev_sample = self._c_x[i] * sample + self._c_x0[i] * d + self._c_noise[i] * noise
            self._previous_x0 = x0
        self._step_index += 1
        if not return_dict:
            return prev_sample, x0
        return FlashVideoSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | int) -> torch.Tensor:
        """Training: return the noisy latents at `timesteps` (`[batch]`, 0 … num_train_timesteps - 1)."""
        signal = at_steps(self.sqrt_alphas_cumprod, timesteps, latents)
        return signal * latents + (1 - signal**2).sqrt() * noise

    def get_velocity(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | int) -> torch.Tensor:
        """Training: return the velocity that the network must predict for `add_noise` of the same arguments."""
        signal = at_steps(self.sqrt_alphas_cumprod, timesteps, latents)
        return signal * noise - (1 - signal**2).sqrt() * latents


class FlashVideoFlowScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Euler steps on the straight path from degraded low-resolution to high-resolution latents (paper §3.3, eq. 1-3).

    Time t runs from 0 (the noised low-resolution latents) to 1; the network sees 1000 - 1000 t. `shift` moves steps
    towards the start: t = 1 - s(1-u) / (1 + (s-1)(1-u)) for equally spaced u.

    Args:
        num_train_timesteps: length of the noise table, and the model time at t = 0.
        beta_start: of the noise table by which the low-resolution latents are degraded.
        beta_end: likewise.
        shift: the paper's schedule shift; 1 is none, the released model uses 2 to 3.5.
        time_dtype: "float32", or "bfloat16" to round times as the official bf16 run does (five steps: 1000, 904, 784,
            624, 384; noise step 675 enters the network as 676). For parity with official outputs, not for quality.

    Attributes:
        times: `[num_inference_steps + 1]` float32, 0 → 1.
        timesteps: `[num_inference_steps]` float32 model times, descending.
        sqrt_alphas_cumprod: `[num_train_timesteps]` float32, signal level of each noise step, 1 → 0.
    """

    order = 1
    init_noise_sigma = 1.0
    config: Any

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        shift: float = 2.5,
        time_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        if time_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"time_dtype must be 'float32' or 'bfloat16', got {time_dtype!r}")
        self.sqrt_alphas_cumprod = rescale_zero_terminal_snr(
            raw_signal_levels(num_train_timesteps, beta_start, beta_end)
        )
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps, 0, -1, dtype=torch.float32)

    def shift_time(self, u: torch.Tensor) -> torch.Tensor:
        """Map uniform times in [0, 1] to shifted ones, in the arithmetic of the argument's dtype."""
        shift, rest = self.config.shift, 1 - u
        return 1 - shift * rest / (1 + (shift - 1) * rest)

    def model_time(self, t: torch.Tensor) -> torch.Tensor:
        """Return what the network is told at flow time `t`: num_train_timesteps (start) … 0 (end)."""
        scale = self.config.num_train_timesteps
        return scale - scale * t

    def model_noise_step(self, noise_step: int) -> float:
        """Return what the network is told for `noise_step`: the same number, or its bfloat16 rounding."""
        return torch.tensor(noise_step, dtype=getattr(torch, self.config.time_dtype)).item()

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the times of `num_inference_steps` Euler steps."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        dtype = getattr(torch, self.config.time_dtype)
        times = self.shift_time(torch.linspace(0, 1, num_inference_steps + 1, dtype=dtype))
        self.num_inference_steps = num_inference_steps
        self.times = times.float()
        self.timesteps = self.model_time(times[:-1]).float().to(device)
        self._deltas = times.diff().float().tolist()
        self._step_index = 0

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor | float, sample: torch.Tensor, return_dict: bool = True
    ) -> FlashVideoSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Advance `sample` by one Euler step along the velocity. Call once for each of `timesteps`, in order.

        `pred_original_sample` is the end of the straight line on which the sample is now. `timestep` is ignored.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps first")
        i = self._step_index
        prev_sample = sample + self._deltas[i] * model_output
        x1 = sample + sum(self._deltas[i:]) * model_output
        self._step_index += 1
        if not return_dict:
            return prev_sample, x1
        return FlashVideoSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x1)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, noise_step: torch.Tensor | int) -> torch.Tensor:
        """Degrade low-resolution latents to `noise_step` (`[batch]` or one number): the start of the flow.

        This is the paper's latent degradation (§3.3): signal .264 and noise .965 at step 675.
        """
        signal = at_steps(self.sqrt_alphas_cumprod, noise_step, latents)
        return signal * latents + (1 - signal**2).sqrt() * noise
