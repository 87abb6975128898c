"""Uploading what was written to Hugging Face's hub."""

import os
import re

from effnet_jax import files
from effnet_jax.errors import ConfigError, WeightsError, in_brief
from effnet_jax.weights.checkpoint import needs


def check_push(place: str, folder: str | os.PathLike) -> str:
    """Checks what can be checked before anything is written; returns the model's id, `user/name`.

    Raises:
      ConfigError: `place` is not of the form `hf://user/name`, or the folder is in a bucket.
      CheckpointError: huggingface_hub is not installed.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", place)
    if not match:
        raise ConfigError(f"--push={place}: write hf://user/name")
    if not files.is_local(files.as_path(folder)):
        raise ConfigError(f"--push uploads a folder of a disk, and {folder} is in a bucket")
    needs("huggingface_hub", "--push")
    return match[1]


def push(folder: str | os.PathLike, place: str) -> str:
    """Uploads a folder as a model; the repository is made where there is none.

    Args:
      folder: what to upload.
      place: `hf://user/name`.

    Returns:
      The address of the upload.

    Raises:
      ConfigError, CheckpointError: as of `check_push`.
      WeightsError: the upload fails: no network, no token, no right to write there.
    """
    model, hub = check_push(place, folder), needs("huggingface_hub", "--push")
    try:
        hub.create_repo(model, exist_ok=True)
        return str(hub.upload_folder(repo_id=model, folder_path=os.fspath(folder)))
    except Exception as error:  # its own errors, and those of its HTTP library
        raise WeightsError(
            f"{folder} is written, and could not be uploaded to {place} ({in_brief(error)}): log in with "
            f"`hf auth login`, and try `hf upload {model} {folder}`"
        ) from None
