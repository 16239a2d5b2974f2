"""Bags are whole or not there, and what cannot be read says why."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from recordings import image, joint_state, string
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer

from cosmos3_ros.replay.bags import BagError, BagWriter, open_bag, typestore

STRING = "std_msgs/msg/String"
MAGIC = b"\x89MCAP0\r\n"


def write_strings(path: Path, count: int) -> None:
    with BagWriter(path, {"/instruction": STRING}, {"/instruction"}) as bag:
        for i in range(count):
            bag.write("/instruction", 1000 + i, string(f"word {i}"))


def test_what_was_written_is_read_back_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.mcap"
    with BagWriter(path, {"/a": STRING, "/b": STRING}) as bag:
        for topic, log_ns in (("/a", 30), ("/b", 10), ("/a", 20)):
            bag.write(topic, log_ns, string(f"{topic} at {log_ns}"))
    with open_bag(path) as bag:
        found = [m.decoded().data for m in bag.messages(["/a", "/b"])]
        assert (bag.start_ns, bag.end_ns, bag.topics["/a"].count) == (10, 30, 2)
    assert found == ["/b at 10", "/a at 20", "/a at 30"]


def test_a_written_file_carries_what_ros2_bag_needs_of_it(tmp_path: Path) -> None:
    """The mcap storage plugin reads the profile, ros2msg schemas and QoS out of the file alone."""
    path = tmp_path / "out.mcap"
    topics = {"/instruction": STRING, "/action_chunk": "cosmos3_ros/msg/ActionChunk"}
    with BagWriter(path, topics, {"/instruction"}) as bag:
        bag.write("/instruction", 1, string("Pick it up."))
    data = path.read_bytes()
    assert data.startswith(MAGIC) and data.endswith(MAGIC)
    (profile_length,) = struct.unpack_from("<I", data, 17)
    assert data[21 : 21 + profile_length] == b"ros2"
    assert data.count(b"ros2msg") >= 2
    assert b"float64 plan_latency" in data and b"MSG: std_msgs/Header" in data
    assert b"durability: transient_local" in data
    # rosbag2 takes the file by the name that is noted inside it.
    assert b"- out.mcap" in data

    with AnyReader([path]) as reader:
        # The definitions in the file are enough to read it without ours.
        assert "cosmos3_ros/msg/ActionChunk" in reader.typestore.types
    with open_bag(path) as bag:
        assert bag.topics["/instruction"].transient_local
        assert not bag.topics["/action_chunk"].transient_local


def test_nothing_is_left_of_a_bag_whose_writing_failed(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    with pytest.raises(KeyError), BagWriter(path, {"/a": STRING}) as bag:
        bag.write("/a", 1, string("half"))
        bag.write("/b", 2, string("no such topic"))
    assert list(tmp_path.iterdir()) == []


def test_an_older_bag_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    write_strings(path, 1)
    older = path.read_bytes()
    writer = BagWriter(path, {"/a": STRING})
    writer.write("/a", 1, string("new"))
    assert path.read_bytes() == older
    writer.close()
    assert path.read_bytes() != older
    assert [p.name for p in tmp_path.iterdir()] == ["out.mcap"]


def test_a_folder_of_rosbag2_and_its_file_alone_are_both_bags(tmp_path: Path) -> None:
    for plugin, name in ((StoragePlugin.MCAP, "a.mcap"), (StoragePlugin.SQLITE3, "b.db3")):
        folder = tmp_path / Path(name).stem
        with Writer(folder, version=9, storage_plugin=plugin) as writer:
            connection = writer.add_connection("/a", STRING, typestore=typestore())
            writer.write(connection, 5, string("hello"))
        for path in (folder, folder / name):
            with open_bag(path) as bag:
                assert [m.decoded().data for m in bag.messages(["/a"])] == ["hello"], path


def test_topics_are_found_in_any_namespace(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    with BagWriter(path, {"/status": STRING, "/left/status": STRING, "/exit_status": STRING}):
        pass
    with open_bag(path) as bag:
        assert bag.named("status") == ["/left/status", "/status"]


def test_a_stamp_is_read_without_decoding_the_message(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    stamp = 1_234_567_890_123_456_789
    with BagWriter(path, {"/i": "sensor_msgs/msg/Image", "/j": "sensor_msgs/msg/JointState"}) as b:
        b.write("/i", 1, image(stamp, np.zeros((2, 3, 3), np.uint8)))
        b.write("/j", 2, joint_state(stamp + 1, ["a"], [0.5]))
    with open_bag(path) as bag:
        assert [m.stamp_ns for m in bag.messages(["/i", "/j"])] == [stamp, stamp + 1]


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.001])
def test_a_bag_that_was_cut_short_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "out.mcap"
    write_strings(path, 500)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(BagError, match=r"out.mcap' cannot be read.*cut short"), open_bag(path):
        pass


def test_a_bag_with_a_damaged_message_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    with BagWriter(path, {"/a": "sensor_msgs/msg/JointState"}) as writer:
        writer.write("/a", 1, string("not joints"))
    with open_bag(path) as bag, pytest.raises(BagError, match=r"'/a'.*sensor_msgs/msg/JointState"):
        next(bag.messages(["/a"])).decoded()


def test_what_is_no_bag_is_refused_with_what_one_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.mcap").write_bytes(b"")
    folder = tmp_path / "folder"
    folder.mkdir()
    refusals = {
        tmp_path / "nowhere": "does not exist; expected a rosbag2 folder",
        tmp_path / "notes.txt": "is no bag; expected a rosbag2 folder with metadata.yaml",
        tmp_path / "empty.mcap": "cannot be read",
        folder: "has no metadata.yaml; expected",
    }
    for path, words in refusals.items():
        with pytest.raises(BagError, match=words), open_bag(path):
            pass
    write_strings(folder / "part.mcap", 1)
    with pytest.raises(BagError, match=r"name the file itself: .*part.mcap"), open_bag(folder):
        pass


def test_a_bag_is_not_written_under_another_ending_or_with_unknown_types(tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"expected a \*.mcap file"):
        BagWriter(tmp_path / "out", {"/a": STRING})
    with pytest.raises(BagError, match="cannot hold my_msgs/msg/Thing"):
        BagWriter(tmp_path / "out.mcap", {"/a": "my_msgs/msg/Thing"})
    assert list(tmp_path.iterdir()) == []
