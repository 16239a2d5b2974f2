"""The engine on the CPU: what it binds, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from bundles import Exported

from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.session import Call, Engine

CANVAS = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)


@pytest.fixture
def engine(tiny: Exported) -> Engine:
    engine = open_backend(tiny.bundle, "onnxruntime", 1)
    engine.prepare({"look": [Call("image", {"canvas": "picture"}, {"latent": "seen"})]})
    return engine


def test_a_program_runs_on_what_was_written_and_leaves_its_result_to_read(engine: Engine) -> None:
    engine.write("picture", CANVAS)
    engine.run("look")
    first = engine.read("seen")
    engine.write("picture", 255 - CANVAS)
    assert (engine.read("seen") == first).all()
    engine.run("look")
    assert np.abs(engine.read("seen") - first).max() > 0.01
    assert np.abs(first).max() > 0.01  # a copy: the second run has not changed it


def test_a_buffer_is_zero_until_it_is_written_and_keeps_what_it_has_when_more_is_prepared(
    engine: Engine,
) -> None:
    assert not engine.read("picture").any()
    engine.write("picture", CANVAS)
    engine.prepare({"again": [Call("image", {"canvas": "picture"}, {"latent": "elsewhere"})]})
    assert (engine.read("picture") == CANVAS).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((96, 127, 3), np.uint8), r"buffer 'picture': got uint8 \(96, 127, 3\); expected"),
        (np.zeros((96, 128, 3), np.float32), "got float32 .*; expected uint8"),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(
    array: np.ndarray, message: str, engine: Engine
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.write("picture", array)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call("sound", {}, {}), "graph 'sound' is not in the bundle; it has text, image"),
        (Call("image", {"picture": "p"}, {"latent": "l"}), r"got inputs \['picture'\], expected"),
        (Call("image", {"canvas": "p"}, {}), r"got outputs \[\], expected \['latent'\]"),
        (Call("image", {"canvas": "p"}, {"latent": "p"}), "buffer 'p' is uint8 .* float32"),
    ],
)
def test_a_program_that_does_not_fit_the_graphs_is_refused(
    call: Call, message: str, engine: Engine
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.prepare({"wrong": [call]})
