"""The graphs, as thin modules over the weights of the stock diffusers models.

The stock transformer packs its sequence with Python lists and ``scatter``, and branches on data;
these modules compute the same from static shapes. Parity with the stock modules is tested.
Shapes are those of ``cosmos3_ros.engine.session``.

Text and denoise are made for a stretch of the layers: hidden states [tokens, hidden], named after
the layer that reads them, pass from one stretch to the next.
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


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Grouped-query attention. ``query`` [n, K*G, D], ``keys`` and ``values`` [K, m, D], ``bias``
    [n or 1, m], added to the scores; result [n, K*G*D]. Keys are never repeated. Without a bias
    it is causal.

    In half precision it becomes ONNX's Attention operator, for which TensorRT has fused kernels;
    it has none for float32, which gets the products themselves.
    """
    tokens, heads, dim = query.shape
    groups = heads // keys.shape[0]
    if query.dtype != torch.float32:
        mixed = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=None if bias is None else bias[None, None],
            is_causal=bias is None,
            enable_gqa=groups > 1,
        )
        return mixed[0].transpose(0, 1).reshape(tokens, heads * dim)
    if bias is None:
        bias = query.new_full((tokens, tokens), TEXT_PADDING_BIAS).triu(1)
    grouped = query.view(tokens, keys.shape[0], groups, dim).permute(1, 2, 0, 3)
    scores = torch.matmul(grouped * dim**-0.5, keys.unsqueeze(1).transpose(-1, -2)) + bias
    mixed = torch.matmul(torch.softmax(scores, dim=-1), values.unsqueeze(1))
    return mixed.permute(2, 0, 1, 3).reshape(tokens, heads * dim)


