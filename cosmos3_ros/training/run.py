"""A whole training, from demonstrations to a checkpoint: read it top to bottom.

Every stage leaves what it made in the run's folder and is not done again: a run that was stopped
goes on with the same command.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from cosmos3_ros.engine.bundle import TOKENIZER
from cosmos3_ros.engine.export_checkpoint import ModuleWeights
from cosmos3_ros.engine.export_contract import make_contract
from cosmos3_ros.engine.export_folder import whole_folder
from cosmos3_ros.engine.export_model import (
    Components,
    byte_level_tokenizer,
    chatml,
    flow_scheduler,
)
from cosmos3_ros.engine.recipe import Recipe, RecipeError
from cosmos3_ros.engine.session import Contract
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.policy.prompt import caption
from cosmos3_ros.training.captions import train_tokenizer
from cosmos3_ros.training.dataset import Clip, Demonstrations
from cosmos3_ros.training.episodes import make_episodes
from cosmos3_ros.training.flow import make_texts
from cosmos3_ros.training.policy import Clips, new_transformer, train_policy
from cosmos3_ros.training.runs import Stage, TrainingError, draw_curves, read_curve, write_json
from cosmos3_ros.training.settings import TrainingSettings, training_settings
from cosmos3_ros.training.vae import WholeClip, encode_clips, set_statistics, train_vae

CHECKPOINT = "checkpoint"
_EPISODES, _LATENTS, _RUN = "episodes", "latents", "run.json"
_FACTS, _CURVES = "training.json", "curves.png"
# Episodes whose latents are kept in one file.
_ENCODED_TOGETHER = 250


def train(
    recipe: Recipe,
    embodiment: Embodiment,
    out: Path,
    *,
    dataset: Path | None = None,
    seed: int | None = None,
    threads: int = 2,
    compiled: bool = True,
) -> Path:
    """Train a recipe's model; returns the folder of the checkpoint.

    ``dataset``: demonstrations of the embodiment's robot; without it the simulated arm's are made.
    Raises RecipeError for a recipe that cannot be trained, LeRobotError for a data set that does
    not fit, TrainingError where ``out`` holds the run of another recipe.
    """
    settings = training_settings(recipe)
    settings = settings if seed is None else replace(settings, seed=seed)
    _begin(recipe, settings, dataset, out)
    if (out / CHECKPOINT).is_dir():
        return out / CHECKPOINT
    torch.set_num_threads(threads)
    if dataset is None:
        dataset = out / _EPISODES
        make_episodes(dataset, settings.data.episodes, settings.seed, threads)

    transformer = new_transformer(recipe.model.transformer, embodiment.width, settings.seed)
    vae = new_vae(recipe, settings.seed)
    body = body_of(embodiment)
    # What is shown does not depend on the tokenizer, which is made of what is shown.
    any_tokenizer = byte_level_tokenizer()
    contract = make_contract(recipe, body, components_of(recipe, transformer, vae, any_tokenizer))
    shown = Demonstrations(dataset, embodiment, contract)
    held_out = _held_out(shown, settings)
    tokenizer = train_tokenizer(_chats(shown, embodiment, contract), settings.vocabulary)
    bare = chatml(tokenizer_object=tokenizer)
    contract = make_contract(recipe, body, components_of(recipe, transformer, vae, bare))
    instructions = sorted({said for episode in shown.instructions for said in episode})
    texts = make_texts(instructions, embodiment, contract, tokenizer)

    vae_stage, policy_stage = Stage(out, "vae"), Stage(out, "policy")
    vae_s = train_vae(
        vae_stage,
        vae,
        lambda: _films(shown, held_out, settings),
        contract.chunk + 1,
        settings.vae,
        settings.seed,
        compiled=compiled,
    )
    latents, cut = _encode(shown, vae, settings, out)
    judges = np.array([clip.episode in held_out for clip in cut])
    set_statistics(vae, latents[~judges])
    clips = _clips(shown, latents, cut, vae, embodiment, instructions)
    policy_s = train_policy(
        policy_stage,
        transformer,
        texts,
        _chosen(clips, ~judges),
        _chosen(clips, judges),
        contract,
        settings.policy,
        settings.seed,
        compiled=compiled,
    )
    facts = {
        "recipe": recipe.name,
        "seed": settings.seed,
        "episodes": len(shown),
        "held_out_episodes": len(held_out),
        "too_short_episodes": shown.too_short,
        "clips": int((~judges).sum()),
        "frames": int(sum(len(states) for states in shown.states)),
        "instructions": len(instructions),
        "text_tokens_longest": int((texts.bias == 0).sum(1).max()),
        "transformer_parameters": sum(p.numel() for p in transformer.parameters()),
        "vae_parameters": sum(p.numel() for p in vae.parameters()),
        "vae_minutes": round(vae_s / 60, 1),
        "policy_minutes": round(policy_s / 60, 1),
        "threads": threads,
    }
    draw_curves(out / _CURVES, _panels(vae_stage, policy_stage))
    _write_checkpoint(out, recipe, transformer, vae, tokenizer, facts)
    return out / CHECKPOINT


def _begin(recipe: Recipe, settings: TrainingSettings, dataset: Path | None, out: Path) -> None:
    """Mark a run's folder as this recipe's. Raises TrainingError where it is another's."""
    run = {
        "recipe": recipe.name,
        "dataset": None if dataset is None else str(dataset.resolve()),
        "training": asdict(settings),
        "model": asdict(recipe.model),
    }
    file = out / _RUN
    if file.is_file():
        found = json.loads(file.read_text())
        differing = [key for key, value in run.items() if found.get(key) != _plain(value)]
        if differing:
            raise TrainingError(
                f"'{out}' holds a run with another {', '.join(differing)}; name another folder, "
                "or remove it"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"'{out}' is not empty and no run; name another folder")
    if recipe.model.random_seed is not None or not recipe.model.transformer:
        raise RecipeError(
            f"recipe '{recipe.name}' names no model to train; expected model.transformer and "
            "model.vae, and no random_seed"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, run)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def new_vae(recipe: Recipe, seed: int) -> AutoencoderKLWan:
    """A VAE of random weights to begin with; its latents are not normalised yet."""
    torch.manual_seed(seed)
    config = recipe.model.vae
    plain = {"latents_mean": [0.0] * config["z_dim"], "latents_std": [1.0] * config["z_dim"]}
    return AutoencoderKLWan(**plain, **config)


