"""Trains an experiment of configs/: `python train.py --config configs/lora_16k.py --workdir runs/mine`."""

import re
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

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
    except (AttributeError, KeyError) as error:  # a locked config's answer to a key that it does not have
        cause = error.args[0]
        text = str(cause.args[0] if isinstance(cause, Exception) else cause)
        asked = re.search(r"'([^']*)'", text)
        if asked and asked[1] in config.REFUSED:
            sys.exit(f"error: {config.refusal(asked[1])}")
        near = re.search(r'Did you mean "([^"]*)"', text)
        hint = f" (did you mean {near[1]}?)" if near else ""
        sys.exit(f"error: no such config key: {asked[1] if asked else text}{hint}; the file of --config lists them")
    except OSError:
        sys.exit(f"error: there is no config file {config_flags.get_config_filename(flags.FLAGS['config'])}")
    except (flags.Error, ValueError) as error:
        text = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        if missing := re.search(r"Flag (--\w+) must have a value", text):
            text = f"{missing[1]} must be given"
        if closed := re.search(r'Override (\S+) can not be applied because field "(\S+)" is None', text):
            text = f"config.{closed[1]} cannot be set, as this config has {closed[2]} = None: change it in its file"
        if "get_config() takes 0 positional arguments" in text:
            text = "this config file comes in one size; leave out what follows the colon"
        sys.exit(f"error: {text}")
    except (SyntaxError, TypeError) as error:
        sys.exit(f"error: {flags.FLAGS['config'].value or 'the file of --config'} is no config file ({error})")


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
