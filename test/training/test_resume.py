"""A training that was killed goes on where it was, and what is damaged meanwhile is named."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_parts import PICO_PANDA, small_recipe, trained

from cosmos3_ros.replay.episode import load_dataset, load_episodes
from cosmos3_ros.training import latents, runs
from cosmos3_ros.training.run import train
from cosmos3_ros.training.runs import Progress, Stage, Stopwatch, TrainingError

# Imports alone take most of a process's time, many times as long on a machine that is busy.
pytestmark = pytest.mark.timeout(1200)

# A run in which every step is saved and every episode is a file, and which kills itself at the
# first thing that is done to a file after one of this name is there.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from cosmos3_ros.training import episodes

run, recipe, dataset, last = sys.argv[1:]

def kill(event, _):
    if event in ("open", "os.mkdir", "os.rename") and Path(run, last).exists():
        os.killpg(os.getpgrp(), signal.SIGKILL)

if last:
    sys.addaudithook(kill)
episodes.EPISODES_PER_FILE = 1
if __name__ == "__main__":
    from cosmos3_ros.cli import main
    from cosmos3_ros.training import latents, runs
    runs.SAVE_PERIOD_S, latents._ENCODED_TOGETHER = 0.0, 1
    words = ["train", recipe, "--out", run, "--threads", "1", "--no-compile"]
    sys.exit(main(words + (["--dataset", dataset] if dataset else [])))
"""
# What is there when it is killed, and what it says when it goes on.
KILLS = {
    "demonstrations": ("episodes/.parts/000.npz", "demonstrations: goes on after 1 of 4 episodes"),
    "VAE": ("vae.state.pt", "VAE: goes on after 1 of 4 steps"),
    "latents": ("latents/000000.npy", "latents: goes on after 1 of 4 files"),
    "policy": ("policy.state.pt", "policy: goes on after 1 of 4 steps"),
    "checkpoint": (
        ".checkpoint.partial/transformer/config.json",
        "policy: goes on after 4 of 4 steps",
    ),
}


