"""One graph of a bundle at a time: the step of the sampler."""

from __future__ import annotations

import numpy as np
from bundles import Exported

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.parts import run_graph
from cosmos3_ros.engine.session import Contract


def step_feeds(contract: Contract, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows = (contract.rows, contract.action_dim)
    shapes = {
        "start_latents": contract.latent_shape,
        "start_rows": rows,
        "latent_history": (contract.history, *contract.latent_shape[1:]),
        "row_history": (contract.history, *rows),
        "conditional_latent": contract.latent_shape,
        "unconditional_latent": contract.latent_shape,
        "conditional_row": rows,
        "unconditional_row": rows,
        "coefficients": (1 + contract.history,),
        "clean_latent": (*contract.latent_shape[:2], 1, *contract.latent_shape[3:]),
        "clean_rows": rows,
    }
    feeds = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    noisy = np.ones((contract.rows, 1), np.float32)
    noisy[:2] = 0
    place = np.zeros(contract.history, np.float32)
    place[1] = 1
    feeds["coefficients"][3:] = 0
    held = rng.uniform(0, 1, noisy.shape).astype(np.float32)
    held[4:8] = np.array([0, 1, 0, 1])[:, None]
    return feeds | {
        "noisy_rows": noisy,
        "held_rows": held,
        "place": place,
        "guidance": np.array([3.0], np.float32),
    }


def run_step(exported: Exported, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    bundle = exported.bundle
    engine = open_backend(bundle, "onnxruntime", 1)
    return run_graph(engine, bundle.manifest.graphs, "step", feeds)


def test_a_step_is_the_sampler_on_the_guided_velocity(tiny: Exported) -> None:
    contract = tiny.bundle.manifest.contract
    feeds = step_feeds(contract, np.random.default_rng(0))
    made = run_step(tiny, feeds)
    for kind, plural in (("latent", "latents"), ("row", "rows")):
        free = feeds[f"unconditional_{kind}"]
        velocity = free + 3.0 * (feeds[f"conditional_{kind}"] - free)
        if kind == "row":
            held, straight = feeds["held_rows"], feeds["start_rows"] - feeds["clean_rows"]
            velocity = (1 - held) * velocity + held * straight
        history = feeds[f"{kind}_history"].copy()
        history[1] = velocity if kind == "row" else velocity[0]
        assert np.abs(made[f"next_{kind}_history"] - history).max() < 1e-5
        expected = feeds["coefficients"][0] * feeds[f"start_{plural}"]
        expected = expected + np.tensordot(feeds["coefficients"][1:], history, 1)
        if kind == "latent":
            expected[:, :, :1] = feeds["clean_latent"]
        else:
            expected = np.where(feeds["noisy_rows"] == 0, feeds["clean_rows"], expected)
            expected[:, contract.width :] = 0
        assert np.abs(made[plural] - expected).max() < 1e-5
    assert np.abs(made["rows"][:, : contract.width]).min() > 0


def test_a_step_does_not_touch_what_is_not_used(tiny: Exported) -> None:
    contract = tiny.bundle.manifest.contract
    feeds = step_feeds(contract, np.random.default_rng(0))
    feeds["guidance"][:] = 1
    feeds["held_rows"][:2] = 0
    clean = run_step(tiny, feeds)
    for kind in ("latent", "row"):
        feeds[f"{kind}_history"][2:] = np.nan  # no coefficient reads it
        feeds[f"{kind}_history"][1] = np.inf  # this step's velocity takes its place
        feeds[f"unconditional_{kind}"][:] = np.nan  # the step is not guided
    feeds["start_rows"][:2] = np.nan  # clean rows
    feeds["start_latents"][:, :, 0] = np.nan  # the observation
    made = run_step(tiny, feeds)
    for name in ("latents", "rows"):
        assert (made[name] == clean[name]).all()
    for kind in ("latent", "row"):
        entered = made[f"next_{kind}_history"][1]
        free = feeds["held_rows"] == 0 if kind == "row" else np.True_
        conditional = feeds[f"conditional_{kind}"].reshape(entered.shape)
        assert (np.where(free, entered, 0) == np.where(free, conditional, 0)).all()
