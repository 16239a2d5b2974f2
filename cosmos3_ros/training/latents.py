"""A data set's clips as latents, in files that a stopped run finds again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from cosmos3_ros.training.bars import Bar
from cosmos3_ros.training.dataset import Clip, Demonstrations
from cosmos3_ros.training.runs import Stopwatch, TrainingError
from cosmos3_ros.training.vae import WholeClip, encode_clips

LATENTS = "latents"
# Episodes whose latents are kept in one file.
_ENCODED_TOGETHER = 250


def encode(
    shown: Demonstrations,
    vae: AutoencoderKLWan,
    clip_shape: tuple[int, ...],
    clips_per_episode: int,
    seed: int,
    out: Path,
) -> tuple[np.ndarray, list[Clip], float]:
    """Latents of clips [n,Z,t,h,w] float16, not normalised, the clips in the same order, and the
    seconds it took.

    ``clip_shape``: Z, t, h, w. Raises TrainingError for a file that is damaged, or holds others.
    """
    folder = out / LATENTS
    folder.mkdir(exist_ok=True)
    whole, watch = WholeClip(vae).eval(), Stopwatch(out, LATENTS)
    blocks = {
        folder / f"{begin:06d}.npy": [
            clip
            for episode in range(begin, min(begin + _ENCODED_TOGETHER, len(shown)))
            for clip in shown.draw_clips(episode, clips_per_episode, seed)
        ]
        for begin in range(0, len(shown), _ENCODED_TOGETHER)
    }

    def make(file: Path) -> np.ndarray:
        made = encode_clips(whole, _cut_out(shown, blocks[file]))
        partial = file.with_name(f".{file.name}")
        np.save(partial, made)
        partial.rename(file)
        return made

    latents = {
        file: _load(file, (len(clips), *clip_shape))
        for file, clips in blocks.items()
        if file.is_file()
    }
    missing = [file for file in blocks if file not in latents]
    # A clip is too small to be shared among threads: each has clips of its own.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        Bar("latents", "file", len(blocks), len(latents)) as bar,
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        for file, made in zip(missing, pool.map(make, missing), strict=True):
            latents[file] = made
            watch.keep()
            bar.update()
    torch.set_num_threads(threads)
    clips = [clip for block in blocks.values() for clip in block]
    return np.concatenate([latents[file] for file in blocks]), clips, watch.seconds


def _load(file: Path, expected: tuple[int, ...]) -> np.ndarray:
    try:
        latents: np.ndarray = np.load(file)
        found = f"holds {latents.dtype} {latents.shape}"
    except (ValueError, EOFError) as error:
        found = f"cannot be read ({error})"
        latents = np.zeros(0)
    if latents.dtype != np.float16 or latents.shape != expected:
        raise TrainingError(
            f"'{file}' {found}; expected float16 {expected}, the latents of its clips; remove it, "
            "and they are made anew"
        )
    return latents


def _cut_out(shown: Demonstrations, clips: list[Clip]) -> Iterator[np.ndarray]:
    episode, canvases = -1, np.zeros(0)
    for clip in clips:
        if clip.episode != episode:
            episode, canvases = clip.episode, shown.canvases(clip.episode)
        yield canvases[clip.first : clip.first + shown.chunk + 1]
