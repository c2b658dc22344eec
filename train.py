"""Trains an experiment of configs/: `python train.py --config configs/lora_16k.py --workdir runs/mine`."""

import argparse
import re
import runpy
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from mmaudio_jax import config, errors

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; started again with the same one, it goes on.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be trained, and stop.")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Of several processes: host:port of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
flags.mark_flags_as_required(["config", "workdir"])


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line; a mistake in it ends the process with one sentence."""
    try:
        rest = flags.FLAGS(arguments)
        if len(rest) > 1:
            sys.exit(f"error: {rest[1]!r} is no flag; settings are given as --config.KEY=VALUE")
        CONFIG.value.to_dict()  # a config file that could not be loaded says so only when it is read
        return rest
    except Exception as error:  # a config file may raise any
        if fault := config_fault(arguments) or flag_fault(error):
            sys.exit(f"error: {fault}")
        raise


def config_fault(arguments: list[str]) -> str | None:
    """What is wrong with the file of --config, which is loaded anew for it; None if nothing is."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-config", nargs="?")
    path, *variant = (parser.parse_known_args(arguments[1:])[0].config or "").split(":", 1)
    if not path:
        return "--config must be given: a file of configs/"
    if not Path(path).is_file():
        return f"there is no config file {path}"
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            return f"{path} is no config file: it has no function get_config"
        made = get_config(*variant)
    except Exception as error:
        if "get_config() takes 0 positional arguments" in str(error):
            return "this config file comes in one size; leave out what follows the colon"
        if isinstance(error, ValueError):  # of a variant that there is not
            return str(error)
        return f"{path} is no config file ({type(error).__name__}: {error})"
    return None if isinstance(made, ConfigDict) else f"get_config() of {path} gives {made!r}, which is no ConfigDict"


def flag_fault(error: Exception) -> str | None:
    """What is wrong with a flag, of what reading it raised; None if it is no such error."""
    if isinstance(error, AttributeError | KeyError):  # a locked config's answer to a key that it does not have
        cause = error.args[0]
        text = str(cause.args[0] if isinstance(cause, Exception) else cause)
        asked = re.search(r"'([^']*)'", text)
        if asked and asked[1] in config.REFUSED:
            return config.refusal(asked[1])
        near = re.search(r'Did you mean "([^"]*)"', text)
        hint = f" (did you mean {near[1]}?)" if near else ""
        return f"no such config key: {asked[1] if asked else text}{hint}; the file of --config lists them"
    if not isinstance(error, flags.Error | ValueError | TypeError):
        return None
    text = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
    if missing := re.search(r"Flag (--\w+) must have a value", text):
        return f"{missing[1]} must be given"
    if closed := re.search(r'Override (\S+) can not be applied because field "(\S+)" is None', text):
        return f"config.{closed[1]} cannot be set, as this config has {closed[2]} = None: change it in its file"
    return text


@errors.main
def main(_) -> int:
    """Hands the config over to the experiment."""
    from mmaudio_jax import distributed, experiment

    if not WORKDIR.value:
        raise errors.UserError("--workdir is empty; name the folder of the run")
    distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    train_config = config.from_mapping(experiment.TrainConfig, CONFIG.value.to_dict())
    return experiment.run(train_config, Path(WORKDIR.value), DRY_RUN.value)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
