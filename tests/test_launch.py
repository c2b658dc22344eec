"""The launch scripts, with stand-ins for SLURM's commands and for Python."""

import os
import subprocess
from pathlib import Path

import pytest

from mmaudio_jax import distributed
from mmaudio_jax.trainer import START_AGAIN

LAUNCH = Path(__file__).parent.parent / "launch"


def launch(script, folder, *arguments, **commands):
    """(exit code, what was printed) of a script where these commands, {name: its script}, come first."""
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": "python_of_the_test", "SLURM_JOB_ID": "12"}
    done = subprocess.run(["bash", LAUNCH / script, *arguments], env=env, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (START_AGAIN, True)])
def test_a_job_that_was_told_to_stop_is_queued_again(tmp_path, code, again):
    stubs = {"srun": f'echo "srun: $@"; exit {code}', "scontrol": 'echo "scontrol: $@"'}
    returned, printed = launch("slurm.sbatch", tmp_path, "--workdir", "a b", **stubs)
    assert returned == code
    assert "python_of_the_test train.py --workdir a b\n" in printed
    assert ("scontrol: requeue 12\n" in printed) == again


@pytest.mark.parametrize(
    ("script", "command"), [("features.sbatch", "-m mmaudio_jax.features"), ("generate.sbatch", "sample.py")]
)
def test_an_element_of_an_array_makes_its_part(tmp_path, script, command):
    returned, printed = launch(script, tmp_path, "--out", "a b", python_of_the_test='echo "$@"')
    assert (returned, printed) == (0, f"{command} --workers 8 --out a b\n")


def test_a_process_of_several_machines_is_told_its_place(tmp_path):
    stub = f'echo {" ".join(f"${name}" for name in distributed.VARIABLES)} "$@"'
    arguments = ("host0:1234", "2", "1", "--workdir", "runs/mine")
    assert launch("several_machines.sh", tmp_path, *arguments, python_of_the_test=stub) == (
        0,
        "host0:1234 2 1 train.py --workdir runs/mine\n",
    )
    assert launch("several_machines.sh", tmp_path, "host0:1234", "2")[0] == 2
