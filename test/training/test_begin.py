"""What is refused before anything is trained, and which run a folder holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from training_parts import (
    FIRST,
    FRAMES,
    PICO_PANDA,
    SECOND,
    TASKS_FILE,
    edited,
    point,
    replaced,
    small_recipe,
    trained,
    truncate,
    write_demonstrations,
)

from cosmos3_ros.cli import main
from cosmos3_ros.engine.recipe import Recipe, RecipeError, load_recipe
from cosmos3_ros.policy.embodiment import (
    CameraView,
    Embodiment,
    EmbodimentError,
    load_embodiment,
)
from cosmos3_ros.policy.prompt import PromptError
from cosmos3_ros.replay.episode import LeRobotError
from cosmos3_ros.training import fitting
from cosmos3_ros.training.dataset import ACTION, STATE
from cosmos3_ros.training.run import train
from cosmos3_ros.training.runs import TrainingError
from cosmos3_ros.training.settings import training_settings


def begun(folder: Path, recipe: Recipe, robot: Embodiment = PICO_PANDA, **more: Any) -> Path:
    """A training of ``folder``'s data, in its run: as far as it gets."""
    given = {"dataset": folder / "data", "compiled": False, "threads": 1} | more
    return train(recipe, robot, folder / "run", **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and a finished run on it."""
    return trained(tmp_path_factory.mktemp("finished"))


def channel(index: int, **changes: float) -> Callable[[Embodiment], Embodiment]:
    def change(robot: Embodiment) -> Embodiment:
        channels = list(robot.channels)
        channels[index] = replace(channels[index], **changes)
        return replace(robot, channels=tuple(channels))

    return change


def gripper(**changes: Any) -> Callable[[Embodiment], Embodiment]:
    def change(robot: Embodiment) -> Embodiment:
        assert robot.gripper is not None
        return replace(robot, gripper=replace(robot.gripper, **changes))

    return change


def moved_wrist(robot: Embodiment) -> Embodiment:
    return replace(robot, cameras=(robot.cameras[0], CameraView("wrist", 128, 0, 64, 64)))


OTHER_RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "chunk": ({"chunk": 8}, "chunk is 16, expected 8"),
    "fps": ({"fps": 10.0}, "fps is 15.0, expected 10.0"),
    "canvas": ({"canvas": (192, 96)}, "canvas.0 is 96, expected 192; canvas.1 is 48, expected 96"),
    "shift": ({"shift": 3.0}, "shift is 5.0, expected 3.0"),
    "text_tokens": ({"text_tokens": 128}, "text_tokens is 96, expected 128"),
    "name": ({"name": "large"}, "recipe is small, expected large"),
}
OTHER_ROBOTS: dict[str, tuple[Callable[[Embodiment], Embodiment], str]] = {
    "offset": (channel(2, offset=0.5), "embodiment.channels.2.offset is -9.6e-05, expected 0.5"),
    "scale": (channel(0, scale=0.5), "embodiment.channels.0.scale is 0.187289, expected 0.5"),
    "cell": (moved_wrist, "embodiment.cameras.1.height is 96, expected 64"),
    "gripper": (gripper(joint="hand"), "gripper.joint is panda_finger_joint1, expected hand"),
    "joints": (
        lambda robot: replace(robot, joints=(*robot.joints[:-1], "last")),
        "embodiment.joints.6 is panda_joint7, expected last",
    ),
    "no state row": (
        lambda robot: replace(robot, state_row=False),
        "embodiment.state_row is True, expected False",
    ),
}


@pytest.mark.parametrize("what", OTHER_RECIPES)
def test_a_run_of_another_recipe_is_refused_and_says_what_differs(
    finished: Path, what: str
) -> None:
    changes, said = OTHER_RECIPES[what]
    with pytest.raises(TrainingError) as refused:
        begun(finished, replace(small_recipe(finished), **changes))
    assert f"run' holds another run: {said}; name another folder, or remove it" in str(
        refused.value
    )


@pytest.mark.parametrize("what", OTHER_ROBOTS)
def test_a_run_of_another_robot_is_refused_and_says_what_differs(finished: Path, what: str) -> None:
    change, said = OTHER_ROBOTS[what]
    with pytest.raises(TrainingError) as refused:
        begun(finished, small_recipe(finished), change(PICO_PANDA))
    assert said in str(refused.value)


def test_a_run_of_other_settings_or_of_another_seed_is_refused(finished: Path) -> None:
    recipe = small_recipe(finished)
    other = replace(recipe, training={**recipe.training, "vocabulary": 400})
    with pytest.raises(TrainingError, match="training.vocabulary is 512, expected 400"):
        begun(finished, other)
    with pytest.raises(TrainingError, match="training.seed is 0, expected 7"):
        begun(finished, recipe, seed=7)
    many = replace(recipe, chunk=8, shift=3.0, text_tokens=128, fps=1.0, canvas=(192, 96))
    with pytest.raises(TrainingError, match="; and 2 more; name another folder"):
        begun(finished, many)


def test_a_run_on_a_data_set_that_has_changed_is_refused(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    at_first = json.loads((folder / "run" / "run.json").read_text())["dataset_meta_sha256"]
    recipe = small_recipe(folder)
    with pytest.raises(TrainingError, match="holds another run: dataset is .*finished.*/data, exp"):
        begun(folder, recipe)
    data = finished / "data"
    tasks = (data / TASKS_FILE).read_bytes()
    try:
        edited(data, replaced("__index_level_0__", lambda t: [*t[:-1], "touch it"]), TASKS_FILE)
        with pytest.raises(TrainingError, match=f"dataset_meta_sha256 is {at_first}, expected"):
            begun(finished, recipe)
    finally:
        (data / TASKS_FILE).write_bytes(tasks)
    assert begun(finished, recipe).is_dir()


def one_action_less(rows: list[list[float]]) -> list[list[float]]:
    rows[5][2] -= 0.01
    return rows


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        (FIRST, lambda data: edited(data, replaced(ACTION, one_action_less), FIRST)),
        (
            "videos/observation.images.wrist/chunk-000/file-001.mp4",
            lambda data: next(data.glob("videos/*wrist/*/file-001.mp4")).open("ab").write(b"0"),
        ),
    ],
    ids=["a row", "a video"],
)
def test_a_run_whose_data_set_has_another_row_or_video_is_refused_and_names_the_file(
    finished: Path, file: str, spoil: Callable[[Path], object]
) -> None:
    data = finished / "data"
    before = (data / file).read_bytes()
    try:
        spoil(data)
        with pytest.raises(TrainingError, match=f"another run: dataset_files.{file} is .*, expect"):
            begun(finished, small_recipe(finished))
    finally:
        (data / file).write_bytes(before)
    assert begun(finished, small_recipe(finished)).is_dir()


def test_what_matters_to_an_export_or_a_controller_alone_makes_no_other_run(finished: Path) -> None:
    recipe = replace(
        small_recipe(finished), prefix="clean", precision="bf16", opset=23, description="slower"
    )
    recipe = replace(recipe, steps=recipe.steps + 1, guidance=3.0)
    robot = gripper(hysteresis=0.3)(channel(0, lower=-1.0, velocity=0.5)(PICO_PANDA))
    robot = replace(robot, description="slower")
    assert begun(finished, recipe, robot) == finished / "run" / "checkpoint"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "data")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(TrainingError, match="is not empty and no run"):
        begun(tmp_path, small_recipe(tmp_path))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "3"])
def test_a_run_file_that_is_damaged_is_refused_by_name(tmp_path: Path, content: str) -> None:
    write_demonstrations(tmp_path / "data")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(TrainingError, match="run.json' is no JSON|run' holds another run"):
        begun(tmp_path, small_recipe(tmp_path))


def without_videos(data: Path) -> None:
    for video in data.glob("videos/*wrist/*/file-001.mp4"):
        video.unlink()


def spoilt_video(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        (video,) = data.glob("videos/*exterior/*/file-000.mp4")
        spoil(video)

    return change


def with_nan(rows: list[list[float]]) -> list[list[float]]:
    rows[FRAMES + 3][2] = float("nan")
    return rows


def one_short(rows: list[list[float]]) -> list[list[float]]:
    return [*rows[:4], rows[4][:-1], *rows[5:]]


def renamed(column: str) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        info = json.loads((data / "meta" / "info.json").read_text())
        info["features"][column]["names"][0] = "ur_joint0"
        (data / "meta" / "info.json").write_text(json.dumps(info))

    return change


def of_short_episodes(data: Path) -> None:
    """Ten frames each, of a data set of two episodes a file."""
    for index, file in enumerate((FIRST, SECOND)):
        rows = pq.read_table(data / file)
        of_first = rows.slice(0, 10).to_pylist() + rows.slice(FRAMES, 10).to_pylist()
        edited(data, lambda table, kept=of_first: type(table).from_pylist(kept), file)
        meta = f"meta/episodes/chunk-000/file-00{index}.parquet"
        edited(data, replaced("length", lambda lengths: [10] * len(lengths)), meta)


def in_degrees(rows: list[list[float]]) -> list[list[float]]:
    return [[*np.degrees(row[:7]).tolist(), row[7]] for row in rows]


def ended_early(data: Path) -> None:
    """One episode of 22 frames in a video where there should be two."""
    other = write_demonstrations(data.with_name("other"), episodes=2)
    (short,) = data.glob("videos/*wrist/*/file-001.mp4")
    (one,) = other.glob("videos/*wrist/*/file-001.mp4")
    one.rename(short)


def of_no_episodes(data: Path) -> None:
    for file in data.glob("meta/episodes/*/*.parquet"):
        pq.write_table(pq.read_table(file).slice(0, 0), file)


UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing video": (without_videos, "episode 2 has no video"),
    "truncated video": (spoilt_video(truncate), "file-000.mp4' cannot be decoded"),
    "Git LFS pointer": (spoilt_video(point), "file-000.mp4' cannot be decoded"),
    "video that ends early": (ended_early, "file-001.mp4' has no frame at 1.467 s"),
    "rows missing of an episode": (
        lambda data: edited(data, lambda table: table.slice(0, 30), FIRST),
        "has 8 rows; expected 22",
    ),
    "ragged action": (
        lambda data: edited(data, replaced(ACTION, one_short), SECOND),
        "column 'action' is no table of numbers",
    ),
    "NaN state": (
        lambda data: edited(data, replaced(STATE, with_nan), FIRST),
        "column 'observation.state' is NaN or infinite in row 3",
    ),
    "NaN action": (
        lambda data: edited(data, replaced(ACTION, with_nan), FIRST),
        "column 'action' is NaN or infinite in row 3",
    ),
    "actions in degrees": (
        lambda data: edited(data, replaced(ACTION, in_degrees), FIRST),
        "for 'joint_2' in row 0; expected -1.7 to 1.7 rad",
    ),
    "other joints in the state": (renamed(STATE), "'observation.state' names ur_joint0"),
    "other joints in the action": (renamed(ACTION), "'action' names ur_joint0"),
    "no episode of a chunk": (of_short_episodes, "none of its 4 episodes has more than 16 frames"),
    "no episode": (of_no_episodes, "has no episodes; expected at least one"),
    "no data set": (shutil.rmtree, "is no LeRobot data set"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_data_set_that_does_not_fit_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    spoil, said = UNFIT[what]
    spoil(write_demonstrations(tmp_path / "data"))
    assert said in refusal(tmp_path, capsys, small_recipe(tmp_path))


def refusal(
    folder: Path, capsys: pytest.CaptureFixture[str], recipe: Recipe, *more: str, compiled: int = 0
) -> str:
    """The one line that a training says which is refused and leaves no run."""
    words = [str(folder / f"{recipe.name}.yaml"), "--dataset", str(folder / "data")]
    words += ["--out", str(folder / "run"), *more, *([] if compiled else ["--no-compile"])]
    try:
        code = main(["train", *words])
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 1
    said = capsys.readouterr().err
    assert said.startswith("cosmos3 train: ") and said.count("\n") == 1
    assert not (folder / "run").exists()
    return said


def test_a_data_set_that_was_refused_makes_room_for_the_right_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_videos(write_demonstrations(tmp_path / "data"))
    recipe = small_recipe(tmp_path)
    assert "has no video" in refusal(tmp_path, capsys, recipe)
    whole = write_demonstrations(tmp_path / "whole")
    assert begun(tmp_path, recipe, dataset=whole).is_dir()


def test_a_data_set_of_another_rate_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "data", fps=30)
    with pytest.raises(LeRobotError, match="has 30 frames a second"):
        begun(tmp_path, small_recipe(tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dataset", ["given", "made"])
def test_too_many_held_out_episodes_are_refused(tmp_path: Path, dataset: str) -> None:
    write_demonstrations(tmp_path / "data")
    recipe = small_recipe(tmp_path, data={"held_out": 4})
    more = {} if dataset == "given" else {"dataset": None}
    with pytest.raises(TrainingError, match="training.data.held_out is 4 and there are 4 episodes"):
        begun(tmp_path, recipe, **more)
    assert not (tmp_path / "run").exists()


def test_a_caption_that_is_too_long_is_refused_with_its_length(tmp_path: Path) -> None:
    tasks = ("touch " + "the very red and rather shiny " * 30 + "cube", "b", "c")
    write_demonstrations(tmp_path / "data", tasks=tasks)
    with pytest.raises(PromptError, match=r"takes \d+ tokens with its caption"):
        begun(tmp_path, small_recipe(tmp_path))
    assert not (tmp_path / "run").exists()


def other_camera(robot: Embodiment) -> Embodiment:
    top = replace(robot.cameras[1], name="top")
    return replace(robot, cameras=(robot.cameras[0], top))


@pytest.mark.parametrize(
    ("changes", "change", "said"),
    [
        ({"fps": 10.0}, None, "the rate is 10 frames a second; .* are made, at 15"),
        ({"chunk": 24}, None, "chunk is 24; .* the shortest of 24 frames: expected less"),
        ({}, other_camera, "has a camera 'top'; .* whose cameras are exterior, wrist"),
        ({"text_tokens": 16}, None, r"takes \d+ tokens with its caption"),
    ],
    ids=["rate", "chunk", "camera", "caption"],
)
def test_demonstrations_that_would_not_fit_are_refused_before_they_are_made(
    tmp_path: Path,
    changes: dict[str, Any],
    change: Callable[[Embodiment], Embodiment] | None,
    said: str,
) -> None:
    recipe = replace(small_recipe(tmp_path), **changes)
    robot = change(PICO_PANDA) if change else PICO_PANDA
    with pytest.raises((TrainingError, PromptError), match=said):
        begun(tmp_path, recipe, robot, dataset=None)
    assert not (tmp_path / "run").exists()


def test_a_canvas_that_the_cameras_do_not_fill_is_refused(tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "data")
    recipe = replace(small_recipe(tmp_path), canvas=(208, 96))
    with pytest.raises(RecipeError, match="canvas of 208x96, of which .* fills 192x96"):
        begun(tmp_path, recipe)


def test_robots_that_cannot_be_trained_for_are_refused(tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "data")
    recipe = small_recipe(tmp_path)
    with pytest.raises(EmbodimentError, match="has action_space pose_delta; expected joint_pos"):
        begun(tmp_path, recipe, load_embodiment("droid_lerobot"))
    without_scale = channel(1, scale=float("nan"))(PICO_PANDA)
    with pytest.raises(EmbodimentError, match="joint_2 are normalised by quantiles"):
        begun(tmp_path, recipe, without_scale)
    other = replace(PICO_PANDA, joints=tuple(f"ur_joint{i}" for i in range(7)))
    with pytest.raises(TrainingError, match="is another robot than the simulated arm"):
        begun(tmp_path, recipe, other, dataset=None)
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_a_model_or_a_training_section_is_refused(tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "data")
    recipe = small_recipe(tmp_path)
    with pytest.raises(RecipeError, match="says nothing about training"):
        begun(tmp_path, replace(recipe, training={}))
    with pytest.raises(RecipeError, match="names no model to train"):
        begun(tmp_path, replace(recipe, model=replace(recipe.model, random_seed=3)))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vae", {"z_dim": 16}, "model.vae and model.transformer do not fit each other, or the can"),
        ("transformer", {"patch_latent_dim": 64}, "model.vae and model.transformer do not fit"),
        ("vae", {"temperal_downsample": [False, False, True]}, "model.vae"),
        ("vae", {"wings": 2}, "model.vae: .*'wings'; expected arguments of diffusers' Autoencoder"),
        ("transformer", {"wings": 2}, "model.transformer: .*'wings'; expected arguments of diff"),
    ],
)
def test_a_model_that_does_not_fit_itself_is_refused_before_anything_is_made(
    tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    recipe = small_recipe(tmp_path)
    config = {**getattr(recipe.model, part), **changes}
    recipe = replace(recipe, model=replace(recipe.model, **{part: config}))
    write_demonstrations(tmp_path / "data")
    with pytest.raises(RecipeError, match=message):
        begun(tmp_path, recipe)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_a_training_does_not_make_is_refused(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    recipe = replace(recipe, model=replace(recipe.model, tokenizer="byte_level"))
    with pytest.raises(RecipeError, match="has model.tokenizer byte_level; a training makes one"):
        begun(tmp_path, recipe)


def test_a_data_set_that_memory_has_no_room_for_is_refused_with_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demonstrations(tmp_path / "data")
    monkeypatch.setattr(fitting, "available_bytes", lambda: 5e5)
    said = "training.vae.episodes is 3, which takes 0.0 GB of memory with this data set"
    with pytest.raises(TrainingError, match=said):
        begun(tmp_path, small_recipe(tmp_path))
    # 3 episodes of 22 frames of 96 x 48 pixels fit, 8 clips of latents do not.
    monkeypatch.setattr(fitting, "available_bytes", lambda: 1e6)
    said = "training.data.clips_per_episode is 2000, which takes "
    with pytest.raises(TrainingError, match=said):
        begun(tmp_path, small_recipe(tmp_path, data={"clips_per_episode": 2000}))
    assert not (tmp_path / "run").exists()


def test_a_missing_compiler_is_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demonstrations(tmp_path / "data")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    said = refusal(tmp_path, capsys, small_recipe(tmp_path), compiled=1)
    assert "'g++' is not there; install g++, or train with --no-compile" in said


@pytest.mark.parametrize("words", [("--threads", "0"), ("--seed", "-1"), ("--seed", "some")])
def test_numbers_that_make_no_sense_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, str]
) -> None:
    write_demonstrations(tmp_path / "data")
    said = refusal(tmp_path, capsys, small_recipe(tmp_path), *words)
    assert f"argument {words[0]}: '{words[1]}'" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "first"}, "training.seed is 'first'; expected a whole number of at least 0"),
        ({"seed": 1.5}, "training.seed is 1.5; expected a whole number"),
        ({"vocabulary": 400.0}, "training.vocabulary is 400.0; expected a whole number"),
        ({"vocabulary": 259}, "vocabulary is 259; expected a whole number of at least 260"),
        ({"vocabulary": 513}, "vocabulary is 513; expected at most 512, the model.transformer"),
        ({"data": {"episodes": 0}}, "data.episodes is 0; expected a whole number of at least 1"),
        ({"data": {"held_out": 0}}, "data.held_out is 0; expected a whole number of at least 1"),
        ({"data": {"clips_per_episode": 0}}, "clips_per_episode is 0; expected .* at least 1"),
        ({"vae": {"episodes": 0}}, "vae.episodes is 0; expected a whole number of at least 1"),
        ({"vae": {"epochs": 3}}, "training.vae has .*epochs.*; expected episodes, short_steps"),
        ({"policy": {"batch": 0}}, "policy.batch is 0; expected a whole number of at least 1"),
        ({"policy": {"captions": 0}}, "policy.captions is 0; expected a whole number of at least"),
        ({"policy": {"steps": "many"}}, "training.policy.steps is 'many'; expected a whole number"),
        ({"policy": {"steps": -1}}, "policy.steps is -1; expected a whole number of at least 0"),
        ({"policy": {"learning_rate": -1.0}}, "learning_rate is -1.0; expected a number of at"),
        ({"policy": {"learning_rate": float("inf")}}, "learning_rate is inf; expected a number"),
        ({"policy": {"state_noise": float("nan")}}, "state_noise is nan; expected a number of at"),
        ({"policy": {"prefix_share": 1.1}}, "prefix_share is 1.1; expected a number from 0 to 1"),
        ({"policy": {"pure_noise_share": -0.1}}, "pure_noise_share is -0.1; expected a number fr"),
        ({"policy": {"caption_dropout": 2}}, "caption_dropout is 2; expected a number from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        training_settings(small_recipe(tmp_path, **change))


def test_steps_and_weights_may_be_none_at_all(tmp_path: Path) -> None:
    changes = {"vae": {"decoder_steps": 0}, "policy": {"steps": 0, "prefix_share": 0}}
    settings = training_settings(small_recipe(tmp_path, **changes))
    assert (settings.vae.decoder_steps, settings.policy.steps) == (0, 0)


def test_a_recipe_file_without_a_training_section_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(tmp_path)
    path = tmp_path / "small.yaml"
    content = yaml.safe_load(path.read_text())
    del content["training"]
    path.write_text(yaml.safe_dump(content))
    assert load_recipe(path).training == {}
    write_demonstrations(tmp_path / "data")
    assert "says nothing about training" in refusal(tmp_path, capsys, recipe)
