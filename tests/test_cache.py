"""The user's cache."""

import threading
import time

from effnet_jax.cache import one_at_a_time


def test_who_waits_for_another_says_so(tmp_path, capsys):
    """The other may fetch for minutes."""
    place, order = tmp_path / "weights" / "b0", []

    def second():
        with one_at_a_time(place):
            order.append(2)

    with one_at_a_time(place):
        thread = threading.Thread(target=second)
        thread.start()
        until = time.monotonic() + 30
        while f"waiting for another process, which makes {place}" not in capsys.readouterr().err:
            assert time.monotonic() < until
            time.sleep(0.01)
        order.append(1)
    thread.join(30)
    assert order == [1, 2]
