"""The latency benchmark: every strategy at every latency, in a file and in a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.image
import pytest
from another_robot import REFUSAL, bundle_of_another_robot
from bundles import Exported

from cosmos3_ros import bench, bench_latency
from cosmos3_ros.control.overlap import Strategy


def test_it_is_fifty_episodes_at_each_of_four_latencies() -> None:
    parser = argparse.ArgumentParser()
    bench_latency.add_arguments(parser)
    assert parser.parse_args([]).episodes == 50
    assert bench_latency.LATENCIES_MS == (0, 300, 700, 1200)


def test_each_cell_has_its_figures_and_the_picture_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_latency, "LATENCIES_MS", (0, 1200))
    out, picture = tmp_path / "latency.json", tmp_path / "latency.png"
    words = ["--episodes", "1", "--out", str(out), "--picture", str(picture)]
    assert bench.main(["latency", *words]) == 0
    found = json.loads(out.read_text())
    assert (found["bundle"], found["task"], found["episodes"]) == ("pico", "touch", 1)
    cells = {(cell["strategy"], cell["added_latency_ms"]): cell for cell in found["cells"]}
    assert cells.keys() == {(str(s), latency) for s in Strategy for latency in (0, 1200)}
    # A chunk of pico lasts 1.07 s: a plan that takes longer leaves nothing to overlap.
    assert all(cells[s, 1200]["degraded"] for s in ("blend", "prefix"))
    assert not any(cells[str(s), 0]["degraded"] for s in Strategy)
    assert all(cell["refused_chunks"] == {} for cell in cells.values())
    assert cells["sync", 1200]["plans"]["p50"] < cells["blend", 0]["plans"]["p50"]
    assert matplotlib.image.imread(picture).std() > 0.05
    assert "as sync" in capsys.readouterr().out


def test_a_plan_from_where_the_arm_will_be_is_not_told_of_a_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_latency, "LATENCIES_MS", (0,))
    out, picture = tmp_path / "latency.json", tmp_path / "latency.png"
    words = ["--episodes", "1", "--state-ahead", "--out", str(out), "--picture", str(picture)]
    assert bench.main(["latency", *words]) == 0
    found = json.loads(out.read_text())
    assert found["state_ahead"]
    assert [cell["strategy"] for cell in found["cells"]] == ["sync", "blend"]
    assert picture.is_file()


def test_a_bundle_of_another_robot_is_refused_in_one_line(
    tmp_path: Path, tiny: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = bundle_of_another_robot(tiny, tmp_path), tmp_path / "latency.json"
    assert bench.main(["latency", "--bundle", str(other), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and REFUSAL in error
    assert not out.exists()
