"""LoRA on small_16k: teaches the released 16 kHz model the sounds of your own clips.

Command    python train.py --config configs/lora_16k.py --workdir runs/mine --config.data=data/mine
           configs/lora_16k.py:small, :medium (the same as no suffix) or :large sets the size
Hardware   one GPU, or a CPU for a try; batch 8 × accumulation 4
Time       3000 steps of 32 examples; no GPU has been measured yet (benchmarks/gpu_smoke.py prints its step time)
Expect     the validation loss below its value at step 0, which is the released model's on your clips
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# name: (rank, targets), for 5–10, 10–50 and more than 50 source videos
SIZES = {
    "small": (32, ("qkv",)),
    "medium": (64, ("qkv", "ffn")),
    "large": (128, ("qkv", "ffn")),
}


def get_config(size: str = "medium") -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"configs/lora_16k.py:{size} does not exist; choose one of {', '.join(SIZES)}")
    rank, targets = SIZES[size]
    config = ConfigDict()
    config.model = "small_16k"
    config.weights = "weights"
    config.data = "data/mine"
    config.validation_fraction = 0.15  # of the source videos
    config.seed = 0

    config.batch_size = 8
    config.accumulation = 4
    config.num_steps = 3000
    config.log_every = 10
    config.eval_every = 300  # validate, then save
    config.keep_last = 3  # checkpoints, and the one of the lowest validation loss
    config.keep_every = 0
    config.patience = 0  # validations without a new lowest loss that end the run; 0: none do
    config.max_skipped = 10
    config.wandb = placeholder(str)  # a project of Weights & Biases; none
    config.workers = 0  # processes that read ahead; 0: threads do, and were faster wherever it was measured
    config.compute_dtype = "auto"
    config.matmul_precision = "default"
    config.remat = "none"  # blocks: less memory, a third more computing; dots: between

    config.mesh = ConfigDict()
    config.mesh.data = 0  # all devices
    config.mesh.fsdp = 1  # devices that share one copy of the weights

    config.lora = ConfigDict()
    config.lora.rank = rank
    config.lora.alpha = 64.0
    config.lora.rslora = False  # True: scaled by alpha / √rank instead of alpha / rank
    config.lora.dropout = 0.1
    config.lora.targets = targets  # of the patterns below
    config.lora.patterns = ConfigDict()
    config.lora.patterns.qkv = r".*\.attn\.qkv"
    config.lora.patterns.attention_output = r".*\.linear1"
    config.lora.patterns.ffn = r".*_blocks\..*\.ffn\.w[123]"
    config.lora.ranks = ConfigDict()  # of targets that have a rank of their own
    config.lora.alphas = ConfigDict()
    config.lora.start = placeholder(str)  # a run whose adapter this one begins as

    config.ema = ConfigDict()
    config.ema.sigma_rels = (0.05, 0.1)
    config.ema.snapshot_every = 300

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 200
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.no_decay = ()  # patterns of leaves

    config.samples = ConfigDict()
    config.samples.every = 300
    config.samples.count = 4  # examples, the first that validate
    config.samples.num_steps = 25
    config.samples.cfg_strength = 4.5
    config.samples.root = placeholder(str)  # the features' --root: then videos are written, too; none

    config.objective = ConfigDict()
    config.objective.t_distribution = "logit_normal"
    config.objective.drop_video = 0.1
    config.objective.drop_clip = 0.0
    config.objective.drop_sync = 0.0
    config.objective.drop_text = 0.1

    config.augment = ConfigDict()  # of what trains, never of what validates; 0 is off
    config.augment.feature_noise = 0.0  # of the root mean square of clip and sync features
    config.augment.mixup = 0.0  # probability
    config.augment.mixup_alpha = 0.4
    config.augment.time_mask = 0.0  # longest span, of the clip
    return config
