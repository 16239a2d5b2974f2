"""Cosmos 3 policies on ROS 2: plan asynchronously, speak at control rate, hold on any fault."""

from pkgutil import extend_path

# The generated messages (cosmos3_ros.msg) are installed beside these sources, not among them.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
