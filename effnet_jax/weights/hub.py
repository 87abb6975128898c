"""Weights from Hugging Face's hub, and what its errors mean."""

import re
from pathlib import Path

from effnet_jax.errors import CheckpointError, in_brief
from effnet_jax.weights.checkpoint import needs

HUB = "hf://"
_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_CONFIG, _TENSORS = "config.json", "model.safetensors"


def download(name: str) -> Path:
    """Fetches `config.json` and `model.safetensors` of a model.

    Args:
      name: `hf://user/name`, with `@revision` for another than the newest.

    Returns:
      The folder that they are in.

    Raises:
      CheckpointError: huggingface_hub is not installed, they cannot be fetched, or the model has no such file.
    """
    match = _ID.fullmatch(name.removeprefix(HUB))
    if not match:
        raise CheckpointError(f"{name} is no model of the hub: write hf://user/name, hf://user/name@revision")
    hub = needs("huggingface_hub", name)
    page = f"https://huggingface.co/{match['id']}"
    try:
        folder = hub.snapshot_download(match["id"], revision=match["revision"], allow_patterns=[_CONFIG, _TENSORS])
    except Exception as error:  # its own errors, and those of its HTTP library
        cure = refusal(error, match["id"]) or (
            f"Without a network: put {_CONFIG} and {_TENSORS} of {page} into a folder, and give that"
        )
        raise CheckpointError(f"{name} could not be fetched ({in_brief(error)}). {cure}") from None
    if not Path(folder, _TENSORS).is_file():
        raise CheckpointError(
            f"{name} has no {_TENSORS}, the one kind of weights that is read from the hub: see {page}/tree/main, and "
            "download a .pth or .h5 by hand"
        )
    return Path(folder)


def refusal(error: Exception, model: str) -> str:
    """The cure of an error that the hub itself answers with, rather than the network; "" for others.

    Args:
      error: of huggingface_hub.
      model: `user/name`.
    """
    kind, status = type(error).__name__, getattr(getattr(error, "response", None), "status_code", 0)
    if kind == "RevisionNotFoundError":
        return f"Its revisions are at https://huggingface.co/{model}/tree/main"
    if kind == "GatedRepoError":
        return f"Ask for access at https://huggingface.co/{model}, and log in with `hf auth login`"
    if status in (401, 403, 404):
        return f"Check the name {model}; what is private asks to log in with `hf auth login`"
    return ""
