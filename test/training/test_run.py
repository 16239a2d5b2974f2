"""A whole training, small: from a data set to a checkpoint that is exported, and after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml
from training_parts import PICO_PANDA, small_recipe, write_demonstrations

from cosmos3_ros.cli import main
from cosmos3_ros.engine.recipe import RecipeError, load_recipe
from cosmos3_ros.policy.prompt import PromptError
from cosmos3_ros.replay.episode import LeRobotError
from cosmos3_ros.training.run import train
from cosmos3_ros.training.runs import TrainingError
from cosmos3_ros.training.settings import training_settings


def trained(folder: Path) -> Path:
    recipe = small_recipe(folder)
    dataset = folder / "data"
    if not dataset.is_dir():
        write_demonstrations(dataset)
    return train(recipe, PICO_PANDA, folder / "run", dataset=dataset, compiled=False)


def test_a_training_ends_in_a_checkpoint_that_is_exported_and_equals_diffusers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained(tmp_path)
    facts = json.loads((checkpoint / "training.json").read_text())
    assert (facts["episodes"], facts["held_out_episodes"], facts["clips"]) == (4, 1, 6)
    assert facts["instructions"] == 3 and facts["frames"] == 4 * 22
    picture = matplotlib.image.imread(tmp_path / "run" / "curves.png")
    assert picture.shape[1] > 1000
    bundle = str(tmp_path / "bundle")
    recipe = str(tmp_path / "small.yaml")
    assert main(["export", recipe, "--checkpoint", str(checkpoint), "--out", bundle]) == 0
    assert main(["verify", bundle, "--checkpoint", str(checkpoint)]) == 0
    assert "plan" in capsys.readouterr().out
    # Finished: the same command has nothing to do.
    files = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    assert trained(tmp_path) == checkpoint
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == files


def test_open_loop_figures_are_printed_written_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained(tmp_path)
    words = [str(tmp_path / "small.yaml"), "--checkpoint", str(checkpoint)]
    words += ["--dataset", str(tmp_path / "data"), "--out", str(tmp_path / "figures.json")]
    assert main(["open-loop", *words, "--picture", str(tmp_path / "shown.png")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["clips"] == 4
    for video in ("predicted", "nothing_changes", "vae"):
        assert all(np.isfinite(list(figures[video].values())))
    # The square moves: where it does, nothing is worse than to say that it does not.
    assert figures["nothing_changes"]["changed"] < figures["nothing_changes"]["all"]
    assert figures["row_error"].keys() >= {"joint_1", "gripper", "joint_1, last row"}
    assert matplotlib.image.imread(tmp_path / "shown.png").std() > 0.05
    assert "last_changed" in capsys.readouterr().out


def test_a_killed_training_goes_on_with_the_same_command(tmp_path: Path) -> None:
    small_recipe(tmp_path, policy={"steps": 400})
    write_demonstrations(tmp_path / "data")
    out = tmp_path / "run"
    words = ["train", tmp_path / "small.yaml", "--dataset", tmp_path / "data", "--out", out]
    command = [sys.executable, "-m", "cosmos3_ros.cli", *map(str, words), "--no-compile"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not (out / "policy.csv").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (out / "checkpoint").exists()
    encoded = {path: path.stat().st_mtime_ns for path in (out / "latents").iterdir()}
    subprocess.run(command, check=True, timeout=100)
    assert (out / "checkpoint" / "transformer" / "config.json").is_file()
    assert {path: path.stat().st_mtime_ns for path in encoded} == encoded, "encoded twice"
    steps = [int(line.split(",")[0]) for line in (out / "policy.csv").read_text().split()[1:]]
    assert steps == sorted(set(steps)) and steps[-1] == 400


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    other = small_recipe(tmp_path, policy={"steps": 5})
    with pytest.raises(TrainingError, match="holds a run with another training"):
        train(other, PICO_PANDA, tmp_path / "run", dataset=tmp_path / "data", compiled=False)
    with pytest.raises(TrainingError, match="is not empty and no run"):
        train(other, PICO_PANDA, tmp_path / "data", dataset=tmp_path / "data", compiled=False)


def test_a_data_set_that_does_not_fit_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    write_demonstrations(tmp_path / "data", fps=30)
    with pytest.raises(LeRobotError, match="has 30 frames a second"):
        trained(tmp_path)
    assert not (tmp_path / "run" / "vae.csv").exists()


def test_too_many_held_out_episodes_are_refused(tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "data")
    recipe = small_recipe(tmp_path, data={"held_out": 4})
    with pytest.raises(TrainingError, match="4 of 4 episodes are to be held out"):
        train(recipe, PICO_PANDA, tmp_path / "run", dataset=tmp_path / "data", compiled=False)


def test_a_caption_that_is_too_long_is_refused_with_its_length(tmp_path: Path) -> None:
    tasks = ("touch " + "the very red and rather shiny " * 30 + "cube", "b", "c")
    write_demonstrations(tmp_path / "data", tasks=tasks)
    with pytest.raises(PromptError, match=r"takes \d+ tokens with its caption"):
        trained(tmp_path)


def test_a_recipe_without_a_training_section_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    recipe = load_recipe(_without_training(small_recipe(tmp_path / "a").name, tmp_path / "a"))
    with pytest.raises(RecipeError, match="says nothing about training"):
        train(recipe, PICO_PANDA, tmp_path / "run", dataset=tmp_path, compiled=False)


def _without_training(name: str, folder: Path) -> Path:
    path = folder / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    del content["training"]
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy": {"steps": "many"}}, "training.policy.steps is 'many'; expected a whole number"),
        ({"policy": {"learning_rate": -1.0}}, "learning_rate is -1.0; expected a number of at"),
        ({"vae": {"epochs": 3}}, "training.vae has .*epochs.*; expected episodes, short_steps"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    tmp_path: Path, change: dict[str, dict[str, object]], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        training_settings(small_recipe(tmp_path, **change))
