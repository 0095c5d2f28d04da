"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmf_deploy.files import (
    atomic_directory,
    remove_leftovers,
    sha256,
    stays_inside,
    write_atomic,
)


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def contents(directory: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in directory.iterdir()}


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_sha256_is_the_hash_of_the_whole_file(size, tmp_path):
    data = b"\x07" * size
    (tmp_path / "f").write_bytes(data)
    assert sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "f"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["f"]


def test_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "taken" / "inner").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "taken", b"one")
    assert names(tmp_path) == ["taken"]


def test_directory_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "d"
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text("1")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert contents(path) == {"a": "1"}
    assert names(path.parent) == ["d"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_exception_leaves_no_directory(error, tmp_path):
    def fail() -> None:
        with atomic_directory(tmp_path / "d") as temporary:
            (temporary / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_old_directory_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "d"
    with atomic_directory(path) as temporary:
        (temporary / "old").write_text("1")
    with atomic_directory(path) as temporary:
        (temporary / "new").write_text("2")
        assert contents(path) == {"old": "1"}
    assert contents(path) == {"new": "2"}
    assert names(tmp_path) == ["d"]


def test_exception_keeps_the_old_directory(tmp_path):
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").write_text("1")

    def fail() -> None:
        with atomic_directory(path) as temporary:
            (temporary / "new").write_text("2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert contents(path) == {"old": "1"}
    assert names(tmp_path) == ["d"]


KILLED = """
import sys, time
from pathlib import Path
from mmf_deploy.files import atomic_directory

with atomic_directory(Path(sys.argv[1])) as temporary:
    (temporary / "a").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_kill_in_the_middle_keeps_the_old_directory_whole(tmp_path):
    path = tmp_path / "d"
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text("whole")
    args = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert contents(path) == {"a": "whole"}
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["d"]
    assert contents(path) == {"a": "whole"}


@pytest.mark.parametrize("name", ["a", "a/b", "absent", "./a", "link-inside"])
def test_name_inside_the_directory_is_accepted(name, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link-inside").symlink_to("a")
    assert stays_inside(tmp_path, name)


def test_directory_reached_through_a_link_still_holds_its_files(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    assert stays_inside(tmp_path / "alias", "f")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../f",
        "a/../../f",
        "a/../b",
        "/etc/passwd",
        "//etc/passwd",
        "a\\..\\f",
        "link-outside",
        "link-outside/f",
        "link-absolute",
        "nul\0byte",
        "half a character \ud800",
        "n" * 5000,
        "n/" * 5000,
    ],
    ids=lambda n: ascii(n[:20]),
)
def test_name_that_leaves_the_directory_or_is_no_name_is_refused(name, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link-outside").symlink_to("..")
    (inner / "link-absolute").symlink_to(tmp_path)
    assert not stays_inside(inner, name)


def test_loop_of_links_is_no_reason_to_fail(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert stays_inside(tmp_path, "loop")
    assert not (tmp_path / "loop").is_file()


def test_what_a_kill_between_the_two_moves_left_aside_is_moved_back(tmp_path):
    # no process has this number: the largest one is 2²²
    aside = tmp_path / ".old-99999999-thing"
    other = tmp_path / ".old-99999999-my-thing"
    other.mkdir()
    aside.mkdir()
    (aside / "content").write_text("precious")

    def fail_midway():
        with atomic_directory(tmp_path / "thing"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert (tmp_path / "thing" / "content").read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {"thing", other.name}
