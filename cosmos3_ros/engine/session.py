"""What the policy knows of the engine: the contract its graphs were exported for, and a session.

A session runs one graph. The four graphs and their tensors (``A`` action rows, ``S`` generation
tokens, ``U`` padded text tokens, ``L`` layers, ``K`` key/value heads, ``D`` head dimension,
``C T h w`` the latent):

========  ==========================================================  =========================
graph     inputs                                                      outputs
========  ==========================================================  =========================
text      ``token_ids`` [U] int64                                     ``keys``, ``values``
                                                                      [L,K,U,D]
image     ``canvas`` [H,W,3] uint8, RGB                               ``latent`` [1,C,1,h,w]
denoise   ``latents`` [1,C,T,h,w], ``rows`` [A,64], ``noisy_rows``    ``latent_velocity``,
          [A,1] (1 noisy, 0 clean), ``timestep`` [1], ``cos``,        ``row_velocity``
          ``sin`` [S,D], ``keys``, ``values``, ``text_bias`` [U]
          (0 for a token, TEXT_PADDING_BIAS for padding),
          ``domain_id`` [1] int64
frame     ``latents`` [1,C,F,h,w], the first F of them                ``frames`` [4(F-1),H,W,3]
                                                                      uint8
========  ==========================================================  =========================

Everything that is not named otherwise is float32. ``frames`` starts one frame after the canvas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

GRAPHS = ("text", "image", "denoise", "frame")

# Added to the attention scores of padded text tokens: far below any score, and finite in FP16.
TEXT_PADDING_BIAS = -1e4


@dataclass(frozen=True)
class Rope:
    """Multimodal rotary positions: the constants of the checkpoint's transformer.

    ``inverse_frequency``: [D/2] float32 values, as torch computed them: at positions of 15000 a
    last bit of difference turns an angle by 4e-4.
    """

    inverse_frequency: tuple[float, ...]
    axes_dim: tuple[int, int, int]
    base_fps: float
    modulate_fps: bool
    temporal_margin: int
    reset_spatial: bool


@dataclass(frozen=True)
class Prompting:
    """How an instruction becomes tokens: the rendered chat template around the caption."""

    prefix: str
    suffix: str
    end_of_sequence_id: int
    start_of_generation_id: int
    padding_id: int
    text_tokens: int


@dataclass(frozen=True)
class Sampler:
    """UniPC as a table: after step k, x = start[k] * x0 + sum_j velocity[k][j] * v_j."""

    steps: int
    shift: float
    guidance: float
    timesteps: tuple[float, ...]
    start: tuple[float, ...]
    velocity: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Contract:
    """What the graphs of a bundle were exported for. Sizes are pixels unless they say latent."""

    embodiment: str
    domain_id: int
    width: int
    action_dim: int
    chunk: int
    state_row: bool
    fps: float
    canvas_height: int
    canvas_width: int
    content_height: int
    content_width: int
    latent_channels: int
    latent_frames: int
    latent_height: int
    latent_width: int
    patch: int
    temporal_compression: int
    frame_latents: int
    rope: Rope
    prompting: Prompting
    sampler: Sampler

    @property
    def rows(self) -> int:
        """Action rows in the sequence: the state row, where there is one, and the chunk."""
        return self.chunk + int(self.state_row)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Video tokens by frame, height and width; odd latents are padded to whole patches."""
        return (
            self.latent_frames,
            -(-self.latent_height // self.patch),
            -(-self.latent_width // self.patch),
        )

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        return (1, self.latent_channels, self.latent_frames, self.latent_height, self.latent_width)

    @property
    def tokens(self) -> int:
        """Generation tokens of one forward: video and action."""
        frames, height, width = self.grid
        return frames * height * width + self.rows


class Session(Protocol):
    """One graph of a bundle, opened by a backend. Not thread-safe: one caller at a time."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph on named inputs and return its outputs by name.

        Raises ValueError naming the input where one is missing, unknown, or has another shape
        or type than the graph takes.
        """
        ...
