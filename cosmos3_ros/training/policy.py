"""Trains the policy: the stock transformer, by flow matching on the latents and rows of clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import Cosmos3OmniTransformer
from torch import Tensor, nn

from cosmos3_ros.engine.export_model import stock_module
from cosmos3_ros.engine.session import Contract
from cosmos3_ros.training.bars import Bar
from cosmos3_ros.training.flow import Batch, Flow, Texts, losses, sample
from cosmos3_ros.training.runs import Progress, Stage, seeded
from cosmos3_ros.training.settings import PolicySettings

_BETAS = (0.9, 0.97)
_WEIGHT_DECAY = 0.01
_WARM_UP_STEPS = 150
_LAST_SHARE = 0.02  # of the learning rate
_LARGEST_GRADIENT = 1.0
_AVERAGE = 0.998
_LONGEST_PREFIX = 0.75  # of a chunk
_NOTE_PERIOD, _VALIDATION_PERIOD = 50, 500  # steps
_VALIDATION_BATCH = 100
_SAMPLED = 100  # clips


@dataclass(frozen=True)
class Clips:
    """What the policy is trained on, or judged by: one row a clip, in the model's units.

    ``latents`` [n,Z,T,h,w], ``rows`` [n,A,width], the state row first where there is one,
    ``caption`` [n].
    """

    latents: Tensor
    rows: Tensor
    caption: Tensor

    def __len__(self) -> int:
        return len(self.caption)


def new_transformer(config: Mapping[str, Any], width: int, seed: int) -> Cosmos3OmniTransformer:
    """A transformer to begin with. ``width``: action channels that are in use.

    Residual branches begin small with depth, and the heads near zero, so that the first velocities
    are about those of nothing known.
    """
    torch.manual_seed(seed)
    model: Cosmos3OmniTransformer = stock_module(
        "transformer", Cosmos3OmniTransformer, dict(config)
    )
    with torch.no_grad():
        model.action_modality_embed.normal_(0, 0.02)
        model.embed_tokens.weight.normal_(0, 0.5)
        for head in (model.action_proj_in, model.action_proj_out):
            head.fc.weight.mul_(head.input_size**-0.5)
            head.bias.weight.zero_()
        model.action_proj_in.fc.weight.mul_((model.config.action_dim / width) ** 0.5)
        model.proj_out.weight.mul_(0.2)
        model.action_proj_out.fc.weight.mul_(0.2)
        for layer in model.layers:
            attention = layer.self_attn
            for last in (
                attention.to_out,
                attention.to_add_out,
                layer.mlp.down_proj,
                layer.mlp_moe_gen.down_proj,
            ):
                last.weight.mul_((2 * len(model.layers)) ** -0.5)
    return model


def train_policy(
    stage: Stage,
    transformer: Cosmos3OmniTransformer,
    texts: Texts,
    clips: Clips,
    held_out: Clips,
    contract: Contract,
    settings: PolicySettings,
    seed: int,
    *,
    compiled: bool = True,
) -> float:
    """Train ``transformer``; its weights are then the running average. Returns the seconds taken.

    ``texts``: the captions of all clips, the unconditional one last.
    """
    flow = Flow(transformer, contract).train()
    optimiser = _optimiser(flow)
    average = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}

    def load(saved: Any) -> None:
        transformer.load_state_dict(saved["transformer"])
        optimiser.load_state_dict(saved["optimiser"])
        for name, tensor in saved["average"].items():
            average[name].copy_(tensor)

    progress = Progress(
        stage,
        lambda: {
            "transformer": transformer.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average,
        },
        load,
    )
    first = progress.resume()
    forward = torch.compile(flow, dynamic=False) if compiled and first < settings.steps else flow
    draw = _Draw(clips, texts, contract, settings)
    with Bar("policy", "step", settings.steps, first) as bar:
        for step in range(first, settings.steps):
            random = seeded(seed, 2, step)
            for group in optimiser.param_groups:
                group["lr"] = _learning_rate(step, settings)
            batch, chosen = draw(random)
            share = _draw_shares(random, batch, contract, settings)
            video, row = losses(forward, chosen, batch, share, contract)
            optimiser.zero_grad()
            (video + settings.action_weight * row).backward()
            nn.utils.clip_grad_norm_(flow.parameters(), _LARGEST_GRADIENT)
            optimiser.step()
            _follow(average, transformer, step)
            bar.update()
            figures: dict[str, float] | None = None
            if (step + 1) % _NOTE_PERIOD == 0:
                figures = {"video": video.item(), "action": row.item()}
                judged = (step + 1) % _VALIDATION_PERIOD == 0
                figures |= dict.fromkeys(_JUDGED, float("nan"))
                if judged:
                    figures |= _with_weights(
                        flow, average, lambda: validate(flow, texts, held_out, contract)
                    )
            progress.stepped(step + 1, figures)
    progress.save()
    transformer.load_state_dict(average)
    transformer.eval()
    return progress.seconds


def _draw_shares(
    random: np.random.Generator, batch: Batch, contract: Contract, settings: PolicySettings
) -> Tensor:
    """Where in the flow each clip stands, 0 .. 1: spread evenly, and some at its very beginning.

    A little less than pure noise, and the video already shows where the arm will go. What an
    instruction means, and how to go on from committed rows, is learnt where nothing else tells.
    """
    strata = np.arange(settings.batch) + random.uniform(size=settings.batch)
    share = torch.from_numpy(random.permutation(strata / settings.batch)).float()
    committed = (batch.noisy_rows[:, int(contract.state_row) :, 0] == 0).any(1)
    drawn = torch.from_numpy(random.uniform(size=settings.batch)).float()
    pure = torch.where(committed, settings.committed_pure_noise_share, settings.pure_noise_share)
    return torch.where(drawn < pure, 1.0, share)


_JUDGED = ("held_out_video", "held_out_action", "row_error", "last_row_error")


@torch.no_grad()
def validate(flow: Flow, texts: Texts, clips: Clips, contract: Contract) -> dict[str, float]:
    """Losses on held-out clips, and the errors of sampled rows in the model's units.

    ``row_error``: mean absolute error; ``last_row_error``: root mean square of the chunk's last
    row. The noise is the same at every call.
    """
    torch.manual_seed(1)
    parts = []
    for indexes in torch.arange(len(clips)).split(_VALIDATION_BATCH):
        share = (torch.arange(len(indexes)) + 0.5) / len(indexes)
        batch, read = _with_its_texts(_whole(clips, indexes, contract), texts)
        parts.append(torch.stack(losses(flow, read, batch, share, contract)) * len(indexes))
    video, action = (torch.stack(parts).sum(0) / len(clips)).tolist()
    some = _whole(clips, torch.arange(min(len(clips), _SAMPLED)), contract)
    batch, read = _with_its_texts(some, texts)
    _, rows = sample(flow, read, batch, contract)
    error = (rows - batch.rows)[:, int(contract.state_row) :]
    return {
        "held_out_video": video,
        "held_out_action": action,
        "row_error": error.abs().mean().item(),
        "last_row_error": error[:, -1].square().mean().sqrt().item(),
    }


class _Draw:
    """Batches of a few captions each, so that few texts are read a step."""

    def __init__(
        self, clips: Clips, texts: Texts, contract: Contract, settings: PolicySettings
    ) -> None:
        self._clips, self._texts = clips, texts
        self._contract, self._settings = contract, settings
        caption = clips.caption.numpy()
        self._captions, counts = np.unique(caption, return_counts=True)
        self._share = counts / counts.sum()
        self._of_caption = {c: np.flatnonzero(caption == c) for c in self._captions.tolist()}
        self._count = min(settings.captions, len(self._captions))

    def __call__(self, random: np.random.Generator) -> tuple[Batch, Texts]:
        """A batch, whose captions index the texts returned with it; the last is unconditional."""
        settings, contract = self._settings, self._contract
        captions = random.choice(self._captions, self._count, replace=False, p=self._share)
        places = np.arange(settings.batch) % self._count
        if self._count == len(self._captions):
            # Every task is in every batch: what of it each gets is what tells them apart.
            shares = self._share[np.searchsorted(self._captions, captions)]
            places = random.choice(self._count, settings.batch, p=shares)
        index = np.array([random.choice(self._of_caption[captions[place]]) for place in places])
        latents, rows = self._clips.latents[index].float(), self._clips.rows[index].clone()
        noisy = _noisy_rows(len(index), contract)
        first = int(contract.state_row)
        if contract.state_row:
            rows[:, 0] += settings.state_noise * torch.randn_like(rows[:, 0])
        longest = int(_LONGEST_PREFIX * contract.chunk)
        committed = random.integers(1, longest + 1, settings.batch)
        committed *= random.uniform(size=settings.batch) < settings.prefix_share
        for clip, count in enumerate(committed.tolist()):
            noisy[clip, first : first + count] = 0
        dropped = random.uniform(size=settings.batch) < settings.caption_dropout
        caption = np.where(dropped, self._count, places)
        chosen = torch.from_numpy(np.append(captions, len(self._texts.ids) - 1))
        return Batch(latents, rows, noisy, torch.from_numpy(caption)), self._texts[chosen]


def _whole(clips: Clips, indexes: Tensor, contract: Contract) -> Batch:
    noisy = _noisy_rows(len(indexes), contract)
    latents = clips.latents[indexes].float()
    return Batch(latents, clips.rows[indexes], noisy, clips.caption[indexes])


def _with_its_texts(batch: Batch, texts: Texts) -> tuple[Batch, Texts]:
    """A batch with the captions it has: others would be read with each forward for nothing."""
    used, caption = torch.unique(batch.caption, return_inverse=True)
    return replace(batch, caption=caption), texts[used]


def _noisy_rows(count: int, contract: Contract) -> Tensor:
    noisy = torch.ones(count, contract.rows, 1)
    noisy[:, : int(contract.state_row)] = 0
    return noisy


def _optimiser(flow: Flow) -> torch.optim.AdamW:
    parameters = list(flow.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": _WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=_BETAS)


def _follow(average: dict[str, Tensor], transformer: nn.Module, step: int) -> None:
    """Exponential moving average of the weights, quicker at the beginning."""
    decay = min(_AVERAGE, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(
            list(average.values()), list(transformer.state_dict().values()), 1 - decay
        )


def _with_weights(flow: Flow, weights: Mapping[str, Tensor], judge: Any) -> dict[str, float]:
    """What ``judge`` says of other weights."""
    own = {name: tensor.clone() for name, tensor in flow.transformer.state_dict().items()}
    flow.transformer.load_state_dict(weights)
    try:
        figures: dict[str, float] = judge()
    finally:
        flow.transformer.load_state_dict(own)
    return figures


def _learning_rate(step: int, settings: PolicySettings) -> float:
    """Linear to nearly nothing, after a warm-up."""
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    return settings.learning_rate * warm * max(_LAST_SHARE, 1 - step / settings.steps)
