"""Fetching: broken off and gone on with, another file, no file, no server; and weights by name."""

import dataclasses
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
import urllib.request
import zlib

import numpy as np
import pytest

from effnet_jax import files
from effnet_jax.errors import DiskError, WeightsError
from effnet_jax.export import export
from effnet_jax.weights import by_name, fetch, published
from effnet_jax.weights.fetch import NotFetched
from effnet_jax.weights.published import Published, Source, find_published, get_published, table
from effnet_jax.weights.store import read_metadata
from tests import synthetic

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT under any name; what is in the name goes wrong."""

    asked: list = []
    content = CONTENT

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        type(self).asked.append((self.path, start))
        first = sum(path == self.path for path, _ in self.asked) == 1
        if "moved" in self.path:  # to another host, as GitHub does with files of releases
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/a")
            self.end_headers()
            return
        if "missing" in self.path:
            self.send_error(404)
            return
        if "busy" in self.path and first:
            self.send_error(503)
            return
        if "whole" in self.path:
            start = 0  # a server that knows no ranges
        self.send_response(206 if start else 200)
        self.send_header("ETag", f"{zlib.crc32(self.content)}")
        if start:
            begin = 0 if "elsewhere" in self.path else start
            self.send_header("Content-Range", f"bytes {begin}-{len(self.content) - 1}/{len(self.content)}")
        if "unknown" not in self.path:
            self.send_header("Content-Length", "many" if "odd" in self.path else str(len(self.content) - start))
        self.end_headers()
        body = self.content[start:]
        if "breaks" in self.path and first or "whole" in self.path and first:
            body = body[:1_000_000]
        if "slow" in self.path:
            for part in range(0, len(body), 300_000):
                self.wfile.write(body[part : part + 300_000])
                time.sleep(0.05)
            return
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFNET_JAX_CACHE", str(tmp_path / "cache"))
    Handler.asked, Handler.content = [], CONTENT
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("a", [0]),
        ("breaks", [0, 1_000_000]),
        ("whole", [0, 1_000_000]),
        ("busy", [0, 0]),
        ("unknown", [0]),
        ("odd", [0]),
        ("moved", [0, 0]),
    ],
)
def test_a_file_is_fetched_whole(server, tmp_path, name, starts):
    heard = []
    told = lambda done, total: heard.append((done, total))  # noqa: E731
    place = fetch.fetch(f"{server}/{name}", tmp_path / "new" / "file", told=told)
    assert place.read_bytes() == CONTENT and [start for _, start in Handler.asked] == starts
    assert heard[-1] == (len(CONTENT), 0 if name in ("unknown", "odd") else len(CONTENT))
    assert os.listdir(place.parent) == ["file"]


def leave_a_part(place, content):
    """What an attempt leaves that was killed."""
    place.with_name(".file.fetched").write_bytes(content[:1234])
    place.with_name(".file.fetched.of").write_text(f"{zlib.crc32(content)}")


def test_what_an_attempt_left_is_gone_on_with(server, tmp_path):
    leave_a_part(tmp_path / "file", CONTENT)
    assert fetch.fetch(f"{server}/a", tmp_path / "file").read_bytes() == CONTENT
    assert Handler.asked == [("/a", 1234)]
    assert not (tmp_path / ".file.fetched.of").exists()


@pytest.mark.parametrize(("name", "of"), [("a", CONTENT[::-1]), ("elsewhere", CONTENT)])
def test_a_part_of_another_file_is_not_gone_on_with(server, tmp_path, name, of):
    """The server has another file by now; or answers with another part of it than it was asked for."""
    leave_a_part(tmp_path / "file", of)
    assert fetch.fetch(f"{server}/{name}", tmp_path / "file").read_bytes() == CONTENT
    assert [start for _, start in Handler.asked] == [1234, 0]


@pytest.mark.parametrize(
    ("name", "sha256", "message"),
    [
        ("missing", "", r"missing: HTTP status 404 \(Not Found\)"),
        ("a", "00000000", "its SHA-256 is [0-9a-f]{64}, and it is published with 00000000"),
    ],
)
def test_what_cannot_be_had_leaves_nothing(server, tmp_path, name, sha256, message):
    with pytest.raises(NotFetched, match=message):
        fetch.fetch(f"{server}/{name}", tmp_path / "in" / "file", sha256=sha256)
    assert not os.listdir(tmp_path / "in")


def test_a_file_that_changed_since_one_was_good(server, tmp_path):
    fetch.remember(f"{server}/a", fetch.fetch(f"{server}/a", tmp_path / "file"))
    Handler.content = CONTENT[::-1]
    with pytest.raises(NotFetched, match="and the one that was good before had"):
        fetch.fetch(f"{server}/a", tmp_path / "again")
    fetch.fetch(f"{server}/a", tmp_path / "again", sha256=hashlib.sha256(CONTENT[::-1]).hexdigest()[:8])


def test_no_server(tmp_path):
    with pytest.raises(NotFetched, match="Connection refused"):
        fetch.fetch("http://127.0.0.1:9/a", tmp_path / "file")


def test_a_full_disk(server, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".file.fetched").symlink_to("/dev/full")
    with pytest.raises(WeightsError, match=r"file cannot be written \(No space left on device\): free some"):
        fetch.fetch(f"{server}/a", tmp_path / "full" / "file")
    assert not os.listdir(tmp_path / "full")


@pytest.fixture
def lite(server, tmp_path, monkeypatch):
    """Published weights `test_lite0` on the server, as timm's folder would have them."""
    pytest.importorskip("safetensors")
    synthetic.write_weights_dir(tmp_path / "made")
    export(tmp_path / "made", tmp_path / "timm", form="timm")
    Handler.content = (tmp_path / "timm" / "model.safetensors").read_bytes()
    sources = (Source("no.tar.gz", f"{server}/missing"), Source("lite.safetensors", f"{server}/slow"))
    row = Published("test_lite0", "lite0", "lite", 75.1, "tf_test.in1k", sources, 224)
    monkeypatch.setattr(published, "table", lambda: {"test_lite0": row})
    return row


