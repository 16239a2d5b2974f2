"""A MuJoCo arm behind the topics that Isaac Sim's ROS 2 bridge uses."""

import os

# Read when mujoco is imported: render without a display, in software where there is no GPU.
os.environ.setdefault("MUJOCO_GL", "egl")
# Read when the software renderer starts: pictures this small are drawn sooner, and always alike, by
# the thread that asks for them.
os.environ.setdefault("LP_NUM_THREADS", "0")
