"""One result for each input, in order, with no more drawn than is bounded, and errors where they belong."""

import itertools
import threading

import jax
import numpy as np
import pytest

from effnet_jax.errors import ConfigError, DataError
from effnet_jax.predict import load_classifier

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 40, 40, 3), np.uint8)


def test_a_result_each_in_order(classify):
    results = list(classify.stream(iter(IMAGES)))
    assert len(results) == 11 and not any(result.error for result in results)
    for index in (0, 6, 10):
        np.testing.assert_allclose(results[index].values, classify(IMAGES[index])[0], atol=1e-5)
    assert np.ptp([result.values for result in results], axis=0).max() > 1e-4  # they differ


def test_endless_inputs_are_drawn_as_they_are_needed(classify):
    drawn = []

    def camera():
        for number in itertools.count():
            drawn.append(number)
            yield IMAGES[number % 11]

    stream = classify.stream(camera())
    first = list(itertools.islice(stream, 30))
    assert len(first) == 30 and len(drawn) <= 30 + 4 + 5 * 4
    np.testing.assert_array_equal(first[22].values, classify.stream(IMAGES).__next__().values)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decoder")]


def test_a_source_may_fill_the_same_array_for_each_image(classify):
    """As cameras do, into a buffer that was given to them once."""

    def camera():
        frame = np.empty_like(IMAGES[0])
        for image in IMAGES:
            frame[:] = image
            yield frame

    found = np.array([result.values for result in classify.stream(camera())])
    np.testing.assert_array_equal(found, classify(IMAGES))


def test_a_bad_image_is_an_entry_or_an_error_after_those_before_it(classify):
    images = [*IMAGES[:5], b"nonsense", *IMAGES[6:]]
    entries = list(classify.stream(images, on_error="entry"))
    assert [bool(entry.error) for entry in entries] == [index == 5 for index in range(11)]
    assert entries[5].values is None and "image 5" in entries[5].error
    for index in (4, 6):  # its neighbours in the batch are what they are without it
        np.testing.assert_array_equal(entries[index].values, list(classify.stream(IMAGES))[index].values)
    stream, seen = classify.stream(images), []
    with pytest.raises(DataError, match="image 5"):
        for result in stream:
            seen.append(result)
    assert len(seen) == 5
    with pytest.raises(ConfigError, match="on_error='skip'"):
        classify.stream(images, on_error="skip")


def test_what_the_source_raises_comes_after_what_it_gave(classify):
    def broken():
        yield from IMAGES[:6]
        raise ZeroDivisionError

    seen = []
    with pytest.raises(ZeroDivisionError):
        for result in classify.stream(broken()):
            seen.append(result)
    assert len(seen) == 6


def test_few_images_take_a_small_batch(classify, monkeypatch):
    sizes = []
    compute = classify._compute
    monkeypatch.setattr(classify, "_compute", lambda images: (sizes.append(len(images)), compute(images))[1])
    assert classify.batch_sizes == (1, 4)
    for count, expected in ((1, [1]), (3, [4]), (5, [4, 1]), (0, [])):
        sizes.clear()
        assert classify(list(IMAGES[:count])).shape == (count, 10)
        assert sizes == expected


def test_all_devices_and_worker_processes_give_the_same(classify, weights, photographs):
    expected = list(classify.stream(sorted(photographs.iterdir()), on_error="entry"))
    both = load_classifier(weights, batch_size=8, workers=2)
    assert both.batch_sizes == (len(jax.devices()),)
    found = list(both.stream(sorted(photographs.iterdir()), on_error="entry"))
    assert [entry.error for entry in found] == [entry.error for entry in expected]
    assert sum(bool(entry.error) for entry in found) == 2
    for one, other in zip(found, expected, strict=True):
        if not one.error:
            np.testing.assert_allclose(one.values, other.values, atol=1e-5)