def run_script(folder: Path, run: Path, dataset: Path | None, last: str = "") -> tuple[int, str]:
    """Exit code and stderr of a training of ``folder``'s recipe."""
    script = folder / "train.py"
    script.write_text(SCRIPT)
    words = [str(run), str(folder / "small.yaml"), str(dataset or ""), last]
    done = subprocess.run(
        [sys.executable, str(script), *words],
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        timeout=540,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped, of demonstrations it made."""
    folder = tmp_path_factory.mktemp("unbroken")
    small_recipe(folder)
    code, told = run_script(folder, folder / "run", None)
    assert code == 0 and "goes on" not in told, told
    return folder / "run"


def test_without_a_data_set_the_recipes_demonstrations_are_made_and_trained_on(
    unbroken: Path,
) -> None:
    episodes = load_episodes(load_dataset(unbroken / "episodes"))
    assert len(episodes) == 4
    assert (unbroken / "episodes" / "demonstrations.txt").read_text() == "4 episodes, seed 0\n"
    facts = json.loads((unbroken / "checkpoint" / "training.json").read_text())
    assert (facts["episodes"], facts["held_out_episodes"], facts["clips"]) == (4, 1, 6)
    assert facts["frames"] == sum(len(episode.rows) for episode in episodes)
    assert Stopwatch(unbroken, "episodes").seconds > 0.5
    assert weights(unbroken).keys() == {"transformer", "vae"}


def weights(run: Path) -> dict[str, bytes]:
    files = (run / "checkpoint").rglob("*.safetensors")
    return {file.parent.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("stage", KILLS)
def test_a_killed_training_ends_in_the_weights_of_one_that_was_not(
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    last, said = KILLS[stage]
    # The same demonstrations, made again only where their making is what is killed.
    dataset = None if stage == "demonstrations" else unbroken / "episodes"
    recipe, run = small_recipe(tmp_path), tmp_path / "run"
    code, _ = run_script(tmp_path, run, dataset, last)
    assert code == -signal.SIGKILL
    assert (run / last).is_file() and not (run / "checkpoint").exists()
    if dataset is None:
        code, told = run_script(tmp_path, run, dataset)
        assert code == 0, told
    else:
        monkeypatch.setattr(latents, "_ENCODED_TOGETHER", 1)
        train(recipe, PICO_PANDA, run, dataset=dataset, compiled=False, threads=1)
        told = capsys.readouterr().err
    assert said in told.splitlines()
    assert weights(run) == weights(unbroken)
    assert not [path for path in run.rglob("*") if "partial" in path.name]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run in which only the checkpoint is missing."""
    copy = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    shutil.rmtree(copy / "checkpoint")
    return copy


def go_on(finished: Path, run: Path) -> Path:
    recipe = small_recipe(finished)
    return train(recipe, PICO_PANDA, run, dataset=finished / "data", compiled=False, threads=1)


def test_a_run_that_lacks_its_checkpoint_alone_trains_nothing_again(
    finished: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "latents" / "000000.npy").stat().st_mtime_ns
    go_on(finished, run)
    assert weights(run) == weights(finished / "run")
    assert (run / "latents" / "000000.npy").stat().st_mtime_ns == before
    assert capsys.readouterr().err.count("goes on after 4 of 4 steps") == 2


def test_a_training_that_has_diverged_says_so_and_leaves_what_was_saved_before(
    tmp_path: Path,
) -> None:
    weight = torch.ones(2)
    stage = Stage(tmp_path, "policy")
    progress = Progress(stage, lambda: {"weights": {"a": weight}, "more": [weight]}, lambda _: None)
    progress.stepped(3)
    progress.save()
    before = stage.state_file.read_bytes()
    weight[1] = float("nan")
    progress.stepped(4)
    with pytest.raises(TrainingError, match="training of 'policy' has diverged by step 4: its wei"):
        progress.save()
    assert stage.state_file.read_bytes() == before


@pytest.mark.parametrize("stage", ["vae", "policy"])
@pytest.mark.parametrize("content", [b"", b"garbage", None], ids=["empty", "garbage", "cut short"])
def test_a_damaged_state_is_refused_and_names_what_to_remove(
    finished: Path, run: Path, stage: str, content: bytes | None
) -> None:
    state = run / f"{stage}.state.pt"
    state.write_bytes(state.read_bytes()[:-100] if content is None else content)
    also = ", and with it latents and policy.state.pt," if stage == "vae" else ""
    with pytest.raises(TrainingError) as refused:
        go_on(finished, run)
    said = str(refused.value)
    assert f"'{state}' does not belong to this recipe, or is damaged" in said
    assert f"; remove it{also} to begin this stage anew" in said


def test_what_a_damaged_state_says_to_remove_is_enough(finished: Path, run: Path) -> None:
    (run / "vae.state.pt").unlink()
    with pytest.raises(TrainingError, match="latents and policy.state.pt came after it"):
        go_on(finished, run)
    shutil.rmtree(run / "latents")
    (run / "policy.state.pt").unlink()
    go_on(finished, run)
    assert weights(run) == weights(finished / "run")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.write_bytes(b""), "cannot be read"),
        (lambda file: file.write_bytes(b"garbage"), "cannot be read"),
        (lambda file: file.write_bytes(file.read_bytes()[:-10]), "cannot be read"),
        (lambda file: np.save(file, np.load(file)[:-1]), "holds float16 (7, 24, 5, 3, 6)"),
        (lambda file: np.save(file, np.load(file).astype(np.float32)), "holds float32 (8,"),
    ],
    ids=["empty", "garbage", "cut short", "a clip less", "another type"],
)
def test_latents_that_are_damaged_or_not_of_these_clips_are_refused_by_name(
    finished: Path, run: Path, spoil: object, said: str
) -> None:
    file = run / "latents" / "000000.npy"
    assert callable(spoil)
    spoil(file)
    with pytest.raises(TrainingError) as refused:
        go_on(finished, run)
    assert f"'{file}' {said}" in str(refused.value)
    assert "expected float16 (8, 24, 5, 3, 6)" in str(refused.value)
    # What it says to do is enough.
    file.unlink()
    go_on(finished, run)
    assert weights(run) == weights(finished / "run")


CURVE = "step,seconds,video\r\n25,1.5,0.5\r\n50,3,nan\r\n"


def forget_after(folder: Path, step: int) -> Path:
    """The curve of a stage that goes on with a step."""
    progress = runs.Progress(runs.Stage(folder, "policy"), dict, lambda _: None)
    progress.step = step
    progress.save()
    assert progress.resume() == step
    return progress.stage.curve_file


