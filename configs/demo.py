"""The demo's LoRA: a few steps on a few rendered clips, with small random networks.

Command    make demo (which renders the clips, makes the networks, extracts the features, and then runs
           python train.py --config configs/demo.py --workdir demo_out/run)
Hardware   two CPU cores
Time       under a minute
Expect     validation loss 3.47 at step 0, 2.28 at step 40; the networks are random, so the sound stays noise
"""

from ml_collections import ConfigDict

from configs import lora_16k


def get_config() -> ConfigDict:
    config = lora_16k.get_config("medium")
    config.weights = "demo_out/weights"
    config.data = "demo_out/features"
    config.validation_fraction = 0.34
    config.batch_size = 2
    config.accumulation = 2
    config.num_steps = 40
    config.log_every = 5
    config.eval_every = 20
    config.workers = 0
    config.lora.rank = 8
    config.lora.alpha = 8.0
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 5
    return config
