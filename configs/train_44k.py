"""The small or the medium 44.1 kHz model from scratch by the published recipe, as train_16k.py has it.

Command    python -m mmaudio_jax.initialize --model small_44k --data data/44k/vggsound --weights weights \
               --out weights/scratch_small_44k
           python train.py --config configs/train_44k.py --workdir runs/scratch_small_44k
           configs/train_44k.py:medium trains scratch_medium_44k, with VGGSound three times an epoch and not five
Hardware   eight GPUs, 64 examples of a batch on each; disk for averages: 80 GB (small), 300 GB (medium)
Time       300,000 steps of 512 examples; not measured
Expect     not measured; as of train_16k.py, the released model's validation loss is the mark
"""

from ml_collections import ConfigDict

from configs import train_16k

REPEATS = {"small": 5, "medium": 3}  # of VGGSound


def get_config(size: str = "small") -> ConfigDict:
    if size not in REPEATS:
        raise ValueError(f"configs/train_44k.py:{size} does not exist; choose one of {', '.join(REPEATS)}")
    config = train_16k.get_config()
    config.model = f"scratch_{size}_44k"
    config.data = train_16k.mixture("44k", REPEATS[size])
    return config
