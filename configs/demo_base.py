"""The demo's base: a small MMAudio from scratch on the rendered world, glass left out.

Command    make demo_base (renders 1200 scenes, extracts their features, draws the network, and then runs
           python train.py --config configs/demo_base.py --workdir demo_base/runs/whole)
           configs/demo_base.py:no_sync and :unaligned train the same without one part, for the table of ablations
Hardware   two CPU cores
Time       16 minutes of training, after 8 of rendering and 9 of extraction
Expect     validation loss 1.99 at step 0, 0.337 at step 4000; docs/demo.md has what is heard
"""

from ml_collections import ConfigDict

from configs import lora_16k

VARIANTS = ("whole", "no_sync", "unaligned")


def get_config(variant: str = "whole") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/demo_base.py:{variant} does not exist; choose one of {', '.join(VARIANTS)}")
    config = lora_16k.get_config()
    config.lora = None
    config.model = "scratch_unaligned" if variant == "unaligned" else "scratch"
    config.weights = "demo_base/weights"
    config.data = "demo_base/features/clips"
    config.validation_fraction = 0.05
    config.batch_size = 16
    config.accumulation = 1
    config.num_steps = 4000
    config.log_every = 50
    config.eval_every = 500
    config.workers = 0
    config.ema = None
    config.samples = None
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 1e-6
    config.objective.drop_sync = 1.0 if variant == "no_sync" else 0.0
    return config
