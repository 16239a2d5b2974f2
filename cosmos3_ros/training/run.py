"""A whole training, from demonstrations to a checkpoint: read it top to bottom.

Every stage leaves what it made in the run's folder and is not done again: a run that was stopped
goes on with the same command.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from cosmos3_ros.engine.bundle import TOKENIZER
from cosmos3_ros.engine.export_checkpoint import FACTS, ModuleWeights
from cosmos3_ros.engine.export_contract import make_contract
from cosmos3_ros.engine.export_folder import whole_folder
from cosmos3_ros.engine.export_model import (
    Components,
    byte_level_tokenizer,
    chatml,
    flow_scheduler,
    stock_module,
)
from cosmos3_ros.engine.recipe import Recipe
from cosmos3_ros.engine.session import Contract
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.policy.prompt import caption
from cosmos3_ros.processes import alone_in
from cosmos3_ros.training.bars import Bar
from cosmos3_ros.training.begin import (
    require_compiler,
    require_no_padding,
    require_same_run,
    require_simulated_arm,
    require_trainable,
    run_of,
    write_run,
)
from cosmos3_ros.training.captions import train_tokenizer
from cosmos3_ros.training.dataset import Clip, Demonstrations
from cosmos3_ros.training.episodes import instructions_of, make_episodes
from cosmos3_ros.training.fitting import filmed, require_fitting_model, require_memory
from cosmos3_ros.training.flow import Texts, make_texts
from cosmos3_ros.training.latents import LATENTS, encode
from cosmos3_ros.training.policy import Clips, new_transformer, train_policy
from cosmos3_ros.training.runs import (
    Stage,
    Stopwatch,
    TrainingError,
    draw_curves,
    read_curve,
    write_json,
)
from cosmos3_ros.training.settings import TrainingSettings, training_settings
from cosmos3_ros.training.vae import set_statistics, train_vae

CHECKPOINT = "checkpoint"
_EPISODES, _CURVES = "episodes", "curves.png"


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
    Raises RecipeError and EmbodimentError for what cannot be trained, LeRobotError for a data set
    that does not fit, TrainingError where ``out`` holds another run or a damaged one, or
    another process is at it.
    """
    settings = training_settings(recipe)
    settings = settings if seed is None else replace(settings, seed=seed)
    require_trainable(recipe, embodiment)
    run = run_of(recipe, embodiment, settings, dataset)
    require_same_run(out, run)
    if (out / CHECKPOINT).is_dir():
        return out / CHECKPOINT
    if compiled:
        require_compiler()
    torch.set_num_threads(threads)

    body = body_of(embodiment)
    transformer = new_transformer(recipe.model.transformer, embodiment.width, settings.seed)
    vae = new_vae(recipe, settings.seed)
    # What is shown does not depend on the tokenizer, which is made of what is shown.
    any_tokenizer = byte_level_tokenizer()
    contract = make_contract(recipe, body, components_of(recipe, transformer, vae, any_tokenizer))
    require_no_padding(recipe, contract)
    if dataset is None:
        require_simulated_arm(embodiment, contract)
        _held_out(settings.data.episodes, settings)
        instructions = instructions_of(settings.data.episodes, settings.seed)
    else:
        shown = Demonstrations(dataset, embodiment, contract)
        _require_memory(shown, settings, contract, out)
        instructions = sorted({said for episode in shown.instructions for said in episode})
    chats = _chats(instructions, embodiment, contract)
    tokenizer = train_tokenizer(chats, settings.vocabulary)
    bare = chatml(tokenizer_object=tokenizer)
    contract = make_contract(recipe, body, components_of(recipe, transformer, vae, bare))
    texts = make_texts(instructions, embodiment, contract, tokenizer)
    require_fitting_model(recipe, vae, transformer, texts, contract)
    begun = _Begun(
        recipe=recipe,
        embodiment=embodiment,
        settings=settings,
        contract=contract,
        transformer=transformer,
        vae=vae,
        tokenizer=tokenizer,
        instructions=instructions,
        texts=texts,
        shown=None if dataset is None else shown,
    )
    out.mkdir(parents=True, exist_ok=True)
    # Two at a time would spoil what the other leaves.
    busy = TrainingError(
        f"another process trains in '{out}'; wait for it to end, or name another folder"
    )
    with alone_in(out, busy):
        require_same_run(out, run)
        # From here on what is in the folder is this run's.
        write_run(out, run)
        _go_through_stages(begun, out, threads, compiled)
    return out / CHECKPOINT


@dataclass(frozen=True)
class _Begun:
    """What a run starts from. ``shown``: None where its demonstrations are made."""

    recipe: Recipe
    embodiment: Embodiment
    settings: TrainingSettings
    contract: Contract
    transformer: Cosmos3OmniTransformer
    vae: AutoencoderKLWan
    tokenizer: Tokenizer
    instructions: list[str]
    texts: Texts
    shown: Demonstrations | None


