"""Hugging Face's hub: what is pushed comes back bit for bit, and what is refused is told with its cure.

The hub's own client, in a process of its own, since it reads the server's address when it is imported.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from effnet_jax.export import export
from effnet_jax.weights.store import read_weights
from tests import hub as fake
from tests import synthetic

for package in ("huggingface_hub", "safetensors"):
    pytest.importorskip(package)

CODE = """
import json, os, sys
from effnet_jax.errors import EffnetError
from effnet_jax.exports.push import push
from effnet_jax.weights.port import plan_port, read_variables
from effnet_jax.weights.readers import open_checkpoint

def pull(name):
    with open_checkpoint(name) as checkpoint:
        variables = read_variables(checkpoint, plan_port(checkpoint))
        return checkpoint.about.normalization(name), variables["params"]["classifier"]["kernel"].tobytes().hex()[:1000]

results = []
for kind, *arguments in json.loads(sys.argv[1]):
    try:
        results.append({"push": push, "pull": pull}[kind](*arguments))
    except EffnetError as error:
        results.append(str(error))
    os.environ["HF_TOKEN"] = "secret"  # but for the first
print(json.dumps(results))
"""


def talk(endpoint, home, *requests):
    """What pushes and pulls give, or the message of their error."""
    home = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": ""}
    command = [sys.executable, "-c", CODE, json.dumps(requests)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **home}, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A weights dir, its export for timm, the models of a hub that it was pushed to, and what came of each request."""
    root = tmp_path_factory.mktemp("hub")
    synthetic.write_weights_dir(root / "lite0")
    export(root / "lite0", root / "out", form="timm")
    with fake.running() as hub:
        hub.tokens.add("secret")
        hub.models["me/half"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
        push, names = (
            ["push", str(root / "out"), "hf://me/mine"],
            ("me/mine", "me/mine@none", "me/none", "gated/a", "me/half"),
        )
        results = talk(hub.url, root / "home", push, push, push, *(["pull", f"hf://{name}"] for name in names))
        return root, hub.models, results


def test_a_push_has_the_files_of_the_export_with_their_bytes(pushed):
    root, models, (_, address, again, *_) = pushed
    assert models["me/mine"] == {path.name: path.read_bytes() for path in (root / "out").iterdir()}
    assert "/me/mine/commit/" in address and "/me/mine/commit/" in again


def test_a_pull_gives_the_weights(pushed):
    root, _, results = pushed
    kernel = np.ascontiguousarray(read_weights(root / "lite0")[0]["params"]["classifier"]["kernel"])
    assert results[3] == ["lite", kernel.tobytes().hex()[:1000]]


def test_what_the_hub_refuses_is_told_with_its_cure(pushed):
    root, _, (unknown, _, _, _, revision, name, gated, half) = pushed
    assert "out is written" in unknown and "401" in unknown and f"`hf upload me/mine {root / 'out'}`" in unknown
    assert "Its revisions are at https://huggingface.co/me/mine/tree/main" in revision
    assert name.endswith("Check the name me/none; what is private asks to log in with `hf auth login`")
    assert gated.endswith("Ask for access at https://huggingface.co/gated/a, and log in with `hf auth login`")
    assert half.startswith("hf://me/half has no model.safetensors")


def test_no_hub(tmp_path):
    pull, push = talk("http://127.0.0.1:9", tmp_path, ["pull", "hf://me/mine"], ["push", str(tmp_path), "hf://me/mine"])
    assert "refused" in pull and "Without a network: put config.json and model.safetensors of https://" in pull
    assert "refused" in push and "try `hf upload me/mine" in push
