"""A bundle beside the stock modules it was made from: graph by graph, and a whole plan.

Both sides get the same picture, text, noise and state. A graph gets what the stock modules made
before it, so that each answers for itself. A plan answers for all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer

from cosmos3_ros.engine.bundle import Bundle, Manifest
from cosmos3_ros.engine.parts import run_graph
from cosmos3_ros.engine.session import (
    CONDITIONAL,
    TEXT_PADDING_BIAS,
    Contract,
    Engine,
    Prompting,
)
from cosmos3_ros.policy.canvas import Composer, Fitter
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.policy.plan import Noise, Observation, Policy, draw_noise
from cosmos3_ros.policy.positions import positions, rotary_tables
from cosmos3_ros.policy.program import constants
from cosmos3_ros.policy.prompt import caption, pad_tokens, tokenize

if TYPE_CHECKING:
    from cosmos3_ros.engine.export_model import Components

INSTRUCTION = "Pick up the cube."
# What a graph may differ by: in float32 absolutely, in anything less by direction and by size.
LARGEST_DIFFERENCE = 1e-4
LEAST_COSINE, MOST_RELATIVE_L2 = 0.999, 0.03
# A level of brightness: frames are rounded to 256 of them.
LEVEL = 1 / 255
# The state that both sides are given, in the model's units: neither zero nor a limit.
_STATE = 0.25

# By graph and output.
Outputs = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Task:
    """What both sides are given; arrays as ``engine.session`` names them."""

    observation: Observation
    canvas: np.ndarray
    token_ids: list[int]
    unconditional_ids: list[int]
    noise: Noise
    clean_rows: np.ndarray
    noisy_rows: np.ndarray
    held_rows: np.ndarray
    timestep: float


@dataclass(frozen=True)
class Row:
    """How far one output is from the stock modules'. ``largest``: absolute difference."""

    graph: str
    output: str
    cosine: float
    relative_l2: float
    largest: float
    passed: bool


