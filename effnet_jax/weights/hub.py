"""Weights from Hugging Face's hub."""

import re
from pathlib import Path

from effnet_jax.errors import CheckpointError, in_brief
from effnet_jax.weights.checkpoint import needs

HUB = "hf://"
_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILES = ("config.json", "model.safetensors")


def download(name: str) -> Path:
    """Fetches `config.json` and `model.safetensors` of a model.

    Args:
      name: `hf://user/name`, with `@revision` for another than the newest.

    Returns:
      The folder that they are in.

    Raises:
      CheckpointError: huggingface_hub is not installed, or they cannot be fetched.
    """
    match = _ID.fullmatch(name.removeprefix(HUB))
    if not match:
        raise CheckpointError(f"{name} is no model of the hub: write hf://user/name, hf://user/name@revision")
    hub = needs("huggingface_hub", name)
    try:
        return Path(hub.snapshot_download(match["id"], revision=match["revision"], allow_patterns=list(_FILES)))
    except Exception as error:  # its own errors, and those of its HTTP library
        raise CheckpointError(
            f"{name} could not be fetched ({in_brief(error)}). Without a network: put {' and '.join(_FILES)} of "
            f"https://huggingface.co/{match['id']} into a folder, and give that"
        ) from None
