"""A whole training, small: from a data set to a checkpoint that is exported."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from training_parts import small_recipe, trained, write_demonstrations

from cosmos3_ros.cli import main
from cosmos3_ros.engine.recipe import load_recipe
from cosmos3_ros.training import open_loop
from cosmos3_ros.training.run import _panels
from cosmos3_ros.training.runs import Stage, draw_curves, read_curve
from cosmos3_ros.training.settings import training_settings

# An export and its check take most of a minute, and a few on a machine that is busy.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, a data set and a run whose curves have a point a step."""
    patched = pytest.MonkeyPatch()
    patched.setattr("cosmos3_ros.training.vae._NOTE_PERIOD", 1)
    patched.setattr("cosmos3_ros.training.policy._NOTE_PERIOD", 1)
    patched.setattr("cosmos3_ros.training.policy._VALIDATION_PERIOD", 2)
    folder = trained(tmp_path_factory.mktemp("finished"))
    patched.undo()
    return folder


def test_a_training_ends_in_a_checkpoint_that_is_exported_and_equals_diffusers(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, checkpoint = str(finished / "small.yaml"), str(finished / "run" / "checkpoint")
    bundle = str(tmp_path / "bundle")
    assert main(["export", recipe, "--checkpoint", checkpoint, "--out", bundle]) == 0
    assert main(["verify", bundle, "--checkpoint", checkpoint]) == 0
    assert "plan" in capsys.readouterr().out


def test_open_loop_figures_are_printed_written_and_drawn(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(finished / "small.yaml"), "--checkpoint", str(finished / "run" / "checkpoint")]
    words += ["--dataset", str(finished / "data"), "--out", str(tmp_path / "new" / "figures.json")]
    words += ["--threads", "1", "--picture", str(tmp_path / "shown.png")]
    assert main(["open-loop", *words]) == 0
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert figures["clips"] == 4
    for video in ("predicted", "nothing_changes", "vae"):
        assert all(np.isfinite(list(figures[video].values())))
    # The square moves: where it does, nothing is worse than to say that it does not.
    assert figures["nothing_changes"]["changed"] < figures["nothing_changes"]["all"]
    assert figures["row_error"].keys() >= {"joint_1", "gripper", "joint_1, last row"}
    assert matplotlib.image.imread(tmp_path / "shown.png").std() > 0.05
    assert "last_changed" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--out", "--picture"])
def test_a_place_that_open_loop_cannot_write_to_is_refused_before_it_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    small_recipe(tmp_path)
    (tmp_path / "file").touch()
    words = [str(tmp_path / "small.yaml"), word, str(tmp_path / "file" / "figures.json")]
    # Had it gone on, it would have named the checkpoint that is not there.
    words += ["--checkpoint", str(tmp_path / "none"), "--dataset", str(tmp_path / "none")]
    assert main(["open-loop", *words]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_figures_of_clips_in_which_nothing_changes_are_null_where_there_is_nothing_to_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_recipe(tmp_path)
    still, rows = np.full((2, 5, 8, 8, 3), 90, np.uint8), np.zeros((2, 4, 1))
    shown = open_loop.Predicted(still, still + 51, still, rows, rows + 0.5, ["", ""], ("joint_1",))
    monkeypatch.setattr(open_loop, "predict", lambda *_: shown)
    words = ["--checkpoint", "none", "--dataset", "none", "--out", str(tmp_path / "figures.json")]
    assert main(["open-loop", str(tmp_path / "small.yaml"), *words]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)
    expected = {"all": 13.98, "changed": None, "last": 13.98, "last_changed": None}
    assert figures["predicted"] == expected
    assert figures["row_error"] == {"joint_1": 0.5, "joint_1, last row": 0.5}
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("last_changed")]
    assert line.split() == ["last_changed", "-", "-", "-"]


@pytest.mark.parametrize("word", ["--clips", "--threads"])
def test_an_open_loop_of_nothing_is_refused_in_one_line(
    finished: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    words = [str(finished / "small.yaml"), "--checkpoint", str(finished / "run" / "checkpoint")]
    with pytest.raises(SystemExit) as refused:
        main(["open-loop", *words, "--dataset", str(finished / "data"), word, "0"])
    said = capsys.readouterr().err
    assert refused.value.code == 1 and said.count("\n") == 1
    assert f"argument {word}: '0'" in said


def test_open_loop_says_that_it_is_unguided(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["open-loop", "--help"])
    assert "sampled without guidance" in " ".join(capsys.readouterr().out.split())


def test_the_facts_of_a_training_are_printed_at_its_end_and_when_it_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_recipe(tmp_path)
    write_demonstrations(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    # Without --out the run lies in build, by the recipe's name.
    words = ["train", "small.yaml", "--dataset", "data", "--no-compile", "--threads", "1"]
    assert main(words) == 0
    at_first = capsys.readouterr().out
    checkpoint = tmp_path / "build" / "small" / "checkpoint"
    facts = json.loads((checkpoint / "training.json").read_text())
    assert (facts["episodes"], facts["held_out_episodes"], facts["clips"]) == (4, 1, 6)
    assert facts["instructions"] == 3 and facts["frames"] == 4 * 22
    assert facts["demonstrations_minutes"] == 0 and facts["minutes"] >= facts["vae_minutes"] >= 0
    assert facts["cores"] == os.cpu_count() and facts["threads"] == 1
    assert facts["processor"] in Path("/proc/cpuinfo").read_text() + platform.machine()
    assert len(facts["processor"]) > 2
    assert facts.pop("training") == asdict(training_settings(load_recipe(tmp_path / "small.yaml")))
    for name, value in facts.items():
        assert f"{name.replace('_', ' '):24}{value}\n" in at_first
    # Finished: the same command has nothing to do, and says the same.
    files = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    assert main(words) == 0
    assert capsys.readouterr().out == at_first
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == files


def test_another_seed_is_another_training(finished: Path, tmp_path: Path) -> None:
    words = ["train", str(finished / "small.yaml"), "--dataset", str(finished / "data")]
    words += ["--out", str(tmp_path / "run"), "--seed", "3", "--no-compile", "--threads", "1"]
    assert main(words) == 0
    checkpoints = [folder / "checkpoint" for folder in (finished / "run", tmp_path / "run")]
    facts = [json.loads((path / "training.json").read_text()) for path in checkpoints]
    assert [found["seed"] for found in facts] == [0, 3]
    assert [found["training"]["seed"] for found in facts] == [0, 3]
    for part in ("transformer", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        one, other = (np.fromfile(path / file, np.uint8) for path in checkpoints)
        assert one.size == other.size
        assert (one != other).mean() > 0.5


def test_the_curves_of_a_run_are_what_it_noted(finished: Path) -> None:
    vae, policy = (Stage(finished / "run", name) for name in ("vae", "policy"))
    noted = {stage.name: read_curve(stage.curve_file) for stage in (vae, policy)}
    assert [len(rows) for rows in noted.values()] == [4, 4]
    of_vae, of_velocities, of_rows = (curves for _, _, curves in _panels(vae, policy))
    assert of_vae == {"training": ([1, 2, 3, 4], [row["psnr_db"] for row in noted["vae"]])}
    assert of_velocities["video"] == ([1, 2, 3, 4], [row["video"] for row in noted["policy"]])
    # What was judged at every other step is drawn there, and nowhere else.
    judged = noted["policy"][1::2]
    assert np.isnan([row["row_error"] for row in noted["policy"][::2]]).all()
    for curves, name, key in (
        (of_velocities, "video, held out", "held_out_video"),
        (of_velocities, "rows, held out", "held_out_action"),
        (of_rows, "mean absolute", "row_error"),
        (of_rows, "last row, r.m.s.", "last_row_error"),
    ):
        assert curves[name] == ([2, 4], [row[key] for row in judged])
        assert np.isfinite(curves[name][1]).all()


def test_every_curve_of_a_run_is_drawn(finished: Path, tmp_path: Path) -> None:
    vae, policy = (Stage(finished / "run", name) for name in ("vae", "policy"))
    panels = _panels(vae, policy)
    for index, (_, _, curves) in enumerate(panels):
        for name in curves:
            without = [
                (
                    title,
                    unit,
                    {n: ([], []) if (i, n) == (index, name) else c for n, c in of.items()},
                )
                for i, (title, unit, of) in enumerate(panels)
            ]
            draw_curves(tmp_path / "without.png", without)
            shown = matplotlib.image.imread(tmp_path / "without.png")
            drawn = matplotlib.image.imread(finished / "run" / "curves.png")
            assert shown.shape == drawn.shape
            assert (shown != drawn).any(-1).sum() > 30, name


def test_a_run_too_short_for_a_curve_draws_none(tmp_path: Path) -> None:
    panels = _panels(Stage(tmp_path, "vae"), Stage(tmp_path, "policy"))
    assert all(curve == ([], []) for _, _, curves in panels for curve in curves.values())
    draw_curves(tmp_path / "curves.png", panels)
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[1] > 1000
