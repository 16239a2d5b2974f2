"""The four graphs, as thin modules over the weights of the stock diffusers models.

The stock transformer packs its sequence with Python lists and ``scatter``, and branches on data;
these modules compute the same from static shapes. Parity with the stock modules is tested.
Shapes are those of ``cosmos3_ros.engine.session``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer
from torch import Tensor, nn

from cosmos3_ros.engine.session import TEXT_PADDING_BIAS, Contract


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [tokens, heads, D] by tables [tokens, D]."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Grouped-query attention. ``query`` [n, K*G, D], ``keys`` and ``values`` [K, m, D], ``bias``
    broadcast to [K, G, n, m]; result [n, K*G*D]. Keys are never repeated.
    """
    tokens, heads, dim = query.shape
    groups = heads // keys.shape[0]
    grouped = query.view(tokens, keys.shape[0], groups, dim).permute(1, 2, 0, 3)
    scores = torch.matmul(grouped * dim**-0.5, keys.unsqueeze(1).transpose(-1, -2)) + bias
    mixed = torch.matmul(torch.softmax(scores, dim=-1), values.unsqueeze(1))
    return mixed.permute(2, 0, 1, 3).reshape(tokens, heads * dim)


class TextGraph(nn.Module):
    """Token ids to the keys and values that the generation tower reads, layer by layer.

    The text is causal, so padding at its end reaches no real token. The last layer's output is
    read by nobody: its keys and values are all that remains of it.
    """

    cos: Tensor
    sin: Tensor
    causal: Tensor

    def __init__(self, transformer: Cosmos3OmniTransformer, text_tokens: int) -> None:
        super().__init__()
        self.embed, self.layers = transformer.embed_tokens, transformer.layers
        position = torch.arange(text_tokens).float().expand(3, 1, -1)
        cos, sin = transformer.rotary_emb(position, position.device, torch.float32)
        self.register_buffer("cos", cos[0])
        self.register_buffer("sin", sin[0])
        future = torch.full((text_tokens, text_tokens), TEXT_PADDING_BIAS).triu(1)
        self.register_buffer("causal", future)

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(token_ids)
        cos, sin, causal = (t.to(x.dtype) for t in (self.cos, self.sin, self.causal))
        all_keys, all_values = [], []
        for index, layer in enumerate(self.layers):
            attention = layer.self_attn
            heads = (x.shape[0], -1, attention.head_dim)
            h = layer.input_layernorm(x)
            query = _rotate(attention.norm_q(attention.to_q(h).view(heads)), cos, sin)
            normed = attention.norm_k(attention.to_k(h).view(heads))
            keys = _rotate(normed, cos, sin).transpose(0, 1)
            values = attention.to_v(h).view(heads).transpose(0, 1)
            if attention.k_norm_und_for_gen is not None:
                for_generation = attention.k_norm_und_for_gen(normed)
                all_keys.append(_rotate(for_generation, cos, sin).transpose(0, 1))
            else:
                all_keys.append(keys)
            all_values.append(values)
            if index == len(self.layers) - 1:
                break
            x = x + attention.to_out(_attend(query, keys, values, causal))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return torch.stack(all_keys), torch.stack(all_values)


