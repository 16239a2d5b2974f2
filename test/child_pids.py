"""Who a process has started, as the tests see it from outside."""

from __future__ import annotations

from pathlib import Path


def child_pids(parent: int) -> dict[str, int]:
    """Pids of a process's children, by the module they run."""
    pids = {}
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        pids[words[2].rpartition(".")[2] if len(words) > 2 else pid] = int(pid)
    return pids
