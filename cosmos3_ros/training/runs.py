"""One training run's folder: what it has reached, so that it goes on where it was stopped."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

SAVE_PERIOD_S = 120.0
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


class TrainingError(ValueError):
    """A training cannot begin, or cannot go on where another one stopped."""


@dataclass(frozen=True)
class Stage:
    """Files of one stage of a run: its state while it runs, its curve, its time."""

    folder: Path
    name: str

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.name}.state.pt"

    @property
    def curve_file(self) -> Path:
        return self.folder / f"{self.name}.csv"


class Progress:
    """Keeps a stage's state: what ``state`` gives is saved now and then, and loaded by ``resume``.

    ``seconds``: time spent on the stage, that of earlier attempts included.
    """

    def __init__(
        self, stage: Stage, state: Callable[[], dict[str, Any]], load: Callable[[Any], None]
    ) -> None:
        self.stage = stage
        self.step = 0
        self._state, self._load = state, load
        self._earlier_s = 0.0
        self._began = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._earlier_s + time.monotonic() - self._began

    def resume(self) -> int:
        """The step to go on with: 0, or where the stage's last state was saved."""
        file = self.stage.state_file
        if file.is_file():
            try:
                saved = torch.load(file, weights_only=True)
                self._load(saved["state"])
                self.step, self._earlier_s = int(saved["step"]), float(saved["seconds"])
            except (KeyError, RuntimeError, ValueError, EOFError) as error:
                raise TrainingError(
                    f"'{file}' does not belong to this recipe, or is damaged ({error}); remove "
                    "the run's folder to begin anew"
                ) from error
        self._forget_after(self.step)
        return self.step

    def stepped(self, step: int, figures: Mapping[str, float] | None = None) -> None:
        """After a step: note its figures, and save when it is time."""
        self.step = step
        if figures is not None:
            _append(self.stage.curve_file, {"step": step, "seconds": self.seconds, **figures})
        if time.monotonic() - self._saved >= SAVE_PERIOD_S:
            self.save()

    def save(self) -> None:
        saved = {"state": self._state(), "step": self.step, "seconds": self.seconds}
        partial = self.stage.state_file.with_suffix(".partial")
        torch.save(saved, partial)
        partial.replace(self.stage.state_file)
        self._saved = time.monotonic()

    def _forget_after(self, step: int) -> None:
        """Figures of steps that are gone through again."""
        file = self.stage.curve_file
        if file.is_file():
            kept = [row for row in read_curve(file) if row["step"] <= step]
            file.unlink()
            for row in kept:
                _append(file, row)


def read_curve(file: Path) -> list[dict[str, float]]:
    """The rows of a curve; a figure that was not taken at a step is left out.

    There are no rows where the stage was too short for a figure.
    """
    if not file.is_file():
        return []
    with file.open(newline="") as stream:
        return [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(stream)
        ]


def _append(file: Path, row: Mapping[str, float]) -> None:
    new = not file.is_file()
    with file.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if new:
            writer.writerow(row)
        writer.writerow([f"{value:.6g}" for value in row.values()])


def draw_curves(
    out: Path, panels: Iterable[tuple[str, str, Mapping[str, tuple[list[float], list[float]]]]]
) -> None:
    """A picture of curves side by side: title, unit, and x and y by name."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(panels)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False)
    for axis, (title, unit, curves) in zip(axes[0], panels, strict=True):
        for colour, (name, (steps, values)) in zip(_COLOURS, curves.items(), strict=False):
            axis.plot(steps, values, color=colour, label=name, linewidth=1.2)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(file)


def seeded(seed: int, stage: int, step: int) -> np.random.Generator:
    """The random numbers of one step, the same whether or not the run was stopped before it."""
    random = np.random.default_rng((seed, stage, step))
    torch.manual_seed(int(random.integers(2**62)))
    return random
