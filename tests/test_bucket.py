"""Paths and files in a bucket, and what orbax does there: saves, lists, restores and deletes."""

import json
import os
import threading
import time
import urllib.request

import numpy as np
import pytest

from effnet_jax import files, locks
from effnet_jax.errors import PathError, RunError
from tests.bucket import BUCKET, bucket_fixture  # noqa: F401
from tests.scripts import kill, run, start

# The seconds of a lock, shorter by the factor 100.
FAST = "locks._BEAT, locks._STALE, locks._POLL = 0.3, 1.2, 0.05\n"


@pytest.fixture
def fast(monkeypatch):
    for name, seconds in (("_BEAT", 0.3), ("_STALE", 1.2), ("_POLL", 0.05)):
        monkeypatch.setattr(locks, name, seconds)


def objects(folder: str) -> list[str]:
    """All objects in a folder, hidden ones too."""
    place = os.environ["STORAGE_EMULATOR_HOST"]
    prefix = folder.removeprefix(f"gs://{BUCKET}/") + "/"
    with urllib.request.urlopen(f"{place}/storage/v1/b/{BUCKET}/o?prefix={prefix}") as response:
        return sorted(item["name"].removeprefix(prefix) for item in json.load(response).get("items", []))


# ---- Folders and files ----


def test_files_are_written_and_read(bucket):
    files.make_folder(f"{bucket}/run")
    assert files.visible(f"{bucket}/run") == [] and files.read_json(f"{bucket}/run/a.json") is None
    files.write_json(f"{bucket}/run/a.json", {"loss": float("nan")})
    files.write_bytes(files.as_path(bucket) / "run" / "inner" / ".hidden", b"\x00")
    files.write_bytes(f"{bucket}/run/inner/large", bytes(6_000_000))
    assert files.read_json(f"{bucket}/run/a.json") == {"loss": None}
    assert files.visible(f"{bucket}/run") == ["a.json", "inner"] and files.visible(f"{bucket}/run/inner") == ["large"]
    assert (files.as_path(bucket) / "run/inner/large").stat().length == 6_000_000
    with pytest.raises(NotADirectoryError):
        files.visible(f"{bucket}/run/a.json")


def test_what_other_processes_write_is_seen_at_once(bucket):
    files.write_json(f"{bucket}/a", 1)
    assert files.visible(bucket) == ["a"] and files.read_json(f"{bucket}/a") == 1
    run("files.write_json(sys.argv[1] + '/a', 'longer'); files.write_json(sys.argv[1] + '/b', 2)", bucket)
    assert files.visible(bucket) == ["a", "b"]
    assert files.read_json(f"{bucket}/a") == "longer" and files.read_json(f"{bucket}/b") == 2


def test_removing_spares_the_neighbours(bucket):
    for name in ("3/file", "3/inner/file", "30/file", "31"):
        files.write_bytes(f"{bucket}/{name}", b"x")
    for _ in range(2):
        files.remove(f"{bucket}/3")
        assert objects(bucket) == ["30/file", "31"]
    files.remove(f"{bucket}/31")
    assert objects(bucket) == ["30/file"]


def test_placeholders_of_folders_are_no_content(bucket):
    name = bucket.removeprefix(f"gs://{BUCKET}/") + "/run/"  # as the console and gcsfuse make them
    body = f'--x\nContent-Type: application/json\n\n{{"name": "{name}"}}\n--x\nContent-Type: text/plain\n\n\n--x--'
    place = f"{os.environ['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart"
    headers = {"Content-Type": 'multipart/related; boundary="x"'}
    urllib.request.urlopen(urllib.request.Request(place, body.encode(), headers)).close()
    assert objects(bucket) == ["run/"]
    assert files.visible(f"{bucket}/run") == []
    with files.new_folder(f"{bucket}/run") as folder:
        files.write_bytes(folder / "file", b"x")
    assert files.visible(f"{bucket}/run") == ["file"]
    files.remove(f"{bucket}/run")
    assert objects(bucket) == []


def test_a_move_takes_every_object(bucket):
    for name in ("a/file", "a/inner/file", "ab/file"):
        files.write_bytes(f"{bucket}/{name}", name.encode())
    files.move(f"{bucket}/a", f"{bucket}/moved/b")
    assert objects(bucket) == ["ab/file", "moved/b/file", "moved/b/inner/file"]
    with pytest.raises(FileExistsError):
        files.move(f"{bucket}/ab", f"{bucket}/moved/b")
    with pytest.raises(FileNotFoundError):
        files.move(f"{bucket}/none", f"{bucket}/other")


def test_a_new_folder_is_marked_until_it_is_whole(bucket):
    with files.new_folder(f"{bucket}/new") as folder:
        assert os.fspath(folder) == f"{bucket}/new"
        files.write_bytes(folder / "file", b"x")
        assert objects(bucket) == ["new/.partial", "new/file"]
    assert objects(bucket) == ["new/file"]
    with pytest.raises(FileExistsError), files.new_folder(f"{bucket}/new"):
        pass
    with pytest.raises(ZeroDivisionError), files.new_folder(f"{bucket}/other") as folder:
        files.write_bytes(folder / "file", b"x")
        raise ZeroDivisionError
    assert objects(bucket) == ["new/file"]


