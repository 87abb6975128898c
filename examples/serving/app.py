"""Classifies uploaded photographs over HTTP. A start to build on: docs/serving.md says what it leaves out.

pip install 'effnet-jax[serve]'
WEIGHTS=runs/mine/weights uvicorn --app-dir examples/serving app:app
curl -F images=@one.jpg -F images=@two.png 'localhost:8000/classify?top=3'
"""

import os
import threading
from typing import Annotated

import numpy as np
from fastapi import FastAPI, HTTPException, Query, UploadFile

from effnet_jax.predict import load_classifier, predictions

MOST_IMAGES, MOST_BYTES = 16, 20 * 2**20  # of a request, of an image
classify = load_classifier(os.environ["WEIGHTS"], batch_size=MOST_IMAGES)
for size in classify.batch_sizes:  # compiled before the first request, not in it
    classify([np.zeros((8, 8, 3), np.uint8)] * size)
at_work = threading.Semaphore(2)  # requests: one decodes while one computes, and more would only take memory
app = FastAPI(title="effnet_jax")


@app.post("/classify")
def classify_images(images: list[UploadFile], top: Annotated[int, Query(ge=1)] = 5) -> list[dict]:
    """The likeliest classes of each image, or why it cannot be read. No coroutine: it runs in a thread of its own."""
    with at_work:
        data = [image.file.read(MOST_BYTES + 1) for image in images[: MOST_IMAGES + 1]]
        if len(data) > MOST_IMAGES or any(len(image) > MOST_BYTES for image in data):
            raise HTTPException(413, f"at most {MOST_IMAGES} images of {MOST_BYTES:,} bytes")
        return [
            {"error": result.error} if result.values is None
            else {"predictions": predictions(result.values, classify.class_names, top)}
            for result in classify.stream(data, on_error="entry")
        ]  # fmt: skip
