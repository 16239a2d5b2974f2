"""A MuJoCo arm behind the topics that Isaac Sim's ROS 2 bridge uses."""

import os

# Read when mujoco is imported: render without a display, in software where there is no GPU.
os.environ.setdefault("MUJOCO_GL", "egl")
