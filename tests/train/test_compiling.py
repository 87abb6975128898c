"""Where compiled programs are kept, and what a first step had to wait for."""

import importlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from effnet_jax import hosts
from effnet_jax.errors import EffnetError
from effnet_jax.train.compiling import CompileClock, first_step_words, keep_programs, trim
from tests.bucket import bucket_fixture  # noqa: F401

FOLDER, XLA_CACHES = "jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A function that says where JAX keeps programs; in the beginning nowhere, and the user's folder is a new one."""
    before = {name: getattr(jax.config, name) for name in (FOLDER, XLA_CACHES)}
    jax.config.update(FOLDER, None)
    monkeypatch.delenv("EFFNET_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield lambda: getattr(jax.config, FOLDER)
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_users_folder_is_the_default(cache, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "effnet_jax" / "xla"
    assert keep_programs("") == f"compiled programs are kept in {folder}"
    assert cache() == str(folder) and list(folder.iterdir()) == []
    jax.config.update(FOLDER, None)
    monkeypatch.setenv("XDG_CACHE_HOME", "not/from/the/root")  # which the standard says to ignore
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_programs("")
    assert cache() == str(tmp_path / ".cache" / "effnet_jax" / "xla")


def test_another_folder_or_none(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert keep_programs("off") == "" and cache() is None
    assert keep_programs("programs") == f"compiled programs are kept in {tmp_path / 'programs'}"
    assert cache() == str(tmp_path / "programs")
    assert keep_programs("others") == "" and cache() == str(tmp_path / "programs")  # what JAX was told before stays
    assert not (tmp_path / "others").exists()


def test_a_folder_that_cannot_be_written_is_told_and_no_reason_to_end(cache, tmp_path):
    (tmp_path / "file").write_text("")
    words = keep_programs(str(tmp_path / "file" / "programs"))
    assert words.startswith("warning: compiled programs are not kept: [Errno ") and "file" in words
    assert cache() is None


def test_a_bucket(cache, bucket):
    assert keep_programs(f"{bucket}/xla") == f"compiled programs are kept in {bucket}/xla"
    assert cache() == f"{bucket}/xla"
    assert getattr(jax.config, XLA_CACHES) == "none"  # XLA's own files need a disk
    jax.config.update(FOLDER, None)
    words = keep_programs("gs://no-such-bucket/xla")
    assert words.startswith("warning: compiled programs are not kept: ") and "gs://no-such-bucket" in words
    assert cache() is None


@pytest.mark.parametrize("name", ["evaluate", "report.__main__", "predict.__main__"])
def test_a_command_without_a_config_keeps_them_for_its_next_time(cache, name, tmp_path, monkeypatch):
    (tmp_path / "x.jpg").touch()
    images = [str(tmp_path / "x.jpg")] if "predict" in name else []
    monkeypatch.setattr(sys, "argv", ["command", str(tmp_path / "absent"), *images])
    with pytest.raises(EffnetError, match="absent"):
        importlib.import_module(f"effnet_jax.{name}").main()
    assert cache() == str(tmp_path / "cache" / "effnet_jax" / "xla")
    assert not (tmp_path / "absent").exists()


def test_several_processes_need_a_folder_that_is_named(cache, monkeypatch):
    monkeypatch.setattr(hosts, "count", lambda: 2)
    assert "compile_cache can name a folder that all processes see" in keep_programs("")
    assert cache() is None


def test_a_folder_that_is_not_the_same_for_all_processes_is_not_used(tmp_path):
    """On GPUs, who found its programs would leave the others waiting."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = (
        "import sys, jax\n"
        "from effnet_jax import hosts\n"
        "from effnet_jax.train import compiling\n"
        "compiling._SECONDS_TO_SEE = 0.5\n"
        f"hosts.join('localhost:{port}', 2, int(sys.argv[1]))\n"
        "for place in ('own', sys.argv[2]):\n"
        "    print('SAID', compiling.keep_programs(place), jax.config.jax_compilation_cache_dir)\n"
    )
    environment = {**os.environ, "XLA_FLAGS": ""}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    started = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        command = [sys.executable, "-c", script, str(number), str(tmp_path / "common")]
        started.append(
            subprocess.Popen(command, cwd=tmp_path / str(number), env=environment, stdout=subprocess.PIPE, text=True)
        )
    for process in started:
        output = process.communicate(timeout=120)[0]
        own, common = (line for line in output.splitlines() if line.startswith("SAID"))
        assert "not kept: process 1 (" in own and "own is not the same folder here as on process 0 None" in own
        assert common == f"SAID compiled programs are kept in {tmp_path / 'common'} {tmp_path / 'common'}"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_second_start_finds_its_programs(tmp_path):
    script = (
        "import jax, jax.numpy as jnp\n"
        "from effnet_jax.train.compiling import keep_programs\n"
        "keep_programs('')\n"
        "found = []\n"
        "jax.monitoring.register_event_listener(lambda event, **about: found.append(event))\n"
        "jax.jit(lambda x: jnp.tanh(x @ x))(jnp.ones((8, 8)))\n"
        "print(found.count('/jax/compilation_cache/cache_hits'), found.count('/jax/compilation_cache/cache_misses'))\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    done = [
        subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    (hits, misses), second = ([int(word) for word in one.stdout.split()] for one in done)
    assert hits == 0 and misses > 0 and second == [misses, 0]
    assert "".join(one.stderr for one in done) == ""


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    for name, size, read in (("a", 40, 1), ("b", 30, 4), ("c", 30, 2), ("d", 30, 3)):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(size))
        os.utime(path, (time.time() + read, 0))
    (tmp_path / "else").write_bytes(bytes(100))
    trim(tmp_path, 130)
    assert len(list(tmp_path.iterdir())) == 5
    trim(tmp_path, 90)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b-cache", "c-cache", "d-cache", "else"]
    trim(Path(tmp_path / "none"), 0)


def test_the_clock_tells_compiling_from_the_rest():
    with CompileClock() as clock:
        time.sleep(0.3)
        waited = clock.read()
        jax.jit(lambda x: [jnp.linalg.norm(x @ x + i) for i in range(20)])(jnp.ones((4, 4)))
        compiled = clock.read()
    jax.jit(lambda x: jnp.cos(x) + jnp.linalg.norm(x))(jnp.ones((4, 4)))
    assert waited["seconds"] >= 0.3 and waited["compiling"] == 0
    assert 0 < compiled["compiling"] <= compiled["seconds"] - 0.2
    assert clock.read()["compiling"] == compiled["compiling"]  # nothing is heard after its end
    assert first_step_words({"seconds": 65.2, "compiling": 23.4}) == (
        "first step after 1 min 05 s, 23 s of them compiling"
    )
