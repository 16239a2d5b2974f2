"""The evaluation, run as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from another_robot import REFUSAL, bundle_of_another_robot
from bundles import ENGINES, Exported
from child_pids import child_pids

from cosmos3_ros.cli import main
from cosmos3_ros.engine.bundle import file_sha256, load_bundle, write_manifest
from cosmos3_ros.engine.recipe import RECIPE
from cosmos3_ros.processes import ros_environment
from cosmos3_ros.replay.bags import open_bag
from cosmos3_ros.sim.eval import SEED, _seed_of, _training_seed
from cosmos3_ros.sim.tasks import HELD_OUT_WORDINGS, KINDS, LIMIT_S, WORDINGS
from cosmos3_ros.sim.world import World

# The quick twin, with few episodes of the quickest task.
TWIN = ("--offline", "--task", "touch", "--episodes", 6)


def start_eval(out: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cosmos3_ros.sim.eval", "--out", out, *words]
    return subprocess.Popen(
        [str(word) for word in command],
        env=ros_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_eval(out: Path, *words: object, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
    with start_eval(out, *words) as process:
        stdout, stderr = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def evaluated(out: Path, *words: object) -> dict[str, Any]:
    ended = run_eval(out, *words)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_episodes_through_the_nodes_are_judged(tmp_path: Path, pico: Exported) -> None:
    out = tmp_path / "eval.json"
    found = evaluated(out, "--task", "touch", "--episodes", 6)
    assert found["through"] == "nodes" and found["bundle"] == "pico"
    assert (found["real_time_factor"], found["threads"]) == (1.0, 1)
    assert found["episodes"] == 6 and found["by_task"].keys() == {"touch"}
    assert sum(found[verdict]["count"] for verdict in ("success", "wrong", "neither")) == 6
    assert found["success"]["count"] >= 5, found["each"]
    low, high = found["success"]["low"], found["success"]["high"]
    assert 0 <= low <= found["success"]["rate"] <= high <= 1
    for key in ("time_to_goal_s", "plans", "seam_jump", "min_distance_cm"):
        assert 0 <= found[key]["p50"] <= found[key]["p90"]
    assert [result["episode"] for result in found["each"]] == [1, 2, 3, 4, 5, 6]
    assert not out.with_suffix(".partial").exists()


def test_an_episode_begins_as_its_scene_does_whatever_the_one_before_was_at(
    tmp_path: Path, pico: Exported
) -> None:
    out, bag = tmp_path / "eval.json", tmp_path / "eval.mcap"
    bag.write_text("an earlier one")
    found = evaluated(out, "--task", "touch", "--episodes", 4, "--record", bag)
    with open_bag(bag) as recorded:
        states = [
            (message.stamp_ns, np.array(message.decoded().position))
            for message in recorded.messages(recorded.named("joint_states"))
        ]
    # Each begins where the clock goes back.
    first = [i for i in range(1, len(states)) if states[i][0] < states[i - 1][0]]
    assert len(first) == 4
    model = World(render=False)
    for result, i in zip(found["each"], first, strict=True):
        model.reset(result["seed"], result["episode"])
        # No plan is there in the first tenth of a second.
        until = next(j for j in range(i, len(states)) if states[j][0] > 100e6)
        for _, positions in states[i:until]:
            np.testing.assert_allclose(positions, model.positions, atol=5e-3)


def test_what_is_asked_for_reaches_the_nodes(tmp_path: Path, pico: Exported) -> None:
    words = ("--task", "touch", "--episodes", 2, "--shuffle-instruction", "--held-out")
    found = evaluated(tmp_path / "eval.json", *words, "--bundle", pico.bundle.path)
    assert found["through"] == "nodes" and found["bundle_sha256"] == pico.bundle.sha256
    log = (tmp_path / "eval_logs" / "touch" / "policy_node.log").read_text()
    for result, other in zip(found["each"], reversed(found["each"]), strict=True):
        assert result["wording"] in HELD_OUT_WORDINGS["touch"]
        assert result["instruction"] == other["wording"].format(other["colour"])
        assert f"instruction: '{result['instruction']}'" in log


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_the_trained_policy_is_judged_in_reduced_precision(
    tmp_path: Path, calibration: Path, precision: str
) -> None:
    recipe, bundle, twin = (
        ENGINES / f"pico_{precision}.yaml",
        tmp_path / "bundle",
        tmp_path / "twin",
    )
    checkpoint = ENGINES / "pico_checkpoint"
    for command in (
        ["export", recipe, "--checkpoint", checkpoint, "--calibrate", calibration, "--out", bundle],
        ["twin", bundle, "--out", twin],
    ):
        assert main([str(word) for word in command]) == 0
    how = load_bundle(bundle).manifest
    assert (how.precision, how.quantisation.ranges) == (precision, "calibrated")
    found = evaluated(tmp_path / "eval.json", *TWIN, "--bundle", twin)
    assert found["bundle"] == f"pico_{precision} (float32 twin)"
    assert found["success"]["count"] >= 5, found["each"]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag of one demonstration."""
    folder = tmp_path_factory.mktemp("calibration")
    episodes, bag = folder / "episodes", folder / "calibration.mcap"
    for command in (
        ["make-episodes", episodes, "--episodes", 1, "--seed", 1001],
        ["bag-from-lerobot", episodes, bag, "--embodiment", "pico_panda"],
    ):
        assert main([str(word) for word in command]) == 0
    return bag


