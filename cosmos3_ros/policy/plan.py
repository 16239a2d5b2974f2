"""One plan, from an observation to a chunk of actions: read it top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from cosmos3_ros.engine.session import (
    CLEAN,
    CONDITIONAL,
    TEXT_PADDING_BIAS,
    UNCONDITIONAL,
    Contract,
    Engine,
)
from cosmos3_ros.policy.canvas import Composer, Fitter
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.policy.positions import positions, rotary_tables
from cosmos3_ros.policy.program import FRAMES, PLAN, constants, prefill, programs
from cosmos3_ros.policy.prompt import caption, pad_tokens, tokenize


class PlanError(ValueError):
    """A plan cannot be made of this input, or what the engine made of it cannot be used."""


@dataclass(frozen=True)
class Observation:
    """What the robot sees and how it stands.

    ``images``: uint8 RGB [h,w,3] by camera name. ``state``: physical values [width] in the order
    of the embodiment's channels (rad, closedness of the gripper). ``poses`` [n,7]: of each end
    effector that acts in pose deltas, position [m] and quaternion x, y, z, w in the base frame.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    poses: np.ndarray = field(default_factory=lambda: np.zeros((0, 7)))


@dataclass(frozen=True)
class Noise:
    """The start of the sampler, standard normal: latents [1,C,T,h,w] and rows [A,64], float32."""

    latents: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Prompt:
    """An instruction whose keys and values the engine holds, until the next one is prefilled."""

    instruction: str


@dataclass(frozen=True)
class Plan:
    """``rows``: [chunk, width] physical; the first ``committed_rows`` are those handed in.

    ``latents``: the predicted video [1,C,T,h,w], normalised, for ``Policy.predict_frames``.
    ``engine_s``: how long the engine worked on it.
    """

    rows: np.ndarray
    latents: np.ndarray
    committed_rows: int
    engine_s: float


@dataclass(frozen=True)
class GivenRows:
    """What is known of the rows of a plan, float32: ``rows`` [A,64], ``noisy`` [A,1] (1; clean 0),
    ``held`` [A,1] (0 free .. 1)."""

    rows: np.ndarray
    noisy: np.ndarray
    held: np.ndarray


def soft_mask(count: int, known: int) -> np.ndarray:
    """How far each of ``known`` rows is held [known]: the first ``count`` wholly, then ever less.

    c (e^c - 1) / (e - 1) with c from 1 to 0 (Black, Galliker and Levine 2025, "Real-Time Execution
    of Action Chunking Flow Policies", eq. 5).
    """
    c = (known - np.arange(known)) / (known - count + 1)
    return np.where(np.arange(known) < count, 1.0, c * np.expm1(np.minimum(c, 1.0)) / np.expm1(1.0))


def draw_noise(contract: Contract, rng: np.random.Generator) -> Noise:
    """Noise for one plan."""
    return Noise(
        latents=rng.standard_normal(contract.latent_shape, np.float32),
        rows=rng.standard_normal((contract.rows, contract.action_dim), np.float32),
    )


