"""The policy's training: what it learns from, and stopping on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Cosmos3OmniTransformer
from training_parts import PICO_PANDA, small_recipe

from cosmos3_ros.engine.export_contract import make_contract
from cosmos3_ros.engine.export_model import chatml
from cosmos3_ros.engine.session import Contract
from cosmos3_ros.export_command import body_of
from cosmos3_ros.training.captions import train_tokenizer
from cosmos3_ros.training.flow import Flow, Texts, make_texts
from cosmos3_ros.training.policy import (
    Clips,
    _Draw,
    _draw_shares,
    _learning_rate,
    _with_weights,
    new_transformer,
    train_policy,
    validate,
)
from cosmos3_ros.training.run import components_of, new_vae
from cosmos3_ros.training.runs import Stage, read_curve
from cosmos3_ros.training.settings import PolicySettings, training_settings

SAID = ("touch the red cube", "lift the blue block", "put it away")


@pytest.fixture
def settings(tmp_path: Path) -> PolicySettings:
    return training_settings(small_recipe(tmp_path)).policy


@pytest.fixture
def transformer(tmp_path: Path) -> Cosmos3OmniTransformer:
    return fresh(tmp_path)


def fresh(folder: Path, seed: int = 0) -> Cosmos3OmniTransformer:
    return new_transformer(small_recipe(folder).model.transformer, PICO_PANDA.width, seed)


@pytest.fixture
def contract(tmp_path: Path, transformer: Cosmos3OmniTransformer) -> Contract:
    recipe = small_recipe(tmp_path)
    bare = chatml(tokenizer_object=train_tokenizer(SAID, 400))
    components = components_of(recipe, transformer, new_vae(recipe, 0), bare)
    made = make_contract(recipe, body_of(PICO_PANDA), components)
    return replace(made, prompting=replace(made.prompting, text_tokens=320))


@pytest.fixture
def texts(contract: Contract) -> Texts:
    return make_texts(SAID, PICO_PANDA, contract, train_tokenizer(SAID, 400))


def clips(contract: Contract, count: int = 9) -> Clips:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, *contract.latent_shape[1:], generator=generator).half()
    rows = torch.randn(count, contract.rows, contract.width, generator=generator)
    # The row's number, so that clips can be told apart.
    rows[:, 1:, 7] = torch.arange(count)[:, None].float()
    return Clips(latents, rows, torch.arange(count) % len(SAID))


def train(
    folder: Path,
    transformer: Cosmos3OmniTransformer,
    contract: Contract,
    texts: Texts,
    settings: PolicySettings,
) -> None:
    folder.mkdir(exist_ok=True)
    shown = clips(contract)
    stage = Stage(folder, "policy")
    train_policy(stage, transformer, texts, shown, shown, contract, settings, 0, compiled=False)


def test_a_training_that_was_stopped_ends_where_it_would_have_ended(
    tmp_path: Path,
    transformer: Cosmos3OmniTransformer,
    contract: Contract,
    texts: Texts,
    settings: PolicySettings,
) -> None:
    train(tmp_path / "whole", transformer, contract, texts, settings)
    stopped = fresh(tmp_path)
    monkey = pytest.MonkeyPatch()
    # Stopped after the second step: its state is written at each step, the third never comes.
    monkey.setattr("cosmos3_ros.training.runs.SAVE_PERIOD_S", 0.0)
    monkey.setattr("cosmos3_ros.training.policy._follow", _Stop(after=2))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "halves", stopped, contract, texts, settings)
    monkey.undo()
    resumed = fresh(tmp_path, seed=99)
    train(tmp_path / "halves", resumed, contract, texts, settings)
    for name, tensor in transformer.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, atol=0, rtol=0, msg=name)


def test_what_is_left_is_the_running_average_of_the_weights(
    tmp_path: Path,
    transformer: Cosmos3OmniTransformer,
    contract: Contract,
    texts: Texts,
    settings: PolicySettings,
) -> None:
    train(tmp_path / "run", transformer, contract, texts, settings)
    file = Stage(tmp_path / "run", "policy").state_file
    saved = torch.load(file, weights_only=True)["state"]
    for name, tensor in transformer.state_dict().items():
        torch.testing.assert_close(tensor, saved["average"][name], atol=0, rtol=0, msg=name)
    apart = [
        not torch.equal(tensor, saved["transformer"][name])
        for name, tensor in transformer.state_dict().items()
    ]
    assert any(apart), "and not the last step's"


def test_the_learning_rate_rises_and_falls_to_nearly_nothing(settings: PolicySettings) -> None:
    longer = replace(settings, steps=2000)
    rates = [_learning_rate(step, longer) / longer.learning_rate for step in range(2000)]
    assert rates[0] < 0.05 and 0.8 < max(rates) <= 1.0 and rates[-1] < 0.05
    assert 100 < int(np.argmax(rates)) < 200


class _Stop:
    """Follows the weights, and interrupts after so many steps."""

    def __init__(self, after: int) -> None:
        from cosmos3_ros.training.policy import _follow

        self._follow, self._left = _follow, after

    def __call__(self, *arguments: object) -> None:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        self._follow(*arguments)  # type: ignore[arg-type]


def test_training_lowers_the_errors_on_what_it_was_shown(
    tmp_path: Path,
    transformer: Cosmos3OmniTransformer,
    contract: Contract,
    texts: Texts,
    settings: PolicySettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cosmos3_ros.training.policy._NOTE_PERIOD", 10)
    monkeypatch.setattr("cosmos3_ros.training.policy._VALIDATION_PERIOD", 60)
    monkeypatch.setattr("cosmos3_ros.training.policy._WARM_UP_STEPS", 5)
    longer = replace(settings, steps=120, batch=9, learning_rate=5e-3)
    train(tmp_path / "run", transformer, contract, texts, longer)
    curve = read_curve(tmp_path / "run" / "policy.csv")
    assert len(curve) == 12
    assert np.isfinite([curve[5]["held_out_action"], curve[11]["held_out_action"]]).all()
    assert curve[11]["held_out_action"] < 0.8 * curve[0]["action"]
    assert curve[11]["row_error"] < curve[5]["row_error"]


def test_other_weights_are_judged_and_its_own_are_back_afterwards(
    tmp_path: Path, transformer: Cosmos3OmniTransformer, contract: Contract, texts: Texts
) -> None:
    flow, shown = Flow(transformer, contract), clips(contract)
    own = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    other = fresh(tmp_path, seed=5)

    def judge() -> dict[str, float]:
        return validate(flow, texts, shown, contract)

    def fail() -> dict[str, float]:
        raise KeyboardInterrupt

    before = judge()
    assert judge() == before, "the noise is the same at every call"
    judged = _with_weights(flow, other.state_dict(), judge)
    assert judged != before
    assert judged == validate(Flow(other, contract), texts, shown, contract)
    with pytest.raises(KeyboardInterrupt):
        _with_weights(flow, other.state_dict(), fail)
    for name, tensor in transformer.state_dict().items():
        torch.testing.assert_close(tensor, own[name], atol=0, rtol=0, msg=name)
    assert judge() == before


@pytest.mark.parametrize("state_row", [True, False])
def test_every_row_that_is_sampled_is_judged_and_no_other(
    transformer: Cosmos3OmniTransformer, contract: Contract, state_row: bool
) -> None:
    other = replace(contract, state_row=state_row)
    texts = make_texts(SAID, PICO_PANDA, other, train_tokenizer(SAID, 400))
    flow, shown = Flow(transformer, other), clips(other)
    usual = validate(flow, texts, shown, other)["row_error"]
    shown.rows[:, 0] += 1000
    # The first row is the state's, which is given, or an action's, which is far off then.
    far_off = validate(flow, texts, shown, other)["row_error"] > usual + 1000 / other.rows / 2
    assert far_off != state_row


def test_a_batch_pairs_every_clip_with_its_own_caption(
    contract: Contract, texts: Texts, settings: PolicySettings
) -> None:
    shown = clips(contract)
    draw = _Draw(shown, texts, contract, replace(settings, batch=60, caption_dropout=0.25))
    batch, chosen = draw(np.random.default_rng(0))
    assert len(chosen.ids) == settings.captions + 1
    torch.testing.assert_close(chosen.ids[-1], texts.ids[-1])
    clip = batch.rows[:, 1, 7].round().long()
    dropped = batch.caption == settings.captions
    assert 5 <= dropped.sum() <= 25
    for i in torch.nonzero(~dropped)[:, 0].tolist():
        said = texts.ids[shown.caption[clip[i]]]
        torch.testing.assert_close(chosen.ids[batch.caption[i]], said)


def test_half_of_the_clips_have_committed_rows_and_all_a_state_that_is_not_quite_right(
    contract: Contract, texts: Texts, settings: PolicySettings
) -> None:
    shown = clips(contract)
    draw = _Draw(shown, texts, contract, replace(settings, batch=400, state_noise=0.05))
    torch.manual_seed(0)
    batch, _ = draw(np.random.default_rng(0))
    clean = (batch.noisy_rows[..., 0] == 0).sum(1)
    assert clean.min() == 1, "the state row is always clean"
    assert 0.4 < (clean > 1).float().mean() < 0.6
    assert set((clean - 1).tolist()) == set(range(3 * contract.chunk // 4 + 1))
    for noisy in batch.noisy_rows[..., 0].tolist():
        assert noisy == sorted(noisy), "clean rows come first"
    clip = batch.rows[:, 1, 7].round().long()
    off = batch.rows[:, 0] - shown.rows[clip, 0]
    assert off.std() == pytest.approx(0.05, rel=0.1)
    torch.testing.assert_close(batch.rows[:, 1:], shown.rows[clip, 1:])


def test_clips_with_committed_rows_and_without_begin_as_pure_noise_by_a_share_of_their_own(
    contract: Contract, texts: Texts, settings: PolicySettings
) -> None:
    chosen = replace(
        settings,
        batch=1000,
        prefix_share=0.5,
        pure_noise_share=0.6,
        committed_pure_noise_share=0.2,
    )
    random = np.random.default_rng(0)
    batch, _ = _Draw(clips(contract), texts, contract, chosen)(random)
    begins = _draw_shares(random, batch, contract, chosen) == 1
    committed = batch.noisy_rows[:, 1, 0] == 0
    assert begins[~committed].float().mean() == pytest.approx(0.6, abs=0.07)
    assert begins[committed].float().mean() == pytest.approx(0.2, abs=0.06)
    # Without those, the batch is spread evenly from 0 to 1.
    none = replace(chosen, pure_noise_share=0.0, committed_pure_noise_share=0.0)
    even = _draw_shares(random, batch, contract, none)
    middles = (np.arange(1000) + 0.5) / 1000
    np.testing.assert_allclose(np.sort(even), middles, atol=0.5 / 1000 + 1e-6)
