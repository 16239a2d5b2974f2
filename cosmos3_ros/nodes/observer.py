"""Gathers the newest camera frames and the joint states that belong to them.

Observations never queue: a newer frame replaces an older one. What does not fit together in time
is refused with a word, never guessed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CompressedImage, Image, JointState

from cosmos3_ros.control.space import Space
from cosmos3_ros.nodes.images import rgb_of
from cosmos3_ros.nodes.joints import JointMap
from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.policy.plan import Observation
from cosmos3_ros.policy.poses import POSE_WIDTH

# A camera whose clock is ahead of ours by more than this is not believed.
FUTURE_TOLERANCE_S = 0.05
# A picture is not squeezed into a cell of another shape.
ASPECT_TOLERANCE = 0.02
# A position and a quaternion.
_POSE = Space(POSE_WIDTH, (3,))
# Joint states are kept this long, to find the one that belongs to a picture.
JOINT_HISTORY = 2000


@dataclass(frozen=True)
class Tolerances:
    """How far apart the parts of an observation may lie in time [s]."""

    camera_skew_s: float
    observation_max_age_s: float
    joint_skew_s: float


@dataclass(frozen=True)
class StampedObservation:
    """An observation and the time of its newest picture [ns of the node's clock]."""

    stamp_ns: int
    observation: Observation


class Refusal(ValueError):
    """The parts at hand make no observation. ``reason`` is the word it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Observer:
    """Newest message of every camera, and the recent positions of every joint.

    Not thread-safe: the caller locks the callbacks and ``snapshot``, and observes the copy.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        joints: JointMap | None,
        gripper_topic: bool,
        limits: Tolerances,
        poses: tuple[str, ...] = (),
    ) -> None:
        """``joints``: the robot's, or None where the policy takes no state. ``poses``: the topics
        of end effectors whose poses a plan begins from.

        ``gripper_topic``: closedness comes from ``on_gripper``, not from the gripper's joint.
        """
        self._embodiment = embodiment
        self._joints = joints
        self._gripper_topic = gripper_topic
        self._limits = limits
        self._images: dict[str, Image | CompressedImage] = {}
        self._positions: deque[tuple[int, dict[str, float]]] = deque(maxlen=JOINT_HISTORY)
        self._gripper: deque[tuple[int, dict[str, float]]] = deque(maxlen=JOINT_HISTORY)
        self._poses: dict[str, deque[PoseStamped]] = {
            topic: deque(maxlen=JOINT_HISTORY) for topic in poses
        }

    def on_image(self, camera: str, message: Image | CompressedImage) -> None:
        self._images[camera] = message

    def on_joint_states(self, message: JointState) -> None:
        # Names without a position each (some drivers send velocities alone) say nothing of where
        # the arm is; what then is missing is refused by name.
        if len(message.name) == len(message.position):
            named = dict(zip(message.name, message.position, strict=True))
            self._positions.append((stamp_ns(message), named))

    def on_gripper(self, closedness: float, now_ns: int) -> None:
        """Closedness (0 open, 1 closed), as of ``now_ns``: the topic carries no stamp."""
        self._gripper.append((now_ns, {"": closedness}))

    def on_pose(self, topic: str, message: PoseStamped) -> None:
        self._poses[topic].append(message)

    def clear(self) -> None:
        """Forget everything: the clock jumped."""
        for history in self._poses.values():
            history.clear()
        self._images.clear()
        self._positions.clear()
        self._gripper.clear()

    def snapshot(self) -> Observer:
        """A copy that later messages do not change."""
        copy = Observer(
            self._embodiment, self._joints, self._gripper_topic, self._limits, tuple(self._poses)
        )
        for topic, history in self._poses.items():
            copy._poses[topic].extend(history)
        copy._images.update(self._images)
        copy._positions.extend(self._positions)
        copy._gripper.extend(self._gripper)
        return copy

    def progress(self) -> int | None:
        """Changes when there may be a new observation; None while no camera has sent a picture.

        That is the stamp of the camera that lags behind: another camera's newer picture has to
        wait for it. A camera that is dead is not waited for, so that it is refused, not ignored.
        """
        stamps = [stamp_ns(message) for message in self._images.values()]
        if len(stamps) < len(self._embodiment.cameras):
            return max(stamps, default=None)
        alive_since = max(stamps) - self._limits.observation_max_age_s * 1e9
        return min(stamp for stamp in stamps if stamp >= alive_since)

    def observe(self, now_ns: int) -> StampedObservation:
        """The observation that the newest parts make. Raises Refusal and ImageError."""
        stamp = self._checked_stamp(now_ns)
        images = {camera: rgb_of(message, camera) for camera, message in self._images.items()}
        for view in self._embodiment.cameras:
            height, width = images[view.name].shape[:2]
            if abs(width * view.height / (height * view.width) - 1) > ASPECT_TOLERANCE:
                raise Refusal(
                    "camera_size",
                    f"camera '{view.name}': picture is {width}x{height}, its cell on the canvas "
                    f"{view.width}x{view.height}; expected the same shape, crop it upstream",
                )
        observation = Observation(images, self._state(stamp), self._poses_at(stamp))
        return StampedObservation(stamp, observation)

    def _checked_stamp(self, now_ns: int) -> int:
        missing = [v.name for v in self._embodiment.cameras if v.name not in self._images]
        if missing:
            raise Refusal(
                "camera_missing",
                f"no picture yet from {', '.join(missing)}; is the camera running?",
            )
        stamps = {camera: stamp_ns(message) for camera, message in self._images.items()}
        oldest, newest = min(stamps, key=stamps.__getitem__), max(stamps, key=stamps.__getitem__)
        age_s = (now_ns - stamps[oldest]) / 1e9
        if age_s > self._limits.observation_max_age_s:
            raise Refusal(
                "camera_stale",
                f"camera '{oldest}': picture is {age_s:.3f} s old; expected at most "
                f"{self._limits.observation_max_age_s} s (observation_max_age_s)",
            )
        if (ahead_s := (stamps[newest] - now_ns) / 1e9) > FUTURE_TOLERANCE_S:
            raise Refusal(
                "camera_future",
                f"camera '{newest}': stamp is {ahead_s:.3f} s ahead of this node's clock; "
                "synchronise the clocks, or set use_sim_time on both or neither",
            )
        skew_s = (stamps[newest] - stamps[oldest]) / 1e9
        if skew_s > self._limits.camera_skew_s:
            raise Refusal(
                "camera_skew",
                f"cameras '{oldest}' and '{newest}' are {skew_s:.3f} s apart; expected at most "
                f"{self._limits.camera_skew_s} s (camera_skew_s)",
            )
        return stamps[newest]

    def _state(self, stamp: int) -> np.ndarray:
        """Channel positions nearest to a stamp [width]; NaN where the policy takes no state."""
        if self._joints is None:
            return np.full(self._embodiment.width, np.nan)
        names, is_gripper = self._joints.names, self._joints.is_gripper
        wanted = [
            n for n, g in zip(names, is_gripper, strict=True) if not (g and self._gripper_topic)
        ]
        found = self._nearest(self._positions, wanted, stamp, "joint_states")
        state = self._joints.to_channels(np.array([found.get(name, np.nan) for name in names]))
        if self._gripper_topic:
            state[is_gripper] = self._nearest(self._gripper, [""], stamp, "gripper_state")[""]
        return state

    def _poses_at(self, stamp: int) -> np.ndarray:
        """Poses nearest to a stamp [number of topics, 7]."""
        poses = np.zeros((len(self._poses), POSE_WIDTH))
        for row, (topic, history) in zip(poses, self._poses.items(), strict=True):
            later_first = reversed(history)
            nearest = min(later_first, key=lambda pose: abs(stamp_ns(pose) - stamp), default=None)
            skew_s = math.inf if nearest is None else abs(stamp_ns(nearest) - stamp) / 1e9
            if nearest is None or skew_s > self._limits.joint_skew_s:
                found = "nothing" if nearest is None else f"one {skew_s:.3f} s away"
                raise Refusal(
                    "pose_missing" if nearest is None else "pose_stale",
                    f"{topic}: {found}; expected a pose within {self._limits.joint_skew_s} s of "
                    "the picture (joint_skew_s)",
                )
            if objection := pose_objection(nearest, self._embodiment.base_frame):
                raise Refusal("pose_malformed", f"{topic}: {objection}")
            row[:] = pose_of(nearest)
        return poses

    def _nearest(
        self,
        history: deque[tuple[int, dict[str, float]]],
        names: list[str],
        stamp: int,
        topic: str,
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        limit_ns = self._limits.joint_skew_s * 1e9
        # Of two of one time the later message counts.
        near = (entry for entry in reversed(history) if abs(entry[0] - stamp) <= limit_ns)
        for _, named in sorted(near, key=lambda entry: abs(entry[0] - stamp)):
            for name in names:
                if name not in found and name in named:
                    found[name] = named[name]
            if len(found) == len(names):
                break
        missing = [name for name in names if name not in found]
        if missing:
            seen = sorted({name for _, named in history for name in named})
            raise Refusal(
                "joints_missing" if not set(missing) <= set(seen) else "joints_stale",
                f"{topic}: nothing of {', '.join(filter(None, missing)) or 'the gripper'} within "
                f"{self._limits.joint_skew_s} s of the picture (joint_skew_s); seen so far: "
                f"{', '.join(filter(None, seen)) or 'nothing'}",
            )
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        if wrong:
            raise Refusal("joints_not_finite", f"{topic}: {', '.join(wrong)} is NaN or infinite")
        return found


def pose_of(message: PoseStamped) -> np.ndarray:
    """Position [m] and quaternion x, y, z, w [7]."""
    p, q = message.pose.position, message.pose.orientation
    return np.array([p.x, p.y, p.z, q.x, q.y, q.z, q.w])


def pose_objection(message: PoseStamped, base_frame: str) -> str:
    """Why a message does not tell where something is in the base frame; empty where it does.

    One that names no frame is taken to be in it.
    """
    frame, pose = message.header.frame_id, pose_of(message)
    if frame not in ("", base_frame):
        return f"in frame '{frame}'; expected '{base_frame}', transform it upstream"
    if not _POSE.holds(pose):
        return (
            f"{pose.round(3).tolist()} is no pose; expected finite numbers and a quaternion of "
            "length 1"
        )
    return ""


def stamp_ns(message: Image | CompressedImage | JointState | PoseStamped) -> int:
    """Stamp of a message [ns]."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
