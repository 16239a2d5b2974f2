"""The batched flow is diffusers' own forward, and its loss is that of rectified flow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from bundles import ENGINES
from tokenizers import Tokenizer
from training_parts import PICO_PANDA, small_recipe

from cosmos3_ros.engine.export_contract import make_contract
from cosmos3_ros.engine.export_model import Components, chatml, make_components
from cosmos3_ros.engine.export_reference import Start, stock_sampler, stock_velocity
from cosmos3_ros.engine.recipe import load_recipe
from cosmos3_ros.engine.session import Contract
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.prompt import caption, tokenize
from cosmos3_ros.training.captions import train_tokenizer
from cosmos3_ros.training.flow import Batch, Flow, Texts, losses, make_texts, sample
from cosmos3_ros.training.policy import new_transformer
from cosmos3_ros.training.run import components_of, new_vae

SAID = ("touch the red cube", "lift the blue block off the table, if you please")
UNCONDITIONAL = len(SAID)
CHECKPOINT = ENGINES / "pico_checkpoint"


@dataclass(frozen=True)
class Parts:
    components: Components
    contract: Contract
    texts: Texts
    tokens: list[list[int]]

    @property
    def flow(self) -> Flow:
        return Flow(self.components.transformer, self.contract).eval()


@pytest.fixture(scope="module", params=["small", "pico"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Of a small model of random weights, and of the trained one that ships."""
    if request.param == "pico":
        recipe = load_recipe(ENGINES / "pico.yaml")
        components = make_components(recipe, CHECKPOINT)
        tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    else:
        recipe = small_recipe(tmp_path_factory.mktemp("flow"))
        transformer = new_transformer(recipe.model.transformer, PICO_PANDA.width, 0).eval()
        with torch.no_grad():
            # The heads begin near zero: let them say something.
            transformer.proj_out.weight.mul_(5)
            transformer.action_proj_out.fc.weight.mul_(5)
            transformer.action_proj_out.bias.weight.normal_(0, 0.1)
        tokenizer = train_tokenizer(SAID, 400)
        bare = chatml(tokenizer_object=tokenizer)
        components = components_of(recipe, transformer, new_vae(recipe, 0).eval(), bare)
    contract = make_contract(recipe, body_of(PICO_PANDA), components)
    wider = Contract(**{**vars(contract), "prompting": _with_room(contract)})
    texts = make_texts(SAID, PICO_PANDA, wider, tokenizer)
    spoken = [*(caption(said, PICO_PANDA, wider) for said in SAID), ""]
    return Parts(
        components, wider, texts, [tokenize(text, tokenizer, wider.prompting) for text in spoken]
    )


def _with_room(contract: Contract) -> object:
    return type(contract.prompting)(**{**vars(contract.prompting), "text_tokens": 320})


def batch_of(contract: Contract, captions: list[int], committed: list[int]) -> Batch:
    torch.manual_seed(3)
    noisy = torch.ones(len(captions), contract.rows, 1)
    for clip, count in enumerate(committed):
        noisy[clip, : 1 + count] = 0
    latents = torch.randn(len(captions), *contract.latent_shape[1:])
    rows = torch.randn(len(captions), contract.rows, contract.width)
    return Batch(latents, rows, noisy, torch.tensor(captions))


def padded(rows: torch.Tensor, contract: Contract) -> np.ndarray:
    empty = contract.action_dim - contract.width
    array: np.ndarray = torch.nn.functional.pad(rows, (0, empty)).numpy()
    return array


def test_a_batch_of_clips_has_the_velocities_of_the_stock_forward(parts: Parts) -> None:
    contract = parts.contract
    batch = batch_of(contract, [0, 1, UNCONDITIONAL, 0], [0, 5, 3, 15])
    timesteps = torch.tensor([900.0, 500.0, 20.0, 710.0])
    with torch.no_grad():
        video, rows = parts.flow(
            parts.texts, batch.caption, batch.latents, batch.rows, batch.noisy_rows, timesteps
        )
    for clip, said in enumerate(batch.caption.tolist()):
        noisy = batch.noisy_rows[clip].numpy()
        expected_video, expected_rows = stock_velocity(
            parts.components,
            contract,
            parts.tokens[said],
            batch.latents[clip : clip + 1].numpy(),
            padded(batch.rows[clip], contract),
            noisy,
            float(timesteps[clip]),
        )
        assert np.abs(expected_rows[:, : contract.width]).max() > 0.05
        np.testing.assert_allclose(video[clip, :, 1:], expected_video[0, :, 1:], atol=2e-5)
        of_noisy = rows[clip].numpy() * noisy
        np.testing.assert_allclose(of_noisy, expected_rows[:, : contract.width], atol=2e-5)


