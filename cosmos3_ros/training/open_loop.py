"""How well a checkpoint foresees recorded episodes: video in decibel, rows in their own units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

from cosmos3_ros.engine.export_contract import make_contract
from cosmos3_ros.engine.export_model import Components, make_components
from cosmos3_ros.engine.recipe import Recipe
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.training.begin import require_no_padding
from cosmos3_ros.training.dataset import Demonstrations
from cosmos3_ros.training.flow import Batch, Flow, make_texts, sample
from cosmos3_ros.training.vae import WholeClip, decibel, to_canvases, to_pictures

# A pixel changes where a colour leaves its value in the first frame by more than this, of 255.
CHANGE = 15
_BATCH = 8
_SHOWN, _COLUMNS = 5, 5


@dataclass(frozen=True)
class Predicted:
    """Clips [n,T,H,W,3] uint8: as they came, as predicted from their first frame, and as the VAE
    gives them back. Rows [n,chunk,width] in physical units."""

    seen: np.ndarray
    predicted: np.ndarray
    given_back: np.ndarray
    rows: np.ndarray
    true_rows: np.ndarray
    instructions: list[str]
    channels: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """PSNR over all pixels and over those that change, of frames 1 .. chunk and of the last;
        mean absolute errors of rows by channel, and of the last row. None where no pixel changes.
        """
        still = np.broadcast_to(self.seen[:, :1], self.seen.shape)
        videos = {"predicted": self.predicted, "nothing_changes": still, "vae": self.given_back}
        error = np.abs(self.rows - self.true_rows)
        by_channel = zip(self.channels, error.mean((0, 1)), error[:, -1].mean(0), strict=True)
        return {
            "clips": len(self.seen),
            **{name: self._decibel(video) for name, video in videos.items()},
            "row_error": {
                key: round(float(value), 5)
                for name, mean, last in by_channel
                for key, value in ((name, mean), (f"{name}, last row", last))
            },
        }

    def _decibel(self, video: np.ndarray) -> dict[str, float | None]:
        seen = self.seen.astype(np.float32)
        changed = (np.abs(seen - seen[:, :1]) > CHANGE).any(-1)
        squared = np.square((video.astype(np.float32) - seen) / 255).mean(-1)
        of = {
            "all": squared[:, 1:],
            "changed": squared[:, 1:][changed[:, 1:]],
            "last": squared[:, -1],
            "last_changed": squared[:, -1][changed[:, -1]],
        }
        return {
            name: round(decibel(float(values.mean())), 2) if values.size else None
            for name, values in of.items()
        }


@torch.no_grad()
def predict(
    recipe: Recipe,
    embodiment: Embodiment,
    checkpoint: Path,
    dataset: Path,
    most: int,
    threads: int,
) -> Predicted:
    """Predict one clip an episode, of at most ``most``, spread over the data set.

    Raises RecipeError and LeRobotError for a checkpoint or a data set that does not fit.
    """
    torch.set_num_threads(threads)
    components = make_components(recipe, checkpoint)
    contract = make_contract(recipe, body_of(embodiment), components)
    require_no_padding(recipe, contract)
    shown = Demonstrations(dataset, embodiment, contract)
    tokenizer = components.tokenizer.backend_tokenizer
    episodes = np.unique(np.linspace(0, len(shown) - 1, most).astype(int)).tolist()
    clips = [shown.draw_clips(episode, 1, seed=0)[0] for episode in episodes]
    instructions = [shown.instructions[clip.episode][clip.first] for clip in clips]
    texts = make_texts(instructions, embodiment, contract, tokenizer)
    flow, whole = Flow(components.transformer, contract), WholeClip(components.vae)
    mean, std = _statistics(components)
    torch.manual_seed(0)
    parts: list[tuple[np.ndarray, ...]] = []
    for start in tqdm(range(0, len(clips), _BATCH), desc="predicting", disable=None):
        chosen = clips[start : start + _BATCH]
        seen = np.stack(
            [shown.canvases(c.episode)[c.first : c.first + contract.chunk + 1] for c in chosen]
        )
        latents = (whole.encode(to_pictures(seen))[0] - mean) / std
        true_rows = np.stack([shown.rows(clip) for clip in chosen])
        rows = torch.from_numpy(embodiment.to_model(true_rows).astype(np.float32))
        noisy = torch.ones(len(chosen), contract.rows, 1)
        first = int(contract.state_row)
        rows[:, first:] = 0
        noisy[:, :first] = 0
        caption = torch.arange(start, start + len(chosen))
        # Of the latents, the first alone is read.
        given = torch.cat([latents[:, :, :1], torch.zeros_like(latents[:, :, 1:])], 2)
        found, planned = sample(flow, texts, Batch(given, rows, noisy, caption), contract)
        physical = embodiment.to_physical(planned[:, first:].double().numpy())
        predicted = to_canvases(whole.decode(found * std + mean))
        given_back = to_canvases(whole.decode(latents * std + mean))
        parts.append((seen, predicted, given_back, physical, true_rows[:, first:]))
    seen, predicted, given_back, physical, true_rows = map(np.concatenate, zip(*parts, strict=True))
    return Predicted(
        seen=seen,
        predicted=predicted,
        given_back=given_back,
        rows=physical,
        true_rows=true_rows,
        instructions=instructions,
        channels=embodiment.channel_names,
    )


def _statistics(components: Components) -> tuple[torch.Tensor, torch.Tensor]:
    config = components.vae.config
    shape = (1, -1, 1, 1, 1)
    mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    return mean.view(shape), std.view(shape)


def write_picture(predicted: Predicted, png: Path) -> None:
    """Some clips over time: what came, what was predicted, and what the VAE alone would give."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = min(_SHOWN, len(predicted.seen))
    clips = np.linspace(0, len(predicted.seen) - 1, count).astype(int)
    frames = np.linspace(0, predicted.seen.shape[1] - 1, _COLUMNS).astype(int)
    videos = {
        "came": predicted.seen,
        "predicted": predicted.predicted,
        "VAE": predicted.given_back,
    }
    figure, axes = pyplot.subplots(
        count * len(videos), _COLUMNS, figsize=(3 * _COLUMNS, 1.62 * count * len(videos))
    )
    for row, (clip, (name, video)) in enumerate((c, v) for c in clips for v in videos.items()):
        for column, frame in enumerate(frames):
            axis = axes[row, column]
            axis.imshow(video[clip, frame])
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(name)
            if name == "came":
                told = f"“{predicted.instructions[clip]}”, " if column == 0 else ""
                axis.set_title(f"{told}frame {frame}", fontsize=9, loc="left")
    figure.tight_layout(pad=0.4)
    figure.savefig(png, dpi=80)
    pyplot.close(figure)
