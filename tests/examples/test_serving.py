"""The example of a server answers, and refuses what it should. Needs the extra `serve`."""

import concurrent.futures
import importlib.util
import io
import threading
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from effnet_jax import load_classifier
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import write_weights
from tests import synthetic
from tests.conftest import REPOSITORY

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("python_multipart", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The example's module and a client of it."""
    weights = tmp_path_factory.mktemp("serving") / "lite0"
    names = ("cat", "dog", "owl")
    metadata = Metadata("lite0", "lite", "lite", "none", 32, 3, names, evaluation="resize")
    write_weights(weights, synthetic.variables("lite0", num_classes=3), metadata)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # of the client's own dependencies
        from fastapi.testclient import TestClient

        patch.setenv("WEIGHTS", str(weights))
        place = importlib.util.spec_from_file_location("app", REPOSITORY / "examples" / "serving" / "app.py")
        module = importlib.util.module_from_spec(place)
        place.loader.exec_module(module)
    return weights, module, TestClient(module.app)


def encoded(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_each_image_gets_its_classes_or_its_error(served):
    weights, _, client = served
    images = [encoded(30), b"nonsense", encoded(200)]
    response = client.post("/classify?top=2", files=[("images", image) for image in images])
    assert response.status_code == 200
    first, bad, last = response.json()
    assert "image 1 is not an image" in bad["error"]
    expected = load_classifier(weights)([images[0], images[2]])
    for found, row in zip((first, last), expected, strict=True):
        assert len(found["predictions"]) == 2
        assert found["predictions"][0]["index"] == row.argmax()
        assert found["predictions"][0]["probability"] == pytest.approx(row.max(), abs=1e-4)


def test_requests_that_are_refused(served, monkeypatch):
    _, module, client = served
    many = client.post("/classify", files=[("images", encoded(1))] * 17)
    assert many.status_code == 413 and "at most 16 images" in many.json()["detail"]
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    assert client.post("/classify", files=[("images", encoded(1))]).status_code == 413
    assert client.post("/classify?top=0", files=[("images", encoded(1))]).status_code == 422
    assert client.post("/classify").status_code == 422


def test_a_crowd_is_served_in_turns(served, monkeypatch):
    """Decoded photographs are large: those of forty requests at once are more than a machine's memory."""
    _, module, client = served
    lock, at_work, most = threading.Lock(), 0, 0
    stream = module.classify.stream

    def counted(*arguments, **options):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        yield from stream(*arguments, **options)
        with lock:
            at_work -= 1

    monkeypatch.setattr(module.classify, "stream", counted)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: client.post("/classify", files=[("images", encoded(9))]), range(12)))
    assert [answer.status_code for answer in answers] == [200] * 12 and most <= 2