def components_of(
    recipe: Recipe,
    transformer: Cosmos3OmniTransformer,
    vae: AutoencoderKLWan,
    tokenizer: PreTrainedTokenizerFast,
) -> Components:
    """What an export would start from, with the modules that are being trained."""
    return Components(
        transformer=transformer,
        vae=vae,
        transformer_weights=ModuleWeights(transformer),
        vae_weights=ModuleWeights(vae),
        tokenizer=tokenizer,
        scheduler=flow_scheduler(recipe, recipe.model.scheduler),
        native_flow_schedule=False,
        source="training",
        hash_weights=lambda: "",
    )


def _held_out(shown: Demonstrations, settings: TrainingSettings) -> range:
    """The last episodes, which judge the training. Raises TrainingError where none is left."""
    first = len(shown) - settings.data.held_out
    if first < 1 or settings.data.held_out < 1:
        raise TrainingError(
            f"{settings.data.held_out} of {len(shown)} episodes are to be held out; expected at "
            "least one, and at least one to train on"
        )
    return range(first, len(shown))


def _chats(shown: Demonstrations, embodiment: Embodiment, contract: Contract) -> list[str]:
    """Every instruction's caption in the chat template: what the tokenizer has to write."""
    said = sorted({said for episode in shown.instructions for said in episode})
    prompting = contract.prompting
    captions = (caption(instruction, embodiment, contract) for instruction in said)
    return [prompting.prefix + text + prompting.suffix for text in captions]


def _films(shown: Demonstrations, held_out: range, settings: TrainingSettings) -> list[np.ndarray]:
    """Canvases of some episodes, spread over those that are trained on."""
    count = min(settings.vae.episodes, held_out.start)
    chosen = np.linspace(0, held_out.start - 1, count).astype(int).tolist()
    return [shown.canvases(i) for i in tqdm(chosen, desc="videos", unit="episode", disable=None)]


