"""Embodiments: what each action channel means on a robot, and how its cameras share the canvas.

An embodiment is a YAML file in ``config/embodiments``. It names the weight set of the action head
(the domain), the channels with their units, limits and normalisation, the robot's joints, and the
place of every camera view on the canvas. Nothing about a robot stands in code.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cosmos3_ros.resources import resource

JOINT_POSITION, POSE_DELTA, BASE_VELOCITY = "joint_position", "pose_delta", "base_velocity"
ACTION_SPACES = (
    JOINT_POSITION,
    POSE_DELTA,
    BASE_VELOCITY,
    "planar_position",
    "keypoint_delta",
    "opaque",
)
NORMALISATIONS = ("none", "affine", "quantile")
VIEW_POINTS = ("ego_view", "third_person_view", "wrist_view", "concat_view")

_AXES = ("x", "y", "z")
_FINGERS = ("thumb", "index", "middle", "ring", "little")
# The blocks that the unified action representation is composed of: a pose is a translation and
# the first two columns of a rotation matrix, a grasp is the closedness of a gripper, fingertips
# are five points.
BLOCKS: dict[str, tuple[tuple[str, str], ...]] = {
    "pose": (
        *((f"position_{a}", "m") for a in _AXES),
        *((f"rotation_{i}", "1") for i in range(1, 7)),
    ),
    "grasp": (("gripper", "1"),),
    "fingertips": tuple((f"{f}_{a}", "m") for f in _FINGERS for a in _AXES),
}
# What a channel that moves a robot must have a limit of. A base's channels are velocities: how fast
# it may go is their range, how fast that may change their velocity.
_MOTION = ("velocity", "acceleration", "jump")
_JOINT_MOTION = ("lower", "upper", *_MOTION)
_BASE_MOTION = ("lower", "upper", "velocity")


class EmbodimentError(ValueError):
    """An embodiment file is missing, malformed, or cannot do what is asked of it."""


@dataclass(frozen=True)
class Channel:
    """One action channel. ``physical = model * scale + offset``; limits are physical.

    ``jump``: how far from where it is a plan may begin. Of the channels of a pose, a delta, limits
    are those of the pose it leads to: ``velocity``, ``acceleration`` and ``jump`` of a rotation's
    channels are those of the turn [rad].
    ``scale`` is NaN for a channel normalised by quantiles that the file does not give.
    """

    name: str
    unit: str
    offset: float = 0.0
    scale: float = 1.0
    lower: float = -math.inf
    upper: float = math.inf
    velocity: float = math.inf
    acceleration: float = math.inf
    jump: float = math.inf


@dataclass(frozen=True)
class Gripper:
    """A gripper joint whose value runs from ``open`` to ``closed`` [rad or m].

    The channel it drives holds closedness: 0 open, 1 closed. A target that differs by no more than
    ``hysteresis`` from the one before moves nothing.
    """

    channel: str
    joint: str
    open: float
    closed: float
    hysteresis: float = 0.1

    def closedness(self, joint_position: float) -> float:
        """Closedness (0 open, 1 closed) of a joint position [rad or m]."""
        return (joint_position - self.open) / (self.closed - self.open)

    def joint_position(self, closedness: float) -> float:
        """Joint position [rad or m] of a closedness (0 open, 1 closed)."""
        return self.open + closedness * (self.closed - self.open)


@dataclass(frozen=True)
class CameraView:
    """A camera and the cell of the canvas its picture fills [px]; x right, y down."""

    name: str
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Embodiment:
    """A robot as the policy sees it; see the module's docstring and ``config/embodiments``."""

    name: str
    domain: str
    domain_id: int
    description: str
    action_space: str
    normalisation: str
    rate_hz: float | None
    state_row: bool
    view_point: str
    view_detail: str
    base_frame: str
    channels: tuple[Channel, ...]
    joints: tuple[str, ...]
    gripper: Gripper | None
    cameras: tuple[CameraView, ...]
    canvas_width: int
    canvas_height: int

    @property
    def width(self) -> int:
        """Number of action channels."""
        return len(self.channels)

    @property
    def channel_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.channels)

    @property
    def channel_units(self) -> tuple[str, ...]:
        return tuple(c.unit for c in self.channels)

    @property
    def offset(self) -> np.ndarray:
        """Physical value of the model's zero, [width]."""
        return np.array([c.offset for c in self.channels])

    @property
    def scale(self) -> np.ndarray:
        """Physical units in one unit of the model, [width]."""
        return np.array([c.scale for c in self.channels])

    @property
    def lower(self) -> np.ndarray:
        """Lower limits in physical units, [width], -inf where there is none."""
        return np.array([c.lower for c in self.channels])

    @property
    def upper(self) -> np.ndarray:
        """Upper limits in physical units, [width], inf where there is none."""
        return np.array([c.upper for c in self.channels])

    @property
    def velocity(self) -> np.ndarray:
        """Speed limits in physical units a second, [width], inf where there is none."""
        return np.array([c.velocity for c in self.channels])

    @property
    def acceleration(self) -> np.ndarray:
        """Acceleration limits in physical units a second squared, [width], inf where none."""
        return np.array([c.acceleration for c in self.channels])

    @property
    def jump(self) -> np.ndarray:
        """How far from where the robot is a plan may begin, [width], inf where it may anywhere."""
        return np.array([c.jump for c in self.channels])

    @property
    def hysteresis(self) -> np.ndarray:
        """Of channels that keep a value until the next, as a gripper's; NaN of others, [width]."""
        grip = self.gripper
        held = {grip.channel: grip.hysteresis} if grip else {}
        return np.array([held.get(name, math.nan) for name in self.channel_names])

    @property
    def meaning(self) -> dict[str, str]:
        """What a checkpoint was trained on, by aspect: what its rows, pictures and captions say.

        Names of joints, limits and the gripper's stroke are the robot's own and may change.
        """
        return {
            "channels": "; ".join(
                f"{c.name} [{c.unit}] {c.scale!r} x + {c.offset!r}" for c in self.channels
            ),
            "cameras": "; ".join(
                f"{v.name} {v.width}x{v.height} at {v.x}, {v.y}" for v in self.cameras
            ),
            "canvas": f"{self.canvas_width}x{self.canvas_height}",
            "view": f"{self.view_point} {self.view_detail}".strip(),
        }

    def to_physical(self, rows: np.ndarray) -> np.ndarray:
        """Model values [..., width] to physical units."""
        self.require_normalisation()
        return rows * self.scale + self.offset

    def to_model(self, rows: np.ndarray) -> np.ndarray:
        """Physical values [..., width] to what the model takes."""
        self.require_normalisation()
        return (rows - self.offset) / self.scale

    def require_normalisation(self) -> None:
        """Raise EmbodimentError where a channel has no statistics to be scaled by."""
        missing = [c.name for c in self.channels if math.isnan(c.scale)]
        if missing:
            raise EmbodimentError(
                f"embodiment '{self.name}': channels {', '.join(missing)} are normalised by "
                "quantiles and the file gives none; add 'quantiles: {channel: [q01, q99]}' from "
                "the statistics of the data set the checkpoint was trained on"
            )

    def require_limits(self) -> None:
        """Raise EmbodimentError where a channel that moves the robot lacks a limit.

        A gripper's need none: it is told open or closed, and goes there by itself. Of pose deltas
        the poses alone move something.
        """
        needed = {JOINT_POSITION: _JOINT_MOTION, BASE_VELOCITY: _BASE_MOTION}.get(
            self.action_space, _MOTION
        )
        gripper = self.gripper.channel if self.gripper else ""
        moving = [c for c in self.channels if c.name != gripper]
        if self.action_space == POSE_DELTA:
            parts = tuple(part for part, _ in BLOCKS["pose"])
            moving = [c for c in moving if c.name.endswith(parts)]
        lacking = [
            f"{c.name} ({', '.join(missing)})"
            for c in moving
            if (missing := [key for key in needed if not math.isfinite(getattr(c, key))])
        ]
        if lacking:
            in_blocks = "; a block's are turn_velocity and so on for its rotation"
            raise EmbodimentError(
                f"embodiment '{self.name}' has no limit of {', '.join(lacking)}; expected a finite "
                "one by that key in the embodiment file before a robot is commanded"
                f"{in_blocks if self.action_space == POSE_DELTA else ''}"
            )


