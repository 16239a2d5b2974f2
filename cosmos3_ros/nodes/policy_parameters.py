"""The parameters of the policy node."""

from __future__ import annotations

from dataclasses import dataclass

from cosmos3_ros.control.overlap import Strategy
from cosmos3_ros.engine.backends import BACKENDS
from cosmos3_ros.nodes.parameters import depth_parameter, parameter, reliability_parameter


@dataclass(frozen=True)
class PolicyParameters:
    """Parameters of the policy node, read when it is configured."""

    bundle: str = parameter("", "Folder of the bundle, written by 'cosmos3 export'.")
    backend: str = parameter("onnxruntime", "Who runs the graphs.", choices=BACKENDS)
    threads: int = parameter(
        0, "CPU threads of the engine; 0: one a core.", "threads", minimum=0, maximum=256
    )
    engine_rebuild: bool = parameter(
        False, "TensorRT: compile engines that are missing or do not fit, which takes minutes."
    )
    engine_cuda_graphs: bool = parameter(
        True, "TensorRT: replay each plan as one CUDA graph; without is slower."
    )
    embodiment: str = parameter("", "Embodiment name or file; empty: the bundle's own.")
    joint_names: tuple[str, ...] = parameter(
        (), "The robot's arm joints in channel order; empty: the embodiment's."
    )
    gripper_source: str = parameter(
        "joint",
        "Where closedness comes from: the gripper's joint, or the topic gripper_state.",
        choices=("joint", "topic"),
    )
    image_transport: str = parameter(
        "raw", "Camera topics: Image, or CompressedImage.", choices=("raw", "compressed")
    )
    image_reliability: str = reliability_parameter("the cameras", "best_effort")
    image_depth: int = depth_parameter("each camera", 1)
    joint_states_reliability: str = reliability_parameter("joint_states and gripper_state")
    joint_states_depth: int = depth_parameter("joint_states and gripper_state", 10)
    predicted_frame_reliability: str = reliability_parameter("predicted_frame")
    camera_skew_s: float = parameter(
        0.05, "Cameras further apart in time are refused.", "s", minimum=0.0, maximum=10.0
    )
    observation_max_age_s: float = parameter(
        0.5, "Pictures older than this are refused.", "s", minimum=0.001, maximum=60.0
    )
    joint_skew_s: float = parameter(
        0.1, "Joint states further from the picture are refused.", "s", minimum=0.001, maximum=10.0
    )
    plan_rate_hz: float = parameter(
        0.0,
        "At most so many plans a second of the clock, but at once by a new instruction; 0: "
        "whenever free.",
        "Hz",
        minimum=0.0,
        maximum=100.0,
    )
    strategy: str = parameter(
        "blend",
        "How plans follow each other: finish one and wait for the next; plan on and blend; plan on "
        "from the rows that will be executed meanwhile.",
        choices=tuple(Strategy),
    )
    state_ahead: bool = parameter(
        False, "Plan from where the arm will be when the plan arrives, not from where it is."
    )
    added_latency_s: float = parameter(
        0.0,
        "Each plan is held back so long, to try what a slower model does.",
        "s",
        minimum=0.0,
        maximum=10.0,
    )
    predicted_frame_rate_hz: float = parameter(
        2.0, "Predicted frames a second; 0: none.", "Hz", minimum=0.0, maximum=60.0
    )
    predicted_frame_rows: int = parameter(
        1, "How far ahead a predicted frame looks.", "rows", minimum=1, maximum=64
    )
    seed: int = parameter(
        -1, "Seed of the sampler's noise; -1: another each run.", minimum=-1, maximum=2**31 - 1
    )
