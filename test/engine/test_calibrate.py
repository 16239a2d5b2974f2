"""Calibration: observations out of a bag, and the ranges that real plans reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import recordings
import torch
from bundles import SIM_PANDA, TINY
from tokenizers import Tokenizer
from torch import nn

from cosmos3_ros.calibration import CalibrationError, calibrate, read_moments
from cosmos3_ros.cli import main
from cosmos3_ros.engine.bundle import load_bundle
from cosmos3_ros.engine.export_calibrate import CalibratingEngine
from cosmos3_ros.engine.export_model import make_components
from cosmos3_ros.engine.export_reference import Start, stock_plan
from cosmos3_ros.engine.recipe import load_recipe
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.canvas import Composer, Fitter
from cosmos3_ros.policy.embodiment import Embodiment, load_embodiment
from cosmos3_ros.policy.plan import draw_noise
from cosmos3_ros.policy.prompt import caption, tokenize
from cosmos3_ros.replay.bags import BagWriter, open_bag

CAMERA = "/camera/front/image"
PICTURES, STEP_NS = 11, 100_000_000
INSTRUCTION = "Pick up the pen."


@pytest.fixture
def embodiment() -> Embodiment:
    return load_embodiment(SIM_PANDA)


WriteBag = Callable[..., Path]


@pytest.fixture
def write_bag(tmp_path: Path, embodiment: Embodiment) -> WriteBag:
    """Writes a bag whose picture i has brightness 10 i and whose joints stand at i / 100."""
    gripper = embodiment.gripper
    assert gripper is not None
    (camera,) = [view.name for view in embodiment.cameras]

    def write(
        camera: str = camera,
        compressed: bool = False,
        joints: tuple[str, ...] = (*embodiment.joints, gripper.joint),
        instruction: str | None = INSTRUCTION,
        damaged: bool = False,
        positions_short: int = 0,
    ) -> Path:
        picture = f"/camera/{camera}/image" + ("/compressed" if compressed else "")
        kind = "CompressedImage" if compressed else "Image"
        topics = {picture: f"sensor_msgs/msg/{kind}", "/joint_states": "sensor_msgs/msg/JointState"}
        if instruction is not None:
            topics["/instruction"] = "std_msgs/msg/String"
        path = tmp_path / "bag.mcap"
        encode = recordings.compressed_image if compressed else recordings.image
        with BagWriter(path, topics) as bag:
            if instruction is not None:
                bag.write("/instruction", 0, recordings.string(instruction))
            for i in range(PICTURES):
                stamp = 1_000_000_000 + i * STEP_NS
                rgb = np.full((48, 64, 3), 10 * i, np.uint8)
                raw = encode(stamp, rgb)
                if damaged:
                    raw = raw.replace(b"rgb8", b"yuv9")
                bag.write(picture, stamp, raw)
                # After the picture: an observation has the joints of the step before.
                positions = [i / 100] * (len(joints) - positions_short)
                state = recordings.joint_state(stamp + 1, list(joints), positions)
                bag.write("/joint_states", stamp + 1, state)
        return path

    return write


@pytest.mark.parametrize("compressed", [False, True])
def test_observations_are_spread_over_the_bag_and_hold_the_newest_of_everything(
    compressed: bool, write_bag: WriteBag, embodiment: Embodiment
) -> None:
    with open_bag(write_bag(compressed=compressed)) as bag:
        moments = read_moments(bag, embodiment, 4)
    # Picture 0 has no joints before it; 1, 4, 7 and 10 are the ends and what divides the rest.
    (name,) = [view.name for view in embodiment.cameras]
    brightness = [float(m.observation.images[name].mean()) for m in moments]
    np.testing.assert_allclose(brightness, [10, 40, 70, 100], atol=2)
    assert {m.instruction for m in moments} == {INSTRUCTION}
    gripper = embodiment.gripper
    assert gripper is not None
    for moment, index in zip(moments, (0, 3, 6, 9), strict=True):
        expected = [index / 100] * 7 + [gripper.closedness(index / 100)]
        np.testing.assert_allclose(moment.observation.state, expected)


def test_a_given_instruction_replaces_the_bags(write_bag: WriteBag, embodiment: Embodiment) -> None:
    with open_bag(write_bag(instruction=None)) as bag:
        (moment,) = read_moments(bag, embodiment, 1, "Wave.")
    assert moment.instruction == "Wave."


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        ({"camera": "wrong"}, 1, r"no pictures of camera 'exterior'.*it has 'wrong'"),
        ({"joints": ("panda_joint1",)}, 1, r"no positions of joint 'panda_joint2'"),
        ({"instruction": None}, 1, "has no instruction; record the topic"),
        ({}, 11, "has 10 observations .* and 11 are asked for"),
        ({}, 0, "and 0 are asked for; expected --observations from 1 to 10"),
        ({"positions_short": 1}, 1, "'/joint_states': .* has 8 names and 7 positions; expected a"),
        ({"damaged": True}, 1, r"the picture stamped \d+ ns cannot be read"),
    ],
)
def test_a_bag_that_lacks_what_the_embodiment_needs_is_refused_by_name(
    changes: dict[str, object],
    count: int,
    message: str,
    write_bag: WriteBag,
    embodiment: Embodiment,
) -> None:
    (name,) = [view.name for view in embodiment.cameras]
    with (
        open_bag(write_bag(**changes)) as bag,
        pytest.raises(CalibrationError, match=message.replace("'exterior'", f"'{name}'")),
    ):
        read_moments(bag, embodiment, count)


def test_ranges_are_those_that_the_stock_model_reaches_on_the_same_plan(
    write_bag: WriteBag, embodiment: Embodiment
) -> None:
    recipe, path = load_recipe(TINY), write_bag()
    found = calibrate(recipe, embodiment, body_of(embodiment), None, path, 1)
    assert (found.source, found.observations) == ("bag.mcap", 1)

    components = make_components(recipe, None)
    engine = CalibratingEngine(recipe, body_of(embodiment), None)
    contract = engine.contract
    with open_bag(path) as bag:
        (moment,) = read_moments(bag, embodiment, 1)
    tokenizer = Tokenizer.from_str(engine.tokenizer_json)
    noise = draw_noise(contract, np.random.default_rng(0))
    clean, noisy = np.zeros_like(noise.rows), np.ones((contract.rows, 1), np.float32)
    clean[0, : contract.width] = embodiment.to_model(moment.observation.state)
    noisy[0] = 0
    seen: dict[str, float] = {}
    watch(components.transformer, seen)
    picture = Composer(embodiment)(moment.observation.images)
    stock_plan(
        components,
        contract,
        Fitter(*picture.shape[:2], contract)(picture),
        tokenize(caption(INSTRUCTION, embodiment, contract), tokenizer, contract.prompting),
        tokenize("", tokenizer, contract.prompting),
        Start(noise.latents, noise.rows, clean, noisy, np.zeros_like(noisy)),
    )
    layers = [name for name in seen if "add_" in name or "moe_gen" in name]
    assert len(layers) == 14
    for name in layers:
        assert found.ranges[f"{name}.weight"] == pytest.approx(seen[name], rel=1e-4), name


def test_a_layer_holds_its_weights_while_it_runs_and_no_longer(embodiment: Embodiment) -> None:
    engine = CalibratingEngine(load_recipe(TINY), body_of(embodiment), None)
    text = engine._modules["text"]
    held: list[int] = []
    layer = text.layers[0].self_attn.to_k
    layer.register_forward_pre_hook(lambda *_: held.append(bytes_of(layer)))
    text(torch.zeros(engine.contract.prompting.text_tokens, dtype=torch.int64))
    assert held == [4 * layer.in_features * layer.out_features]
    assert all(
        bytes_of(module) <= 4 * len(list(module.parameters(recurse=False)))
        for module in text.modules()
    )


def test_an_export_with_a_bag_is_calibrated_and_warns_of_nothing(
    write_bag: WriteBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = TINY.with_name("tiny_fp8.yaml"), tmp_path / "bundle"
    arguments = ["--calibrate", str(write_bag()), "--observations", "2"]
    assert main(["export", str(recipe), "--out", str(out), *arguments]) == 0
    manifest = load_bundle(out).manifest
    assert manifest.quantisation is not None
    how = manifest.quantisation
    assert (how.ranges, how.source, how.observations) == ("calibrated", "bag.mcap", 2)
    assert manifest.warnings == ()
    assert "warning" not in capsys.readouterr().out


def test_calibrating_what_is_not_quantised_is_refused(
    write_bag: WriteBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(TINY), "--out", str(tmp_path / "b"), "--calibrate", str(write_bag())]
    assert main(["export", *arguments]) == 1
    assert "recipe 'tiny' is fp32: nothing is calibrated" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["observations", "instruction"])
def test_what_belongs_to_a_calibration_is_refused_without_one(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(TINY), "--out", str(tmp_path / "b"), f"--{option}", "4"]
    assert main(["export", *arguments]) == 1
    assert f"--{option} is for a calibration and there is none" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def watch(transformer: nn.Module, seen: dict[str, float]) -> None:
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear):

            def look(_: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                seen[name] = max(seen.get(name, 0.0), float(inputs[0].abs().max()))

            layer.register_forward_pre_hook(look)


def bytes_of(module: nn.Module) -> int:
    return sum(p.untyped_storage().nbytes() for p in module.parameters(recurse=False))
