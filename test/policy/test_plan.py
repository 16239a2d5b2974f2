"""A plan: what it keeps, what it repeats, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from bundles import Exported
from tokenizers import Tokenizer

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.session import Session
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.plan import Observation, PlanError, Policy, draw_noise


@pytest.fixture(scope="module")
def sessions(tiny: Exported) -> dict[str, Session]:
    return open_backend(tiny.bundle, "onnxruntime", 2)


def policy_over(tiny: Exported, sessions: Mapping[str, Session]) -> Policy:
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    return Policy(tiny.bundle.manifest.contract, tiny.embodiment, sessions, tokenizer)


@pytest.fixture(scope="module")
def policy(tiny: Exported, sessions: dict[str, Session]) -> Policy:
    return policy_over(tiny, sessions)


def observation(policy: Policy, brightness: int = 90) -> Observation:
    image = np.full((96, 128, 3), brightness, np.uint8)
    image[20:40, 30:60] = (200, 20, 20)
    return Observation({"exterior": image}, policy.embodiment.offset + 0.05)


def test_the_same_noise_gives_the_same_plan(policy: Policy) -> None:
    prompt = policy.prefill("touch the red cube")
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    first = policy.plan(observation(policy), prompt, noise)
    second = policy.plan(observation(policy), prompt, noise)
    assert (first.rows == second.rows).all() and (first.latents == second.latents).all()
    assert first.rows.shape == (16, 8)


@pytest.mark.parametrize("change", ["noise", "picture", "state", "instruction"])
def test_everything_that_goes_in_changes_what_comes_out(change: str, policy: Policy) -> None:
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    seen, prompt = observation(policy), policy.prefill("touch the red cube")
    before = policy.plan(seen, prompt, noise).rows
    if change == "noise":
        noise = draw_noise(policy.contract, np.random.default_rng(1))
    elif change == "picture":
        seen = observation(policy, brightness=200)
    elif change == "state":
        seen = replace(seen, state=seen.state + 0.3)
    else:
        prompt = policy.prefill("touch the blue cube")
    assert np.abs(policy.plan(seen, prompt, noise).rows - before).max() > 1e-6


def test_committed_rows_come_back_as_they_went_in_and_shape_the_rest(policy: Policy) -> None:
    prompt = policy.prefill("touch the red cube")
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    free = policy.plan(observation(policy), prompt, noise)
    committed = policy.embodiment.offset + np.linspace(0, 0.1, 5)[:, None]
    bound = policy.plan(observation(policy), prompt, noise, committed)
    assert (bound.rows[:5] == committed).all()
    assert bound.committed_rows == 5 and free.committed_rows == 0
    assert np.abs(bound.rows[5:] - free.rows[5:]).max() > 1e-6


def test_the_observation_is_kept_clean_as_latent_frame_zero(
    policy: Policy, sessions: dict[str, Session]
) -> None:
    seen = observation(policy)
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    plan = policy.plan(seen, policy.prefill("touch the red cube"), noise)
    latent = sessions["image"].run({"canvas": seen.images["exterior"]})["latent"]
    assert (plan.latents[:, :, :1] == latent).all()


def test_what_is_clean_stays_so_whatever_the_engine_says_of_it(
    tiny: Exported, sessions: dict[str, Session]
) -> None:
    seen: list[Mapping[str, np.ndarray]] = []

    class Restless:
        """A denoise session that moves everything, clean or not."""

        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            seen.append({name: array.copy() for name, array in feeds.items()})
            return {name: value + 0.5 for name, value in sessions["denoise"].run(feeds).items()}

    policy = policy_over(tiny, {**sessions, "denoise": Restless()})
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    committed = policy.embodiment.offset + np.linspace(0, 0.1, 5)[:, None]
    robot = observation(policy)
    plan = policy.plan(robot, policy.prefill("go"), noise, committed)
    latent = sessions["image"].run({"canvas": robot.images["exterior"]})["latent"]
    clean = policy.embodiment.to_model(np.vstack([robot.state, committed]))
    for feeds in seen:
        assert (feeds["latents"][:, :, :1] == latent).all()
        assert np.allclose(feeds["rows"][:6, :8], clean, atol=1e-6)
        assert (feeds["rows"][:, 8:] == 0).all()
        assert feeds["noisy_rows"].ravel().tolist() == [0.0] * 6 + [1.0] * 11
    assert (plan.latents[:, :, :1] == latent).all()


def test_text_runs_when_the_instruction_changes_and_not_with_each_plan(
    tiny: Exported, sessions: dict[str, Session]
) -> None:
    runs: list[str] = []

    class Counted:
        """A session that notes that it ran."""

        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            runs.append(self.name)
            return sessions[self.name].run(feeds)

    policy = policy_over(tiny, {name: Counted(name) for name in sessions})
    prompt = policy.prefill("touch the red cube")
    assert runs == ["text", "text"]  # the caption, and the empty prompt of guidance
    runs.clear()
    for seed in range(2):
        noise = draw_noise(policy.contract, np.random.default_rng(seed))
        policy.plan(observation(policy), prompt, noise)
    assert runs == (["image"] + ["denoise"] * 8) * 2


@pytest.mark.parametrize("broken", ["latent_velocity", "row_velocity"])
def test_an_engine_that_returns_nan_makes_no_plan(
    broken: str, tiny: Exported, sessions: dict[str, Session]
) -> None:
    class Broken:
        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = sessions["denoise"].run(feeds)
            outputs[broken].flat[-1 if broken == "latent_velocity" else 9 * 64] = np.nan
            return outputs

    policy = policy_over(tiny, {**sessions, "denoise": Broken()})
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    with pytest.raises(PlanError, match="NaN or infinity"):
        policy.plan(observation(policy), policy.prefill("touch the red cube"), noise)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, "camera 'exterior' is missing from the observation; found none"),
        ({"images": {"exterior": np.zeros((96, 128), np.uint8)}}, r"uint8 \(96, 128\); expected"),
        ({"images": {"exterior": np.zeros((96, 128, 3))}}, "image is float64"),
        ({"state": np.zeros(7)}, r"state has shape \(7,\).*expected 8 finite values"),
        ({"state": np.full(8, np.nan)}, "0 finite values"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused_by_name(
    change: dict[str, object], message: str, policy: Policy
) -> None:
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    with pytest.raises(PlanError, match=message):
        policy.plan(replace(observation(policy), **change), policy.prefill("go"), noise)


@pytest.mark.parametrize("shape", [(5, 7), (16, 8), (8,)])
def test_committed_rows_of_another_shape_are_refused(
    shape: tuple[int, ...], policy: Policy
) -> None:
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    with pytest.raises(PlanError, match=r"committed rows have shape .*expected \[n, 8\]"):
        policy.plan(observation(policy), policy.prefill("go"), noise, np.zeros(shape))


def test_a_bundle_is_refused_on_another_robot_field_by_field(
    tiny: Exported, sessions: dict[str, Session]
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    robot = load_embodiment("droid_joint_pos")
    with pytest.raises(PlanError, match="embodiment is droid_joint_pos, expected sim_panda"):
        Policy(tiny.bundle.manifest.contract, robot, sessions, tokenizer)