def _encode(
    shown: Demonstrations, vae: AutoencoderKLWan, settings: TrainingSettings, out: Path
) -> tuple[np.ndarray, list[Clip]]:
    """Latents of clips [n,Z,t,h,w] float16, not normalised, and the clips in the same order."""
    folder = out / _LATENTS
    folder.mkdir(exist_ok=True)
    whole = WholeClip(vae).eval()
    begins = range(0, len(shown), _ENCODED_TOGETHER)
    blocks = [
        [
            clip
            for episode in range(begin, min(begin + _ENCODED_TOGETHER, len(shown)))
            for clip in shown.draw_clips(episode, settings.data.clips_per_episode, settings.seed)
        ]
        for begin in begins
    ]

    def encode(begin: int, block: list[Clip]) -> np.ndarray:
        file = folder / f"{begin:06d}.npy"
        if not file.is_file():
            partial = folder / f".{begin:06d}.npy"
            np.save(partial, encode_clips(whole, _cut_out(shown, block)))
            partial.rename(file)
        latents: np.ndarray = np.load(file)
        return latents

    # A clip is too small to be shared among threads: each has clips of its own.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = pool.map(encode, begins, blocks)
        latents = list(tqdm(found, total=len(blocks), desc="latents", unit="file", disable=None))
    torch.set_num_threads(threads)
    return np.concatenate(latents), [clip for block in blocks for clip in block]


def _cut_out(shown: Demonstrations, clips: list[Clip]) -> Iterator[np.ndarray]:
    episode, canvases = -1, np.zeros(0)
    for clip in clips:
        if clip.episode != episode:
            episode, canvases = clip.episode, shown.canvases(clip.episode)
        yield canvases[clip.first : clip.first + shown.chunk + 1]


def _clips(
    shown: Demonstrations,
    latents: np.ndarray,
    cut: list[Clip],
    vae: AutoencoderKLWan,
    embodiment: Embodiment,
    instructions: list[str],
) -> Clips:
    """Clips in the model's units: rows are the state at the first frame and the actions from it."""
    shape = (1, -1, 1, 1, 1)
    mean = np.array(vae.config.latents_mean, np.float32).reshape(shape)
    std = np.array(vae.config.latents_std, np.float32).reshape(shape)
    rows = np.stack([shown.rows(clip) for clip in cut])
    captions = [instructions.index(shown.instructions[c.episode][c.first]) for c in cut]
    # Half precision holds a normalised latent to one part in a thousand, and half the memory.
    normalised = ((latents - mean) / std).astype(np.float16)
    return Clips(
        latents=torch.from_numpy(normalised),
        rows=torch.from_numpy(embodiment.to_model(rows).astype(np.float32)),
        caption=torch.tensor(captions),
    )


def _chosen(clips: Clips, mask: np.ndarray) -> Clips:
    chosen = torch.from_numpy(mask)
    return Clips(clips.latents[chosen], clips.rows[chosen], clips.caption[chosen])


def _panels(vae: Stage, policy: Stage) -> list[Any]:
    """What ``draw_curves`` draws."""
    wanted = [
        (vae, "VAE on its clips", "PSNR [dB]", {"psnr_db": "training"}),
        (
            policy,
            "Policy: error of the velocities",
            "mean squared error",
            {
                "video": "video",
                "held_out_video": "video, held out",
                "action": "rows",
                "held_out_action": "rows, held out",
            },
        ),
        (
            policy,
            "Sampled rows, held out",
            "deviations of the channel",
            {"row_error": "mean absolute", "last_row_error": "last row, r.m.s."},
        ),
    ]
    panels = []
    for stage, title, unit, names in wanted:
        curves = {}
        for key, name in names.items():
            taken = [
                (row["step"], row[key])
                for row in read_curve(stage.curve_file)
                if np.isfinite(row.get(key, np.nan))
            ]
            curves[name] = ([step for step, _ in taken], [value for _, value in taken])
        panels.append((title, unit, curves))
    return panels


def _write_checkpoint(
    out: Path,
    recipe: Recipe,
    transformer: Cosmos3OmniTransformer,
    vae: AutoencoderKLWan,
    tokenizer: Tokenizer,
    facts: dict[str, Any],
) -> None:
    """diffusers' layout, with the tokenizer in the bare form and the facts of the training."""
    with whole_folder(out / CHECKPOINT) as work:
        transformer.save_pretrained(work / "transformer")
        vae.save_pretrained(work / "vae")
        flow_scheduler(recipe, recipe.model.scheduler).save_pretrained(work / "scheduler")
        tokenizer.save(str(work / TOKENIZER))
        write_json(work / _FACTS, facts)
