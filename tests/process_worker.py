"""One process of a training run, for tests/test_processes.py: says what it holds at each checkpoint."""

import json
import sys
import time
from pathlib import Path

from mmaudio_jax import checkpoint, config, distributed, experiment, weights


def main(settings, workdir, address, count, index, wait_at):
    distributed.initialize(address, int(count), int(index))
    save = checkpoint.RunCheckpoints.save

    def tell_and_save(self, step, state, *rest):
        save(self, step, state, *rest)
        held = weights.fingerprint({k: leaf.addressable_data(0) for k, leaf in state["params"].items()})
        Path(f"{workdir}.{step}.{index}").write_text(held)
        while step == int(wait_at) and not Path(f"{workdir}.go_on").exists():
            time.sleep(0.05)

    checkpoint.RunCheckpoints.save = tell_and_save
    values = json.loads(Path(settings).read_text())
    return experiment.run(config.from_mapping(experiment.TrainConfig, values), Path(workdir), dry_run=False)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
