"""One picture of a run: what the robot saw, what was predicted, what was commanded, and when."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, ScalarFormatter

from cosmos3_ros.replay.bags import open_bag
from cosmos3_ros.replay.outcomes import Outcome, describe
from cosmos3_ros.replay.recorded_run import GLIMPSES, Glimpse, Run, Scene, read_run
from cosmos3_ros.replay.summary import Summary

WIDTH_IN = 15.0
# What fits the width in the title's size.
LONGEST_INSTRUCTION = 110
COMMANDED, MEASURED, RECORDED = "#d1495b", "#2e6f95", "#9a9a9a"
CUBE_COLOURS = {"red": "#d1342f", "green": "#2f9e44", "blue": "#2b6cb0"}
SCENE_HEIGHT_IN = 2.6
PLAN, HOLD, FRAME = "#3a7d44", "#f4b942", "#c9c9c9"
# A difference of half the range is as wrong as a picture gets.
DIFFERENCE_MAX = 128

# Rows of pictures to draw: a label, and a picture or nothing for each column.
PictureRows = list[tuple[str, list[np.ndarray | None]]]


def report(bag: Path, png: Path, inputs: Path | None = None) -> None:
    """Draw a recorded run to ``png``.

    Camera pictures and recorded actions come from ``inputs``, the bag that was played, where the
    recording has none. Raises BagError for what is no bag.
    """
    with open_bag(bag) as output, open_bag(inputs) if inputs else nullcontext(output) as played:
        run = read_run(output, played)
    draw(run, png)


def draw(run: Run, png: Path) -> None:
    """Draw a run to a PNG file."""
    with matplotlib.rc_context({"font.size": 9, "axes.edgecolor": FRAME, "axes.linewidth": 0.8}):
        compose(run).savefig(png)


def compose(run: Run) -> Figure:
    """The picture of a run, one part below another."""
    parts: list[tuple[float, Callable[[SubFigure], None]]] = [
        (1.0, lambda part: _draw_caption(part, run.summary)),
        (_pictures_height(run), lambda part: _draw_pictures(part, run.glimpses)),
        (_joints_height(run), lambda part: _draw_joints(part, run)),
        (2.1, lambda part: _draw_strips(part, run)),
    ]
    if (scene := run.scene) is not None:
        parts.insert(2, (SCENE_HEIGHT_IN, lambda part: _draw_scene(part, run, scene)))
    heights = [height for height, _ in parts]
    figure = Figure(figsize=(WIDTH_IN, sum(heights)), dpi=110, facecolor="white")
    grid = figure.add_gridspec(len(parts), 1, height_ratios=heights)
    for i, (_, draw_part) in enumerate(parts):
        draw_part(figure.add_subfigure(grid[i, 0]))
    return figure


def _draw_caption(part: SubFigure, summary: Summary) -> None:
    said = [o.instruction for o in summary.outcomes] or [summary.instruction]
    spoken = " ".join(f"“{instruction}”" for instruction in said if instruction)
    title = textwrap.shorten(spoken, LONGEST_INSTRUCTION, placeholder=" …") or "no instruction"
    latency, jitter = summary.plan_latency_ms, summary.command_jitter_ms
    lines = [
        [
            f"bundle {summary.bundle or 'unknown'} on {summary.backend or 'unknown'}",
            f"{_figure(summary.duration_s)} s at {_figure(summary.pace)} x real time",
            _counted(summary.predicted_frames, "predicted frame"),
            f"{_counted(summary.dropped_observations, 'observation')} dropped",
            _counted(summary.holds, "hold"),
        ],
        [
            f"{_counted(summary.plans, 'plan')}, latency p50 {_figure(latency.p50)} ms, "
            f"p99 {_figure(latency.p99)} ms",
            f"{_counted(summary.commands, 'command')} at {_figure(summary.command_rate_hz)} Hz, "
            f"jitter p50 {_figure(jitter.p50)} ms, p99 {_figure(jitter.p99)} ms",
        ],
    ]
    part.text(0.02, 0.76, title, fontsize=17, weight="bold", va="center")
    for height, figures in zip((0.42, 0.18), lines, strict=True):
        part.text(0.02, height, "   ·   ".join(figures), color="#444444", va="center")


def _picture_rows(glimpses: list[Glimpse]) -> PictureRows:
    """Rows of pictures: each camera, then what was predicted, what came, and the difference."""
    cameras = list(glimpses[0].cameras) if glimpses else []
    rows: PictureRows = [
        (f"camera\n{name}", [g.cameras[name] for g in glimpses]) for name in cameras
    ]
    if any(g.predicted is not None for g in glimpses):
        rows.append(("predicted", [g.predicted for g in glimpses]))
    if any(g.seen is not None for g in glimpses):
        rows.append(("what came", [g.seen for g in glimpses]))
        rows.append(("difference", [_difference(g) for g in glimpses]))
    return [row for row in rows if any(p is not None for p in row[1])]


def _difference(glimpse: Glimpse) -> np.ndarray | None:
    """Mean over the colours of |predicted - seen| [h,w]."""
    if glimpse.predicted is None or glimpse.seen is None:
        return None
    return np.abs(glimpse.predicted.astype(float) - glimpse.seen.astype(float)).mean(2)


def _row_height(pictures: list[np.ndarray | None]) -> float:
    """Height of a row of pictures that share the figure's width [in]."""
    shapes = [p.shape for p in pictures if p is not None]
    return min(max(h / w for h, w, *_ in shapes) * (WIDTH_IN * 0.93 / GLIMPSES) + 0.08, 2.6)


