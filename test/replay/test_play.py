"""A replay drives the two real nodes with a bag, or says in one line why it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bundles import ROOT, Exported, exported
from recordings import compressed_image, image, joint_state, string

from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.replay.bags import BagWriter, open_bag
from cosmos3_ros.replay.play import ReplayError, choose_inputs

SIM_JOINTS = [*(f"panda_joint{i}" for i in range(1, 8)), "panda_finger_joint1"]
HOME = [0.0, 0.3, 0.0, -2.3, 0.0, 2.6, 0.8, 0.04]
FPS = 15
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def write_bag(
    path: Path,
    camera: str = "/camera/exterior/image",
    size: tuple[int, int] = (96, 128),
    seconds: float = 3.0,
    instruction: str = "Touch the red cube.",
    jpeg: bool = False,
) -> Path:
    topics = {camera: COMPRESSED if jpeg else IMAGE, "/joint_states": "sensor_msgs/msg/JointState"}
    topics |= {"/instruction": "std_msgs/msg/String"} if instruction else {}
    with BagWriter(path, topics) as bag:
        if instruction:
            bag.write("/instruction", 1_000_000_000, string(instruction))
        for i in range(round(seconds * FPS)):
            stamp = 1_000_000_000 + round(i / FPS * 1e9)
            bag.write("/joint_states", stamp, joint_state(stamp, SIM_JOINTS, HOME))
            picture = np.full((*size, 3), 60 + i, np.uint8)
            raw = compressed_image(stamp, picture) if jpeg else image(stamp, picture)
            bag.write(camera, stamp, raw)
    return path


def command(bag: Path, bundle: Path, out: Path, *options: str) -> list[str]:
    arguments = ["replay", bag, "--bundle", bundle, "--out", out, *options]
    return [sys.executable, "-m", "cosmos3_ros.cli", *map(str, arguments)]


def replay(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=480)


def assert_ran(done: subprocess.CompletedProcess[str], out: Path) -> dict[str, Any]:
    """The summary of a replay that has succeeded and left what it says it leaves."""
    logs = "\n".join(f"{p.name}: {p.read_text()[-2000:]}" for p in (out / "logs").glob("*.log"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    assert {p.name for p in out.iterdir()} == {"output.mcap", "summary.json", "report.png", "logs"}
    assert cv2.imread(str(out / "report.png")).shape[1] > 1000
    return dict(json.loads((out / "summary.json").read_text()))


def refused(*arguments: Any) -> str:
    done = replay(*arguments)
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (1, 1), done.stderr
    return lines[0]


def test_a_bag_flows_through_both_nodes_into_a_recording(tiny: Exported, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bag = write_bag(tmp_path / "bag.mcap")
    summary = assert_ran(replay(bag, tiny.bundle.path, out), out)
    assert summary["plans"] > 0 and summary["predicted_frames"] > 0
    assert summary["observations"] >= summary["plans"]
    # 3 s at 50 Hz, and the moments before and after; a busy machine may lose half.
    assert 75 < summary["commands"] < 1000
    assert summary["duration_s"] == pytest.approx(44 / FPS, abs=0.01)
    assert (summary["bundle"], summary["backend"]) == ("tiny", "onnxruntime")
    assert summary["instruction"] == "Touch the red cube."
    with open_bag(out / "output.mcap") as recorded:
        chunks = [m.decoded() for m in recorded.messages(["/action_chunk"])]
        commands = [m.decoded() for m in recorded.messages(["/joint_command"])]
        assert recorded.topics["/joint_states"].count == 3 * FPS
        # Without it, plans that were refused would count as seams.
        assert recorded.topics["/controller_status"].count > 0
    assert [c.plan_id for c in chunks] == list(range(1, len(chunks) + 1))
    # Plans carry the stamps of the bag's pictures: the clock was the bag's.
    stamps = {1_000_000_000 + round(i / FPS * 1e9) for i in range(3 * FPS)}
    assert all(
        c.header.stamp.sec * 1_000_000_000 + c.header.stamp.nanosec in stamps for c in chunks
    )
    assert list(commands[0].name) == SIM_JOINTS


def test_other_topics_other_words_compressed_images_and_another_pace(
    tiny: Exported, tmp_path: Path
) -> None:
    out, topic = tmp_path / "out", "/front/image_raw/compressed"
    bag = write_bag(tmp_path / "bag.mcap", topic, instruction="", jpeg=True, seconds=4)
    options = ["--remap", f"{topic}=/camera/exterior/image/compressed", "--rate", "0.5"]
    instruction = 'Tippe den roten Würfel an: "sanft".'
    done = replay(bag, tiny.bundle.path, out, *options, "--instruction", instruction)
    summary = assert_ran(done, out)
    assert summary["instruction"] == instruction
    assert summary["plans"] > 0
    assert 0.2 < summary["pace"] < 0.55


def test_a_replay_in_which_no_plan_flowed_fails_and_says_what_was_refused(
    tiny: Exported, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    bag = write_bag(tmp_path / "bag.mcap", size=(96, 96), seconds=1)
    done = replay(bag, tiny.bundle.path, out)
    assert done.returncode == 1
    assert "0 plans and" in done.stderr and "camera_size" in done.stderr
    assert json.loads((out / "summary.json").read_text())["dropped_observations"] > 0


def test_a_node_that_refuses_to_start_is_quoted(tiny: Exported, tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag.mcap", seconds=1)
    error = refused(bag, tiny.bundle.path, tmp_path / "out", "--backend", "abacus")
    assert "not configured: parameter 'backend' is 'abacus'; expected one of" in error


def test_an_interrupted_replay_leaves_no_node_behind(tiny: Exported, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bag = write_bag(tmp_path / "bag.mcap", seconds=3)
    marker = f"COSMOS3_TEST_RUN={os.getpid()}-{time.monotonic_ns()}"
    name, _, value = marker.partition("=")
    process = subprocess.Popen(
        command(bag, tiny.bundle.path, out, "--rate", "0.05"),
        env=os.environ | {name: value},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while not (out / "logs" / "player_node.log").exists() and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=180)
    assert process.returncode != 0
    assert not (out / "summary.json").exists()
    assert [p for p in Path("/proc").glob("[0-9]*/environ") if marker in environment(p)] == []


def environment(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_bad_bags_bundles_and_options_are_refused_in_one_line(
    tiny: Exported, tmp_path: Path
) -> None:
    bag, out = write_bag(tmp_path / "bag.mcap", seconds=1), tmp_path / "out"
    bundle = tiny.bundle.path
    assert "is no bundle" in refused(bag, tmp_path, out)
    assert "--rate is 0; expected more than 0" in refused(bag, bundle, out, "--rate", "0")
    assert "--remap is 'a=b'; expected FROM=TO" in refused(bag, bundle, out, "--remap", "a=b")
    assert "embodiment 'octopus' is not known" in refused(
        bag, bundle, out, "--embodiment", "octopus"
    )
    assert "folder" in (error := refused(tmp_path, bundle, out)) and "is no bag" in error
    assert "/camera/exterior_2/image, which embodiment 'droid_exterior' needs" in refused(
        bag, bundle, out, "--embodiment", "droid_exterior"
    )
    own = write_bag(tmp_path / "output.mcap", seconds=1)
    before = own.read_bytes()
    assert "is where the recording of the replay goes" in refused(own, bundle, tmp_path)
    assert own.read_bytes() == before
    bag.write_bytes(bag.read_bytes()[:-100])
    assert "was cut short" in refused(bag, bundle, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("topics", "words"),
    [
        ({"/joint_states": 1}, "is a bag without images: it has /joint_states"),
        ({"/camera/exterior/image": 0, "/joint_states": 1}, "is a bag without images"),
        ({"/camera/exterior/image": 1, "/instruction": 1}, "no messages on /joint_states; it has"),
        ({"/camera/exterior/image": 1, "/joint_states": 1}, "give --instruction TEXT"),
        ({"/camera/front/image": 1, "/joint_states": 1}, "has images on /camera/front/image"),
    ],
)
def test_a_bag_that_lacks_an_input_is_refused_by_name(
    tmp_path: Path, topics: dict[str, int], words: str
) -> None:
    types = {t: IMAGE if t.endswith("image") else "std_msgs/msg/String" for t in topics}
    with BagWriter(tmp_path / "bag.mcap", types) as writer:
        for topic, count in topics.items():
            for i in range(count):
                writer.write(topic, 1_000_000_000 + i, string(""))
    with open_bag(tmp_path / "bag.mcap") as bag, pytest.raises(ReplayError, match=words):
        choose_inputs(bag, load_embodiment("sim_panda"), {}, instructed=False)


def test_the_real_droid_episode_runs_from_its_first_picture_to_its_last(
    droid_episode: Path, tmp_path: Path
) -> None:
    embodiment = ROOT / "config" / "embodiments" / "droid_exterior.yaml"
    bundle = exported(ROOT / "engines" / "tiny_droid.yaml", embodiment).bundle.path
    bag, out = tmp_path / "droid.mcap", tmp_path / "out"
    arguments = [
        "bag-from-lerobot", droid_episode, bag, "--camera", "exterior_image_2_left",
        "--joints-csv", droid_episode / "joint_positions.csv",
        "--instruction", "Put the object in the bin.",
    ]  # fmt: skip
    converting = [sys.executable, "-m", "cosmos3_ros.cli", *map(str, arguments)]
    subprocess.run(converting, check=True, timeout=360)
    try:
        summary = assert_ran(replay(bag, bundle, out), out)
    finally:
        bag.unlink()  # half a gigabyte
    assert summary["duration_s"] == pytest.approx(721 / 15, abs=0.01)
    assert summary["pace"] > 0.2
    # A busy machine plans late, it does not stop planning.
    assert summary["plans"] >= 10 and summary["predicted_frames"] > 0
    assert summary["commands"] > 48 * 25
    with open_bag(out / "output.mcap") as recorded:
        chunks = [m.decoded() for m in recorded.messages(["/action_chunk"])]
        assert recorded.topics["/joint_states"].count == 722
    assert all(np.isfinite(chunk.data).all() and chunk.width == 8 for chunk in chunks)
    assert chunks[-1].header.stamp.sec >= 40