def embodiment_names() -> list[str]:
    """Names of the embodiments that ship with the package."""
    return sorted(p.stem for p in resource("config", "embodiments").glob("*.yaml"))


def load_embodiment(name_or_path: str | Path) -> Embodiment:
    """Read an embodiment by name (``config/embodiments/NAME.yaml``) or from a YAML file.

    Raises EmbodimentError that names the file, the key, what was found and what was expected.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = resource("config", "embodiments") / f"{name_or_path}.yaml"
        if not path.is_file():
            raise EmbodimentError(
                f"embodiment '{name_or_path}' is not known; expected one of "
                f"{', '.join(embodiment_names())}, or the path of a YAML file"
            )
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise EmbodimentError(f"embodiment file '{path}' does not exist") from None
    except yaml.YAMLError as error:
        raise EmbodimentError(f"embodiment file '{path}' is not YAML: {error}") from error
    return _Reader(str(path)).embodiment(data)


class _Reader:
    """Turns the YAML of one file into an Embodiment; every refusal names the file."""

    def __init__(self, where: str) -> None:
        self.where = where

    def refuse(self, message: str) -> EmbodimentError:
        return EmbodimentError(f"embodiment file '{self.where}': {message}")

    def embodiment(self, data: Any) -> Embodiment:
        required = ("name", "domain", "domain_id", "action_space", "channels")
        optional = (
            "description",
            "normalisation",
            "rate_hz",
            "state_row",
            "view_point",
            "view_detail",
            "base_frame",
            "joints",
            "gripper",
            "quantiles",
            "cameras",
            "canvas",
        )
        self.keys("the top level", data, required, optional)
        channels = self.channels(data["channels"])
        normalisation = self.choice(
            "normalisation", data.get("normalisation", "none"), NORMALISATIONS
        )
        channels = self.normalised(channels, normalisation, data)
        canvas = data.get("canvas") or {}
        self.keys("canvas", canvas, ("width", "height") if canvas else (), ())
        embodiment = Embodiment(
            name=str(data["name"]),
            domain=str(data["domain"]),
            domain_id=self.whole("domain_id", data["domain_id"]),
            description=str(data.get("description", "")).strip(),
            action_space=self.choice("action_space", data["action_space"], ACTION_SPACES),
            normalisation=normalisation,
            rate_hz=None
            if data.get("rate_hz") is None
            else self.number("rate_hz", data["rate_hz"]),
            state_row=bool(data.get("state_row", False)),
            view_point=self.choice("view_point", data.get("view_point", "ego_view"), VIEW_POINTS),
            view_detail=str(data.get("view_detail", "")),
            base_frame=str(data.get("base_frame", "base_link")),
            channels=channels,
            joints=tuple(str(name) for name in self.entries("joints", data.get("joints", []))),
            gripper=self.gripper(data.get("gripper")),
            cameras=self.cameras(data.get("cameras", [])),
            canvas_width=self.whole("canvas.width", canvas.get("width", 0)),
            canvas_height=self.whole("canvas.height", canvas.get("height", 0)),
        )
        self.check(embodiment)
        return embodiment

    def keys(
        self, what: str, data: Any, required: tuple[str, ...], optional: tuple[str, ...]
    ) -> None:
        if not isinstance(data, dict):
            raise self.refuse(f"{what} is a {type(data).__name__}; expected a mapping")
        missing = [k for k in required if k not in data]
        unknown = [k for k in data if k not in required + optional]
        if missing or unknown:
            raise self.refuse(
                f"{what} lacks {missing or 'nothing'} and has unknown keys {unknown or 'none'}; "
                f"expected {list(required)}, optionally {list(optional)}"
            )

    def entries(self, key: str, data: Any) -> list[Any]:
        if not isinstance(data, list):
            raise self.refuse(f"{key} is a {type(data).__name__}; expected a list")
        return data

    def number(self, key: str, value: Any) -> float:
        number = math.nan
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            with suppress(ValueError):
                number = float(value)  # YAML takes 1e-3 for a word
        if math.isnan(number):
            raise self.refuse(f"{key} is '{value}'; expected a number")
        return number

    def whole(self, key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(f"{key} is '{value}'; expected a whole number")
        return value

    def choice(self, key: str, value: Any, choices: tuple[str, ...]) -> str:
        if value not in choices:
            raise self.refuse(f"{key} is '{value}'; expected one of {', '.join(choices)}")
        return str(value)

    def channels(self, entries: Any) -> tuple[Channel, ...]:
        channels: list[Channel] = []
        for entry in self.entries("channels", entries):
            if isinstance(entry, dict) and "block" in entry:
                channels += self.block(entry)
            else:
                channels.append(self.channel(entry))
        return tuple(channels)

    def block(self, entry: dict[str, Any]) -> list[Channel]:
        """The channels of a block; a pose's may have limits."""
        name = self.choice("block", entry.get("block"), tuple(BLOCKS))
        motion = ("velocity", "acceleration", "jump")
        of_pose = ("lower", "upper", *motion, *(f"turn_{key}" for key in motion))
        optional = ("prefix", *(of_pose if name == "pose" else ()))
        self.keys("a channel block", entry, ("block",), optional)
        given = [Channel(f"{entry.get('prefix', '')}{part}", unit) for part, unit in BLOCKS[name]]
        limited = []
        for index, channel in enumerate(given):
            turns = "turn_" if name == "pose" and index >= len(_AXES) else ""
            limits: dict[str, Any] = {
                key: self.number(turns + key, entry[turns + key])
                for key in motion
                if turns + key in entry
            }
            if name == "pose" and index < len(_AXES):
                limits |= {
                    key: self.numbers(key, entry[key], len(_AXES))[index]
                    for key in ("lower", "upper")
                    if key in entry
                }
            limited.append(replace(channel, **limits))
        return limited

    def channel(self, entry: Any) -> Channel:
        numbers = ("offset", "scale", "lower", "upper", "velocity", "acceleration", "jump")
        name = f"channel {entry.get('name', '?')}" if isinstance(entry, dict) else "a channel"
        self.keys(name, entry, ("name", "unit"), numbers)
        given = {key: self.number(f"{name}: {key}", entry[key]) for key in numbers if key in entry}
        if given.get("scale") == 0:
            raise self.refuse(f"{name} has scale 0; expected any other number")
        return Channel(str(entry["name"]), str(entry["unit"]), **given)

    def numbers(self, key: str, values: Any, count: int) -> list[float]:
        if len(self.entries(key, values)) != count:
            raise self.refuse(f"{key} holds {len(values)} values; expected {count}")
        return [self.number(key, value) for value in values]

    def normalised(
        self, channels: tuple[Channel, ...], normalisation: str, data: dict[str, Any]
    ) -> tuple[Channel, ...]:
        """What scales the channels is what ``normalisation`` says, and nothing else is given."""
        quantiles = data.get("quantiles") or {}
        if quantiles and normalisation != "quantile":
            raise self.refuse(
                f"quantiles are given and normalisation is '{normalisation}', which does not use "
                "them; expected normalisation: quantile, or no quantiles"
            )
        scaled = [c.name for c in channels if (c.offset, c.scale) != (0.0, 1.0)]
        if scaled and normalisation != "affine":
            raise self.refuse(
                f"channel {scaled[0]} has an offset or a scale and normalisation is "
                f"'{normalisation}', which does not use them; expected normalisation: affine, or "
                "neither of them"
            )
        if normalisation != "quantile":
            return channels
        if not isinstance(quantiles, dict):
            raise self.refuse(
                f"quantiles are a {type(quantiles).__name__}; expected channel: [q01, q99]"
            )
        return self.quantile_scaled(channels, quantiles)

    def quantile_scaled(
        self, channels: tuple[Channel, ...], quantiles: dict[str, Any]
    ) -> tuple[Channel, ...]:
        """a = (x + 1) / 2 * (q99 - q01) + q01, as offset and scale; NaN where none is given."""
        unknown = sorted(set(quantiles) - {c.name for c in channels})
        if unknown:
            raise self.refuse(
                f"quantiles names {', '.join(unknown)}; expected names of its channels: "
                f"{', '.join(c.name for c in channels)}"
            )
        scaled = []
        for channel in channels:
            q01, q99 = math.nan, math.nan
            if channel.name in quantiles:
                q01, q99 = self.numbers(f"quantiles of {channel.name}", quantiles[channel.name], 2)
            if q01 >= q99:
                raise self.refuse(
                    f"quantiles of {channel.name} are {q01}, {q99}; expected q01 < q99"
                )
            scaled.append(replace(channel, offset=(q01 + q99) / 2, scale=(q99 - q01) / 2))
        return tuple(scaled)

    def gripper(self, data: Any) -> Gripper | None:
        if data is None:
            return None
        numbers = ("open", "closed", "hysteresis")
        self.keys("gripper", data, ("channel", "joint", *numbers[:2]), numbers[2:])
        given = {k: self.number(f"gripper.{k}", data[k]) for k in numbers if k in data}
        return Gripper(str(data["channel"]), str(data["joint"]), **given)

    def cameras(self, entries: Any) -> tuple[CameraView, ...]:
        views, sides = [], ("x", "y", "width", "height")
        for entry in self.entries("cameras", entries):
            self.keys("a camera", entry, ("name", *sides), ())
            cell = {
                side: self.whole(f"camera {entry['name']}: {side}", entry[side]) for side in sides
            }
            views.append(CameraView(str(entry["name"]), **cell))
        return tuple(views)

    def check(self, e: Embodiment) -> None:
        names = e.channel_names
        if len(set(names)) != len(names):
            raise self.refuse("two channels have one name; expected different names")
        for c in e.channels:
            if not c.lower < c.upper or not min(c.velocity, c.acceleration, c.jump) > 0:
                raise self.refuse(
                    f"channel {c.name} has lower {c.lower}, upper {c.upper}, velocity "
                    f"{c.velocity}, acceleration {c.acceleration}, jump {c.jump}; expected "
                    "lower < upper, and the others > 0"
                )
        if e.gripper and not e.gripper.hysteresis >= 0:
            raise self.refuse(f"gripper.hysteresis is {e.gripper.hysteresis}; expected at least 0")
        if e.gripper and e.gripper.channel not in names:
            raise self.refuse(
                f"gripper.channel is '{e.gripper.channel}'; expected one of {', '.join(names)}"
            )
        if e.gripper and e.gripper.open == e.gripper.closed:
            raise self.refuse("gripper.open equals gripper.closed; expected different positions")
        arm = e.width - (1 if e.gripper else 0)
        if e.action_space == JOINT_POSITION and len(e.joints) != arm:
            raise self.refuse(
                f"{len(e.joints)} joints for {arm} joint channels; expected one joint a channel"
            )
        for view in e.cameras:
            if (
                min(view.x, view.y) < 0
                or view.width <= 0
                or view.height <= 0
                or view.x + view.width > e.canvas_width
                or view.y + view.height > e.canvas_height
            ):
                raise self.refuse(
                    f"camera {view.name} lies outside the {e.canvas_width}x{e.canvas_height} canvas"
                )