def _pictures_height(run: Run) -> float:
    return sum(_row_height(pictures) for _, pictures in _picture_rows(run.glimpses)) + 0.35


def _draw_pictures(part: SubFigure, glimpses: list[Glimpse]) -> None:
    rows = _picture_rows(glimpses)
    if not rows:
        part.text(0.02, 0.5, "no camera pictures were recorded", color="#888888")
        return
    grid = part.add_gridspec(
        len(rows),
        GLIMPSES,
        left=0.06,
        right=0.99,
        top=1 - 0.27 / _total_height(rows),
        bottom=0.02,
        hspace=0.04,
        wspace=0.03,
        height_ratios=[_row_height(pictures) for _, pictures in rows],
    )
    for r, (label, pictures) in enumerate(rows):
        for c, shown in enumerate(pictures):
            axes = part.add_subplot(grid[r, c])
            axes.set_xticks([])
            axes.set_yticks([])
            if c == 0:
                axes.set_ylabel(label, fontsize=9, color="#444444")
            if r == 0:
                axes.set_title(f"{glimpses[c].time_s:.1f} s", fontsize=9, color="#444444", pad=3)
            if shown is None:
                axes.set_axis_off()
            elif shown.ndim == 2:
                axes.imshow(shown, cmap="magma", vmin=0, vmax=DIFFERENCE_MAX)
                axes.text(
                    0.97, 0.05, f"mean {shown.mean():.0f}", transform=axes.transAxes,
                    color="white", fontsize=8, ha="right",
                    bbox={"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5},
                )  # fmt: skip
            else:
                axes.imshow(shown)


def _total_height(rows: PictureRows) -> float:
    return sum(_row_height(pictures) for _, pictures in rows) + 0.35


def _draw_scene(part: SubFigure, run: Run, scene: Scene) -> None:
    """How far each cube is, under what was asked; what came of it stands above."""
    grid = part.add_gridspec(1, 1, left=0.045, right=0.99, top=0.74, bottom=0.16)
    axes = part.add_subplot(grid[0, 0])
    _frame(axes, run, marks=False)
    for cube, distances_m in scene.distances_m.items():
        colour = CUBE_COLOURS.get(cube, "#666666")
        axes.plot(scene.times_s, 100 * distances_m, color=colour, lw=1.6, label=f"{cube} cube")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time [s]", fontsize=9)
    outcomes = run.summary.outcomes
    ends_s = [*(o.said_s for o in outcomes[1:]), run.end_s]
    # Lines of text that would run into each other take turns above one another.
    for i, (outcome, end_s) in enumerate(zip(outcomes, ends_s, strict=True)):
        if i % 2:
            axes.axvspan(outcome.said_s, end_s, color="#f3f3f3", lw=0, zorder=0)
        axes.axvline(max(outcome.said_s, 0.0), color="#888888", lw=0.9, ls=":")
        # What is said late would run out of the picture: it ends where the axes do.
        late = outcome.said_s > 0.6 * run.end_s
        axes.text(
            run.end_s if late else max(outcome.said_s, 0.0), 1.03 + 0.12 * (i % 2),
            describe(outcome), ha="right" if late else "left",
            transform=axes.get_xaxis_transform(), fontsize=9, color="#222222",
        )  # fmt: skip
        _mark_touch(axes, outcome, scene)
    # Over the axes, where no curve goes.
    part.legend(
        *axes.get_legend_handles_labels(), loc="center right", bbox_to_anchor=(0.99, 0.93),
        ncols=len(scene.distances_m), frameon=False, fontsize=9,
    )  # fmt: skip
    part.text(
        0.045, 0.93, "fingertip to each cube's centre [cm]", fontsize=11, weight="bold", va="center"
    )


def _mark_touch(axes: Axes, outcome: Outcome, scene: Scene) -> None:
    if outcome.touched_after_s is None:
        return
    time_s = outcome.said_s + outcome.touched_after_s
    distance_m = np.interp(time_s, scene.times_s, scene.distances_m[outcome.touched])
    colour = CUBE_COLOURS.get(outcome.touched, "#666666")
    axes.plot(
        [time_s], [100 * distance_m], "o", ms=8, mfc="white", mec=colour, mew=2, zorder=5,
        clip_on=False,
    )  # fmt: skip


def _shown_joints(run: Run) -> list[str]:
    """Commanded joints in their order; the measured ones where nothing was commanded."""
    return list(run.commanded or run.measured)


def _joints_height(run: Run) -> float:
    return 1.55 * max(1, -(-len(_shown_joints(run)) // 4)) + 0.55


def _draw_joints(part: SubFigure, run: Run) -> None:
    names = _shown_joints(run)
    if not names:
        part.text(0.02, 0.5, "no joint positions were recorded", color="#888888")
        return
    rows = -(-len(names) // 4)
    height = _joints_height(run)
    grid = part.add_gridspec(
        rows, 4, left=0.045, right=0.99, top=1 - 0.52 / height, bottom=0.22 / height,
        hspace=0.32, wspace=0.16,
    )  # fmt: skip
    lines: dict[str, Any] = {}
    for i, name in enumerate(names):
        axes = part.add_subplot(grid[i // 4, i % 4])
        _frame(axes, run, marks=True)
        axes.set_title(name, loc="left", fontsize=8.5, pad=2, color="#444444")
        for label, series, colour, width, style in (
            ("recorded action", run.recorded, RECORDED, 1.2, "--"),
            ("measured", run.measured, MEASURED, 1.6, "-"),
            ("commanded", run.commanded, COMMANDED, 1.0, "-"),
        ):
            if name in series:
                times_s, positions = series[name].times_s, series[name].positions
                (lines[label],) = axes.plot(
                    times_s, positions, color=colour, lw=width, ls=style, label=label
                )
        if i // 4 < rows - 1 and i + 4 < len(names):
            axes.set_xticklabels([])
    _draw_legend(part, lines, run, height)


def _draw_legend(part: SubFigure, lines: dict[str, Any], run: Run, height: float) -> None:
    handles = list(lines.values())
    if len(run.plan_starts_s):
        handles.append(
            Line2D([], [], color=PLAN, marker="|", ls="none", ms=8, label="a plan's observation")
        )
    if run.holds_s:
        handles.append(Patch(color=HOLD, alpha=0.35, label="held (to the second)"))
    part.text(0.045, 1 - 0.2 / height, "joints [rad, m]", fontsize=11, weight="bold", va="center")
    part.legend(
        handles=handles, loc="center right", bbox_to_anchor=(0.99, 1 - 0.2 / height),
        ncols=len(handles), frameon=False, fontsize=9,
    )  # fmt: skip


def _frame(axes: Axes, run: Run, marks: bool) -> None:
    """What all panels over time share."""
    axes.set_xlim(0, run.end_s)
    axes.grid(True, color="#ececec", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color=FRAME)
    for start_s, end_s in run.holds_s:
        axes.axvspan(start_s, end_s, color=HOLD, alpha=0.35, lw=0)
    if marks and len(run.plan_starts_s):
        height = np.zeros(len(run.plan_starts_s))
        axes.plot(run.plan_starts_s, height, "|", color=PLAN, ms=7, mew=0.8, clip_on=False,
                  transform=axes.get_xaxis_transform())  # fmt: skip


def _draw_strips(part: SubFigure, run: Run) -> None:
    """When plans and commands came."""
    grid = part.add_gridspec(1, 2, left=0.045, right=0.99, top=0.84, bottom=0.2, wspace=0.1)
    axes = part.add_subplot(grid[0, 0])
    _frame(axes, run, marks=False)
    axes.set_title("plan latency [ms]", loc="left", fontsize=11, weight="bold")
    axes.vlines(run.plan_starts_s, 0, run.plan_latencies_ms, color=PLAN, lw=1.0, alpha=0.6)
    axes.plot(run.plan_starts_s, run.plan_latencies_ms, ".", color=PLAN, ms=4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time [s]", fontsize=9)

    axes = part.add_subplot(grid[0, 1])
    _frame(axes, run, marks=False)
    axes.set_title("between commands, wall time [ms]", loc="left", fontsize=11, weight="bold")
    axes.plot(run.command_times_s, run.command_intervals_ms, ".", color=COMMANDED, ms=2, alpha=0.6)
    if len(run.command_intervals_ms):
        median = float(np.median(run.command_intervals_ms))
        # A late command is many times its period: a linear scale would hide all the others.
        axes.set_yscale("log")
        axes.set_ylim(
            min(median / 4, float(run.command_intervals_ms.min()) / 1.3),
            max(median * 4, float(run.command_intervals_ms.max()) * 1.3),
        )
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.text(
            0.995, 0.92, f"median {median:.1f} ms", transform=axes.transAxes, fontsize=9,
            ha="right", va="center",
        )  # fmt: skip
    axes.set_xlabel("time [s]", fontsize=9)


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
