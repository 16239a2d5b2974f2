"""Flow matching on video latents and action rows together, batched over the stock weights.

The stock forward takes one packed sequence. ``Flow`` computes the same for a batch whose texts are
shared among its clips; a test holds it to the stock forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import Cosmos3OmniTransformer
from tokenizers import Tokenizer
from torch import Tensor, nn

from cosmos3_ros.engine.session import TEXT_PADDING_BIAS, Contract
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.policy.positions import positions, rotary_tables
from cosmos3_ros.policy.prompt import caption, pad_tokens, tokenize


@dataclass(frozen=True)
class Texts:
    """Captions as tokens [C,U], their padding as a bias [C,U], and the rotary tables of the
    generation tokens that follow each of them [C,S,D]."""

    ids: Tensor
    bias: Tensor
    cos: Tensor
    sin: Tensor

    def __getitem__(self, chosen: Tensor) -> Texts:
        return Texts(self.ids[chosen], self.bias[chosen], self.cos[chosen], self.sin[chosen])


@dataclass(frozen=True)
class Batch:
    """Clean latents [B,Z,T,h,w] and rows [B,A,width] (the state row first), in the model's units.

    ``caption``: [B], of ``Texts``. ``noisy_rows``: [B,A,1], 1 where a row is denoised, 0 clean.
    """

    latents: Tensor
    rows: Tensor
    noisy_rows: Tensor
    caption: Tensor


def make_texts(
    instructions: Sequence[str], embodiment: Embodiment, contract: Contract, tokenizer: Tokenizer
) -> Texts:
    """Of every instruction, in their order, and of none: the unconditional prompt comes last.

    Raises PromptError where a caption has more tokens than the contract's text.
    """
    captions = [caption(said, embodiment, contract) for said in instructions]
    ids, bias, tables = [], [], []
    for text in (*captions, ""):
        tokens = tokenize(text, tokenizer, contract.prompting)
        ids.append(pad_tokens(tokens, contract.prompting))
        bias.append(np.zeros(contract.prompting.text_tokens, np.float32))
        bias[-1][len(tokens) :] = TEXT_PADDING_BIAS
        tables.append(rotary_tables(positions(len(tokens), contract), contract.rope))
    cos, sin = (np.stack(table) for table in zip(*tables, strict=True))
    stacked = (np.stack(ids), np.stack(bias), cos, sin)
    return Texts(*(torch.from_numpy(array) for array in stacked))


class Flow(nn.Module):
    """The transformer on batches: velocities of latents and rows at a timestep."""

    text_cos: Tensor
    text_sin: Tensor
    noisy_video: Tensor

    def __init__(self, transformer: Cosmos3OmniTransformer, contract: Contract) -> None:
        super().__init__()
        self.transformer = transformer
        self.contract = contract
        index = np.arange(contract.prompting.text_tokens, dtype=np.float32)
        cos, sin = rotary_tables(np.tile(index, (3, 1)), contract.rope)
        frames, height, width = contract.grid
        noisy = (torch.arange(frames) >= 1).float().repeat_interleave(height * width)
        self.register_buffer("text_cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("text_sin", torch.from_numpy(sin), persistent=False)
        self.register_buffer("noisy_video", noisy[None, :, None], persistent=False)

    def forward(
        self,
        texts: Texts,
        caption: Tensor,
        latents: Tensor,
        rows: Tensor,
        noisy_rows: Tensor,
        timestep: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Velocities of latents [B,Z,T,h,w] and rows [B,A,width], of clean tokens too.

        ``timestep``: [B], 0 .. 1000.
        """
        model, width = self.transformer, self.contract.width
        text = self.read(texts)
        padded = F.pad(rows, (0, self.contract.action_dim - width))
        time = model.time_embedder(model.time_proj(timestep * model.config.timestep_scale))
        x = torch.cat(
            [
                model.proj_in(self._patchify(latents)),
                self._by_domain(model.action_proj_in, padded) + model.action_modality_embed,
            ],
            1,
        )
        noisy = torch.cat([self.noisy_video.expand(len(x), -1, -1), noisy_rows], 1)
        x = x + time[:, None] * noisy
        cos, sin = texts.cos[caption][:, :, None], texts.sin[caption][:, :, None]
        bias = F.pad(texts.bias[caption], (0, x.shape[1]))[:, None, None]
        for (keys, values), layer in zip(text, model.layers, strict=True):
            h = layer.input_layernorm_moe_gen(x)
            x = x + self._attend(layer, h, cos, sin, keys[caption], values[caption], bias)
            x = x + layer.mlp_moe_gen(layer.post_attention_layernorm_moe_gen(x))
        x = model.norm_moe_gen(x)
        tokens = self.noisy_video.shape[1]
        velocity = self._by_domain(model.action_proj_out, x[:, tokens:])
        return self._unpatchify(model.proj_out(x[:, :tokens])), velocity[..., :width]

    def read(self, texts: Texts) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [C,K,U,D] of every layer's text."""
        model = self.transformer
        x = model.embed_tokens(texts.ids)
        count, length = texts.ids.shape
        cos, sin = self.text_cos[None, :, None], self.text_sin[None, :, None]
        read: list[tuple[Tensor, Tensor]] = []
        for layer in model.layers:
            a = layer.self_attn
            h = layer.input_layernorm(x)
            shape = (count, length, -1, a.head_dim)
            query = _rotate(a.norm_q(a.to_q(h).view(shape)), cos, sin).transpose(1, 2)
            keys = _rotate(a.norm_k(a.to_k(h).view(shape)), cos, sin).transpose(1, 2)
            values = a.to_v(h).view(shape).transpose(1, 2)
            read.append((keys, values))
            if len(read) == len(model.layers):
                break
            groups = a.num_key_value_groups
            # Causal, so that padding at the end reaches no token before it.
            mixed = F.scaled_dot_product_attention(
                query,
                keys.repeat_interleave(groups, 1),
                values.repeat_interleave(groups, 1),
                is_causal=True,
            )
            x = x + a.to_out(mixed.transpose(1, 2).reshape(count, length, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return read

    def _attend(
        self,
        layer: Any,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Any,
    ) -> Tensor:
        a = layer.self_attn
        batch, length, _ = h.shape
        heads, groups, width = a.num_key_value_heads, a.num_key_value_groups, a.head_dim
        shape = (batch, length, -1, width)
        query = _rotate(a.norm_added_q(a.add_q_proj(h).view(shape)), cos, sin)
        key = _rotate(a.norm_added_k(a.add_k_proj(h).view(shape)), cos, sin).transpose(1, 2)
        value = a.add_v_proj(h).view(shape).transpose(1, 2)
        # Queries that share keys stand one after another, so that keys need not be repeated.
        query = query.view(batch, length, heads, groups, width).permute(0, 2, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            query.reshape(batch, heads, groups * length, width),
            torch.cat([keys, key], 2),
            torch.cat([values, value], 2),
            attn_mask=bias,
        )
        mixed = mixed.view(batch, heads, groups, length, width).permute(0, 3, 1, 2, 4)
        out: Tensor = a.to_add_out(mixed.reshape(batch, length, -1))
        return out

    def _by_domain(self, layer: Any, x: Tensor) -> Tensor:
        domain = self.contract.domain_id
        weight = layer.fc.weight[domain].view(layer.input_size, layer.output_size)
        out: Tensor = x @ weight + layer.bias.weight[domain]
        return out

    def _patchify(self, latents: Tensor) -> Tensor:
        """[B,Z,T,h,w] to patches [B,tokens,p*p*Z]; odd sizes are padded with zeros."""
        c = self.contract
        (frames, height, width), p = c.grid, c.patch
        latents = F.pad(latents, (0, width * p - c.latent_width, 0, height * p - c.latent_height))
        cells = latents.reshape(len(latents), c.latent_channels, frames, height, p, width, p)
        return cells.permute(0, 2, 3, 5, 4, 6, 1).reshape(
            len(latents), -1, p * p * c.latent_channels
        )

    def _unpatchify(self, patches: Tensor) -> Tensor:
        c = self.contract
        (frames, height, width), p = c.grid, c.patch
        cells = patches.reshape(len(patches), frames, height, width, p, p, c.latent_channels)
        latents = cells.permute(0, 6, 1, 2, 4, 3, 5)
        latents = latents.reshape(len(patches), c.latent_channels, frames, height * p, width * p)
        return latents[..., : c.latent_height, : c.latent_width]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def losses(
    flow: Any, texts: Texts, batch: Batch, share: Tensor, contract: Contract
) -> tuple[Tensor, Tensor]:
    """Mean squared error of the velocities of video and rows, over what is noisy.

    x_t = (1 - t) x + t e, and the velocity is e - x (rectified flow; Liu et al. 2022).
    ``share``: uniform in 0 .. 1, [B], moved towards noise by the sampler's shift s:
    t = s u / (1 + (s - 1) u), one for video and rows.
    """
    shift = contract.sampler.shift
    sigma = shift * share / (1 + (shift - 1) * share)
    video_noise, row_noise = torch.randn_like(batch.latents), torch.randn_like(batch.rows)
    noisy_video = torch.ones_like(batch.latents[:, :1, :, :1, :1])
    noisy_video[:, :, 0] = 0
    latents = _mixed(batch.latents, video_noise, sigma[:, None, None, None, None] * noisy_video)
    rows = _mixed(batch.rows, row_noise, sigma[:, None, None] * batch.noisy_rows)
    video, row = flow(texts, batch.caption, latents, rows, batch.noisy_rows, sigma * 1000)
    video_error = (video - (video_noise - batch.latents))[:, :, 1:]
    row_error = (row - (row_noise - batch.rows)) * batch.noisy_rows
    count = batch.noisy_rows.sum() * batch.rows.shape[2]
    return video_error.square().mean(), row_error.square().sum() / count


def _mixed(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    return (1 - sigma) * clean + sigma * noise


@torch.no_grad()
def sample(flow: Flow, texts: Texts, batch: Batch, contract: Contract) -> tuple[Tensor, Tensor]:
    """Latents and rows that the sampler's table makes of noise, unguided.

    Of ``batch`` only the first latent and the clean rows are looked at.
    """
    sampler = contract.sampler
    noise = torch.randn_like(batch.latents), torch.randn_like(batch.rows)
    latents, rows = _clean(batch, *noise)
    history: list[tuple[Tensor, Tensor]] = []
    for step, timestep in enumerate(sampler.timesteps):
        given = torch.full((len(latents),), timestep)
        velocity = flow(texts, batch.caption, latents, rows, batch.noisy_rows, given)
        history.append(velocity)
        weights = sampler.velocity[step]
        latents, rows = (
            sampler.start[step] * noise[part]
            + sum(w * v[part] for w, v in zip(weights, history, strict=True))
            for part in (0, 1)
        )
        latents, rows = _clean(batch, latents, rows)
    return latents, rows


def _clean(batch: Batch, latents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    latents = torch.cat([batch.latents[:, :, :1], latents[:, :, 1:]], 2)
    return latents, torch.where(batch.noisy_rows == 1, rows, batch.rows)
