"""A bundle that is for another robot than the simulated arm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bundles import Exported

from cosmos3_ros.engine.bundle import MANIFEST, manifest_text

REFUSAL = "bundle 'tiny' is for embodiment 'droid_joint_pos'; expected one of the simulated arm"


def bundle_of_another_robot(tiny: Exported, folder: Path) -> Path:
    """The same arm with three other cameras, by what its manifest says."""
    bundle = Path(shutil.copytree(tiny.bundle.path, folder / "other"))
    manifest = (bundle / MANIFEST).read_text().replace('"sim_panda"', '"droid_joint_pos"')
    (bundle / MANIFEST).write_text(manifest_text(json.loads(manifest)))
    return bundle
