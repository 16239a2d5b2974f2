"""Trains the VAE (diffusers' ``AutoencoderKLWan``) on canvases, and turns clips into latents.

The stock forward goes through a clip chunk by chunk with a cache, to save memory. For training,
``WholeClip`` computes the same in one go; a test holds it to the stock forward.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from torch import Tensor, nn

from cosmos3_ros.training.bars import Bar
from cosmos3_ros.training.runs import Progress, Stage, seeded
from cosmos3_ros.training.settings import VaeSettings

# Clips of a step of the first stage, by turns: number and frames, at most those of a chunk. The
# other stages: whole chunks.
_SHORT = ((8, 5), (4, 9))
_LONG_BATCH = 3
# What moves and what is small weighs as much as what stands still and is large.
_FOREGROUND, _FOREGROUND_WEIGHT = 0.12, 2.0
# Mostly the squared error, of which PSNR is made; a little of the absolute one keeps edges sharp.
_ABSOLUTE_WEIGHT = 0.1
_KL_WEIGHT = 2e-5
_WARM_UP_STEPS = 50
_LAST_SHARE = 0.03  # of the learning rate
_LARGEST_GRADIENT = 1.0
_NOTE_PERIOD = 25  # steps


class WholeClip(nn.Module):
    """A stock VAE whose clips go through in one piece. The VAE's own forward then no longer works.

    Pictures [B,3,T,H,W] in [-1, 1], T = 1 + 4 n; latents [B,Z,1+n,h,w], not normalised.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae
        for module in vae.modules():
            if isinstance(module, wan.WanResample):
                module.forward = types.MethodType(_resample, module)
            elif isinstance(module, wan.WanRMS_norm):
                module.forward = types.MethodType(_rms_norm, module)

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithmic variance of the latents."""
        patches = wan.patchify(pictures, patch_size=self.vae.config.patch_size)
        mean, variance = self.vae.quant_conv(self.vae.encoder(patches)).chunk(2, 1)
        return mean, variance.clamp(-20, 5)

    def decode(self, latents: Tensor) -> Tensor:
        patches = self.vae.decoder(self.vae.post_quant_conv(latents), first_chunk=True)
        pictures: Tensor = wan.unpatchify(patches, patch_size=self.vae.config.patch_size)
        return pictures

    def forward(
        self, pictures: Tensor, noise: Tensor, decoder_alone: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and logarithmic variance. ``decoder_alone``: no gradient reaches
        the encoder, and the decoder is given the mean."""
        if decoder_alone:
            with torch.no_grad():
                mean, variance = self.encode(pictures)
            return self.decode(mean), mean, variance
        mean, variance = self.encode(pictures)
        return self.decode(mean + noise * (0.5 * variance).exp()), mean, variance


def _resample(self: Any, x: Tensor, feat_cache: Any = None, feat_idx: Any = None) -> Tensor:
    """``WanResample``: the first frame stands alone, as the first chunk does."""
    batch, channels, frames, height, width = x.size()
    if self.mode == "upsample3d" and frames > 1:
        later = self.time_conv(x[:, :, 1:]).reshape(batch, 2, channels, frames - 1, height, width)
        later = torch.stack((later[:, 0], later[:, 1]), 3)
        later = later.reshape(batch, channels, 2 * (frames - 1), height, width)
        x = torch.cat([x[:, :, :1], later], 2)
    frames = x.shape[2]
    x = self.resample(x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, height, width))
    x = x.view(batch, frames, *x.shape[1:]).permute(0, 2, 1, 3, 4)
    if self.mode == "downsample3d" and frames > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
    return x


def _rms_norm(self: Any, x: Tensor) -> Tensor:
    scale = torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-12) * self.scale
    return x * scale * self.gamma


def train_vae(
    stage: Stage,
    vae: AutoencoderKLWan,
    load_films: Callable[[], list[np.ndarray]],
    frames: int,
    settings: VaeSettings,
    seed: int,
    *,
    compiled: bool = True,
) -> float:
    """Train ``vae``; returns the seconds it took.

    ``load_films``: gives what it is trained on, uint8 RGB [n,H,W,3] each. ``frames``: of a whole
    chunk, the observation's included.
    """
    clip = WholeClip(vae).train()
    optimiser = torch.optim.AdamW(clip.parameters(), betas=(0.9, 0.99), weight_decay=0.0)

    def load(saved: Any) -> None:
        vae.load_state_dict(saved["vae"])
        optimiser.load_state_dict(saved["optimiser"])

    progress = Progress(
        stage, lambda: {"vae": vae.state_dict(), "optimiser": optimiser.state_dict()}, load
    )
    together = settings.short_steps + settings.long_steps
    first, last = progress.resume(), together + settings.decoder_steps
    if first < last:
        films = load_films()
        background = _background(films)
    forward = torch.compile(clip, dynamic=False) if compiled else clip
    with Bar("VAE", "step", last, first) as bar:
        for step in range(first, last):
            random = seeded(seed, 1, step)
            for group in optimiser.param_groups:
                group["lr"] = _learning_rate(step, settings)
            count, length = _SHORT[step % 2] if step < settings.short_steps else (0, 0)
            shape = (count, min(length, frames)) if count else (_LONG_BATCH, frames)
            pictures = _draw(films, *shape, random)
            figures = _step(forward, clip, optimiser, pictures, background, step >= together)
            bar.update()
            noted = (step + 1) % _NOTE_PERIOD == 0
            progress.stepped(step + 1, figures() if noted else None)
    progress.save()
    vae.eval()
    return progress.seconds


