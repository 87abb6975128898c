"""Paths and files on a disk: whole or absent after a kill, a full disk or an exception."""

import csv
import errno
import importlib.util
import io
import os
from pathlib import Path

import numpy as np
import pytest

from effnet_jax import files
from effnet_jax.errors import DiskError, PathError
from tests.scripts import kill, run, start

REPOSITORY = Path(__file__).resolve().parent.parent


def content(folder: Path) -> list[str]:
    """All names in a folder, hidden ones too."""
    return sorted(os.listdir(folder))


# Has writes beyond the first 100,000 bytes of a file fail, as on a disk that is full.
SMALL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"


# ---- Paths ----


def test_a_path_is_local_or_in_a_bucket(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(files.as_path("~/run")) == str(tmp_path / "run")
    assert os.fspath(files.as_path(Path("runs/a:b"))) == "runs/a:b"
    assert os.fspath(files.as_path("gs://bucket/a/")) == "gs://bucket/a"
    assert files.is_local("~/gs:/x") and not files.is_local(files.as_path("gs://bucket/a"))
    assert os.fspath(files.absolute("gs://bucket/a")) == "gs://bucket/a"
    assert os.fspath(files.absolute("a")) == os.path.abspath("a")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/a", "s3:// is not supported: use a local folder, or gs://"),
        ("hdfs://host/a", "hdfs:// is not supported"),
        ("http://host/a", "http:// is not supported"),
        ("file:///a", "file:// is not supported: use a local folder"),
        ("gs:/bucket/a", "did you mean 'gs://bucket/a'"),
        (Path("gs://bucket/a"), "did you mean 'gs://bucket/a'"),
        ("GS://bucket/a", "did you mean 'gs://bucket/a'"),
        ("gs:bucket/a", "did you mean 'gs://bucket/a'"),
        ("gs://", "no path in a bucket"),
        ("gs:///a", "no path in a bucket"),
        ("gs://bucket//a", "no path in a bucket"),
        ("gs://bucket/../a", "no path in a bucket"),
        ("gs://bucket/run[1]", r"cannot have '\['"),
        ("gs://bucket/*", r"cannot have '\*'"),
        ("a\0b", "is no path"),
        ("", "is no path"),
        ("~nobody-of-this-name/a", "no such user"),
    ],
)
def test_what_is_no_path_is_told_with_the_cure(path, message):
    with pytest.raises(PathError, match=message):
        files.as_path(path)


def test_a_bucket_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PathError, match=r"pip install 'effnet-jax\[gcs\]'"):
        files.as_path("gs://bucket/a")


def test_the_import_is_light():
    heavy = "jax", "numpy", "orbax", "tensorstore", "fsspec", "gcsfs", "tensorflow"
    loaded = run("files.as_path('a').exists(); print([name for name in sys.argv[1:] if name in sys.modules])", *heavy)
    assert loaded == "[]\n"


# ---- Folders ----


def test_only_what_is_visible_counts(tmp_path):
    assert files.visible(tmp_path / "missing") == []
    for name in (".DS_Store", ".config.json.1-1.partial", "lost+found", "b", "a"):
        (tmp_path / name).mkdir()
    assert files.visible(tmp_path) == ["a", "b"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        files.visible(tmp_path / "file")
    with pytest.raises(OSError, match="File exists"):
        files.make_folder(tmp_path / "file")


def test_what_is_removed_may_be_missing_and_links_keep_their_goal(tmp_path):
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    files.remove(tmp_path / "link")
    assert content(tmp_path) == ["tree"] and content(tmp_path / "tree") == ["inner"]
    files.remove(tmp_path / "tree" / "inner" / "file")
    files.remove(tmp_path / "tree")
    files.remove(tmp_path / "tree")
    assert content(tmp_path) == []


def test_a_move_overwrites_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    files.move(tmp_path / "a", tmp_path / "b")
    assert content(tmp_path) == ["b"] and content(tmp_path / "b") == ["file"]
    (tmp_path / "a").mkdir()
    with pytest.raises(FileExistsError):
        files.move(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="none"):
        files.move(tmp_path / "none", tmp_path / "c")


def test_a_folder_is_copied_beside_what_is_there(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"1")
    (tmp_path / "a" / "d").write_bytes(b"2")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "d").write_bytes(b"old")
    (tmp_path / "e" / "f").write_bytes(b"3")
    files.copy_folder(tmp_path / "a", tmp_path / "e")
    copied = {path.relative_to(tmp_path / "e").as_posix(): path.read_bytes() for path in (tmp_path / "e").rglob("?")
              if path.is_file()}  # fmt: skip
    assert copied == {"b/c": b"1", "d": b"2", "f": b"3"}


