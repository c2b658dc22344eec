"""The large 44.1 kHz model from scratch by the published recipe, as train_16k.py has it: its first or second version.

Command    python -m mmaudio_jax.initialize --model large_44k --data data/44k/vggsound --weights weights \
               --out weights/scratch_large_44k
           python train.py --config configs/train_44k_large.py --workdir runs/scratch_large_44k
           configs/train_44k_large.py:v2 trains scratch_large_44k_v2 (--model large_44k_v2), and drops clip and sync
           features each by itself as well; how often was not published, a tenth is our choice
Hardware   eight GPUs of 80 GB, 64 examples of a batch on each, blocks computed again in the backward pass: parameters,
           moments, gradients and averages are 25 GB on each, 25 GB on all with --config.mesh.fsdp=8; 500 GB of disk
           for averages, 80 GB for checkpoints
Time       300,000 steps of 512 examples; not measured
Expect     not measured; as of train_16k.py, the released model's validation loss is the mark
"""

from ml_collections import ConfigDict

from configs import train_44k

VERSIONS = ("v1", "v2")


def get_config(version: str = "v1") -> ConfigDict:
    if version not in VERSIONS:
        raise ValueError(f"configs/train_44k_large.py:{version} does not exist; choose one of {', '.join(VERSIONS)}")
    config = train_44k.get_config("medium")
    config.model = "scratch_large_44k"
    config.remat = "blocks"
    if version == "v2":
        config.model = "scratch_large_44k_v2"
        config.objective.drop_clip = 0.1
        config.objective.drop_sync = 0.1
    return config
