"""A run that is killed, or told to stop, and started again ends in the same bits as one that nothing interrupted."""

import dataclasses
import os
import re
import signal
import time

import pytest
import soak
from small_run import STEPPING, SmallRun, command, different

from mmaudio_jax.trainer import START_AGAIN

KILLS = 1  # `make soak` does more


@pytest.fixture(scope="module")
def small_run(small_weights, small_features, tmp_path_factory):
    """A run by its name, not started yet; all have one cache of compiled programs."""
    folder = tmp_path_factory.mktemp("runs")

    def make(name):
        line = command(small_weights, small_features, folder / name, **soak.settings(KILLS))
        return SmallRun(folder / name, line, folder / "cache")

    return make


@pytest.fixture(scope="module")
def whole(small_run):
    run = small_run("whole")
    run.finish()
    return run


def test_killed_again_and_again_it_leaves_what_it_would_have(small_run, whole):
    killed = small_run("killed")
    assert not soak.soak(killed, KILLS, seed=0)
    assert not soak.compare(killed, whole)
    assert len(killed.found()) == KILLS + 1
    last = killed.printed().split(STEPPING)[-1]  # what was killed leaves shared memory to Python's resource tracker
    assert "Traceback" not in last and "leaked" not in last


def test_a_bit_that_differs_is_found(small_run, whole):
    left = whole.left()
    path = next(path for path in left if "lora_b" in path)
    changed = left[path].copy()
    changed.view("uint32").flat[0] ^= 1
    assert different(left, {**left, path: changed}) == [path]


def test_told_to_stop_with_all_its_processes_it_saves_and_goes_on(small_run, whole):
    told = small_run("told")
    process = told.start()
    while told.step() < 4:  # no multiple of the steps between checkpoints
        assert process.poll() is None, told.printed()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)  # as SLURM does: the workers that read get it, too
    assert process.wait(timeout=60) == START_AGAIN, told.printed()
    saved = int(re.search(r"told to stop: step (\d+) is saved; start the same command again", told.printed())[1])
    assert saved == told.saved() >= 4
    told.finish()
    assert told.found() == [0, saved]
    assert not different(told.state(whole.step()), whole.state(whole.step()))
    assert told.rows() == whole.rows()
    assert "Traceback" not in told.printed()


def test_a_save_that_fails_is_one_sentence_and_the_run_goes_on_where_there_is_room(small_run, whole):
    full = small_run("full")
    limited = dataclasses.replace(full, arguments=["bash", "-c", 'ulimit -f 60; exec "$@"', "_", *full.arguments])
    assert limited.start().wait() == 1, full.printed()
    (line,) = [line for line in full.printed().splitlines() if line.startswith("error: ")]
    assert re.match(f"error: {full.workdir}/(checkpoints|ema): File too large; `ulimit -f`, or .*: raise it, or", line)
    assert full.printed().endswith(f"{line}\n") and "Traceback" not in full.printed()
    # the first save or, as sizes vary, the next; either is told before the save after it
    assert len(full.unfinished()) == 1 and full.saved() in (0, soak.EVERY)
    assert full.step() <= full.saved() + 2 * soak.EVERY
    full.finish()
    assert not different(full.left(), whole.left())
