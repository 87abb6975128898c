"""Uploading what was written to Hugging Face's hub."""

import os
import re

from effnet_jax.errors import ConfigError, WeightsError, in_brief
from effnet_jax.weights.checkpoint import needs


def push(folder: str | os.PathLike, place: str) -> str:
    """Uploads a folder as a model; the repository is made where there is none.

    Args:
      folder: what to upload.
      place: `hf://user/name`.

    Returns:
      The address of the upload.

    Raises:
      ConfigError: `place` is not of this form.
      WeightsError: the upload fails: no network, no token, no right to write there.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", place)
    if not match:
        raise ConfigError(f"--push={place}: write hf://user/name")
    hub = needs("huggingface_hub", "--push")
    try:
        hub.create_repo(match[1], exist_ok=True)
        return str(hub.upload_folder(repo_id=match[1], folder_path=os.fspath(folder)))
    except Exception as error:  # its own errors, and those of its HTTP library
        raise WeightsError(
            f"{folder} is written, and could not be uploaded to {place} ({in_brief(error)}): log in with "
            f"`hf auth login`, and try `hf upload {match[1]} {folder}`"
        ) from None
