"""`retrying`: without limit on faults of ours, at once out on everything else."""

from __future__ import annotations

import threading

import pytest

from workers.exceptions import Conflict, Fault, FeatureFault, MessagingFault, Stopped, StorageFault
from workers.storage import retrying


class Flaky:
    """Fails so many times."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise self.error
        return "done"


@pytest.mark.parametrize("fault", [StorageFault("s"), FeatureFault("f"), MessagingFault("m"), Fault("x")])
def test_a_fault_is_tried_again_until_it_passes(fault: Fault) -> None:
    seen: list[Fault] = []
    call = Flaky(12, fault)
    assert retrying(call, what="it", on_retry=seen.append, most_seconds=0.001) == "done"
    assert call.calls == 13
    assert seen == [fault] * 12


def test_what_is_no_fault_comes_through_at_once() -> None:
    call = Flaky(1, Conflict("changed"))
    with pytest.raises(Conflict):
        retrying(call, what="it")
    assert call.calls == 1


def test_stop_ends_the_waiting() -> None:
    stop = threading.Event()
    call = Flaky(10**6, StorageFault("away"))

    def soon(_: Fault) -> None:
        threading.Timer(0.05, stop.set).start()

    with pytest.raises(Stopped, match="write manifest: stopped while it failed: away") as caught:
        retrying(call, what="write manifest", stop=stop, on_retry=soon, most_seconds=1000)
    assert isinstance(caught.value.__cause__, StorageFault)


def test_there_is_always_a_first_try() -> None:
    stop = threading.Event()
    stop.set()
    assert retrying(Flaky(0, StorageFault("")), what="it", stop=stop) == "done"
    call = Flaky(1, StorageFault("away"))
    with pytest.raises(Stopped):
        retrying(call, what="it", stop=stop)
    assert call.calls == 1


def test_an_outage_is_logged_once_and_not_with_each_try(caplog: pytest.LogCaptureFixture) -> None:
    retrying(Flaky(50, StorageFault("away")), what="it", most_seconds=0.001)
    assert [r.getMessage() for r in caplog.records if r.name == "workers.storage"] == ["it fails, try 1: away"]
