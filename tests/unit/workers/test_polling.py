"""What others change in S3 is looked at again and again, whatever one look comes to."""

import threading

from workers.polling import Poller


def test_a_look_that_fails_ends_nothing() -> None:
    looks = 0
    third = threading.Event()

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks >= 3:
            third.set()
        raise KeyError("what nobody thought of")

    poller = Poller("test", look, 0.01)
    poller.start()
    assert third.wait(60)
    poller.stop()
    assert "test" not in {thread.name for thread in threading.enumerate()}


def test_one_that_was_never_started_can_be_stopped() -> None:
    poller = Poller("idle", lambda: None, 60)
    poller.stop()


def test_the_first_look_is_at_once() -> None:
    looked = threading.Event()
    poller = Poller("now", looked.set, 3600)
    poller.start()
    assert looked.wait(60)
    poller.stop()
