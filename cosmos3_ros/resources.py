"""Where the package's own files lie: messages, launch files, configuration, recipes."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def resource(*parts: str) -> Path:
    """Path of a file or folder that ships with the package, such as ``("config", "embodiments")``.

    Looked for in the checkout these sources lie in, then in ``share/cosmos3_ros`` of every prefix
    of AMENT_PREFIX_PATH and of the Python environment. Raises FileNotFoundError naming them all.
    """
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    places = [Path(__file__).resolve().parent.parent]
    places += [Path(prefix) / "share" / "cosmos3_ros" for prefix in [*prefixes, sys.prefix]]
    for place in places:
        path = place.joinpath(*parts)
        if path.exists():
            return path
    raise FileNotFoundError(
        f"'{'/'.join(parts)}' was not found in {', '.join(map(str, places))}; install the package "
        "with colcon or pip, or run from its checkout"
    )