@pytest.mark.parametrize("cut", ["75", "75,4.5", "75,4.5,0.1", "75,4.5,0.12345\r"])
def test_a_curve_goes_on_without_the_line_that_was_cut_short(tmp_path: Path, cut: str) -> None:
    (tmp_path / "policy.csv").write_bytes((CURVE + cut).encode())
    curve = forget_after(tmp_path, 100)
    assert curve.read_bytes().decode() == CURVE
    assert [row["step"] for row in runs.read_curve(curve)] == [25, 50]


@pytest.mark.parametrize("cut", ["", "st", "step,seconds,video\r\n", "step,seconds,video\r\n2"])
def test_a_curve_that_was_cut_short_in_its_first_lines_begins_anew(
    tmp_path: Path, cut: str
) -> None:
    (tmp_path / "policy.csv").write_bytes(cut.encode())
    assert not forget_after(tmp_path, 100).exists()


def test_steps_that_are_gone_through_again_leave_the_curve(tmp_path: Path) -> None:
    (tmp_path / "policy.csv").write_bytes(CURVE.encode())
    assert [row["step"] for row in runs.read_curve(forget_after(tmp_path, 49))] == [25]


def test_a_curve_stays_where_its_rewriting_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy.csv").write_bytes(CURVE.encode())
    append = runs._append

    def stop(file: Path, row: dict[str, float]) -> None:
        append(file, row)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "_append", stop)
    with pytest.raises(KeyboardInterrupt):
        forget_after(tmp_path, 100)
    assert (tmp_path / "policy.csv").read_bytes().decode() == CURVE
    monkeypatch.undo()
    assert forget_after(tmp_path, 100).read_bytes().decode() == CURVE


@pytest.mark.parametrize(
    "damage", [("50,3,nan", "50,3"), ("50,3,nan", "50,3,nan,4"), ("3,nan", "3,x"), ("step", "s")]
)
def test_a_curve_that_is_damaged_is_refused_by_name(
    tmp_path: Path, damage: tuple[str, str]
) -> None:
    (tmp_path / "policy.csv").write_bytes(CURVE.replace(*damage).encode())
    with pytest.raises(TrainingError, match=r"line [23] of '.*policy.csv' holds"):
        forget_after(tmp_path, 100)


def test_the_time_of_a_stage_is_that_of_all_its_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    first = Stopwatch(tmp_path, "latents")
    now[0] += 30
    first.keep()
    now[0] += 50  # of a file that was not finished
    second = Stopwatch(tmp_path, "latents")
    assert second.seconds == 30
    now[0] += 12
    second.keep()
    assert Stopwatch(tmp_path, "latents").seconds == second.seconds == 42
    assert Stopwatch(tmp_path, "demonstrations").seconds == 0


def test_the_facts_of_a_run_that_went_on_hold_the_time_that_was_spent_before(
    finished: Path, run: Path
) -> None:
    (run / f"{latents.LATENTS}.time.json").write_text('{"seconds": 600}')
    facts = json.loads((go_on(finished, run) / "training.json").read_text())
    assert facts["latents_minutes"] == 10.0
    assert facts["minutes"] == pytest.approx(
        sum(facts[f"{stage}_minutes"] for stage in ("demonstrations", "vae", "latents", "policy")),
        abs=0.2,
    )


def test_the_time_of_a_stage_that_is_damaged_is_refused_by_name(tmp_path: Path) -> None:
    for damaged in ("", "{}", '{"seconds": "x"}'):
        (tmp_path / "latents.time.json").write_text(damaged)
        with pytest.raises(TrainingError, match=r"latents.time.json' does not say .*; remove it"):
            Stopwatch(tmp_path, "latents")


def test_a_run_that_another_process_is_at_is_left_alone(finished: Path, run: Path) -> None:
    holder = subprocess.Popen(
        ["flock", str(run), "sh", "-c", "echo held; exec sleep 60"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.*")}
    try:
        with pytest.raises(TrainingError, match=r"another process trains in '.*'; wait for it"):
            go_on(finished, run)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert go_on(finished, run).is_dir()


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "vae")
    progress = Progress(stage, lambda: {"weights": torch.zeros(3)}, lambda _: None)
    progress.save()
    before = stage.state_file.read_bytes()
    large = Progress(stage, lambda: {"weights": torch.zeros(1_000_000)}, lambda _: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"vae.state.pt' cannot be written at step 0 .*;"):
            large.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, full)
    assert [path.name for path in tmp_path.iterdir()] == ["vae.state.pt"]
    assert stage.state_file.read_bytes() == before
