"""What the policy knows of the engine: the contract its graphs were exported for, and an engine.

An engine runs the graphs of a bundle on named buffers that it owns, wherever its device keeps
them. What is to run is a program, a list of calls that never changes: a backend may allocate
everything beforehand and capture the whole program as one CUDA graph. The graphs and their tensors
(``A`` action rows, ``S`` generation tokens, ``U`` padded text tokens, ``L`` layers, ``K`` key/value
heads, ``D`` head dimension, ``C T h w`` the latent, ``N`` velocities kept):

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
step      ``start_latents``, ``start_rows`` (the noise),              ``latents``, ``rows``,
          ``latent_history`` [N,C,T,h,w], ``row_history`` [N,A,64],   ``next_latent_history``,
          ``conditional_latent``, ``unconditional_latent``,           ``next_row_history``
          ``conditional_row``, ``unconditional_row`` (velocities),
          ``guidance`` [1], ``place`` [N], ``coefficients`` [1+N],
          ``clean_latent`` [1,C,1,h,w], ``clean_rows`` [A,64],
          ``noisy_rows``, ``held_rows`` [A,1] (0 free .. 1)
frame     ``latents`` [1,C,F,h,w], the first F of them                ``frames`` [4(F-1),H,W,3]
                                                                      uint8
========  ==========================================================  =========================

``step`` advances the sampler: v = unconditional + guidance * (conditional - unconditional) enters
the history where ``place`` is 1, and x = coefficients[0] * start + sum_j coefficients[1+j] *
history[j]. Then latent frame 0 is ``clean_latent``, rows whose ``noisy_rows`` is 0 are
``clean_rows``, and channels beyond the embodiment's width are 0. A noisy row is held at
``clean_rows`` by its share in ``held_rows``: so far its velocity is that of a flow that ends there,
start_rows - clean_rows.

Keys and values have the type that the bundle's precision gives them. Everything that is not named
otherwise is float32. ``frames`` starts one frame after the canvas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

GRAPHS = ("text", "image", "denoise", "step", "frame")
CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
CLEAN = "clean"

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
    """UniPC as a table: after step k, x = start[k] * x0 + sum_j velocity[k][j] * v_j.

    ``guided``: at which steps the velocity is guided, which takes a second, unconditional forward.
    """

    steps: int
    shift: float
    guidance: float
    guided: tuple[bool, ...]
    timesteps: tuple[float, ...]
    start: tuple[float, ...]
    velocity: tuple[tuple[float, ...], ...]

    def branches(self, step: int) -> tuple[str, ...]:
        """The forwards of a step, in their order."""
        return (CONDITIONAL, UNCONDITIONAL) if self.guided[step] else (CONDITIONAL,)

    @property
    def forwards(self) -> int:
        """Forwards of the denoise graph in a plan."""
        return sum(len(self.branches(step)) for step in range(self.steps))


@dataclass(frozen=True)
class Contract:
    """What the graphs of a bundle were exported for. Sizes are pixels unless they say latent.

    ``history``: the velocities that the step graph keeps; a sampler may have fewer steps.
    ``prefix``: how committed rows enter a plan, "clean" where the checkpoint was trained for that,
    else "held". ``meaning``: of rows and pictures, as the embodiment had it by aspect.
    """

    embodiment: str
    meaning: Mapping[str, str] = field(hash=False)
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
    history: int
    prefix: str
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
    def predicted_rows(self) -> int:
        """How many rows ahead the decoded frames reach, a frame a row."""
        return (self.frame_latents - 1) * self.temporal_compression

    @property
    def tokens(self) -> int:
        """Generation tokens of one forward: video and action."""
        frames, height, width = self.grid
        return frames * height * width + self.rows


@dataclass(frozen=True)
class Call:
    """One run of a graph: the buffer that each of its tensors is, by tensor name."""

    graph: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


Program = Sequence[Call]


class Engine(Protocol):
    """The graphs of a bundle, opened by a backend.

    Programs that share no graph and no buffer may run side by side, each on one thread at a time.
    """

    def prepare(self, programs: Mapping[str, Program]) -> None:
        """Allocate the buffers of these programs, zeroed, once and for all.

        A buffer has the shape and type of the tensors it is bound to. Raises ValueError naming the
        buffer where two of them differ, and the engine's own error where memory does not suffice.
        """
        ...

    def write(self, buffer: str, array: np.ndarray) -> None:
        """Copy an array into a buffer. Raises ValueError where shape or type differ."""
        ...

    def read(self, buffer: str) -> np.ndarray:
        """A new array with what is in a buffer, after every run that writes it."""
        ...

    def run(self, program: str) -> None:
        """Run a prepared program. Returns when its outputs may be read."""
        ...

    def close(self) -> None:
        """Free everything; nothing may run any more."""
        ...
