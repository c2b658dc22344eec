"""LoRA on small_16k whose rank grows in three stages, each of which begins as the best adapter of the one before.

Command    python train.py --config configs/lora_16k_stages.py:32 --workdir runs/stage_32 --config.data=data/mine
           python train.py --config configs/lora_16k_stages.py:64 --workdir runs/stage_64 --config.data=data/mine
           python train.py --config configs/lora_16k_stages.py:128 --workdir runs/stage_128 --config.data=data/mine
           for other folders, --config.lora.start=RUN@best says what a stage begins as
Hardware   one GPU, or a CPU for a try; batch 8 × accumulation 4
Time       1000 steps of 32 examples a stage; no GPU has been measured yet
Expect     6,221,824, 12,443,648 and 24,887,296 trained parameters; at step 0 of a stage the validation loss of the
           checkpoint that it begins as, to a rounding, and a lower one after it
"""

from ml_collections import ConfigDict

from configs import lora_16k

STAGES = ("32", "64", "128")


def get_config(stage: str = "32") -> ConfigDict:
    if stage not in STAGES:
        raise ValueError(f"configs/lora_16k_stages.py:{stage} does not exist; choose one of {', '.join(STAGES)}")
    config = lora_16k.get_config("medium")
    config.num_steps = 1000
    config.eval_every = 100
    config.ema.snapshot_every = 100
    config.samples.every = 500
    config.optimizer.warmup_steps = 100
    config.lora.rank = int(stage)
    config.lora.alpha = float(stage)  # the update's scale stays 1
    if before := STAGES[: STAGES.index(stage)]:
        config.lora.start = f"runs/stage_{before[-1]}@best"
    return config