class DenoiseGraph(nn.Module):
    """One forward of the generation tower: velocities of the video latents and action rows.

    Latent frame 0 is the observation and clean; which action rows are clean is an input. Clean
    tokens carry no timestep embedding, and their velocity is zero.
    """

    noisy_video: Tensor

    def __init__(self, transformer: Cosmos3OmniTransformer, contract: Contract) -> None:
        super().__init__()
        self.layers, self.norm = transformer.layers, transformer.norm_moe_gen
        self.proj_in, self.proj_out = transformer.proj_in, transformer.proj_out
        self.time_proj, self.time_embedder = transformer.time_proj, transformer.time_embedder
        self.rows_in, self.rows_out = transformer.action_proj_in, transformer.action_proj_out
        self.rows_embed = transformer.action_modality_embed
        self.timestep_scale = transformer.config.timestep_scale
        self.contract = contract
        frames, height, width = contract.grid
        noisy = (torch.arange(frames) >= 1).float().repeat_interleave(height * width)
        self.register_buffer("noisy_video", noisy[:, None])

    def forward(
        self,
        latents: Tensor,
        rows: Tensor,
        noisy_rows: Tensor,
        timestep: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        text_bias: Tensor,
        domain_id: Tensor,
    ) -> tuple[Tensor, Tensor]:
        dtype = self.proj_in.weight.dtype
        noisy = torch.cat([self.noisy_video, noisy_rows]).to(dtype)
        scaled = self.time_proj(timestep * self.timestep_scale)
        # The timestep is embedded in float32 (its weights' own type), whatever the rest runs in.
        time = self.time_embedder(scaled.to(self.time_embedder.linear_1.weight.dtype)).to(dtype)
        video = self.proj_in(self._patchify(latents).to(dtype))
        action = self._by_domain(self.rows_in, rows.to(dtype), domain_id) + self.rows_embed
        x = torch.cat([video, action]) + time * noisy
        cos, sin = cos.to(dtype), sin.to(dtype)
        bias = torch.cat([text_bias, text_bias.new_zeros(x.shape[0])]).to(dtype)
        for index, layer in enumerate(self.layers):
            attention = layer.self_attn
            heads = (x.shape[0], -1, attention.head_dim)
            h = layer.input_layernorm_moe_gen(x)
            query = _rotate(attention.norm_added_q(attention.add_q_proj(h).view(heads)), cos, sin)
            key = _rotate(attention.norm_added_k(attention.add_k_proj(h).view(heads)), cos, sin)
            value = attention.add_v_proj(h).view(heads)
            all_keys = torch.cat([keys[index], key.transpose(0, 1)], dim=1)
            all_values = torch.cat([values[index], value.transpose(0, 1)], dim=1)
            x = x + attention.to_add_out(_attend(query, all_keys, all_values, bias))
            x = x + layer.mlp_moe_gen(layer.post_attention_layernorm_moe_gen(x))
        x = self.norm(x)
        tokens = self.noisy_video.shape[0]
        video = self._unpatchify(self.proj_out(x[:tokens]) * noisy[:tokens])
        action = self._by_domain(self.rows_out, x[tokens:], domain_id) * noisy[tokens:]
        return video.float(), action.float()

    def _by_domain(self, layer: Any, x: Tensor, domain_id: Tensor) -> Tensor:
        weight = layer.fc(domain_id).view(layer.input_size, layer.output_size)
        return torch.matmul(x, weight) + layer.bias(domain_id)

    def _patchify(self, latents: Tensor) -> Tensor:
        """[1,C,T,h,w] to patches [tokens, p*p*C]; odd sizes are padded with zeros."""
        c = self.contract
        (frames, height, width), p = c.grid, c.patch
        if (height * p, width * p) != (c.latent_height, c.latent_width):
            pad = (0, width * p - c.latent_width, 0, height * p - c.latent_height)
            latents = F.pad(latents, pad)
        cells = latents.reshape(c.latent_channels, frames, height, p, width, p)
        return cells.permute(1, 2, 4, 3, 5, 0).reshape(frames * height * width, -1)

    def _unpatchify(self, patches: Tensor) -> Tensor:
        """Patches [tokens, p*p*C] to [1,C,T,h,w], the padding cut off."""
        c = self.contract
        (frames, height, width), p = c.grid, c.patch
        cells = patches.view(frames, height, width, p, p, c.latent_channels)
        video = cells.permute(5, 0, 1, 3, 2, 4)
        video = video.reshape(1, c.latent_channels, frames, height * p, width * p)
        return video[..., : c.latent_height, : c.latent_width]


class _Latents(nn.Module):
    """Shared by image and frame: the VAE and the statistics its latents are normalised by."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, vae: AutoencoderKLWan, contract: Contract) -> None:
        super().__init__()
        self.vae, self.contract = vae, contract
        shape = (1, contract.latent_channels, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean).view(shape))
        inverse_std = 1.0 / torch.tensor(vae.config.latents_std)
        self.register_buffer("inverse_std", inverse_std.view(shape))


class ImageGraph(_Latents):
    """One canvas to the clean latent of frame 0, its padding cut off.

    Encoding the one frame gives the latent of the repeated clip: the VAE is causal in time.
    """

    def forward(self, canvas: Tensor) -> Tensor:
        c = self.contract
        pixels = canvas.permute(2, 0, 1)[None, :, None].float() / 255.0 * 2.0 - 1.0
        latent = self.vae._encode(pixels)[:, : c.latent_channels]
        latent = (latent - self.mean) * self.inverse_std
        return latent[..., : c.latent_height, : c.latent_width]


class FrameGraph(_Latents):
    """The first latents to the frames after the observation, uint8."""

    def forward(self, latents: Tensor) -> Tensor:
        raw = latents / self.inverse_std + self.mean
        video = self.vae._decode(raw, return_dict=False)[0][0, :, 1:]
        pixels = ((video / 2 + 0.5).clamp(0, 1) * 255).round()
        return pixels.permute(1, 2, 3, 0).to(torch.uint8)