def test_a_new_folder_starts_anew_after_a_kill(bucket):
    script = (
        "with files.new_folder(sys.argv[1]) as folder:\n"
        "  files.write_bytes(folder / 'old', b''); print('ready', flush=True); time.sleep(60)"
    )
    process = start(script, f"{bucket}/new")
    process.stdout.readline()
    kill(process)
    assert objects(bucket) == ["new/.partial", "new/old"]
    with files.new_folder(f"{bucket}/new") as folder:
        files.write_bytes(folder / "file", b"x")
    assert objects(bucket) == ["new/file"]


def test_lines_are_put_after_a_while_and_at_the_end(bucket, monkeypatch):
    monkeypatch.setattr(files, "_SECONDS_BETWEEN_PUTS", 0.3)
    files.write_bytes(f"{bucket}/log", b"a\ncut o")
    log = files.Lines(f"{bucket}/log")
    log.append("b")
    log.append("c")
    assert files.read_lines(f"{bucket}/log") == ["a"]
    deadline = time.monotonic() + 10
    while files.read_lines(f"{bucket}/log") != ["a", "b", "c"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log.append("d")
    log.flush()
    assert files.read_lines(f"{bucket}/log") == ["a", "b", "c", "d"]
    log.append("e")
    log.close()
    files.keep_lines(f"{bucket}/log", 2)
    assert (files.as_path(bucket) / "log").read_bytes() == b"a\nb\n"
    events = files.Lines(f"{bucket}/events", binary=True)
    events.append(b"\x00\n\xff")
    events.close()
    assert (files.as_path(bucket) / "events").read_bytes() == b"\x00\n\xff"


def test_lines_of_many_threads_all_arrive(bucket, monkeypatch):
    monkeypatch.setattr(files, "_SECONDS_BETWEEN_PUTS", 0.005)
    log = files.Lines(f"{bucket}/log")

    def append(name):
        for number in range(50):
            log.append(f"{name} {number}")
            if number % 10 == 0:
                log.flush()

    threads = [threading.Thread(target=append, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(files.read_lines(f"{bucket}/log")) == sorted(f"{name} {n}" for name in "abcd" for n in range(50))


def test_a_bucket_that_is_missing_is_named(bucket):
    message = "there is no bucket gs://nosuch: check its name"
    for write in (
        lambda: files.write_json("gs://nosuch/run/a.json", 1),
        lambda: locks.lock("gs://nosuch/run").__enter__(),
        lambda: files.new_folder("gs://nosuch/run").__enter__(),
    ):
        with pytest.raises(PathError, match=message):
            write()


# ---- Locks ----

HOLD = "with locks.lock(sys.argv[1]) as claim:\n  print('ready', flush=True); time.sleep(60)"


def test_a_second_process_is_refused_and_told_who_is_there(bucket):
    process = start(HOLD, f"{bucket}/run")
    process.stdout.readline()
    with (
        pytest.raises(RunError, match=rf"run is in use by process {process.pid} on \S+ since"),
        locks.lock(f"{bucket}/run"),
    ):
        pass
    kill(process)
    told = []
    with locks.lock(f"{bucket}/run", tell=told.append) as claim:
        warning = (
            f"warning: {bucket}/run is taken over from a run that did not end: process {process.pid} on this machine"
        )
        assert told == [f"{warning} is gone"]
        claim.check()
        assert objects(bucket) == ["run/.lock"] and files.visible(f"{bucket}/run") == []
        with pytest.raises(RunError, match=f"process {os.getpid()}"), locks.lock(f"{bucket}/run"):
            pass
    assert objects(bucket) == []


def other_machine(folder: str) -> None:
    """Changes the lock to that of another machine."""
    holder = files.read_json(f"{folder}/.lock")
    files.write_json(f"{folder}/.lock", holder | {"machine": "other", "host": "other"})


def test_a_lock_of_another_machine_that_died_is_taken_over(bucket, fast):
    process = start(f"{FAST}{HOLD}", bucket)
    process.stdout.readline()
    kill(process)
    other_machine(bucket)
    told = []
    with locks.lock(bucket, tell=told.append):
        pass
    assert len(told) == 2 and "waiting for a sign of its life" in told[0]
    assert f"process {process.pid} on other is silent for 1 s" in told[1]


def test_a_lock_of_another_machine_that_lives_is_left(bucket, fast):
    script = f"locks._describe_me = lambda f=locks._describe_me: f() | {{'machine': 'other'}}\n{FAST}{HOLD}"
    process = start(script, bucket)
    process.stdout.readline()
    before = files.read_json(f"{bucket}/.lock")["beat"]
    for patience in (60, 0):
        with pytest.raises(RunError, match="in use by process"), locks.lock(bucket, tell=str, patience=patience):
            pass
    assert files.read_json(f"{bucket}/.lock")["beat"] > before
    kill(process)


def test_who_lost_the_lock_is_told(bucket, fast):
    with locks.lock(bucket) as claim:
        time.sleep(0.7)
        claim.check()
        files.write_json(f"{bucket}/.lock", locks._describe_me() | {"pid": 4321, "beat": time.time()})
        deadline = time.monotonic() + 10
        while not claim.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(RunError, match="in use by process 4321"):
            claim.check()
    assert files.read_json(f"{bucket}/.lock")["pid"] == 4321


def test_a_damaged_lock_is_taken_over(bucket):
    files.write_bytes(f"{bucket}/.lock", b"x")
    told = []
    with locks.lock(bucket, tell=told.append):
        pass
    assert "its lock cannot be read" in told[0] and objects(bucket) == []


def test_of_many_that_start_at_once_one_gets_the_lock(bucket, tmp_path):
    script = (
        "from effnet_jax.errors import RunError\n"
        "end = time.time() + 1.5\n"
        "while time.time() < end:\n"
        "  try:\n"
        "    with locks.lock(sys.argv[1]):\n"
        "      open(sys.argv[2], 'x').close(); time.sleep(0.01); files.remove(sys.argv[2])\n"
        "  except RunError: pass"
    )
    processes = [start(script, bucket, tmp_path / "held") for _ in range(3)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert not any("Traceback" in error for error in errors), errors


# ---- Orbax ----


def open_manager(folder: str):
    """Opens checkpoints as a run does: the newest two, and the best."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics["accuracy"], n=1, keep_checkpoints_without_metrics=False
    )
    policy = policies.AnyPreservationPolicy([policies.LatestN(2), best])
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(files.absolute(folder), options=options)


def save(manager, step: int, state, accuracy: float) -> None:
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave({"step": step}))
    manager.save(step, args=args, metrics={"accuracy": accuracy})


def test_orbax_saves_lists_restores_and_deletes_checkpoints(bucket):
    import jax
    import orbax.checkpoint as ocp

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    state = {
        "kernel": np.random.default_rng(0).normal(size=(300, 1000)).astype(np.float32),
        "sharded": jax.device_put(np.arange(64, dtype=np.float32).reshape(8, 8), sharding),
        "step": np.array(3, np.int32),
    }
    manager = open_manager(bucket)
    for step, accuracy in ((1, 0.9), (2, 0.1), (3, 0.2), (4, 0.3)):
        save(manager, step, state, accuracy)
    manager.wait_until_finished()
    assert manager.all_steps() == [1, 3, 4]
    manager.close()
    manager = open_manager(bucket)
    assert manager.latest_step() == 4 and files.visible(bucket) == ["1", "3", "4"]
    record = manager.restore(1, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
    assert record == {"step": 1}
    target = jax.tree.map(lambda leaf: ocp.utils.to_shape_dtype_struct(leaf), state)
    restored = manager.restore(4, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
    assert restored["sharded"].sharding == sharding
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    files.move(f"{bucket}/4", f"{bucket}.damaged/4")
    manager.reload()
    assert manager.latest_step() == 3 and "commit_success.txt" in files.visible(f"{bucket}.damaged/4")
    manager.delete(3)
    assert files.visible(bucket) == ["1"]
    manager.close()


def test_a_checkpoint_that_a_kill_cut_off_is_passed_over_and_written_again(bucket):
    script = (
        "import numpy as np\nfrom tests.test_bucket import open_manager, save\n"
        "manager = open_manager(sys.argv[1])\n"
        "save(manager, 1, {'kernel': np.ones(3)}, 0.1); manager.wait_until_finished()\n"
        "save(manager, 2, {f'kernel{n}': np.ones((1000, 1000)) for n in range(10)}, 0.2)\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = start(script, bucket)
    process.stdout.readline()
    while not any(name.startswith("2/") for name in objects(bucket)):
        time.sleep(0.01)
    kill(process)
    assert "2/commit_success.txt" not in objects(bucket)
    manager = open_manager(bucket)
    assert manager.all_steps() == [1] and files.visible(bucket) == ["1"]
    save(manager, 2, {"kernel": np.ones(3)}, 0.2)
    manager.wait_until_finished()
    manager.close()
    assert open_manager(bucket).all_steps() == [1, 2]


def test_orbax_saves_and_restores_one_tree(bucket):
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False)
    tree = {"params": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}, "batch_stats": {"mean": np.ones(3)}}
    with ocp.Checkpointer(handler) as checkpointer:
        with files.new_folder(f"{bucket}/weights") as folder:
            checkpointer.save(folder / "variables", args=ocp.args.PyTreeSave(tree))
            files.write_json(folder / "metadata.json", {})
        assert files.visible(f"{bucket}/weights") == ["metadata.json", "variables"]
        restored = checkpointer.restore(f"{bucket}/weights/variables", args=ocp.args.PyTreeRestore())
    np.testing.assert_array_equal(restored["params"]["kernel"], tree["params"]["kernel"])
    np.testing.assert_array_equal(restored["batch_stats"]["mean"], tree["batch_stats"]["mean"])