def test_latency_is_added_to_every_plan(tmp_path: Path, pico: Exported) -> None:
    words = ("--task", "touch", "--episodes", 5)
    prompt = evaluated(tmp_path / "prompt.json", *words, "--plan-rate", 0)
    late = evaluated(tmp_path / "late.json", *words, "--plan-rate", 0, "--added-latency-ms", 300)
    usual = evaluated(tmp_path / "usual.json", *words)
    assert late["added_latency_ms"] == 300 and usual["plan_rate_hz"] == 2.0
    assert seconds_per_plan(usual) > 0.3
    assert seconds_per_plan(prompt) < 0.3 < seconds_per_plan(late)
    assert late["success"]["count"] >= 3, late["each"]


def seconds_per_plan(found: dict[str, Any]) -> float:
    seconds = sum(result["time_to_goal_s"] or LIMIT_S["touch"] for result in found["each"])
    plans = sum(result["plans"] for result in found["each"])
    return float(seconds / plans)


def test_a_policy_that_dies_in_the_middle_ends_the_evaluation_with_its_log(
    tmp_path: Path, pico: Exported
) -> None:
    for name in ("eval.json", "eval.partial"):
        (tmp_path / name).write_text("of an earlier evaluation")
    process = start_eval(tmp_path / "eval.json", "--task", "touch", "--episodes", 50)
    log = tmp_path / "eval_logs" / "touch" / "controller_node.log"
    deadline = time.monotonic() + 60
    while not (log.is_file() and "tracking plan" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    pids = child_pids(process.pid)
    os.kill(pids["policy_node"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert stderr.startswith("eval: policy_node ended early with exit code -9; the end of")
    assert "warm-up plan" in stderr and "Traceback" not in stderr
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]
    assert (tmp_path / "eval.json").read_text() == "of an earlier evaluation"
    assert not (tmp_path / "eval.partial").exists()


def test_the_twin_writes_the_same_figures_and_each_task_once(
    tmp_path: Path, pico: Exported
) -> None:
    words = ("--task", "lift", "--task", "touch", "--task", "lift", "--episodes", 2)
    found = evaluated(tmp_path / "twin.json", *words, "--offline", "--threads", 2)
    assert found["through"] == "offline twin"
    assert (found["real_time_factor"], found["threads"]) == (None, 2)
    assert [result["kind"] for result in found["each"]] == ["lift", "lift", "touch", "touch"]
    assert found["refused_chunks"] == {}


def test_the_twin_needs_no_ros(tmp_path: Path, pico: Exported) -> None:
    without = (
        "import sys; sys.modules['rclpy'] = None; from cosmos3_ros.sim import eval; "
        "sys.exit(eval.main(sys.argv[1:]))"
    )
    words = ("--out", tmp_path / "eval.json", "--offline", "--task", "touch", "--episodes", "1")
    command = [sys.executable, "-c", without, *map(str, words)]
    subprocess.run(command, check=True, timeout=400)
    assert (tmp_path / "eval.json").is_file()


def test_held_out_wordings_are_said(tmp_path: Path, pico: Exported) -> None:
    found = evaluated(tmp_path / "eval.json", *TWIN, "--held-out")
    assert found["held_out_wordings"]
    assert found["by_wording"].keys() <= set(HELD_OUT_WORDINGS["touch"])
    for result in found["each"]:
        assert result["instruction"] == result["wording"].format(result["colour"])


def test_shuffled_instructions_are_those_of_other_episodes(tmp_path: Path, pico: Exported) -> None:
    found = evaluated(tmp_path / "eval.json", *TWIN, "--shuffle-instruction")
    assert found["shuffled_instructions"]
    assert found["by_wording"].keys() <= set(WORDINGS["touch"])
    told = [result["instruction"] for result in found["each"]]
    own = [result["wording"].format(result["colour"]) for result in found["each"]]
    assert sorted(told) == sorted(own) and told != own


def test_black_cameras_leave_it_blind(tmp_path: Path, pico: Exported) -> None:
    found = evaluated(tmp_path / "eval.json", *TWIN, "--black-camera")
    assert found["black_cameras"]
    assert found["success"]["count"] <= 2, found["each"]


def test_in_sync_there_is_a_plan_a_chunk(tmp_path: Path, pico: Exported) -> None:
    found = evaluated(tmp_path / "eval.json", *TWIN, "--strategy", "sync")
    assert found["strategy"] == "sync"
    # A chunk lasts 1.07 s, the default plans twice a second.
    assert seconds_per_plan(found) > 0.6
    assert found["success"]["count"] >= 4, found["each"]


def test_state_ahead_and_seed_reach_the_twin(tmp_path: Path, pico: Exported) -> None:
    words = ("--offline", "--task", "touch", "--episodes", 2, "--added-latency-ms", 300)
    plain = evaluated(tmp_path / "plain.json", *words)
    ahead = evaluated(tmp_path / "ahead.json", *words, "--state-ahead")
    other = evaluated(tmp_path / "other.json", *words, "--seed", 7)
    assert (plain["state_ahead"], ahead["state_ahead"]) == (False, True)
    assert (plain["seed"], other["seed"]) == (SEED, 7)
    assert nearest(plain) != nearest(ahead), "planned from where the arm was"
    assert nearest(plain) != nearest(other), "the same scenes"


def nearest(found: dict[str, Any]) -> list[float]:
    return [result["min_distance_m"] for result in found["each"]]


def test_strategy_and_black_cameras_reach_the_nodes(tmp_path: Path, pico: Exported) -> None:
    words = ("--task", "touch", "--episodes", 2, "--strategy", "sync", "--black-camera")
    found = evaluated(tmp_path / "eval.json", *words)
    assert found["black_cameras"] and seconds_per_plan(found) > 0.8, found["each"]
    # What it does blind is chance.
    log = (tmp_path / "eval_logs" / "touch" / "sim_node.log").read_text()
    assert "the cameras show black pictures" in log, log
    # On a busy machine other strategies come to wait for each plan, and say so.
    log = (tmp_path / "eval_logs" / "touch" / "policy_node.log").read_text()
    assert "waits for each plan" not in log, log


def test_real_time_factor_and_seed_reach_the_simulator(tmp_path: Path, pico: Exported) -> None:
    words = ("--task", "touch", "--episodes", 1, "--real-time-factor", 0.5, "--seed", 7)
    found = evaluated(tmp_path / "eval.json", *words)
    assert found["real_time_factor"] == 0.5 and 0 < found["pace"] < 0.6
    # A chunk lasts twice as long as a steady second: slow as it is, rows do not run out.
    assert "blend" in found["strategies_in_force"]
    log = (tmp_path / "eval_logs" / "touch" / "sim_node.log").read_text()
    assert "seed 7, episode 1: cubes" in log, log


def test_a_simulation_that_lags_is_said(tmp_path: Path, pico: Exported) -> None:
    """No machine of today simulates and plans a hundred seconds in one."""
    words = ("--task", "touch", "--episodes", 1, "--real-time-factor", 100)
    ended = run_eval(tmp_path / "eval.json", *words, "--added-latency-ms", 300)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "eval.json").read_text())
    said = f"eval: warning: {found['pace']:g} simulated seconds a second, 100 asked for: "
    assert said in ended.stderr and "with less than 300 ms added" in ended.stderr


