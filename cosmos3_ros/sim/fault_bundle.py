"""The bundle of the fault run: a copy whose model says NaN once it reads a certain instruction.

The embeddings of tokens that no other instruction has are NaN in it. Text is read once and every
row attends to it, so the node is activated and plans as ever, until that instruction comes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cosmos3_ros.engine.bundle import MANIFEST, TOKENIZER, Bundle, file_sha256, load_bundle
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.prompt import caption, tokenize

_EMBEDDINGS = "embed_tokens.weight"
# Field numbers of ONNX's messages (onnx.proto), which no package that a robot has reads.
_GRAPH, _INITIALIZER = 7, 5  # of ModelProto and GraphProto
_DIMS, _NAME, _EXTERNAL_DATA = 1, 8, 13  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
# Kinds of fields in protobuf; those of fixed length with their bytes.
_VARINT, _LENGTH = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}


@dataclass(frozen=True)
class _Stored:
    """Where a matrix lies: its file beside the graph, where it begins, and bytes a row."""

    file: str
    offset: int
    row_bytes: int


def poisoned_copy(bundle: Path, folder: Path, instruction: str, others: Sequence[str]) -> Bundle:
    """Copy ``bundle`` to ``folder``, where ``instruction`` makes the model say NaN, ``others`` not.

    Raises ValueError where every token of the one is in the others, too.
    """
    copy = load_bundle(shutil.copytree(bundle, folder))
    tokens = _tokens(copy, instruction).difference(*(_tokens(copy, other) for other in others))
    if not tokens:
        raise ValueError(
            f"bundle '{bundle}': '{instruction}' has no token of its own beside "
            f"{', '.join(map(repr, others))}; expected a word that none of them has"
        )
    # Bits that are all 1 are NaN in every type of float.
    stored = _stored(folder / copy.manifest.graphs["text"].parts[0].file, _EMBEDDINGS)
    weights = folder / stored.file
    before = file_sha256(weights)
    with weights.open("r+b") as file:
        for token in tokens:
            file.seek(stored.offset + token * stored.row_bytes)
            file.write(b"\xff" * stored.row_bytes)
    manifest = folder / MANIFEST
    manifest.write_text(manifest.read_text().replace(before, file_sha256(weights)))
    return load_bundle(folder)


def _tokens(bundle: Bundle, instruction: str) -> set[int]:
    contract = bundle.manifest.contract
    text = caption(instruction, load_embodiment(contract.embodiment), contract)
    tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
    return set(tokenize(text, tokenizer, contract.prompting))


def _stored(graph: Path, name: str) -> _Stored:
    """Where an ONNX graph keeps the matrix ``name``. Raises ValueError where it has none apart."""
    (content,) = _fields(graph.read_bytes())[_GRAPH]
    for tensor in map(_fields, _fields(content)[_INITIALIZER]):
        if tensor[_NAME] == [name.encode()] and _EXTERNAL_DATA in tensor:
            entries = map(_fields, tensor[_EXTERNAL_DATA])
            where = {entry[_KEY][0]: entry[_VALUE][0] for entry in entries}
            row_bytes = int(where[b"length"]) // tensor[_DIMS][0]
            return _Stored(where[b"location"].decode(), int(where[b"offset"]), row_bytes)
    raise ValueError(f"'{graph}' has no weights '{name}' in a file beside it; export it again")


def _fields(message: bytes) -> dict[int, list[Any]]:
    """Values of a protobuf message by field number: int or, of what has a length, bytes.

    https://protobuf.dev/programming-guides/encoding
    """
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            fields.setdefault(number, []).append(value)
        else:
            length, at = _varint(message, at) if kind == _LENGTH else (_FIXED_BYTES[kind], at)
            fields.setdefault(number, []).append(message[at : at + length])
            at += length
    return fields


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 0x80:
            return value, at