def test_weights_by_name_are_made_once_and_kept(lite, tmp_path):
    import effnet_jax

    _, variables, metadata = effnet_jax.load_weights("tf_test.in1k", num_classes=3)
    assert metadata.source["published"] == "test_lite0" and metadata.num_classes == 3
    assert variables["params"]["stem"]["conv"]["kernel"].shape == (3, 3, 3, 32)
    asked = len(Handler.asked)
    assert effnet_jax.load_weights("test_lite0")[2].class_names[0] == "tench"
    assert len(Handler.asked) == asked
    assert os.listdir(tmp_path / "cache" / "fetched" / "test_lite0") == []  # what was fetched is ported and gone


def test_a_page_instead_of_a_file_is_not_kept(lite, server, tmp_path, monkeypatch):
    """A server that asks to log in answers with a page and no error: the next source is tried, and then all anew."""
    page = Source("page.safetensors", f"{server}/a")
    row = dataclasses.replace(lite, sources=(page, *lite.sources))
    good, Handler.content = Handler.content, b"<html>log in</html>"
    with pytest.raises(WeightsError, match=r"(?s)page.*could not be fetched|is no .safetensors"):
        by_name.get_weights(row)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    Handler.content = good
    assert by_name.get_weights(row).is_dir()


def test_a_name_that_is_neither_a_folder_nor_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="there is no weights dir my_weights, and there are no published weights"):
        by_name.weights_dir("my_weights")
    with pytest.raises(WeightsError, match="hf://me/mine is none of the published weights: python -m effnet_jax.port"):
        by_name.weights_dir("hf://me/mine")


GET = """
import sys
from effnet_jax.weights import by_name, published
from effnet_jax.weights.published import Published, Source
source = Source("lite.safetensors", sys.argv[1])
row = Published("test_lite0", "lite0", "lite", 75.1, "tf_test.in1k", (source,), 224)
published.table = lambda: {"test_lite0": row}
print(by_name.weights_dir("test_lite0"))
"""


