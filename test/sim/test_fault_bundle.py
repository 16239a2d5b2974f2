"""The bundle of the fault run: one instruction makes its model say NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import TOKENIZER
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.plan import Observation, Plan, PlanError, Policy, draw_noise
from cosmos3_ros.resources import resource
from cosmos3_ros.sim.fault_bundle import poisoned_copy

PICO = resource("engines", "pico")


def test_one_instruction_makes_the_action_rows_nan_and_those_after_it_are_as_before(
    tmp_path: Path,
) -> None:
    bundle = poisoned_copy(PICO, tmp_path / "copy", "touch the zebra", ["touch the red cube"])
    contract = bundle.manifest.contract
    embodiment = load_embodiment(contract.embodiment)
    engine = open_backend(bundle, "onnxruntime", 1)
    tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
    policy = Policy(contract, embodiment, engine, tokenizer)
    grey = {v.name: np.full((v.height, v.width, 3), 128, np.uint8) for v in embodiment.cameras}

    def plan(instruction: str) -> Plan:
        noise = draw_noise(contract, np.random.default_rng(0))
        prompt = policy.prefill(instruction)
        return policy.plan(Observation(grey, embodiment.offset), prompt, noise)

    before = plan("touch the red cube")
    with pytest.raises(PlanError, match="the engine returned NaN"):
        plan("touch the zebra")
    # All but the state's row, which is given.
    assert np.isnan(engine.read("rows")[1:, : contract.width]).all()
    assert (plan("touch the red cube").rows == before.rows).all()
    engine.close()


def test_an_instruction_of_the_words_of_others_cannot_be_the_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'touch the red cube' has no token of its own"):
        poisoned_copy(PICO, tmp_path / "copy", "touch the red cube", ["touch the red cube now"])
