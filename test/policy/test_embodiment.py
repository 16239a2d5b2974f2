"""Embodiments: every domain of the model's contract, and clear refusals of a bad file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import (
    _EMBODIMENT_TO_DOMAIN_ID,
    _EMBODIMENT_TO_RAW_ACTION_DIM,
)
from hypothesis import given
from hypothesis import strategies as st

from cosmos3_ros.policy.embodiment import (
    Channel,
    Embodiment,
    EmbodimentError,
    embodiment_names,
    load_embodiment,
)

# Domain, id and width of the public contract.
CONTRACT = {
    "av": ("av", 1, 9),
    "camera_pose": ("camera_pose", 2, 9),
    "hand_pose": ("hand_pose", 3, 57),
    "pusht": ("pusht", 4, 2),
    "libero_7": ("libero", 5, 7),
    "libero_10": ("libero", 5, 10),
    "libero_13": ("libero", 5, 13),
    "umi": ("umi", 6, 10),
    "bridge_orig_lerobot": ("bridge_orig_lerobot", 7, 10),
    "droid_lerobot": ("droid_lerobot", 8, 10),
    "droid_joint_pos": ("droid_lerobot", 8, 8),
    "robomind_franka": ("robomind-franka", 8, 10),
    "galbot": ("galbot", 9, 30),
    "robomind_franka_dual": ("robomind-franka-dual", 12, 20),
    "robomind_ur": ("robomind-ur", 13, 10),
    "agibotworld": ("agibotworld", 15, 29),
    "agibot_gear_gripper": ("agibot_gear_gripper", 15, 29),
    "agibot_gear_gripper_ext": ("agibot_gear_gripper_ext", 15, 29),
    "fractal": ("fractal", 20, 10),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_every_domain_of_the_contract_has_its_id_and_width(name: str) -> None:
    embodiment = load_embodiment(name)
    assert (embodiment.domain, embodiment.domain_id, embodiment.width) == CONTRACT[name]
    assert embodiment.domain_id == _EMBODIMENT_TO_DOMAIN_ID[embodiment.domain]
    if embodiment.domain not in ("libero",) and name != "droid_joint_pos":
        assert embodiment.width == _EMBODIMENT_TO_RAW_ACTION_DIM[embodiment.domain]


@pytest.mark.parametrize("name", embodiment_names())
def test_every_shipped_file_loads_under_its_own_name(name: str) -> None:
    assert load_embodiment(name).name == name


def test_no_domain_that_diffusers_knows_is_missing() -> None:
    ours = {load_embodiment(name).domain for name in embodiment_names()}
    assert set(_EMBODIMENT_TO_DOMAIN_ID) - ours == {"no_action"}


@given(st.lists(st.floats(-3, 3), min_size=8, max_size=8))
def test_model_and_physical_units_are_inverse(values: list[float]) -> None:
    embodiment = load_embodiment("sim_panda")
    assert np.allclose(embodiment.to_physical(embodiment.to_model(np.array(values))), values)


def test_the_gripper_of_the_released_policy_is_one_minus_closedness_both_ways() -> None:
    embodiment = load_embodiment("droid_joint_pos")
    open_hand, closed_hand = np.zeros(8), np.zeros(8)
    closed_hand[7] = 1.0
    assert embodiment.to_model(open_hand)[7] == 1.0
    assert embodiment.to_model(closed_hand)[7] == 0.0
    assert embodiment.to_physical(embodiment.to_model(closed_hand))[7] == 1.0


def test_quantiles_scale_minus_one_to_one_onto_themselves(tmp_path: Path) -> None:
    text = load_text("pusht") + "quantiles: {position_x: [-2.0, 6.0], position_y: [0.0, 1.0]}\n"
    embodiment = load_embodiment(write(tmp_path, text))
    assert embodiment.to_physical(np.array([-1.0, -1.0])).tolist() == [-2.0, 0.0]
    assert embodiment.to_physical(np.array([1.0, 1.0])).tolist() == [6.0, 1.0]


@pytest.mark.parametrize(
    ("quantiles", "message"),
    [
        ("{position_x: [1]}", "quantiles of position_x holds 1 values; expected 2"),
        ("{position_x: [0.0, top]}", "quantiles of position_x is 'top'; expected a number"),
        ("[0.0, 1.0]", "quantiles are a list; expected channel: "),
        ("{position_x: [1.0, 0.0]}", "expected q01 < q99"),
        ("{x: [0.0, 1.0]}", "quantiles names x; expected names of its channels: position_x"),
    ],
)
def test_quantiles_that_are_none_are_refused(quantiles: str, message: str, tmp_path: Path) -> None:
    text = load_text("pusht") + f"quantiles: {quantiles}\n"
    with pytest.raises(EmbodimentError, match=message):
        load_embodiment(write(tmp_path, text))


def test_channels_without_quantiles_are_refused_by_name() -> None:
    with pytest.raises(EmbodimentError, match=r"pusht.*position_x, position_y.*quantiles"):
        load_embodiment("pusht").to_physical(np.zeros(2))


def test_the_gripper_joint_maps_onto_closedness() -> None:
    gripper = load_embodiment("sim_panda").gripper
    assert gripper is not None
    assert gripper.closedness(0.04) == 0.0
    assert gripper.closedness(0.0) == 1.0
    assert gripper.joint_position(0.25) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rate_hz: 15.0", "rate: 15.0"), "unknown keys .'rate'"),
        (("domain_id: 8", "domain: 8"), "lacks .'domain_id'"),
        (("joint_position", "joint_torque"), "action_space is 'joint_torque'; expected one of"),
        (("view_point: third", "view_point: fourth"), "view_point is 'fourth_person_view'"),
        (("width: 128, height: 96}\nc", "width: 129, height: 96}\nc"), "camera exterior lies out"),
        (("panda_joint7]", "]"), "6 joints for 7 joint channels"),
        (("joint_2", "joint_1"), "two channels have one name"),
        (("channel: gripper", "channel: hand"), "gripper.channel is 'hand'"),
        (("closed: 0.0", "closed: 0.04"), "gripper.open equals gripper.closed"),
        (("scale: 0.199934", "scale: 0"), "channel joint_1 has scale 0"),
        (("lower: -1.7", "lower: 1.8"), "channel joint_2 has lower 1.8"),
        (("domain: droid", "\tdomain: droid"), "is not YAML"),
        (("domain_id: 8", "domain_id: eight"), "domain_id is 'eight'; expected a whole number"),
        (("rate_hz: 15.0", "rate_hz: fast"), "rate_hz is 'fast'; expected a number"),
        (("scale: 0.199934", "scale: [1]"), "channel joint_1: scale is '.1.'; expected a number"),
        (("closed: 0.0", "closed: shut"), "gripper.closed is 'shut'; expected a number"),
        (("joints: [", "joints: 7 # ["), "joints is a int; expected a list"),
        (("normalisation: affine", "normalisation: none"), "joint_1 has an offset or a scale and"),
        (("normalisation: affine", "normalisation: quantile"), "is 'quantile', which does not use"),
        (
            ("domain_id: 8", "domain_id: 8\nquantiles: {joint_1: [-2.0, 2.5]}"),
            "quantiles are given and normalisation is 'affine', which does not use them",
        ),
    ],
)
def test_a_bad_file_is_refused_with_what_was_found_and_expected(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    text = load_text("sim_panda")
    assert change[0] in text
    path = write(tmp_path, text.replace(change[0], change[1], 1).replace("panda_joint7, ]", "]"))
    with pytest.raises(EmbodimentError, match=message) as refusal:
        load_embodiment(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("name", ["droid_joint_pos", "droid_exterior", "pico_panda", "sim_panda"])
def test_an_arm_that_is_ready_to_run_has_every_limit(name: str) -> None:
    load_embodiment(name).require_limits()


def test_one_camera_less_changes_no_limit() -> None:
    assert load_embodiment("droid_exterior").channels == load_embodiment("droid_joint_pos").channels


@pytest.mark.parametrize("key", ["lower", "upper", "velocity", "acceleration", "jump"])
def test_a_joint_without_a_limit_is_refused_by_its_name_and_key(key: str) -> None:
    arm = load_embodiment("sim_panda")
    channels = list(arm.channels)
    channels[1] = replace(channels[1], **{key: -math.inf if key == "lower" else math.inf})
    with pytest.raises(EmbodimentError, match=rf"has no limit of joint_2 \({key}\); expected"):
        replace(arm, channels=tuple(channels)).require_limits()


def test_poses_need_limits_and_what_stands_beside_them_does_not(tmp_path: Path) -> None:
    with pytest.raises(EmbodimentError, match=r"position_x \(velocity, acceleration, jump\)") as no:
        load_embodiment("umi").require_limits()
    assert "rotation_6 (velocity" in str(no.value) and "turn_velocity" in str(no.value)
    assert "gripper_width" not in str(no.value) and "\n" not in str(no.value)
    limits = "velocity: 0.5, acceleration: 2.0, jump: 0.1"
    turns = "turn_velocity: 1.5, turn_acceleration: 6.0, turn_jump: 0.6"
    text = load_text("umi")
    load_embodiment(
        write(tmp_path, text.replace("block: pose", f"block: pose, {limits}, {turns}"))
    ).require_limits()
    with pytest.raises(EmbodimentError, match=r"has no limit of rotation_1 \(velocity,"):
        load_embodiment(
            write(tmp_path, text.replace("block: pose", f"block: pose, {limits}"))
        ).require_limits()


def test_a_base_needs_a_range_and_how_fast_its_velocity_may_change() -> None:
    def base(**limits: float) -> Embodiment:
        channels = (Channel("linear_x", "m/s", **limits),)
        return replace(load_embodiment("pusht"), action_space="base_velocity", channels=channels)

    base(lower=-0.5, upper=0.5, velocity=1.0).require_limits()
    with pytest.raises(EmbodimentError, match=r"has no limit of linear_x \(upper, velocity\)"):
        base(lower=-0.5).require_limits()


def test_limits_are_no_part_of_what_a_checkpoint_was_trained_on() -> None:
    arm = load_embodiment("sim_panda")
    free = replace(arm, channels=tuple(replace(c, jump=9.0, velocity=9.0) for c in arm.channels))
    assert free.meaning == arm.meaning


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(EmbodimentError, match=r"'panda' is not known.*droid_joint_pos"):
        load_embodiment("panda")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmbodimentError, match="does not exist"):
        load_embodiment(tmp_path / "arm.yaml")


def load_text(name: str) -> str:
    from cosmos3_ros.resources import resource

    return resource("config", "embodiments", f"{name}.yaml").read_text()


def write(folder: Path, text: str) -> Path:
    path = folder / "arm.yaml"
    path.write_text(text)
    return path