class Policy:
    """The policy mode of a bundle on one embodiment.

    Not thread-safe: one prompt or plan at a time. ``predict_frames`` may run beside them.
    ``programs``: what the engine runs, by name (``cosmos3_ros.policy.program``).
    """

    def __init__(
        self,
        contract: Contract,
        embodiment: Embodiment,
        engine: Engine,
        tokenizer: Tokenizer,
    ) -> None:
        """Raises PlanError where the embodiment is not the one the bundle was exported for."""
        require_match(contract, embodiment)
        embodiment.require_normalisation()
        self.contract = contract
        self.embodiment = embodiment
        self._engine = engine
        self._tokenizer = tokenizer
        self._compose = Composer(embodiment)
        self._fit = Fitter(embodiment.canvas_height, embodiment.canvas_width, contract)
        self._prompt: Prompt | None = None
        self._unconditional_is_read = not any(contract.sampler.guided)
        self.programs = programs(contract)
        engine.prepare(self.programs)
        for buffer, array in constants(contract).items():
            engine.write(buffer, array)

    def prefill(self, instruction: str) -> Prompt:
        """Have the engine read an instruction: once, until the instruction changes.

        Text never attends to video or action, so its keys and values hold for every observation
        and timestep. Raises PromptError for an instruction that is empty or too long; the prompt
        before it then still holds.
        """
        text = caption(instruction, self.embodiment, self.contract)
        ids = tokenize(text, self._tokenizer, self.contract.prompting)
        if not self._unconditional_is_read:
            self._read(UNCONDITIONAL, tokenize("", self._tokenizer, self.contract.prompting))
            self._unconditional_is_read = True
        self._prompt = None
        self._read(CONDITIONAL, ids)
        self._prompt = Prompt(instruction)
        return self._prompt

    def plan(
        self,
        observation: Observation,
        prompt: Prompt,
        noise: Noise,
        committed: np.ndarray | None = None,
        continuation: np.ndarray | None = None,
    ) -> Plan:
        """Denoise video and actions together, from one observation.

        ``prompt``: the last one prefilled. ``committed``: physical rows [n, width], n < chunk, that
        the robot executes whatever this plan says. A checkpoint that was trained for it takes them
        as clean rows; another one's denoising is held at them, and more and more softly at
        ``continuation`` [m, width], what the plan before goes on with. Raises PlanError for an
        observation that does not fit the embodiment and for a result that is not finite.
        """
        contract, engine = self.contract, self._engine
        if prompt is not self._prompt:
            raise ValueError(
                f"the prompt '{prompt.instruction}' is not the one the engine holds; prefill it "
                "again before planning with it"
            )
        canvas = self._fit(self._compose(self._checked_images(observation)))
        given = self._given_rows(observation.state, committed, continuation)
        engine.write("canvas", canvas)
        engine.write("start_latents", noise.latents)
        engine.write("start_rows", noise.rows)
        engine.write("clean_rows", given.rows)
        engine.write("noisy_rows", given.noisy)
        engine.write("held_rows", given.held)
        began = time.monotonic()
        engine.run(PLAN)
        rows, latents = engine.read("rows"), engine.read("latents")
        engine_s = time.monotonic() - began
        # Least and largest are NaN where any value is.
        if not np.isfinite([rows.min(), rows.max(), latents.min(), latents.max()]).all():
            raise PlanError(
                "the engine returned NaN or infinity; expected finite actions and video"
            )
        first = int(contract.state_row)
        physical = self.embodiment.to_physical(rows[first:, : contract.width].astype(np.float64))
        count = 0 if committed is None else len(committed)
        if committed is not None:
            physical[:count] = committed
        return Plan(physical, latents, count, engine_s)

    def predict_frames(self, plan: Plan) -> np.ndarray:
        """The first frames after the observation, uint8 RGB [n, H, W, 3], 1 / fps apart.

        Frame i is predicted for (i + 1) / fps after the observation. H and W are whole latent
        cells of the content. Decoding costs more than planning: keep it off the action path.
        """
        self._engine.write("first_latents", plan.latents[:, :, : self.contract.frame_latents])
        self._engine.run(FRAMES)
        return self._engine.read("frames")

    def _read(self, branch: str, ids: list[int]) -> None:
        """Keys and values of a prompt, and what else the denoise graph takes that depends on it."""
        prompting = self.contract.prompting
        bias = np.zeros(prompting.text_tokens, np.float32)
        bias[len(ids) :] = TEXT_PADDING_BIAS
        cos, sin = rotary_tables(positions(len(ids), self.contract), self.contract.rope)
        for name, array in (
            ("token_ids", pad_tokens(ids, prompting)),
            ("text_bias", bias),
            ("cos", cos),
            ("sin", sin),
        ):
            self._engine.write(f"{branch}.{name}", array)
        self._engine.run(prefill(branch))

    def _given_rows(
        self,
        state: np.ndarray,
        committed: np.ndarray | None,
        continuation: np.ndarray | None,
    ) -> GivenRows:
        contract = self.contract
        rows = np.zeros((contract.rows, contract.action_dim), np.float32)
        noisy = np.ones((contract.rows, 1), np.float32)
        held = np.zeros((contract.rows, 1), np.float32)
        first = int(contract.state_row)
        if contract.state_row:
            state = np.asarray(state, np.float64)
            if state.shape != (contract.width,) or not np.isfinite(state).all():
                raise PlanError(
                    f"state has shape {state.shape} and {np.isfinite(state).sum()} finite values; "
                    f"expected {contract.width} finite values, one a channel"
                )
            rows[0, : contract.width] = self.embodiment.to_model(state)
            noisy[0] = 0
        if committed is None:
            return GivenRows(rows, noisy, held)
        known = self._checked_rows(committed, continuation)
        count, last = len(committed), first + len(known)
        rows[first:last, : contract.width] = self.embodiment.to_model(known)
        if contract.prefix == CLEAN:
            noisy[first : first + count] = 0
            rows[first + count :] = 0
        else:
            held[first:last, 0] = soft_mask(count, len(known))
        return GivenRows(rows, noisy, held)

    def _checked_rows(self, committed: np.ndarray, continuation: np.ndarray | None) -> np.ndarray:
        """Committed rows and those after them, as far as a chunk goes."""
        width, chunk = self.contract.width, self.contract.chunk
        parts = [
            np.asarray(part, np.float64) for part in (committed, continuation) if part is not None
        ]
        fits = all(part.ndim == 2 and part.shape[1] == width for part in parts)
        if not fits or len(parts[0]) >= chunk or not all(np.isfinite(p).all() for p in parts):
            raise PlanError(
                f"committed rows have shape {' and '.join(str(p.shape) for p in parts)}; expected "
                f"[n, {width}] finite values with n < {chunk}"
            )
        return np.concatenate(parts)[:chunk]

    def _checked_images(self, observation: Observation) -> Mapping[str, np.ndarray]:
        for view in self.embodiment.cameras:
            image = observation.images.get(view.name)
            if image is None:
                raise PlanError(
                    f"camera '{view.name}' is missing from the observation; found "
                    f"{sorted(observation.images) or 'none'}"
                )
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise PlanError(
                    f"camera '{view.name}': image is {image.dtype} {image.shape}; "
                    "expected uint8 RGB [h, w, 3]"
                )
        return observation.images


def require_match(contract: Contract, embodiment: Embodiment) -> None:
    """Refuse a robot other than the one the graphs were exported for, field by field: PlanError."""
    expected: dict[str, object] = {
        "embodiment": contract.embodiment,
        "width": contract.width,
        "domain_id": contract.domain_id,
        "state_row": contract.state_row,
    }
    found: dict[str, object] = {
        "embodiment": embodiment.name,
        "width": embodiment.width,
        "domain_id": embodiment.domain_id,
        "state_row": embodiment.state_row,
    }
    if expected == found:
        # A file of the same name that says something else would move the arm wrongly in silence.
        expected, found = dict(contract.meaning), dict(embodiment.meaning)
    differing = [key for key in expected if expected[key] != found[key]]
    if differing:
        raise PlanError(
            "the embodiment does not fit the bundle: "
            + ", ".join(f"{k} is {found[k]}, expected {expected[k]}" for k in differing)
            + "; set the embodiment the bundle was exported for, or export it for this one"
        )
