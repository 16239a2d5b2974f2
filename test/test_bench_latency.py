"""The latency benchmark: every strategy at every latency, in a file and in a picture."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest

from cosmos3_ros import bench, bench_latency
from cosmos3_ros.control.overlap import Strategy


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
    assert cells["sync", 1200]["plans"]["p50"] < cells["blend", 0]["plans"]["p50"]
    assert matplotlib.image.imread(picture).std() > 0.05
    assert "as sync" in capsys.readouterr().out