def test_a_new_folder_is_there_when_it_is_whole(tmp_path):
    with files.new_folder(tmp_path / "deep" / "new") as folder:
        (folder / "file").write_text("x")
        assert files.visible(tmp_path / "deep") == []
    assert content(tmp_path / "deep") == ["new"] and content(tmp_path / "deep" / "new") == ["file"]


def test_a_new_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("x")
        raise ZeroDivisionError
    assert content(tmp_path) == []


def test_a_new_folder_starts_anew_after_a_kill(tmp_path):
    process = start(
        "with files.new_folder(sys.argv[1]) as folder:\n"
        "  (folder / 'old').write_text('x'); print('ready', flush=True); time.sleep(60)",
        tmp_path / "new",
    )
    process.stdout.readline()
    kill(process)
    assert files.visible(tmp_path) == []
    with files.new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("x")
    assert content(tmp_path) == ["new"] and content(tmp_path / "new") == ["file"]


def test_a_new_folder_takes_an_empty_place_only(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(FileExistsError), files.new_folder(tmp_path / "full"):
        pass
    (tmp_path / "empty").mkdir()
    with files.new_folder(tmp_path / "empty") as folder:
        (folder / "file").write_text("x")
    assert content(tmp_path) == ["empty", "full"] and content(tmp_path / "empty") == ["file"]


def test_the_other_processes_write_into_the_folder_of_the_first(tmp_path):
    with files.new_folder(tmp_path / "new") as first:
        with files.new_folder(tmp_path / "new", active=False) as second:
            assert first == second
        assert first.is_dir()
    assert content(tmp_path) == ["new"]


# ---- Files ----


def test_json_is_strict(tmp_path):
    value = {
        "nan": float("nan"),
        "array": np.array([[1.5, np.inf]]),
        "count": np.int64(3),
        "pair": (1, None),
        "ok": 0.5,
    }
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == {
        "nan": None, "array": [[1.5, None]], "count": 3, "pair": [1, None], "ok": 0.5,
    }  # fmt: skip
    text = (tmp_path / "a.json").read_text()
    assert text.startswith('{\n  "nan": null') and text.endswith("}\n") and "NaN" not in text
    assert files.to_json_text({"loss": np.float32("-inf")}) == '{"loss": null}'


def test_a_line_of_csv_holds_any_name():
    values = ["a", 'odd "name",', "of\ntwo lines", "Icon\r", "\r\n", "ü"]
    line = files.to_csv_line(values)
    assert line.startswith("a,") and line.endswith("ü\n")
    assert list(csv.reader(io.StringIO(line + line, newline=""))) == [values, values]


def test_json_that_is_missing_or_damaged(tmp_path):
    assert files.read_json(tmp_path / "none.json") is None
    for damaged in (b'{"a": 1', b"\xff\xfe\xfa"):
        (tmp_path / "a.json").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.json is damaged: "):
            files.read_json(tmp_path / "a.json")


def test_a_file_is_whole_for_readers_and_after_a_kill(tmp_path):
    path = tmp_path / "a.json"
    process = start(
        "for number in range(10**9):\n"
        "  files.write_json(sys.argv[1], [number] * 20_000)\n"
        "  if not number: print('ready', flush=True)",
        path,
    )
    process.stdout.readline()
    for _ in range(30):
        assert len(set(files.read_json(path))) == 1
    kill(process)
    assert len(set(files.read_json(path))) == 1
    assert files.visible(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, "old")
    process = start(f"{SMALL_DISK}files.write_json(sys.argv[1], 'x' * 200_000)", path)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and f"File too large: '{path}'" in errors
    assert content(tmp_path) == ["a.json"] and files.read_json(path) == "old"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    folder = Path("/proc") if os.geteuid() == 0 else tmp_path  # root may write in most places
    for write in (lambda: files.write_json(folder / "a.json", 1), lambda: files.Lines(folder / "a.json")):
        with pytest.raises(OSError, match=r"a\.json"):
            write()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/a\.json"):
        files.write_json(tmp_path / "none" / "a.json", 1)


def test_lines_outlive_a_kill(tmp_path):
    script = (
        "log = files.Lines(sys.argv[1])\nfor number in range(100): log.append(f'line {number}')\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = start(script, tmp_path / "log")
    process.stdout.readline()
    kill(process)
    assert files.read_lines(tmp_path / "log") == [f"line {number}" for number in range(100)]


def test_lines_go_on_after_what_is_whole(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert files.read_lines(path) == ['{"a": 1}', '{"a": 2}']
    log = files.Lines(path)
    log.append('{"a": 3}')
    log.append("ü\u2028")  # a line for str.splitlines, not for a log
    log.flush()
    log.close()
    assert files.read_lines(path) == ['{"a": 1}', '{"a": 2}', '{"a": 3}', "ü\u2028"]


def test_binary_logs_stay_as_they_are(tmp_path):
    for part in (b"\x00\nab", b"c\xff"):
        log = files.Lines(tmp_path / "events", binary=True)
        log.append(part)
        log.close()
    assert (tmp_path / "events").read_bytes() == b"\x00\nabc\xff"


def test_lines_are_cut_to_the_first(tmp_path):
    path = tmp_path / "log"
    files.keep_lines(path, 3)
    assert not path.exists() and files.read_lines(path) == []
    path.write_text("a\nb\nc\nd")
    for count, left in ((9, "a\nb\nc\n"), (2, "a\nb\n"), (0, "")):
        files.keep_lines(path, count)
        assert path.read_text() == left
    assert content(tmp_path) == ["log"]


def test_a_line_that_a_full_disk_cuts_off_is_taken_back(tmp_path):
    path = tmp_path / "log"
    script = "log = files.Lines(sys.argv[1])\nlog.append('x' * 60_000)\nlog.append('y' * 60_000)"
    process = start(f"{SMALL_DISK}{script}", path)
    assert "File too large" in process.communicate(timeout=60)[1]
    assert path.read_text() == "x" * 60_000 + "\n"


# ---- Room ----


def test_what_fits_is_no_matter(tmp_path):
    files.check_space(tmp_path / "not" / "yet" / "there", 10**4, "a checkpoint")
    files.check_space("gs://bucket/run", 10**18, "a checkpoint")


def test_too_little_room_is_told_with_both_numbers(tmp_path):
    message = r"for a checkpoint: 1000000000001 MB are needed in .*run, and \d+ MB are free"
    with pytest.raises(DiskError, match=message):
        files.check_space(tmp_path / "run", 10**18, "a checkpoint")


def test_a_full_disk_is_told_from_other_errors():
    log = files.Lines("/dev/full", binary=True)
    with pytest.raises(OSError) as full:
        log.append(b"x")
    os.close(log._file)  # fsync of a device is an error
    assert files.full_disk(full.value)
    assert files.full_disk(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert files.full_disk(ValueError('RESOURCE_EXHAUSTED: Error writing "x" [OS error 28: ENOSPC No space left]'))
    assert files.full_disk(DiskError("no space left on the disk"))
    try:
        raise RuntimeError("a thread failed") from full.value
    except RuntimeError as outer:
        assert files.full_disk(outer)
    assert not files.full_disk(OSError(errno.EACCES, "Permission denied")) and not files.full_disk(None)


def test_a_file_is_allocated(tmp_path):
    for size in (0, 12_345):
        files.allocate(tmp_path / "a.bin", size)
        assert (tmp_path / "a.bin").read_bytes() == bytes(size)
    assert (tmp_path / "a.bin").stat().st_blocks * 512 >= 12_345


def test_no_room_to_allocate_leaves_nothing(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"no space left on the disk for .*full \(1 MB\)"):
        files.allocate(tmp_path / "full", 10**6)
    process = start(f"{SMALL_DISK}files.allocate(sys.argv[1], 10**9)", tmp_path / "a.bin")
    assert "File too large" in process.communicate(timeout=60)[1]
    assert content(tmp_path) == []
