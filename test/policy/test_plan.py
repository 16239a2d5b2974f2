"""A plan: what it keeps, what it repeats, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bundles import Exported
from tokenizers import Tokenizer

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.parts import run_graph
from cosmos3_ros.engine.session import Call, Engine
from cosmos3_ros.engine.watched import Watched
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.plan import Observation, PlanError, Policy, draw_noise, soft_mask


@pytest.fixture(scope="module")
def engine(tiny: Exported) -> Engine:
    return open_backend(tiny.bundle, "onnxruntime", 2)


def policy_over(tiny: Exported, engine: Engine) -> Policy:
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    return Policy(tiny.bundle.manifest.contract, tiny.embodiment, engine, tokenizer)


@pytest.fixture(scope="module")
def policy(tiny: Exported, engine: Engine) -> Policy:
    return policy_over(tiny, engine)


def latent_of(tiny: Exported, seen: Observation) -> np.ndarray:
    engine = open_backend(tiny.bundle, "onnxruntime", 2)
    feeds = {"canvas": seen.images["exterior"]}
    return run_graph(engine, tiny.bundle.manifest.graphs, "image", feeds)["latent"]


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


@pytest.fixture
def holding(tiny: Exported, engine: Engine) -> Policy:
    """A checkpoint that was not trained for committed rows."""
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    contract = replace(tiny.bundle.manifest.contract, prefix="held")
    return Policy(contract, tiny.embodiment, engine, tokenizer)


def test_where_committed_rows_are_held_the_plan_ends_at_them_and_goes_on_from_them(
    holding: Policy,
) -> None:
    prompt = holding.prefill("touch the red cube")
    noise = draw_noise(holding.contract, np.random.default_rng(0))
    seen = observation(holding)
    free = holding.plan(seen, prompt, noise).rows
    before = holding.embodiment.offset + np.linspace(0, 0.3, 12)[:, None]
    hard = holding.plan(seen, prompt, noise, before[:5])
    soft = holding.plan(seen, prompt, noise, before[:5], before[5:])
    assert (hard.rows[:5] == before[:5]).all() and hard.committed_rows == 5
    assert np.abs(hard.rows[5:] - free[5:]).max() > 1e-6
    # The softly held rows lie between what is free and what was before, the later the freer.
    apart = np.abs(soft.rows[5:12] - before[5:]).mean(1) / np.abs(
        hard.rows[5:12] - before[5:]
    ).mean(1)
    assert np.all(np.diff(apart) > -0.05) and apart[0] < 0.5 and apart[-1] > 0.5


def test_held_rows_are_noisy_to_the_model_and_end_at_what_they_are_held_at(
    tiny: Exported, engine: Engine
) -> None:
    ended: list[np.ndarray] = []

    def note(engine: Engine, call: Call) -> None:
        if call.graph == "denoise":
            assert engine.read(call.inputs["noisy_rows"]).ravel().tolist() == [0.0] + [1.0] * 16
        if call.graph == "step":
            ended.append(engine.read(call.outputs["rows"]))

    contract = replace(tiny.bundle.manifest.contract, prefix="held")
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    policy = Policy(contract, tiny.embodiment, Watched(engine, after=note), tokenizer)
    committed = policy.embodiment.offset + np.linspace(0, 0.1, 5)[:, None]
    noise = draw_noise(contract, np.random.default_rng(0))
    policy.plan(observation(policy), policy.prefill("go"), noise, committed)
    expected = policy.embodiment.to_model(committed)
    assert np.abs(ended[-1][1:6, :8] - expected).max() < 1e-4
    # On their way there they are as noisy as the others.
    assert np.abs(ended[1][1:6, :8] - expected).max() > 0.1


def test_the_soft_mask_falls_from_one_to_nothing() -> None:
    mask = soft_mask(4, 12)
    assert mask[:4].tolist() == [1.0] * 4
    assert np.all(np.diff(mask[3:]) < 0) and 0 < mask[-1] < 0.1
    assert soft_mask(3, 3).tolist() == [1.0] * 3


def test_the_observation_is_kept_clean_as_latent_frame_zero(policy: Policy, tiny: Exported) -> None:
    seen = observation(policy)
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    plan = policy.plan(seen, policy.prefill("touch the red cube"), noise)
    assert (plan.latents[:, :, :1] == latent_of(tiny, seen)).all()


def test_what_is_clean_stays_so_whatever_the_engine_says_of_it(
    tiny: Exported, engine: Engine
) -> None:
    seen: list[dict[str, np.ndarray]] = []

    def note(engine: Engine, call: Call) -> None:
        if call.graph == "denoise":
            names = ("latents", "rows", "noisy_rows")
            seen.append({name: engine.read(call.inputs[name]) for name in names})

    def move_everything(engine: Engine, call: Call) -> None:
        if call.graph == "denoise":
            for buffer in call.outputs.values():
                engine.write(buffer, engine.read(buffer) + np.float32(0.5))

    policy = policy_over(tiny, Watched(engine, note, move_everything))
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    committed = policy.embodiment.offset + np.linspace(0, 0.1, 5)[:, None]
    robot = observation(policy)
    plan = policy.plan(robot, policy.prefill("go"), noise, committed)
    latent = latent_of(tiny, robot)
    clean = policy.embodiment.to_model(np.vstack([robot.state, committed]))
    assert len(seen) == 8
    for feeds in seen:
        assert (feeds["latents"][:, :, :1] == latent).all()
        assert np.allclose(feeds["rows"][:6, :8], clean, atol=1e-6)
        assert (feeds["rows"][:, 8:] == 0).all()
        assert feeds["noisy_rows"].ravel().tolist() == [0.0] * 6 + [1.0] * 11
    assert (plan.latents[:, :, :1] == latent).all()


def test_text_runs_when_the_instruction_changes_and_not_with_each_plan(
    tiny: Exported, engine: Engine
) -> None:
    runs: list[str] = []
    policy = policy_over(tiny, Watched(engine, after=lambda _, call: runs.append(call.graph)))
    prompt = policy.prefill("touch the red cube")
    assert runs == ["text", "text"]  # the empty prompt of guidance, and the caption
    runs.clear()
    for seed in range(2):
        noise = draw_noise(policy.contract, np.random.default_rng(seed))
        policy.plan(observation(policy), prompt, noise)
    assert runs == (["image", "step"] + ["denoise", "denoise", "step"] * 4) * 2
    runs.clear()
    policy.prefill("touch the blue cube")
    assert runs == ["text"]  # the empty prompt has not changed


def test_guidance_on_some_steps_takes_a_second_forward_on_those_alone(
    tiny: Exported, engine: Engine
) -> None:
    runs: list[str] = []
    policy = policy_over(tiny, engine)
    sampler = replace(policy.contract.sampler, guided=(True, False, False, True))
    assert sampler.forwards == 6
    contract = replace(policy.contract, sampler=sampler)
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    watched = Watched(engine, after=lambda _, call: runs.append(call.graph))
    partly = Policy(contract, tiny.embodiment, watched, tokenizer)
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    prompt = partly.prefill("touch the red cube")
    runs.clear()
    rows = partly.plan(observation(policy), prompt, noise).rows
    twice, once = ["denoise", "denoise", "step"], ["denoise", "step"]
    assert runs == ["image", "step", *twice, *once, *once, *twice]
    prompt = policy.prefill("touch the red cube")
    assert np.abs(rows - policy.plan(observation(policy), prompt, noise).rows).max() > 1e-6


def test_a_plan_with_a_prompt_that_was_replaced_is_refused(policy: Policy) -> None:
    old = policy.prefill("touch the red cube")
    policy.prefill("touch the blue cube")
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    with pytest.raises(ValueError, match="'touch the red cube' is not the one the engine holds"):
        policy.plan(observation(policy), old, noise)


@pytest.mark.parametrize("broken", ["latent_velocity", "row_velocity"])
def test_an_engine_that_returns_nan_makes_no_plan_and_the_next_one_is_whole(
    broken: str, tiny: Exported, engine: Engine
) -> None:
    breaks = True

    def spoil(engine: Engine, call: Call) -> None:
        if call.graph == "denoise" and breaks:
            array = engine.read(call.outputs[broken])
            array.flat[-1 if broken == "latent_velocity" else 9 * 64] = np.nan
            engine.write(call.outputs[broken], array)

    policy = policy_over(tiny, Watched(engine, after=spoil))
    noise = draw_noise(policy.contract, np.random.default_rng(0))
    with pytest.raises(PlanError, match="NaN or infinity"):
        policy.plan(observation(policy), policy.prefill("touch the red cube"), noise)
    breaks = False
    again = policy.plan(observation(policy), policy.prefill("touch the red cube"), noise).rows
    fresh = policy_over(tiny, open_backend(tiny.bundle, "onnxruntime", 2))
    expected = fresh.plan(observation(policy), fresh.prefill("touch the red cube"), noise).rows
    assert (again == expected).all()


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
    tiny: Exported, engine: Engine
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    robot = load_embodiment("droid_joint_pos")
    with pytest.raises(PlanError, match="embodiment is droid_joint_pos, expected sim_panda"):
        Policy(tiny.bundle.manifest.contract, robot, engine, tokenizer)


def test_a_robot_of_the_same_name_that_means_something_else_is_refused(
    tiny: Exported, engine: Engine
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny.bundle.path / "tokenizer.json"))
    contract, robot = tiny.bundle.manifest.contract, load_embodiment("sim_panda")
    first = robot.channels[0]
    other = (replace(first, offset=first.offset + 0.1), *robot.channels[1:])
    moved = (replace(robot.cameras[0], x=robot.cameras[0].x + 1), *robot.cameras[1:])
    for changed, aspect in (
        (replace(robot, channels=other), "channels is joint_1"),
        (replace(robot, cameras=moved), "cameras is exterior 128x96 at 1, 0, expected"),
        (replace(robot, view_detail="from above"), "view is"),
    ):
        with pytest.raises(PlanError, match=f"does not fit the bundle: {aspect}"):
            Policy(contract, changed, engine, tokenizer)
    # What is the robot's own may change.
    own = replace(first, lower=first.lower + 0.1)
    Policy(contract, replace(robot, channels=(own, *robot.channels[1:])), engine, tokenizer)
