"""The bundle of the fault run: a copy whose model says NaN once it reads a certain instruction.

The embeddings of tokens that no other instruction has are NaN in it. Text is read once and every
row attends to it, so the node is activated and plans as ever, until that instruction comes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.external_data_helper
from tokenizers import Tokenizer

from cosmos3_ros.engine.bundle import (
    MANIFEST,
    TOKENIZER,
    Bundle,
    file_sha256,
    load_bundle,
    manifest_text,
)
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.prompt import caption, tokenize

_EMBEDDINGS = "embed_tokens.weight"


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
    said = manifest.read_text().replace(before, file_sha256(weights))
    manifest.write_text(manifest_text(json.loads(said)))
    return load_bundle(folder)


def _tokens(bundle: Bundle, instruction: str) -> set[int]:
    contract = bundle.manifest.contract
    text = caption(instruction, load_embodiment(contract.embodiment), contract)
    tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
    return set(tokenize(text, tokenizer, contract.prompting))


def _stored(graph: Path, name: str) -> _Stored:
    """Where an ONNX graph keeps the matrix ``name``. Raises ValueError where it has none apart."""
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if tensor.name == name and onnx.external_data_helper.uses_external_data(tensor):
            where = onnx.external_data_helper.ExternalDataInfo(tensor)
            item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            return _Stored(where.location, where.offset or 0, item * math.prod(tensor.dims[1:]))
    raise ValueError(f"'{graph}' has no weights '{name}' in a file beside it; export it again")
