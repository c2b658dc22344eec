"""LoRA on large_44k_v2, the model that the published tools use by default.

Command    python -m mmaudio_jax.features --mode 44k --clips clips.tsv --root videos --weights weights --out data/mine44
           python train.py --config configs/lora_44k_large_v2.py --workdir runs/mine_large
Hardware   one GPU with memory for 1.03 billion float32 parameters beside the activations; batch 2 × accumulation 16
Time       3000 steps of 32 examples; no GPU has been measured yet
Expect     the validation loss below its value at step 0, which is the released model's on your clips
"""

from ml_collections import ConfigDict

from configs import lora_44k


def get_config(size: str = "medium") -> ConfigDict:
    config = lora_44k.get_config(size)
    config.model = "large_44k_v2"
    config.batch_size = 2
    config.accumulation = 16
    return config
