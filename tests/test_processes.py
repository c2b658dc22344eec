"""Several real processes on one machine train as one does, and none outlives another's death for long."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import relative_error

from configs import lora_16k
from mmaudio_jax import checkpoint, config, distributed, experiment, sharding
from mmaudio_jax.errors import UserError
from mmaudio_jax.trainer import START_AGAIN

HERE = Path(__file__).parent
DEVICES, STEPS, STOP = 4, 6, 4
TOLD = 5  # seconds: JAX looks once a second whether it was told to stop, then the processes agree on the step


@pytest.fixture(scope="module")
def settings(small_weights, small_features):
    values = lora_16k.get_config().to_dict()
    values |= {"weights": str(small_weights), "data": str(small_features)}
    values |= {"batch_size": 4, "accumulation": 1, "workers": 0, "num_steps": STEPS, "eval_every": 2, "log_every": 1}
    values["lora"] |= {"rank": 4, "targets": ("qkv",)}
    values["samples"] = None
    return config.from_mapping(experiment.TrainConfig, values)


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """The workdir of a run of one process that has all four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    experiment.run(settings, workdir, dry_run=False, devices=jax.devices()[:DEVICES])
    return workdir


def start(settings, workdir, count, wait_at=0):
    """The processes of a run, with equal shares of four devices."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    file = workdir.with_suffix(".json")
    file.write_text(json.dumps(dataclasses.asdict(settings)))
    env = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
        "PYTHONPATH": str(HERE.parent),
    }
    arguments = [str(x) for x in (file, workdir, address, count)]
    return [
        subprocess.Popen([sys.executable, HERE / "process_worker.py", *arguments, str(i), str(wait_at)], env=env)
        for i in range(count)
    ]


def wait(processes, workdir, step):
    """Until all wait where they have begun to save this step."""
    while not all(Path(f"{workdir}.{step}.{i}").exists() for i in range(len(processes))):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def learnt(workdir):
    """All of the adapter that began at zero."""
    params = checkpoint.load_adapter(workdir).params
    return np.concatenate([np.ravel(params[path]) for path in sorted(params) if path.endswith("lora_b")])


def test_told_to_stop_or_killed_they_go_on_as_more_upon_another_mesh_and_compute_what_one_does(
    settings, alone, tmp_path
):
    workdir = tmp_path / "run"
    two = start(settings, workdir, 2, wait_at=2)
    wait(two, workdir, 2)
    two[1].send_signal(signal.SIGTERM)  # one is told to stop: all save the same step
    time.sleep(TOLD)
    Path(f"{workdir}.go_on").touch()
    assert [process.wait(timeout=60) for process in two] == [START_AGAIN] * 2
    assert {path.name for path in (workdir / checkpoint.FOLDER).iterdir()} == {"2", "3"}
    Path(f"{workdir}.go_on").unlink()

    two = start(settings, workdir, 2, wait_at=STOP)
    wait(two, workdir, STOP)
    two[1].kill()  # none outlives it for long
    assert all(process.wait(timeout=60) != 0 for process in two)
    split = dataclasses.replace(settings, mesh=sharding.MeshConfig(data=2, fsdp=2))
    four = start(split, workdir, 4)  # and upon another mesh
    assert [process.wait(timeout=300) for process in four] == [0] * 4

    # the same losses as one process, and in every process the same bits
    expected = losses(alone)
    assert losses(workdir) == pytest.approx(expected, rel=1e-5) and len(expected) == STEPS
    for step, count in ((2, 2), (3, 2), (STOP, 2), (STEPS, 4)):
        assert len({(tmp_path / f"run.{step}.{i}").read_text() for i in range(count)}) == 1
    assert relative_error(learnt(workdir), learnt(alone)) < 1e-3


@pytest.mark.parametrize("told", [("localhost:1", None, None), ("localhost:1", 2, None), (None, 2, 0)])
def test_half_an_address_is_refused(told):
    with pytest.raises(UserError, match="go together: give all three flags, or set JAX_COORDINATOR_ADDRESS"):
        distributed.initialize(*told)