def test_an_evaluation_is_compared_with_an_earlier_one(tmp_path: Path, pico: Exported) -> None:
    words, earlier = ("--offline", "--task", "touch", "--episodes", 2), tmp_path / "earlier.json"
    evaluated(earlier, *words)
    again = run_eval(tmp_path / "again.json", *words, "--against", earlier)
    assert again.returncode == 0, again.stderr
    _, _, compared = again.stdout.partition("beside 'pico' through offline twin:\n")
    _, line, *_ = compared.splitlines()
    assert line.startswith("touch") and line.endswith("  yes")


def test_a_bundle_of_another_robot_is_refused_in_one_line(tmp_path: Path, tiny: Exported) -> None:
    ended = run_eval(tmp_path / "eval.json", "--bundle", bundle_of_another_robot(tiny, tmp_path))
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert REFUSAL in ended.stderr and "panda_joint1" in ended.stderr
    assert not (tmp_path / "eval.json").exists()


def test_a_bundle_of_a_robot_nobody_knows_is_refused_in_one_line(
    tmp_path: Path, odd_grid: Exported
) -> None:
    ended = run_eval(tmp_path / "eval.json", "--bundle", odd_grid.bundle.path)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "embodiment 'odd_grid' is not known" in ended.stderr


def test_a_bundle_that_no_cpu_runs_is_refused_in_one_line_before_anything_starts(
    tmp_path: Path, tiny_bf16: Exported
) -> None:
    ended = run_eval(tmp_path / "eval.json", "--bundle", tiny_bf16.bundle.path)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("eval: bundle '")
    assert "in bf16 on this CPU" in ended.stderr and "'cosmos3 twin'" in ended.stderr
    assert not (tmp_path / "eval_logs").exists()