def _go_through_stages(begun: _Begun, out: Path, threads: int, compiled: bool) -> None:
    """From the demonstrations to the checkpoint."""
    settings, contract, embodiment = begun.settings, begun.contract, begun.embodiment
    vae, transformer, shown = begun.vae, begun.transformer, begun.shown
    made = Stopwatch(out, _EPISODES)
    if shown is None:
        demonstrations = out / _EPISODES
        make_episodes(demonstrations, settings.data.episodes, settings.seed, threads, made.keep)
        shown = Demonstrations(demonstrations, embodiment, contract)
        _require_memory(shown, settings, contract, out)
    held_out = _held_out(len(shown), settings)
    policy_stage = Stage(out, "policy")
    vae_stage = Stage(out, "vae", later=(LATENTS, policy_stage.state_file.name))
    vae_s = train_vae(
        vae_stage,
        vae,
        lambda: _films(shown, held_out, settings),
        contract.chunk + 1,
        settings.vae,
        settings.seed,
        compiled=compiled,
    )
    latents, cut, latents_s = encode(
        shown,
        vae,
        contract.latent_shape[1:],
        settings.data.clips_per_episode,
        settings.seed,
        out,
    )
    judges = np.array([clip.episode in held_out for clip in cut])
    set_statistics(vae, latents[~judges])
    clips = _clips(shown, latents, cut, vae, embodiment, begun.instructions)
    policy_s = train_policy(
        policy_stage,
        transformer,
        begun.texts,
        _chosen(clips, ~judges),
        _chosen(clips, judges),
        contract,
        settings.policy,
        settings.seed,
        compiled=compiled,
    )
    taken_s = {
        "demonstrations": made.seconds,
        "vae": vae_s,
        "latents": latents_s,
        "policy": policy_s,
    }
    facts = {
        "recipe": begun.recipe.name,
        "seed": settings.seed,
        "episodes": len(shown),
        "held_out_episodes": len(held_out),
        "too_short_episodes": shown.too_short,
        "clips": int((~judges).sum()),
        "frames": int(sum(len(states) for states in shown.states)),
        "instructions": len(begun.instructions),
        "text_tokens_longest": int((begun.texts.bias == 0).sum(1).max()),
        "transformer_parameters": sum(p.numel() for p in transformer.parameters()),
        "vae_parameters": sum(p.numel() for p in vae.parameters()),
        **{f"{stage}_minutes": round(s / 60, 1) for stage, s in taken_s.items()},
        "minutes": round(sum(taken_s.values()) / 60, 1),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "training": asdict(settings),
    }
    draw_curves(out / _CURVES, _panels(vae_stage, policy_stage))
    _write_checkpoint(out, begun.recipe, transformer, vae, begun.tokenizer, facts)


def new_vae(recipe: Recipe, seed: int) -> AutoencoderKLWan:
    """A VAE of random weights to begin with; its latents are not normalised yet."""
    torch.manual_seed(seed)
    config = recipe.model.vae
    z_dim = config.get("z_dim", 16)  # diffusers' own default
    plain = {"latents_mean": [0.0] * z_dim, "latents_std": [1.0] * z_dim}
    vae: AutoencoderKLWan = stock_module("vae", AutoencoderKLWan, plain | config)
    return vae


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


def _require_memory(
    shown: Demonstrations, settings: TrainingSettings, contract: Contract, out: Path
) -> None:
    held_out, filmed_already = _held_out(len(shown), settings), (out / LATENTS).is_dir()
    require_memory(shown, held_out, settings, contract, filmed_already=filmed_already)


def _held_out(episodes: int, settings: TrainingSettings) -> range:
    """The last episodes, which judge the training. Raises TrainingError where no other is left."""
    first = episodes - settings.data.held_out
    if first < 1:
        raise TrainingError(
            f"training.data.held_out is {settings.data.held_out} and there are {episodes} episodes "
            "longer than a chunk; expected fewer to be held out, so that some are left to train on"
        )
    return range(first, episodes)


def _chats(instructions: list[str], embodiment: Embodiment, contract: Contract) -> list[str]:
    """Every instruction's caption in the chat template: what the tokenizer has to write."""
    prompting = contract.prompting
    captions = (caption(said, embodiment, contract) for said in instructions)
    return [prompting.prefix + text + prompting.suffix for text in captions]


def _films(shown: Demonstrations, held_out: range, settings: TrainingSettings) -> list[np.ndarray]:
    """Canvases of some episodes, spread over those that are trained on."""
    chosen = filmed(held_out, settings)
    films = []
    with Bar("videos", "episode", len(chosen)) as bar:
        for index in chosen:
            films.append(shown.canvases(index))
            bar.update()
    return films


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
        rows = read_curve(stage.curve_file)
        for key, name in names.items():
            taken = [row for row in rows if np.isfinite(row[key])]
            curves[name] = ([row["step"] for row in taken], [row[key] for row in taken])
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
        write_json(work / FACTS, facts)


def _processor() -> str:
    """Model of the CPU, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
