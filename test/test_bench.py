"""The image benchmark counts what arrived, and leaves loopback in neither of its two runs."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cosmos3_ros import bench

LOOPBACK = "127.0.0.1"


def settings(path: Path) -> dict[str, str | None]:
    return {e.tag.rpartition("}")[2]: e.text for e in ElementTree.parse(path).iter() if not len(e)}


def test_profile_without_our_segment_differs_in_nothing_else(tmp_path: Path) -> None:
    bench.write_default_profile(tmp_path / "default.xml")
    default = settings(tmp_path / "default.xml")
    ours = settings(bench.resource("config", "fastdds_local.xml"))
    assert default == {k: v for k, v in ours.items() if k not in bench.SEGMENT_SETTINGS}
    assert default["address"] == LOOPBACK
    assert len(ours) == len(default) + len(bench.SEGMENT_SETTINGS)


def test_nearly_every_image_arrives_with_our_profile_and_fewer_without(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")
    out = tmp_path / "bench_images.json"
    assert bench.main(["images", "--seconds", "2", "--out", str(out)]) == 0
    without, with_profile = json.loads(out.read_text()).values()
    assert without["sent"] == with_profile["sent"] == 60
    # A busy machine may lose some; the default loses tens.
    assert with_profile["received"] >= 0.6 * with_profile["sent"]
    assert without["received"] < with_profile["received"]
    assert 0 < with_profile["latency_p50_ms"] < 1000