class Graph(nn.Module):
    """A graph, or a stretch of one: what it takes and returns, by name and in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def hidden(layer: int) -> str:
    """The name of the hidden states that a layer reads."""
    return f"hidden_{layer}"


class TextGraph(Graph):
    """Token ids to the keys and values that the generation tower reads, layer by layer.

    The text is causal, so padding at its end reaches no real token. The last layer's output is
    read by nobody: its keys and values are all that remains of it.

    ``layers``: the stretch (first, last + 1); all of them where it is None.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        transformer: Cosmos3OmniTransformer,
        text_tokens: int,
        layers: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        first, last = layers or (0, len(transformer.layers))
        self.is_first, self.is_last = first == 0, last == len(transformer.layers)
        self.inputs = ("token_ids" if self.is_first else hidden(first),)
        self.outputs = ("keys", "values", *(() if self.is_last else (hidden(last),)))
        self.layers = transformer.layers[first:last]
        if self.is_first:
            self.embed = transformer.embed_tokens
        position = torch.arange(text_tokens).float().expand(3, 1, -1)
        cos, sin = transformer.rotary_emb(position, position.device, torch.float32)
        self.register_buffer("cos", cos[0])
        self.register_buffer("sin", sin[0])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x``: token ids in the first stretch, hidden states in the others."""
        if self.is_first:
            x = self.embed(x)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        all_keys, all_values = [], []
        for index, layer in enumerate(self.layers):
            attention = layer.self_attn
            heads = (x.shape[0], -1, attention.head_dim)
            h = layer.input_layernorm(x)
            normed = attention.norm_k(attention.to_k(h).view(heads))
            values = attention.to_v(h).view(heads).transpose(0, 1)
            for_generation = normed
            if attention.k_norm_und_for_gen is not None:
                for_generation = attention.k_norm_und_for_gen(normed)
            all_keys.append(_rotate(for_generation, cos, sin).transpose(0, 1))
            all_values.append(values)
            if self.is_last and index == len(self.layers) - 1:
                break
            query = _rotate(attention.norm_q(attention.to_q(h).view(heads)), cos, sin)
            keys = _rotate(normed, cos, sin).transpose(0, 1)
            x = x + attention.to_out(_attend(query, keys, values, None))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        stacked = torch.stack(all_keys), torch.stack(all_values)
        return stacked if self.is_last else (*stacked, x)


class DenoiseGraph(Graph):
    """One forward of the generation tower: velocities of the video latents and action rows.

    Latent frame 0 is the observation and clean; which action rows are clean is an input. Clean
    tokens carry no timestep embedding, and their velocity is zero.

    ``layers``: the stretch (first, last + 1); all of them where it is None.
    """

    noisy_video: Tensor

    def __init__(
        self,
        transformer: Cosmos3OmniTransformer,
        contract: Contract,
        layers: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        first, last = layers or (0, len(transformer.layers))
        self.is_first, self.is_last = first == 0, last == len(transformer.layers)
        embedded = ("latents", "rows", "noisy_rows", "timestep")
        start = embedded if self.is_first else (hidden(first),)
        end = ("noisy_rows",) if self.is_last and not self.is_first else ()
        domain = ("domain_id",) if self.is_first or self.is_last else ()
        self.inputs = (*start, *end, "cos", "sin", "keys", "values", "text_bias", *domain)
        self.outputs = ("latent_velocity", "row_velocity") if self.is_last else (hidden(last),)
        self.layers = transformer.layers[first:last]
        if self.is_first:
            self.proj_in, self.rows_in = transformer.proj_in, transformer.action_proj_in
            self.rows_embed = transformer.action_modality_embed
            self.time_proj, self.time_embedder = transformer.time_proj, transformer.time_embedder
            self.timestep_scale = transformer.config.timestep_scale
        if self.is_last:
            self.norm, self.proj_out = transformer.norm_moe_gen, transformer.proj_out
            self.rows_out = transformer.action_proj_out
        self.contract = contract
        frames, height, width = contract.grid
        noisy = (torch.arange(frames) >= 1).float().repeat_interleave(height * width)
        self.register_buffer("noisy_video", noisy[:, None])

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """``tensors`` in the order of ``inputs``; returned in the order of ``outputs``."""
        given = dict(zip(self.inputs, tensors, strict=True))
        x = self._embed(given) if self.is_first else tensors[0]
        cos, sin = given["cos"].to(x.dtype), given["sin"].to(x.dtype)
        text_bias = given["text_bias"]
        bias = torch.cat([text_bias, text_bias.new_zeros(x.shape[0])])[None].to(x.dtype)
        for index, layer in enumerate(self.layers):
            attention = layer.self_attn
            heads = (x.shape[0], -1, attention.head_dim)
            h = layer.input_layernorm_moe_gen(x)
            query = _rotate(attention.norm_added_q(attention.add_q_proj(h).view(heads)), cos, sin)
            key = _rotate(attention.norm_added_k(attention.add_k_proj(h).view(heads)), cos, sin)
            value = attention.add_v_proj(h).view(heads)
            keys = torch.cat([given["keys"][index], key.transpose(0, 1)], dim=1)
            values = torch.cat([given["values"][index], value.transpose(0, 1)], dim=1)
            x = x + attention.to_add_out(_attend(query, keys, values, bias))
            x = x + layer.mlp_moe_gen(layer.post_attention_layernorm_moe_gen(x))
        return self._velocities(x, given) if self.is_last else (x,)

    def _embed(self, given: dict[str, Tensor]) -> Tensor:
        """Latents and action rows to hidden states, with the timestep where they are noisy."""
        dtype = self.proj_in.weight.dtype
        scaled = self.time_proj(given["timestep"] * self.timestep_scale)
        # The timestep is embedded in float32 (its weights' own type), whatever the rest runs in.
        time = self.time_embedder(scaled.to(self.time_embedder.linear_1.weight.dtype)).to(dtype)
        video = self.proj_in(self._patchify(given["latents"]).to(dtype))
        rows = self._by_domain(self.rows_in, given["rows"].to(dtype), given["domain_id"])
        return torch.cat([video, rows + self.rows_embed]) + time * self._noisy(given, dtype)

    def _velocities(self, x: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states to velocities, zero where a token is clean."""
        noisy = self._noisy(given, x.dtype)
        x = self.norm(x)
        tokens = self.noisy_video.shape[0]
        video = self._unpatchify(self.proj_out(x[:tokens]) * noisy[:tokens])
        rows = self._by_domain(self.rows_out, x[tokens:], given["domain_id"]) * noisy[tokens:]
        return video.float(), rows.float()

    def _noisy(self, given: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        return torch.cat([self.noisy_video, given["noisy_rows"]]).to(dtype)

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


class StepGraph(Graph):
    """The sampler after one step: velocities of both branches to the next latents and rows.

    Places of the history that hold nothing yet, and the unconditional branch where the step is
    not guided, may hold anything, NaN included: they are selected away, never multiplied by zero.
    """

    inputs = (
        "start_latents",
        "start_rows",
        "latent_history",
        "row_history",
        "conditional_latent",
        "unconditional_latent",
        "conditional_row",
        "unconditional_row",
        "guidance",
        "place",
        "coefficients",
        "clean_latent",
        "clean_rows",
        "noisy_rows",
        "held_rows",
    )
    outputs = ("latents", "rows", "next_latent_history", "next_row_history")

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.width = contract.width

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        given = dict(zip(self.inputs, tensors, strict=True))
        latents, latent_history = self._advance(given, "latent", given["start_latents"])
        rows, row_history = self._advance(given, "row", given["start_rows"][None])
        latents = torch.cat([given["clean_latent"], latents[:, :, 1:]], dim=2)
        rows = torch.where(given["noisy_rows"] == 0, given["clean_rows"], rows[0])
        rows = torch.cat([rows[:, : self.width], torch.zeros_like(rows[:, self.width :])], dim=1)
        return latents, rows, latent_history, row_history

    def _advance(self, given: dict[str, Tensor], kind: str, start: Tensor) -> tuple[Tensor, Tensor]:
        """x [1, ...] after this step, and the history [N, ...] with this step's velocity."""
        conditional = given[f"conditional_{kind}"]
        unconditional = given[f"unconditional_{kind}"]
        guided = unconditional + given["guidance"] * (conditional - unconditional)
        velocity = torch.where(given["guidance"] == 1, conditional, guided)
        if kind == "row":
            held, straight = given["held_rows"], given["start_rows"] - given["clean_rows"]
            mixed = velocity + held * (straight - velocity)
            velocity = torch.where(held == 0, velocity, mixed)
        history = given[f"{kind}_history"]
        each = (-1,) + (1,) * (history.dim() - 1)
        history = torch.where(given["place"].view(each) == 1, velocity, history)
        weights = given["coefficients"][1:].view(each)
        used = torch.where(weights == 0, 0.0, weights * history)
        return given["coefficients"][0] * start + used.sum(0, keepdim=True), history


class _Latents(Graph):
    """Shared by image and frame: the VAE and the statistics its latents are normalised by.

    The VAE runs in the type of its weights; canvas, latents and frames do not depend on it.
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, vae: AutoencoderKLWan, contract: Contract) -> None:
        super().__init__()
        self.vae, self.contract = vae, contract
        self.dtype = next(vae.parameters()).dtype
        shape = (1, contract.latent_channels, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean).view(shape))
        inverse_std = 1.0 / torch.tensor(vae.config.latents_std)
        self.register_buffer("inverse_std", inverse_std.view(shape))


class ImageGraph(_Latents):
    """One canvas to the clean latent of frame 0, its padding cut off.

    Encoding the one frame gives the latent of the repeated clip: the VAE is causal in time.
    """

    inputs = ("canvas",)
    outputs = ("latent",)

    def forward(self, canvas: Tensor) -> Tensor:
        c = self.contract
        # TensorRT casts uint8 and does nothing else with it.
        pixels = canvas.float().permute(2, 0, 1)[None, :, None] / 255.0 * 2.0 - 1.0
        latent = self.vae._encode(pixels.to(self.dtype))[:, : c.latent_channels].float()
        latent = (latent - self.mean) * self.inverse_std
        return latent[..., : c.latent_height, : c.latent_width]


class FrameGraph(_Latents):
    """The first latents to the frames after the observation, uint8."""

    inputs = ("latents",)
    outputs = ("frames",)

    def forward(self, latents: Tensor) -> Tensor:
        raw = (latents / self.inverse_std + self.mean).to(self.dtype)
        video = self.vae._decode(raw, return_dict=False)[0][0, :, 1:].float()
        pixels = ((video / 2 + 0.5).clamp(0, 1) * 255).round()
        return pixels.permute(1, 2, 3, 0).to(torch.uint8)
