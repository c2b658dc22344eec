"""Who reads ahead, in which order, and what a process that crashes or hangs costs."""

import multiprocessing
import os
import time

import pytest

from mmaudio_jax.data.workers import THREADS, NoProcess, read_ahead
from mmaudio_jax.errors import UserError


def crash_at_three(number):
    if number == 3:
        os._exit(1)
    if number == 4:
        raise RuntimeError("no such thing")
    return number


def test_a_crash_costs_its_item_alone():
    with read_ahead(range(7), crash_at_three, workers=2) as ahead:
        found = {item: future.exception() or future.result() for item, future in ahead}
    assert list(found) == list(range(7))
    assert isinstance(found[3], UserError) and "its decoder crashed" in str(found[3])
    assert isinstance(found[4], RuntimeError) and not multiprocessing.active_children()
    assert all(found[item] == item for item in (0, 1, 2, 5, 6))


def hang_at_two(number):
    while number == 2:
        time.sleep(1)
    return number


def test_who_hangs_is_ended_after_the_time_of_its_item():
    with read_ahead(range(5), hang_at_two, workers=1, time_limit=lambda item: 2.0 if item == 2 else 60.0) as ahead:
        found = {item: future.exception() or future.result() for item, future in ahead}
    assert isinstance(found[2], UserError) and "has not come to an end in 2 s" in str(found[2])
    assert all(found[item] == item for item in (0, 1, 3, 4)) and not multiprocessing.active_children()


@pytest.mark.parametrize("wait", [0, 3])
def test_who_stops_does_not_wait_for_one_that_hangs(wait):
    start = time.monotonic()
    with read_ahead([2], hang_at_two, 1, time_limit=lambda _: 60.0) as ahead, pytest.raises(KeyboardInterrupt):
        next(ahead)
        time.sleep(wait)  # it starts, or is at work by now
        raise KeyboardInterrupt
    assert time.monotonic() - start < 30 and not multiprocessing.active_children()


class Unstartable:
    def __reduce__(self):
        return os._exit, (7,)


def test_a_process_that_cannot_start_blames_no_item():
    with read_ahead([0], Unstartable(), workers=1) as ahead:
        ((_, future),) = ahead
        with pytest.raises(NoProcess, match="a process that decodes cannot start"):
            future.result()
    assert not multiprocessing.active_children()


def test_items_are_read_ahead_in_order_and_not_further():
    started, seen = [], []

    def read(number):
        started.append(number)
        if number == 3:
            raise UserError("no")
        return number

    with read_ahead(range(20), read, workers=0) as ahead:
        for item, future in ahead:
            seen.append(item)
            assert len(started) <= item + 1 + 2 * THREADS
            assert future.exception() if item == 3 else future.result() == item
    assert seen == list(range(20))


def wait_at_first(number):
    time.sleep(4.0 if number == 0 else 0.0)
    return number


def test_where_order_does_not_matter_nothing_waits_for_what_takes_long():
    with read_ahead(range(40), wait_at_first, workers=2, in_order=False) as ahead:
        found = [(item, future.result()) for item, future in ahead]
    assert found[-1] == (0, 0) and sorted(found) == [(item, item) for item in range(40)]