def make_task(contract: Contract, embodiment: Embodiment, tokenizer: Tokenizer) -> Task:
    """A picture with edges and gradients, a state off the middle, fixed noise."""
    rng = np.random.default_rng(0)
    images = {v.name: _picture(v.width, v.height, rng) for v in embodiment.cameras}
    clean = np.zeros((contract.rows, contract.action_dim), np.float32)
    noisy = np.ones((contract.rows, 1), np.float32)
    held = np.zeros((contract.rows, 1), np.float32)
    state = np.full(contract.width, _STATE)
    if contract.state_row:
        clean[0, : contract.width], noisy[0] = state, 0
    fit = Fitter(embodiment.canvas_height, embodiment.canvas_width, contract)
    text = caption(INSTRUCTION, embodiment, contract)
    return Task(
        observation=Observation(images, embodiment.to_physical(state)),
        canvas=fit(Composer(embodiment)(images)),
        token_ids=tokenize(text, tokenizer, contract.prompting),
        unconditional_ids=tokenize("", tokenizer, contract.prompting),
        noise=draw_noise(contract, rng),
        clean_rows=clean,
        noisy_rows=noisy,
        held_rows=held,
        timestep=contract.sampler.timesteps[contract.sampler.steps // 2],
    )


def stock_outputs(
    components: Components, contract: Contract, task: Task, step: Callable[[str], None]
) -> Outputs:
    """What the stock modules make of a task. ``step`` is told which graph is next."""
    from cosmos3_ros.engine import export_reference as stock

    outputs: Outputs = {}
    step("stock text")
    for name, array in stock.stock_text(components, task.token_ids).items():
        outputs["text", name] = array
    step("stock image")
    latent = stock.stock_image(components, contract, task.canvas)
    outputs["image", "latent"] = latent
    step("stock denoise")
    velocity, row_velocity = stock.stock_velocity(
        components, contract, task.token_ids, *_noisy(task, latent), task.noisy_rows, task.timestep
    )
    outputs["denoise", "latent_velocity"] = velocity
    outputs["denoise", "row_velocity"] = row_velocity
    step("stock step")
    start = stock.Start(
        task.noise.latents, task.noise.rows, task.clean_rows, task.noisy_rows, task.held_rows
    )
    latents, rows = stock.stock_sampler(components, contract, latent, start, _made_up)
    outputs["step", "latents"], outputs["step", "rows"] = latents, rows
    step("stock plan")
    latents, rows = stock.stock_plan(
        components, contract, task.canvas, task.token_ids, task.unconditional_ids, start
    )
    outputs["plan", "latents"] = latents[:, :, 1:]
    outputs["plan", "actions"] = rows[int(contract.state_row) :, : contract.width]
    step("stock frames")
    frames = stock.stock_frames(components, contract, latents[:, :, : contract.frame_latents])
    outputs["frame", "frames"] = frames
    outputs["frame", "given"] = latents[:, :, : contract.frame_latents]
    return outputs


def bundle_outputs(
    bundle: Bundle,
    of: Manifest,
    engine: Engine,
    policy: Policy,
    task: Task,
    stock: Outputs,
    step: Callable[[str], None],
) -> Outputs:
    """What a bundle makes of a task.

    ``of``: the manifest whose types count; that of the original where ``bundle`` is its twin.
    """
    contract, graphs = bundle.manifest.contract, bundle.manifest.graphs
    count, outputs = len(task.token_ids), Outputs()

    def run(graph: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        step(graph)
        inputs = graphs[graph].inputs
        rounded = {n: _as_type(a, of.graphs[graph].inputs[n].type) for n, a in feeds.items()}
        typed = {name: _as_type(array, inputs[name].type) for name, array in rounded.items()}
        return run_graph(engine, graphs, graph, typed)

    text = run("text", {"token_ids": pad_tokens(task.token_ids, contract.prompting)})
    for name, array in text.items():
        outputs["text", name] = array[:, :, :count]
    outputs["image", "latent"] = run("image", {"canvas": task.canvas})["latent"]
    velocities = run("denoise", _denoise_feeds(contract, task, stock))
    outputs |= {("denoise", name): array for name, array in velocities.items()}
    sampled = _sampled(run, contract, task, stock["image", "latent"])
    outputs |= {("step", name): sampled[name] for name in ("latents", "rows")}
    outputs["frame", "frames"] = run("frame", {"latents": stock["frame", "given"]})["frames"]
    step("plan")
    plan = policy.plan(task.observation, policy.prefill(INSTRUCTION), task.noise)
    outputs["plan", "latents"] = plan.latents[:, :, 1:]
    outputs["plan", "actions"] = policy.embodiment.to_model(plan.rows)
    return outputs


def compare(manifest: Manifest, stock: Outputs, found: Outputs) -> list[Row]:
    """A row for every output, in the order in which they are computed."""
    return [
        _row(manifest, graph, output, stock[graph, output], array)
        for (graph, output), array in found.items()
    ]


def amplification(manifest: Manifest) -> float:
    """By how much more a plan of reduced precision may differ than one forward.

    A guided velocity is g * conditional - (g - 1) * unconditional: independent errors of the two
    forwards leave it with sqrt(g^2 + (g - 1)^2) times the error of one.
    """
    sampler = manifest.contract.sampler
    guidance = sampler.guidance if any(sampler.guided) else 1.0
    return float(np.hypot(guidance, guidance - 1))


def _row(
    manifest: Manifest, graph: str, output: str, expected: np.ndarray, found: np.ndarray
) -> Row:
    a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    allowed = LARGEST_DIFFERENCE
    if graph == "frame":
        # About the middle grey, for brightness is no agreement; rounding may tip over a level.
        a, b = (a - 127.5) * LEVEL, (b - 127.5) * LEVEL
        allowed = 1.01 * LEVEL
    size = np.linalg.norm(a) or 1.0
    cosine = float(a @ b / (size * (np.linalg.norm(b) or 1.0)))
    relative_l2 = float(np.linalg.norm(a - b) / size)
    largest = float(np.abs(a - b).max())
    if manifest.precision == "fp32":
        passed = largest < allowed
    else:
        factor = amplification(manifest) if graph == "plan" else 1.0
        turned = (1 - LEAST_COSINE) * factor**2
        passed = cosine >= 1 - turned and relative_l2 < MOST_RELATIVE_L2 * factor
    return Row(graph, output, cosine, relative_l2, largest, passed)


def _denoise_feeds(contract: Contract, task: Task, stock: Outputs) -> dict[str, np.ndarray]:
    count, prompting = len(task.token_ids), contract.prompting
    latents, rows = _noisy(task, stock["image", "latent"])
    bias = np.zeros(prompting.text_tokens, np.float32)
    bias[count:] = TEXT_PADDING_BIAS
    cos, sin = rotary_tables(positions(count, contract), contract.rope)
    return {
        "latents": latents,
        "rows": rows,
        "noisy_rows": task.noisy_rows,
        "timestep": np.array([task.timestep], np.float32),
        "cos": cos,
        "sin": sin,
        "keys": _padded(stock["text", "keys"], prompting),
        "values": _padded(stock["text", "values"], prompting),
        "text_bias": bias,
        "domain_id": np.array([contract.domain_id]),
    }


def _made_up(
    branch: str, latents: np.ndarray, rows: np.ndarray, timestep: float
) -> tuple[np.ndarray, np.ndarray]:
    """Velocities that no schedule makes simple: what the sampler alone is judged by."""
    bend = np.cos if branch == CONDITIONAL else np.tanh
    return bend(latents) + np.float32(timestep / 1e4), bend(rows) - np.float32(timestep / 1e4)


def _sampled(
    run: Callable[[str, Mapping[str, np.ndarray]], dict[str, np.ndarray]],
    contract: Contract,
    task: Task,
    latent: np.ndarray,
) -> dict[str, np.ndarray]:
    """What the step graph makes of made-up velocities, step after step."""
    table = constants(contract)
    feeds = {
        "start_latents": task.noise.latents,
        "start_rows": task.noise.rows,
        "clean_latent": latent,
        "clean_rows": task.clean_rows,
        "noisy_rows": task.noisy_rows,
        "held_rows": task.held_rows,
        "guidance": table["guidance"],
        "latent_history": np.zeros((contract.history, *task.noise.latents.shape[1:]), np.float32),
        "row_history": np.zeros((contract.history, *task.noise.rows.shape), np.float32),
    }
    latents, rows = _noisy(task, latent)
    made = {"latents": latents, "rows": rows}
    made["rows"][:, contract.width :] = 0
    for step in range(contract.sampler.steps):
        branches = contract.sampler.branches(step)
        for kind, branch in (("conditional", branches[0]), ("unconditional", branches[-1])):
            given = (made["latents"], made["rows"], contract.sampler.timesteps[step])
            feeds[f"{kind}_latent"], feeds[f"{kind}_row"] = _made_up(branch, *given)
        own = {name: table[f"{name}.{step}"] for name in ("place", "coefficients")}
        made = run("step", feeds | own)
        feeds["latent_history"] = made["next_latent_history"]
        feeds["row_history"] = made["next_row_history"]
    return made


def _noisy(task: Task, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The noise, with the observation and the clean rows in their places."""
    latents = task.noise.latents.copy()
    latents[:, :, :1] = latent
    return latents, np.where(task.noisy_rows == 1, task.noise.rows, task.clean_rows)


def _padded(array: np.ndarray, prompting: Prompting) -> np.ndarray:
    """Keys or values [L,K,tokens,D] to the engine's text length."""
    missing = prompting.text_tokens - array.shape[2]
    return np.pad(array, ((0, 0), (0, 0), (0, missing), (0, 0)))


def _as_type(array: np.ndarray, name: str) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16 if name == "bfloat16" else name, copy=False)


def _picture(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 RGB [height, width, 3]."""
    ramp = np.linspace(0, 255, width)[None, :, None]
    blocks = rng.integers(0, 255, (-(-height // 16), -(-width // 16), 3))
    edges = np.kron(blocks, np.ones((16, 16, 1)))[:height, :width]
    return ((ramp + edges) / 2).astype(np.uint8)
