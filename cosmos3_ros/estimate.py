"""How long a plan would take on a GPU, from counted operations and bytes: an estimate, no more.

The rates are what is sustained, not what a data sheet promises: those of BF16 follow from the
vendor's own times for text-to-video on this model, those of FP8 and NVFP4 from the same table's
ratio on its linear layers. None was measured with this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cosmos3_ros.engine.graph_cost import GraphCost
from cosmos3_ros.engine.session import Sampler

_TERA = 1e12


class UnknownGpu(ValueError):
    """No estimate for this GPU."""


@dataclass(frozen=True)
class Rates:
    """``flops``: sustained operations a second by precision. ``bandwidth``: bytes a second."""

    flops: Mapping[str, float]
    bandwidth: float


GPUS = {
    "RTX PRO 6000 Blackwell": Rates(
        flops={
            "bf16": 300 * _TERA,
            "fp16": 300 * _TERA,
            "fp8": 530 * _TERA,
            "nvfp4": 850 * _TERA,
        },
        bandwidth=1.79e12,
    ),
}


def rates_of(gpu: str) -> Rates:
    """Raises UnknownGpu with those that are known."""
    for name, rates in GPUS.items():
        if name.lower() == gpu.lower():
            return rates
    raise UnknownGpu(f"GPU '{gpu}' is not known; expected one of: {', '.join(GPUS)}")


def run_s(cost: GraphCost, precision: str, rates: Rates) -> float | None:
    """Time of one run of a graph [s]: as long as its operations or its weights take, the longer.

    None where nothing is known of the precision (float32).
    """
    usual = {"fp8": "bf16", "nvfp4": "bf16"}.get(precision, precision)
    if usual not in rates.flops:
        return None
    quantisations = {quantisation for _, quantisation in cost.flops}
    computing = sum(
        cost.of_quantisation(quantisation) / rates.flops[quantisation or usual]
        for quantisation in quantisations
    )
    return max(computing, cost.weight_bytes / rates.bandwidth)


def plan_s(runs: Mapping[str, float], sampler: Sampler) -> float:
    """Time of a plan [s]: ``runs`` holds one run of each graph.

    A picture encoded, the forwards, and the sampler's sum before the first step and after each.
    """
    return runs["image"] + sampler.forwards * runs["denoise"] + (sampler.steps + 1) * runs["step"]