@pytest.mark.parametrize(("trained", "task"), [(0, "touch"), (8, "lift"), (9, "any")])
def test_scenes_of_the_demonstrations_are_refused(
    tmp_path: Path, pico: Exported, trained: int, task: str
) -> None:
    bundle = trained_with(trained, pico, tmp_path)
    seed = trained - KINDS.index(task)
    ended = run_eval(tmp_path / "eval.json", "--bundle", bundle, "--seed", seed)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    said = f"--seed {seed}: the scenes of '{task}' have seed {trained}, as have those of the demon"
    assert said in ended.stderr and "bundle 'pico' was trained on" in ended.stderr
    assert not (tmp_path / "eval_logs").exists()


def trained_with(seed: int, pico: Exported, folder: Path) -> Path:
    """Pico, trained with another seed by what its recipe and its manifest say."""
    bundle = Path(shutil.copytree(pico.bundle.path, folder / "pico"))
    recipe = yaml.safe_load((bundle / RECIPE).read_text())
    recipe["training"]["seed"] = seed
    (bundle / RECIPE).write_text(yaml.safe_dump(recipe))
    manifest = replace(
        pico.bundle.manifest,
        files={**pico.bundle.manifest.files, RECIPE: file_sha256(bundle / RECIPE)},
    )
    write_manifest(bundle, manifest)
    return bundle


def test_only_the_scenes_of_the_tasks_that_are_asked_for_matter(
    tmp_path: Path, pico: Exported
) -> None:
    bundle = trained_with(9, pico, tmp_path)
    words = ("--offline", "--episodes", 1, "--bundle", bundle, "--seed", 8, "--task", "touch")
    assert evaluated(tmp_path / "eval.json", *words)["episodes"] == 1


def test_the_usual_scenes_are_none_of_the_policy_that_ships(pico: Exported) -> None:
    trained = _training_seed(pico.bundle)
    assert trained == pico.recipe.training["seed"]
    assert trained not in [_seed_of(kind, SEED) for kind in KINDS]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--episodes", 0), "is no whole number of at least 1"),
        (("--episodes", 1, "--shuffle-instruction"), "expected at least 2"),
        (("--bundle", "nowhere"), "nowhere"),
        (("--against", "nowhere.json"), "nowhere.json"),
        (("--out", "."), "--out '.' is a folder; expected a file to write"),
        (("--task", "lift", "--record", "a.txt"), "--record is 'a.txt'; expected a file NAME.mcap"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    tmp_path: Path, words: tuple[object, ...], said: str
) -> None:
    ended = run_eval(tmp_path / "eval.json", *words)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1 and said in ended.stderr