def _step(
    forward: Any,
    clip: WholeClip,
    optimiser: torch.optim.Optimizer,
    pictures: Tensor,
    background: Tensor,
    decoder_alone: bool,
) -> Any:
    """One step; returns a function that gives its figures."""
    vae = clip.vae.config
    frames = 1 + (pictures.shape[2] - 1) // vae.scale_factor_temporal
    size = [side // vae.scale_factor_spatial for side in pictures.shape[3:]]
    noise = torch.randn(len(pictures), vae.z_dim, frames, *size)
    seen, mean, variance = forward(pictures, noise, decoder_alone)
    foreground = ((pictures - background).abs().amax(1, keepdim=True) > _FOREGROUND).float()
    weight = 1 + _FOREGROUND_WEIGHT * foreground
    error = pictures - seen
    reconstruction = (weight * (_ABSOLUTE_WEIGHT * error.abs() + error.square())).mean()
    divergence = 0.5 * (mean.square() + variance.exp() - 1 - variance).mean()
    loss = reconstruction + _KL_WEIGHT * divergence
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(clip.parameters(), _LARGEST_GRADIENT)
    optimiser.step()
    return lambda: {
        "reconstruction": reconstruction.item(),
        "divergence": divergence.item(),
        "psnr_db": decibel(error.detach().square().mean().item() / 4),
    }


def decibel(squared_error: float) -> float:
    """PSNR [dB] of a mean squared error, where the largest value is 1."""
    return -10 * math.log10(max(squared_error, 1e-12))


def to_pictures(canvases: np.ndarray) -> Tensor:
    """uint8 [B,T,H,W,3] as the VAE takes them: [B,3,T,H,W] in [-1, 1]."""
    pictures = torch.from_numpy(canvases).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    return pictures.contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def encode_clips(clip: WholeClip, clips: Iterator[np.ndarray], batch: int = 4) -> np.ndarray:
    """Means of the latents of clips, uint8 [T,H,W,3] each: [n,Z,t,h,w], float16."""
    encoded: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        mean, _ = clip.encode(to_pictures(np.stack(waiting)))
        encoded.append(mean.half().numpy())
        waiting.clear()

    for canvases in clips:
        waiting.append(canvases)
        if len(waiting) == batch:
            flush()
    if waiting:
        flush()
    return np.concatenate(encoded)


def to_canvases(pictures: Tensor) -> np.ndarray:
    """[B,3,T,H,W] in [-1, 1] as uint8 [B,T,H,W,3]."""
    scaled = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    canvases: np.ndarray = scaled.permute(0, 2, 3, 4, 1).contiguous().numpy()
    return canvases


def set_statistics(vae: AutoencoderKLWan, latents: np.ndarray) -> None:
    """Have the latents [n,Z,t,h,w] normalised to mean 0 and deviation 1, by channel."""
    by_channel = latents.astype(np.float32).transpose(1, 0, 2, 3, 4).reshape(latents.shape[1], -1)
    vae.register_to_config(
        latents_mean=by_channel.mean(1).tolist(), latents_std=by_channel.std(1).tolist()
    )


def _learning_rate(step: int, settings: VaeSettings) -> float:
    """Cosine to nearly nothing in each stage, after a warm-up."""
    stages, done = list(settings.stages), step
    while done >= stages[0][1]:
        done -= stages.pop(0)[1]
    peak, steps = stages[0]
    cosine = 0.5 * (1 + math.cos(math.pi * done / steps))
    warm = min(1.0, (done + 1) / _WARM_UP_STEPS)
    return peak * warm * (_LAST_SHARE + (1 - _LAST_SHARE) * cosine)


def _draw(films: list[np.ndarray], count: int, frames: int, random: np.random.Generator) -> Tensor:
    drawn = []
    for _ in range(count):
        film = films[random.integers(len(films))]
        first = random.integers(len(film) - frames + 1)
        drawn.append(film[first : first + frames])
    return to_pictures(np.stack(drawn))


def _background(films: list[np.ndarray]) -> Tensor:
    """The median of many frames, [3,1,H,W]: what does not move."""
    some = np.stack([film[len(film) // 2] for film in films[:: max(1, len(films) // 200)]])
    return to_pictures(np.median(some, 0).astype(np.uint8)[None, None])[0]