def test_samples_are_those_of_diffusers_scheduler(parts: Parts) -> None:
    contract, flow = parts.contract, parts.flow
    batch = batch_of(contract, [1], [4])
    torch.manual_seed(8)
    latents, rows = sample(flow, parts.texts, batch, contract)
    torch.manual_seed(8)
    start = Start(
        latents=torch.randn_like(batch.latents).numpy(),
        rows=padded(torch.randn_like(batch.rows)[0], contract),
        clean_rows=padded(batch.rows[0], contract),
        noisy_rows=batch.noisy_rows[0].numpy(),
        held_rows=np.zeros((contract.rows, 1), np.float32),
    )

    def velocity(
        _: str, given: np.ndarray, given_rows: np.ndarray, timestep: float
    ) -> tuple[np.ndarray, np.ndarray]:
        return stock_velocity(
            parts.components,
            contract,
            parts.tokens[1],
            given,
            given_rows.astype(np.float32),
            start.noisy_rows,
            timestep,
        )

    clean = batch.latents[:, :, :1].numpy()
    expected = stock_sampler(parts.components, contract, clean, start, velocity)
    np.testing.assert_allclose(latents, expected[0], atol=2e-4)
    np.testing.assert_allclose(rows[0], expected[1][:, : contract.width], atol=2e-4)


def test_the_loss_is_zero_for_the_true_velocity_and_looks_at_noisy_tokens_alone(
    parts: Parts,
) -> None:
    batch = batch_of(parts.contract, [0, 1], [0, 6])
    share = torch.tensor([0.2, 0.7])
    shift = parts.contract.sampler.shift
    sigma = shift * share / (1 + (shift - 1) * share)
    torch.manual_seed(5)
    video_noise, row_noise = torch.randn_like(batch.latents), torch.randn_like(batch.rows)

    def nearly_true_flow(
        _: Texts,
        caption: torch.Tensor,
        latents: torch.Tensor,
        rows: torch.Tensor,
        noisy_rows: torch.Tensor,
        timestep: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        torch.testing.assert_close(timestep, sigma * 1000)
        # Clean tokens go in as they are, the others on the line to their noise.
        torch.testing.assert_close(latents[:, :, 0], batch.latents[:, :, 0])
        torch.testing.assert_close(rows[1, :7], batch.rows[1, :7])
        on_line = (1 - sigma[0]) * batch.rows[0, 1:] + sigma[0] * row_noise[0, 1:]
        torch.testing.assert_close(rows[0, 1:], on_line)
        video, row = video_noise - batch.latents, row_noise - batch.rows
        video = video + wrong
        video[:, :, 0] = 99.0
        return video, torch.where(noisy_rows == 1, row + wrong, 99.0)

    for wrong, expected in ((0.0, 0.0), (0.5, 0.25)):  # noqa: B007 (nearly_true_flow reads it)
        torch.manual_seed(5)
        video, row = losses(nearly_true_flow, parts.texts, batch, share, parts.contract)
        assert video.item() == pytest.approx(expected, abs=1e-6)
        assert row.item() == pytest.approx(expected, abs=1e-6)


def test_padding_of_the_text_changes_nothing(parts: Parts) -> None:
    batch = batch_of(parts.contract, [0], [0])
    texts = parts.texts
    longest = int((texts.bias == 0).sum(1).max())
    other = texts.ids.clone()
    other[:, longest:] = 7
    given = (batch.caption, batch.latents, batch.rows, batch.noisy_rows, torch.tensor([400.0]))
    changed = Texts(other, texts.bias, texts.cos, texts.sin)
    with torch.no_grad():
        for one, same in zip(parts.flow(texts, *given), parts.flow(changed, *given), strict=True):
            torch.testing.assert_close(one, same, atol=1e-6, rtol=0)