def test_two_processes_fetch_once(lite, server):
    command = [sys.executable, "-c", GET, f"{server}/slow"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    places = {process.communicate(timeout=60)[0] for process in started}
    assert len(places) == 1 and places.pop().strip().endswith("weights/test_lite0")
    assert [path for path, _ in Handler.asked] == ["/slow"]


def test_without_a_network_the_error_says_what_to_put_where(lite, tmp_path):
    Handler.content = b""
    lines = by_name._what_to_do(lite, ["why"]).splitlines()
    place = lines[-1].removeprefix("    -> ")
    os.makedirs(os.path.dirname(place))
    (tmp_path / "timm" / "model.safetensors").rename(place)
    assert by_name.weights_dir("test_lite0").is_dir() and os.path.exists(place)  # one's own file stays
    assert [path for path, _ in Handler.asked] == ["/missing"]


def test_the_table():
    rows = table()
    assert len(rows) == 41 and len({row.alias for row in rows.values()}) == 41
    assert find_published("hf://timm/tf_efficientnet_b1.ns_jft_in1k") is rows["noisy_student_b1"]
    assert (rows["noisy_student_l2_475"].resolution, rows["lite3"].resolution) == (475, 280)
    assert rows["advprop_b8"].recipe.normalization == "advprop"
    for row in rows.values():
        assert row.variant in row.recipe.variants and any(source.url.endswith(".tar.gz") for source in row.sources)
    with pytest.raises(WeightsError, match="did you mean 'noisy_student_b7'"):
        get_published("noisy_student_b77")


def test_a_path_that_is_there_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite0").mkdir()
    assert str(by_name.weights_dir("lite0")) == "lite0"
    assert str(by_name.weights_dir("weights/none")).endswith("weights/none")  # told by whoever reads it


def test_what_a_kill_left_between_fetching_and_porting_is_taken_and_goes(lite, tmp_path):
    place = tmp_path / "cache" / "fetched" / "test_lite0" / "lite.safetensors"
    place.parent.mkdir(parents=True)
    (tmp_path / "timm" / "model.safetensors").rename(place)
    assert by_name.weights_dir("test_lite0").is_dir() and not place.exists()
    assert [path for path, _ in Handler.asked] == ["/missing"]


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_cache_that_is_no_folder(server, tmp_path, monkeypatch, below):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EFFNET_JAX_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(
        WeightsError, match=r"cache folder .* cannot be written or locked \(.*\): set EFFNET_JAX_CACHE to"
    ):
        by_name.weights_dir("noisy_student_b0")
    with pytest.raises(WeightsError, match="cannot be written .* or set EFFNET_JAX_CACHE"):
        fetch.fetch(f"{server}/a", tmp_path / "file" / below / "file")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NOISY-STUDENT-B1", "noisy_student_b1"),
        ("hf_hub:timm/tf_efficientnet_b0.ns_jft_in1k", "noisy_student_b0"),
        ("hf-hub:timm/tf_efficientnet_b0.ns_jft_in1k", "noisy_student_b0"),
        ("tf_efficientnet_b0_ns", "noisy_student_b0"),
        ("timm/tf_efficientnet_l2_ns_475", "noisy_student_l2_475"),
        ("tf_efficientnet_lite3", "lite3"),
    ],
)
def test_other_spellings(name, found):
    assert get_published(name).name == found


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "EfficientNetB0", "tf_efficientnet_b0", "b0", "efficientnet_b0.ra_in1k"]
)
def test_the_name_of_an_architecture_has_all_weights_of_it(name):
    """None of them is meant by it: timm's own `efficientnet_b0` is another network."""
    with pytest.raises(
        WeightsError, match="of b0 there are baseline_b0, autoaugment_b0, advprop_b0, noisy_student_b0 "
    ):
        get_published(name)


def test_a_cache_without_room_for_the_weights(lite, tmp_path, monkeypatch):
    """Nothing is left in it, what was fetched neither: it would take the room that is asked for."""
    monkeypatch.setattr(files, "_MARGIN", 2**60)
    with pytest.raises(DiskError, match="no space left .* EFFNET_JAX_CACHE may name a folder of another disk"):
        by_name.get_weights(lite)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def test_damage_in_the_cache_is_cured_by_removing_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFNET_JAX_CACHE", str(tmp_path))
    place = tmp_path / "weights" / "lite0"
    place.mkdir(parents=True)
    (place / "metadata.json").write_text("{")
    with pytest.raises(WeightsError, match=f"metadata.json is damaged .*: remove {place}, and it is made again"):
        read_metadata("lite0")


def test_what_breaks_off_for_good_is_kept_for_the_next_start(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_TRIES", 1)
    with pytest.raises(
        NotFetched, match=r"breaks: it broke off before its end \(the 1.0 MB that came are kept: the next"
    ):
        fetch.fetch(f"{server}/breaks", tmp_path / "file")
    assert fetch.fetch(f"{server}/breaks", tmp_path / "file").read_bytes() == CONTENT
    assert [start for _, start in Handler.asked] == [0, 1_000_000]


def test_a_proxy(server, tmp_path, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server)
    monkeypatch.setattr(urllib.request, "_opener", None)  # made once in a process, with the proxies of then
    assert fetch.fetch("http://no.such.host.invalid/a", tmp_path / "file").read_bytes() == CONTENT
    assert Handler.asked == [("http://no.such.host.invalid/a", 0)]
