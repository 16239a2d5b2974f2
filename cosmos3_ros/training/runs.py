"""One training run's folder: what it has reached, so that it goes on where it was stopped."""

from __future__ import annotations

import csv
import json
import pickle
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

SAVE_PERIOD_S = 120.0
# What torch raises for a file that it did not write, or of another model.
_UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


class TrainingError(ValueError):
    """A training cannot begin, or cannot go on where another one stopped."""


@dataclass(frozen=True)
class Stage:
    """Files of one stage of a run: its state while it runs, its curve.

    ``later``: what later stages leave in the folder, made of what this one leaves.
    """

    folder: Path
    name: str
    later: tuple[str, ...] = ()

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.name}.state.pt"

    @property
    def curve_file(self) -> Path:
        return self.folder / f"{self.name}.csv"

    @property
    def later_there(self) -> list[str]:
        return [name for name in self.later if (self.folder / name).exists()]


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
        """The step to go on with: 0, or where the stage's last state was saved.

        Raises TrainingError for a state that cannot be gone on from, and where there is none of a
        stage that later ones have followed.
        """
        file, later = self.stage.state_file, self.stage.later_there
        if file.is_file():
            try:
                saved = torch.load(file, weights_only=True)
                self._load(saved["state"])
                self.step, self._earlier_s = int(saved["step"]), float(saved["seconds"])
            except _UNREADABLE as error:
                also = f", and with it {' and '.join(later)}," if later else ""
                raise TrainingError(
                    f"'{file}' does not belong to this recipe, or is damaged "
                    f"({type(error).__name__}); remove it{also} to begin this stage anew"
                ) from error
        elif later:
            raise TrainingError(
                f"'{file}' is not there, and {' and '.join(later)} came after it; put it back, or "
                f"remove {' and '.join(later)} to begin this stage anew"
            )
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
        """Raises TrainingError where what would be saved is not finite, or cannot be written; what
        was saved before is left alone then."""
        state = self._state()
        if not _is_finite(state):
            raise TrainingError(
                f"the training of '{self.stage.name}' has diverged by step {self.step}: its "
                f"weights are not finite; see '{self.stage.curve_file}'. What was saved before is "
                "there still, and leads there again: begin another run with a lower learning rate"
            )
        saved = {"state": state, "step": self.step, "seconds": self.seconds}
        partial = self.stage.state_file.with_suffix(".partial")
        try:
            torch.save(saved, partial)
            partial.replace(self.stage.state_file)
        except (OSError, RuntimeError) as error:  # torch's own of a disk that is full
            partial.unlink(missing_ok=True)
            raise TrainingError(
                f"'{self.stage.state_file}' cannot be written at step {self.step} ({error}); what "
                "was saved before is there still: see to the disk, and run the same command again"
            ) from error
        self._saved = time.monotonic()

    def _forget_after(self, step: int) -> None:
        """Figures of steps that are gone through again."""
        file = self.stage.curve_file
        partial = file.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        for row in read_curve(file):
            if row["step"] <= step:
                _append(partial, row)
        if partial.is_file():
            partial.replace(file)
        else:
            file.unlink(missing_ok=True)


class Stopwatch:
    """Time spent on a stage that leaves files, as kept with each of them.

    ``seconds``: those of earlier attempts included, up to their last file. Raises TrainingError for
    a file of it that is damaged.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self._file = folder / f"{stage}.time.json"
        self.seconds = 0.0
        if self._file.is_file():
            try:
                self.seconds = float(json.loads(self._file.read_text())["seconds"])
            except (KeyError, TypeError, ValueError) as error:
                raise TrainingError(
                    f"'{self._file}' does not say how many seconds a stage took ({error!r}); "
                    "remove it, and the time of earlier attempts is not counted"
                ) from error
        self._since = time.monotonic()

    def keep(self) -> None:
        """After a file was made."""
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        write_json(self._file, {"seconds": round(self.seconds, 1)})


def _is_finite(state: Any) -> bool:
    """Whether every number of nested mappings and lists of tensors is."""
    if isinstance(state, torch.Tensor):
        return bool(torch.isfinite(state).all())
    if isinstance(state, Mapping):
        return all(map(_is_finite, state.values()))
    return not isinstance(state, list | tuple) or all(map(_is_finite, state))


def read_curve(file: Path) -> list[dict[str, float]]:
    """The rows of a curve; a figure that was not taken at a step is NaN.

    There are no rows where the stage was too short for a figure. A last line that was cut short is
    of a step that was not finished, and no row. Raises TrainingError for a line that is none.
    """
    if not file.is_file():
        return []
    text = file.read_bytes().decode(errors="replace")
    whole = text[: text.rfind("\n") + 1]
    names, *lines = list(csv.reader(whole.splitlines())) or [[]]
    rows = []
    for number, values in enumerate(lines, start=2):
        try:
            row = dict(zip(names, map(float, values), strict=True))
        except ValueError:
            row = {}
        if "step" not in row:
            raise TrainingError(
                f"line {number} of '{file}' holds '{', '.join(values)}' under "
                f"'{', '.join(names)}'; expected a number for each of step, seconds and the "
                "figures; remove the file, and the curve begins at the next step"
            )
        rows.append(row)
    return rows


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
