import pytest

from effnet_jax.tpu.batch import TRIES, largest_batch
from effnet_jax.tpu.report import Report

USABLE = 1000


def memory(size, fixed, each):
    return round(fixed + each * size)


def search(first, most=10**6, multiple=1, bytes_of=None, fixed=100, each=2.0):
    asked = []

    def measure(size):
        asked.append(size)
        assert size % multiple == 0
        needed = bytes_of(size) if bytes_of else memory(size, fixed, each)
        return Report(needed <= USABLE, needed, USABLE, size)

    return largest_batch(measure, first, most, multiple), asked


@pytest.mark.parametrize("first", [1, 8, 50, 64, 440, 448, 456, 4096])
def test_the_largest_multiple_of_eight_that_fits(first):
    found, asked = search(first)
    assert found.fits
    assert found.images_per_chip == 448  # 100 + 2 · 448 = 996
    assert len(asked) == len(set(asked)) <= 9


def test_where_memory_is_a_line_few_compilations_do():
    _, asked = search(64)
    assert asked == [64, 128, 448, 456]


def test_a_batch_of_many_small_images():
    found, asked = search(8, each=0.007)
    assert 900 / 0.007 * 31 / 32 < found.images_per_chip < 900 / 0.007
    assert len(asked) <= 10


@pytest.mark.parametrize("first", [8, 64, 4096])
@pytest.mark.parametrize(
    "bytes_of",
    [
        lambda size: 100 if size < 700 else 1001,  # flat up to a cliff
        lambda size: min(100 + 3 * size, 995) if size < 700 else 1001,  # the compiler saves memory where it must
        lambda size: 100 + size**2 // 600,
    ],
)
def test_where_memory_is_no_line_it_is_found_too(bytes_of, first):
    found, asked = search(first, bytes_of=bytes_of)
    assert found.fits
    assert bytes_of(found.images_per_chip * 33 / 32) > USABLE  # larger batches go by thirty-seconds
    assert len(asked) <= TRIES


@pytest.mark.parametrize(("each", "size"), [(200, 4), (400, 2), (900, 1)])
def test_less_than_eight(each, size):
    found, _ = search(64, each=each)
    assert found.fits
    assert found.images_per_chip == size


def test_where_one_image_is_too_much_it_is_reported_so():
    found, asked = search(64, each=901)
    assert not found.fits
    assert found.images_per_chip == asked[-1] == 1


def test_no_more_than_there_are_images():
    found, asked = search(64, most=100)
    assert found.images_per_chip == max(asked) == 96


@pytest.mark.parametrize(("multiple", "size"), [(3, 432), (16, 448), (12, 432)])
def test_what_microbatches_divide(multiple, size):
    found, _ = search(64, multiple=multiple)
    assert found.images_per_chip == size
    small, _ = search(64, multiple=multiple, each=800 / multiple)
    assert small.images_per_chip == multiple
