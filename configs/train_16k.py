"""The 16 kHz model from scratch by the published recipe: all weights, on VGGSound and five sets of captioned sounds.

Command    python -m mmaudio_jax.initialize --model small_16k --data data/16k/vggsound --weights weights \
               --out weights/scratch_16k
           python train.py --config configs/train_16k.py --workdir runs/scratch_16k
           initialize takes --joint_depth and --fused_depth for a network of another depth; named VGGSound alone, it
           takes the latent statistics that were published, named the whole mixture those of all examples
Hardware   eight GPUs, 64 examples of a batch on each; with less memory --config.batch_size=128
           --config.accumulation=4, which is the same run; 80 GB of disk, nearly all of it averages
Time       300,000 steps of 512 examples; not measured
Expect     not measured: this has not been trained to its end yet. The mark is the validation loss of the released
           model on the same examples, which --config.model=small_16k and another --workdir print at step 0
"""

from ml_collections import ConfigDict

from configs import lora_16k

SOUNDS = ("audioset_sl", "audiocaps", "bbc", "freesound", "clotho")  # sound and caption, no picture


def mixture(mode: str, repeat: int) -> str:
    """The published training data: VGGSound so often in an epoch, the sounds once."""
    return ", ".join([f"data/{mode}/vggsound*{repeat}", *(f"data/{mode}/{name}" for name in SOUNDS)])


def get_config() -> ConfigDict:
    config = lora_16k.get_config()
    config.lora = None
    config.model = "scratch_16k"
    config.data = mixture("16k", repeat=5)
    config.validation_fraction = 0.01

    config.batch_size = 512
    config.accumulation = 1
    config.num_steps = 300_000
    config.log_every = 50
    config.eval_every = 5000
    config.ema.snapshot_every = 5000
    config.samples.every = 25_000

    config.optimizer.schedule = "step"
    config.optimizer.warmup_steps = 1000
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-6  # of bfloat16; 1e-8 with --config.compute_dtype=float32
    config.optimizer.weight_decay = 1e-6
    return config
