"""The demo's LoRA: teaches the demo's base a material that it never heard, from 64 clips of it among 80 others.

Command    make demo (which renders the clips, extracts the features, and then runs
           python train.py --config configs/demo_lora.py --workdir demo_out/run)
Hardware   two CPU cores
Time       two minutes
Expect     validation loss 0.665 at step 0, 0.357 at the end; docs/demo.md has what is heard
"""

from ml_collections import ConfigDict

from configs import lora_16k


def get_config() -> ConfigDict:
    config = lora_16k.get_config()
    config.model = "demo_16k"
    config.weights = "demo_out/weights"
    config.data = "demo_out/lessons/features"
    config.validation_fraction = 0.1
    config.batch_size = 8
    config.accumulation = 1
    config.num_steps = 700
    config.log_every = 50
    config.eval_every = 200
    config.workers = 0
    config.ema = None
    config.samples = None
    config.lora.rank = 32
    config.lora.alpha = 32.0
    config.lora.dropout = 0.0
    config.lora.patterns.text = r"text_input_proj\..*|text_cond_proj|global_cond_mlp\..*"  # the word is new, too
    config.lora.patterns.modulation = r".*\.adaLN_modulation\.1"
    config.lora.targets = ("qkv", "ffn", "text", "modulation")
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 20
    config.objective.drop_video = 0.2  # few scenes are known by their looks; without them, the words must tell
    return config
