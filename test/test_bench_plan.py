"""The benchmark of plans measures what it says it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmos3_ros import bench, bench_plan
from cosmos3_ros.resources import resource


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One repeat of everything, on a model small enough."""
    folder = tmp_path_factory.mktemp("bench")
    out, recipe = folder / "bench_plan.json", folder / "short.yaml"
    base = resource("engines", "tiny_droid.yaml")
    recipe.write_text(f"name: short\nextends: {base}\nchunk: 8\nsampler: {{steps: 2}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_plan, "CASES", {"plan_tiny": str(recipe)})
        assert bench.main(["plan", "--repeats", "3", "--threads", "2", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())["plan_tiny"]
    return found


def test_every_time_has_a_median_and_its_spread(result: dict[str, Any]) -> None:
    for key in ("action", "replan", "frame", "floor", "reference", "reference_latent"):
        times = result[f"{key}_ms"]
        assert 0 < times["min"] <= times["median"] <= times["max"]


def test_ratios_are_those_of_the_medians(result: dict[str, Any]) -> None:
    median = {key[:-3]: value["median"] for key, value in result.items() if key.endswith("_ms")}
    assert result["ratio"] == pytest.approx(median["reference"] / median["action"])
    assert result["over_floor"] == pytest.approx(median["action"] / median["floor"])


def test_the_parts_of_a_plan_cost_less_than_the_whole(result: dict[str, Any]) -> None:
    least = {key: value["min"] for key, value in result.items() if key.endswith("_ms")}
    assert least["floor_ms"] < least["action_ms"]
    assert least["reference_latent_ms"] < least["reference_ms"]
    assert result["forwards"] == 4
    shares = result["graph_share"]
    assert set(shares) == {"text", "image", "denoise", "step", "host"}
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)


def test_the_arithmetic_of_the_reference_counts_its_video_and_its_text(
    result: dict[str, Any],
) -> None:
    predicted = result["predicted"]
    ours = predicted["text_tflop"] + predicted["image_tflop"] + 4 * predicted["forward_tflop"]
    assert predicted["action_tflop"] == pytest.approx(ours, abs=2e-3)
    assert predicted["reference_tflop"] > predicted["action_tflop"]
    assert predicted["ratio"] > 1 and 1 < predicted["over_floor"] < predicted["ratio"]


def test_the_policy_that_ships_is_measured_without_a_reference(tmp_path: Path) -> None:
    out = tmp_path / "bench_plan.json"
    words = ["--case", "plan_pico", "--repeats", "5", "--threads", "1", "--out", str(out)]
    assert bench.main(["plan", *words]) == 0
    found = json.loads(out.read_text())["plan_pico"]
    assert found["forwards"] == 4 and found["threads"] == 1
    assert 0 < found["floor_ms"]["min"] < found["action_ms"]["min"]
    assert not [key for key in found if "reference" in key or key in ("ratio", "predicted")]
    assert "over_floor" in bench_plan.table({"plan_pico": found})


def test_arrays_made_for_a_plan_are_counted() -> None:
    kept = []
    made = bench_plan.allocations(lambda: kept.append(np.ones(250_000)))
    assert made["peak_bytes"] == pytest.approx(2_000_000, rel=0.01)
    assert bench_plan.allocations(lambda: None)["peak_bytes"] < 10_000


def test_the_table_names_what_dominates_and_what_was_predicted(result: dict[str, Any]) -> None:
    text = bench_plan.table({"plan_tiny": result})
    assert "plan_tiny: 4 forwards of" in text
    assert f"arithmetic: {result['predicted']['ratio']:.2f}" in text
    off = {**result, "ratio": result["predicted"]["ratio"] * 1.5}
    assert "(+50%), see docs/benchmarks.md" in bench_plan.table({"plan_tiny": off})
