"""Programs over graphs that were cut into parts."""

from __future__ import annotations

import pytest

from cosmos3_ros.engine.bundle import GraphSpec, PartSpec, TensorSpec
from cosmos3_ros.engine.parts import Piece, buffers, runs
from cosmos3_ros.engine.session import Call

HIDDEN = TensorSpec((7, 4), "bfloat16")
ROWS = TensorSpec((7, 2), "float32")


def keys(layers: int) -> TensorSpec:
    return TensorSpec((layers, 2, 5, 4), "bfloat16")


GRAPHS = {
    "denoise": GraphSpec(
        {"rows": ROWS, "keys": keys(6)},
        {"velocity": ROWS},
        (
            PartSpec("a.onnx", (0, 2), {"rows": ROWS, "keys": keys(2)}, {"x": HIDDEN}),
            PartSpec("b.onnx", (2, 4), {"x": HIDDEN, "keys": keys(2)}, {"x": HIDDEN}),
            PartSpec("c.onnx", (4, 6), {"x": HIDDEN, "keys": keys(2)}, {"velocity": ROWS}),
        ),
    )
}
CALL = Call("denoise", {"rows": "noise", "keys": "bound.keys"}, {"velocity": "v"})


def test_each_part_takes_the_keys_of_its_layers_and_what_the_part_before_it_made() -> None:
    first, second, third = runs(GRAPHS, [CALL])
    assert first.inputs == {"rows": Piece("noise"), "keys": Piece("bound.keys", 0, 2)}
    assert second.inputs["keys"] == Piece("bound.keys", 2, 4)
    assert third.inputs["keys"] == Piece("bound.keys", 4, 6)
    assert second.inputs["x"] == first.outputs["x"]
    assert third.inputs["x"] == second.outputs["x"]
    assert third.outputs == {"velocity": Piece("v")}


def test_no_part_writes_the_buffer_it_reads() -> None:
    for run in runs(GRAPHS, [CALL]):
        read = {piece.buffer for piece in run.inputs.values()}
        assert read.isdisjoint(piece.buffer for piece in run.outputs.values())


def test_buffers_between_parts_are_allocated_with_the_rest() -> None:
    found = buffers(GRAPHS, [[CALL]])
    assert found.pop("noise") == found.pop("v") == ROWS
    assert found.pop("bound.keys") == keys(6)
    assert list(found.values()) == [HIDDEN, HIDDEN]


def test_a_buffer_bound_to_tensors_of_two_shapes_is_refused_by_name() -> None:
    call = Call("denoise", {"rows": "same", "keys": "same"}, {"velocity": "v"})
    with pytest.raises(ValueError, match=r"buffer 'same' is float32 \(7, 2\) and is bound to keys"):
        buffers(GRAPHS, [[call]])
