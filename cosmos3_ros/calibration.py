"""Observations of a bag, and what the quantised layers of a model see while planning from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from cosmos3_ros.policy.embodiment import JOINT_POSITION, Embodiment
from cosmos3_ros.policy.plan import Observation, Policy, draw_noise
from cosmos3_ros.replay.bags import Bag, Message, open_bag
from cosmos3_ros.replay.pictures import ENCODINGS, camera_topics, readable_picture

if TYPE_CHECKING:
    from cosmos3_ros.engine.export import Calibration
    from cosmos3_ros.engine.export_contract import Body
    from cosmos3_ros.engine.recipe import Recipe

OBSERVATIONS = 8
_SEED = 0


class CalibrationError(ValueError):
    """A bag does not hold the observations that a calibration needs."""


@dataclass(frozen=True)
class Moment:
    """An observation of a bag, and the instruction that held then."""

    observation: Observation
    instruction: str


def calibrate(
    recipe: Recipe,
    embodiment: Embodiment,
    body: Body,
    checkpoint: Path | None,
    bag: Path,
    observations: int = OBSERVATIONS,
    instruction: str | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Calibration:
    """Plan from observations spread evenly over a bag, and see how large activations grow.

    ``instruction`` replaces the bag's. ``progress`` is told how many plans are done. Raises
    CalibrationError, BagError or RecipeError where bag, embodiment and checkpoint do not fit.
    """
    with open_bag(bag) as opened:
        moments = read_moments(opened, embodiment, observations, instruction)
    from cosmos3_ros.engine.export_calibrate import CalibratingEngine

    engine = CalibratingEngine(recipe, body, checkpoint)
    tokenizer = Tokenizer.from_str(engine.tokenizer_json)
    policy = Policy(engine.contract, embodiment, engine, tokenizer)
    rng = np.random.default_rng(_SEED)
    prompt = None
    for index, moment in enumerate(moments):
        if prompt is None or prompt.instruction != moment.instruction:
            prompt = policy.prefill(moment.instruction)
        policy.plan(moment.observation, prompt, draw_noise(engine.contract, rng))
        progress(index + 1)
    return engine.calibration(bag.name, len(moments))


def read_moments(
    bag: Bag, embodiment: Embodiment, count: int, instruction: str | None = None
) -> list[Moment]:
    """``count`` observations, spread evenly over the pictures of the embodiment's first camera.

    An observation holds the newest of everything at that time, as a robot's would. Raises
    CalibrationError naming what is missing.
    """
    topics = _topics(bag, embodiment, instruction)
    complete = sum(1 for _ in _complete(bag, topics))
    if not 1 <= count <= complete:
        raise CalibrationError(
            f"bag '{bag.path}' has {complete} observations of embodiment '{embodiment.name}' and "
            f"{count} are asked for; expected --observations from 1 to {complete}"
        )
    chosen = set(np.linspace(0, complete - 1, count).round().astype(int).tolist())
    return [
        latest.moment() for index, latest in enumerate(_complete(bag, topics)) if index in chosen
    ]


@dataclass(frozen=True)
class _Topics:
    """The topics of a bag that observations are made of. ``cameras``: camera names by topic."""

    embodiment: Embodiment
    cameras: Mapping[str, str]
    joint_states: Sequence[str]
    joints: Sequence[str]
    instructions: Sequence[str]
    instruction: str | None


class _Latest:
    """The newest message of every camera, position of every joint, and instruction."""

    def __init__(self, topics: _Topics) -> None:
        self.topics = topics
        self.pictures: dict[str, Message] = {}
        self.positions: dict[str, float] = {}
        self.instruction = topics.instruction

    @property
    def is_complete(self) -> bool:
        has_pictures = self.pictures.keys() >= self.topics.cameras.keys()
        return has_pictures and self._has_joints and bool(self.instruction)

    @property
    def _has_joints(self) -> bool:
        return self.positions.keys() >= set(self.topics.joints)

    def take(self, message: Message) -> None:
        if message.topic in self.topics.cameras:
            self.pictures[message.topic] = message
        elif message.topic in self.topics.joint_states:
            joints = message.decoded()
            if len(joints.name) != len(joints.position):
                raise CalibrationError(
                    f"topic '{message.topic}': the message stamped {message.stamp_ns} ns has "
                    f"{len(joints.name)} names and {len(joints.position)} positions; expected a "
                    "position for each name: calibrate with another bag"
                )
            self.positions |= dict(zip(joints.name, joints.position.tolist(), strict=True))
        elif self.topics.instruction is None:
            self.instruction = str(message.decoded().data).strip()

    def moment(self) -> Moment:
        gripper = self.topics.embodiment.gripper
        state = [
            gripper.closedness(self.positions[joint])
            if gripper and joint == gripper.joint
            else self.positions[joint]
            for joint in self.topics.joints
        ]
        images = {name: self._picture(topic) for topic, name in self.topics.cameras.items()}
        return Moment(Observation(images, np.array(state)), str(self.instruction))

    def _picture(self, topic: str) -> np.ndarray:
        message = self.pictures[topic]
        picture = readable_picture(message.decoded())
        if picture is None:
            raise CalibrationError(
                f"topic '{topic}': the picture stamped {message.stamp_ns} ns cannot be read; "
                f"expected {', '.join(ENCODINGS)}, or a JPEG or PNG"
            )
        return picture


def _complete(bag: Bag, topics: _Topics) -> Iterator[_Latest]:
    """What a robot would know at each picture of the first camera, once it knows everything."""
    latest, first = _Latest(topics), next(iter(topics.cameras))
    for message in bag.messages([*topics.cameras, *topics.joint_states, *topics.instructions]):
        latest.take(message)
        if message.topic == first and latest.is_complete:
            yield latest


def _topics(bag: Bag, embodiment: Embodiment, instruction: str | None) -> _Topics:
    if embodiment.action_space != JOINT_POSITION:
        raise CalibrationError(
            f"embodiment '{embodiment.name}' has action space '{embodiment.action_space}'; "
            f"expected '{JOINT_POSITION}', whose state joint_states tells"
        )
    found = camera_topics(bag)
    lacking = [view.name for view in embodiment.cameras if view.name not in found]
    if lacking:
        raise CalibrationError(
            f"bag '{bag.path}' has no pictures of camera {_named(lacking)}, which embodiment "
            f"'{embodiment.name}' needs; it has {_named(sorted(found))} (topics camera/NAME/image)"
        )
    joints, joint_states = _joints(embodiment), bag.named("joint_states")
    told: set[str] = set()
    for message in bag.messages(joint_states):
        told.update(message.decoded().name)
    lacking = [joint for joint in joints if joint not in told]
    if lacking:
        raise CalibrationError(
            f"bag '{bag.path}' has no positions of joint {_named(lacking)}, which embodiment "
            f"'{embodiment.name}' needs; its joint_states name {_named(sorted(told))}"
        )
    instructions = bag.named("instruction")
    if instruction is None and not any(bag.topics[topic].count for topic in instructions):
        raise CalibrationError(
            f"bag '{bag.path}' has no instruction; record the topic 'instruction', or give "
            "--instruction TEXT"
        )
    cameras = {found[view.name]: view.name for view in embodiment.cameras}
    return _Topics(embodiment, cameras, joint_states, joints, instructions, instruction)


def _joints(embodiment: Embodiment) -> list[str]:
    """The joint of every channel."""
    gripper, arm = embodiment.gripper, iter(embodiment.joints)
    return [
        gripper.joint if gripper and name == gripper.channel else next(arm)
        for name in embodiment.channel_names
    ]


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
