"""A folder appears whole or not at all, and one process at a time writes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos3_ros.engine.export_folder import (
    FolderError,
    _acquire,
    bundle_folder,
    require_space,
    whole_folder,
)

FULL = Path("/dev/full")


def test_a_folder_is_there_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bundle"
    with whole_folder(out) as work:
        (work / "graph").write_text("whole")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["graph"]
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_the_earlier_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    for text in ("first", "second"):
        with whole_folder(out) as work:
            (work / text).touch()
            if text == "second":
                assert (out / "first").exists()
    assert [path.name for path in out.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_whatever_ends_the_writing_leaves_the_earlier_folder_alone(
    end: type[BaseException], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    with whole_folder(out) as work:
        (work / "first").touch()
    with pytest.raises(end), whole_folder(out) as work:
        (work / "second").touch()
        raise end
    assert [path.name for path in out.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this machine")
def test_a_full_disk_is_told_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(
            FolderError, match="disk full while writing '.*bundle'; what was written of it"
        ),
        whole_folder(tmp_path / "bundle") as work,
    ):
        (work / "small").write_text("fits")
        (work / "weights").symlink_to(FULL)
        (work / "weights").write_bytes(b"does not")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_told_before_with_both_figures(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path, free // 2)
    with pytest.raises(
        FolderError, match=r"\d+.\d GB are to be written .* has \d+.\d GB free; free"
    ):
        require_space(tmp_path, 2 * free)


def test_a_second_writer_is_refused_and_the_first_is_not_disturbed(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with whole_folder(out) as work:
        (work / "first").touch()
        refusal = pytest.raises(FolderError, match="bundle' is being written by another process;")
        with refusal, whole_folder(out):
            raise AssertionError("two writers")
        assert (work / "first").exists()
    assert [path.name for path in out.iterdir()] == ["first"]
    with whole_folder(out) as work:
        (work / "second").touch()
    assert [path.name for path in out.iterdir()] == ["second"]


def test_the_lock_of_a_writer_that_has_just_finished_is_no_lock(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        (tmp_path / "lock").unlink()
        with pytest.raises(FolderError, match="bundle' is being written by another process"):
            _acquire(lock.fileno(), tmp_path / "bundle")


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from cosmos3_ros.engine.export_folder import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as work:\n"
        "    (work / 'half').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(out)], check=False)
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.partial"]
    with whole_folder(out) as work:
        (work / "whole").touch()
    assert [path.name for path in out.iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_lies_beside_an_earlier_bundle_stays_but_its_engines(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with bundle_folder(out) as work:
        (work / "manifest.json").write_text(json.dumps({"files": {"old.onnx": "", "both": ""}}))
        for name in ("old.onnx", "both"):
            (work / name).write_text("of the first")
    (out / "README.md").write_text("card")
    (out / "pictures").mkdir()
    (out / "pictures" / "curves.png").write_text("curves")
    for name in ("old.engine", "old.engine.json"):
        (out / name).touch()
    with bundle_folder(out) as work:
        (work / "both").write_text("of the second")
        (work / "manifest.json").write_text(json.dumps({"files": {"both": ""}}))
    found = {str(p.relative_to(out)): p.read_text() for p in out.rglob("*") if p.is_file()}
    assert found.pop("manifest.json")
    assert found == {
        "README.md": "card",
        "pictures/curves.png": "curves",
        "both": "of the second",
    }


def bundle_with(out: Path, name: str) -> None:
    with bundle_folder(out) as work:
        (work / name).write_text(name)
        (work / "manifest.json").write_text(json.dumps({"files": {name: ""}}))


def test_what_comes_and_goes_beside_a_bundle_meanwhile_is_kept_and_not_missed(
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    bundle_with(out, "first")
    (out / "swap").touch()
    with bundle_folder(out) as work:
        (out / "notes.md").write_text("dear")
        (out / "swap").unlink()
        (work / "manifest.json").write_text(json.dumps({"files": {}}))
    assert {path.name for path in out.iterdir()} == {"manifest.json", "notes.md"}


def test_a_process_that_was_killed_while_it_replaced_a_bundle_loses_nothing_of_it(
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    bundle_with(out, "first")
    (out / "README.md").write_text("card")
    out.rename(tmp_path / ".bundle.old")  # as it is between the two
    bundle_with(out, "second")
    assert {path.name for path in out.iterdir()} == {"manifest.json", "second", "README.md"}
    (out / ".lock").touch()  # as it is right after
    bundle_with(out, "third")
    assert {path.name for path in out.iterdir()} == {"manifest.json", "third", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_link_to_a_bundle_on_another_disk_stays_one(tmp_path: Path) -> None:
    disk, link = tmp_path / "disk" / "bundle", tmp_path / "bundle"
    link.symlink_to(disk)
    for name in ("first", "second", "third"):
        bundle_with(link, name)
        assert link.is_symlink() and (disk / name).is_file()
    assert [path.name for path in disk.parent.iterdir()] == ["bundle"]


def test_the_folder_one_stands_in_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle_with(tmp_path / "bundle", "first")
    monkeypatch.chdir(tmp_path / "bundle")
    bundle_with(Path(), "second")
    assert (tmp_path / "bundle" / "second").is_file()


def test_a_bundle_takes_the_place_of_no_file_but_its_own(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with bundle_folder(out) as work:
        (work / "manifest.json").write_text(json.dumps({"files": {}}))
    (out / "text.onnx").write_text("dear")
    refusal = pytest.raises(FolderError, match="text.onnx' is not of the bundle there and would")
    with refusal, bundle_folder(out) as work:
        (work / "text.onnx").write_text("new")
        (work / "manifest.json").write_text(json.dumps({"files": {"text.onnx": ""}}))
    assert (out / "text.onnx").read_text() == "dear"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("manifest", [None, "cut of", "[]", "{}"])
def test_a_folder_that_is_no_bundle_is_not_replaced(manifest: str | None, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("dear")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    refusal = pytest.raises(FolderError, match="exists and is no bundle that can be read; name an")
    with refusal, bundle_folder(tmp_path):
        raise AssertionError("it was to be refused")
    assert (tmp_path / "photo.jpg").read_text() == "dear"
