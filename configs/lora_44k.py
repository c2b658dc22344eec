"""LoRA on small_44k: teaches the released small 44.1 kHz model the sounds of your own clips.

Command    python -m mmaudio_jax.features --mode 44k --clips clips.tsv --root videos --weights weights --out data/mine44
           python train.py --config configs/lora_44k.py --workdir runs/mine_44k
           configs/lora_44k.py:small, :medium (the same as no suffix) or :large sets the size, as of lora_16k.py;
           --config.model=medium_44k trains on the medium model
Hardware   one GPU, or a CPU for a try; batch 8 × accumulation 4
Time       3000 steps of 32 examples; no GPU has been measured yet
Expect     the validation loss below its value at step 0, which is the released model's on your clips
"""

from ml_collections import ConfigDict

from configs import lora_16k


def get_config(size: str = "medium") -> ConfigDict:
    config = lora_16k.get_config(size)
    config.model = "small_44k"
    config.data = "data/mine44"
    return config
