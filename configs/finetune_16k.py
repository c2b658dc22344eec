"""All weights of small_16k on your own clips: learns more than an adapter can, and forgets more.

Command    python train.py --config configs/finetune_16k.py --workdir runs/mine_whole --config.data=data/mine
           python -m mmaudio_jax.ema runs/mine_whole --sigma_rel 0.05 --out runs/mine_whole_ema
Hardware   one GPU; batch 8 × accumulation 4; parameters, moments, gradients and averages are 3.8 GB; 13 GB of disk for
           averages, 12 GB for checkpoints
Time       3000 steps of 32 examples; not measured
Expect     the validation loss below its value at step 0, which is the released model's on your clips; not measured
"""

from ml_collections import ConfigDict

from configs import lora_16k


def get_config() -> ConfigDict:
    config = lora_16k.get_config()
    config.lora = None
    config.patience = 3  # a few clips are soon known by heart
    config.optimizer.learning_rate = 1e-5
    config.optimizer.no_decay = (r".*\.(bias|scale)", r"empty_(clip|sync)_feat", "sync_pos_emb")  # what is no matrix
    return config
