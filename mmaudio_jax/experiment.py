"""One training run of MMAudio: from its config to the loop."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx

import mmaudio_jax
from mmaudio_jax import distributed, ema, lora, numerics, objective, optim, sharding, training, trees, weights
from mmaudio_jax.checkpoint import RunCheckpoints, Snapshots
from mmaudio_jax.data import dataset, records
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_file
from mmaudio_jax.metrics import Clock, MetricWriter, NoWriter
from mmaudio_jax.models.mmaudio import MMAudio, MMAudioConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run; config files in configs/ fill it.

    Attributes:
        model: name of the base under `weights`; from scratch, one that `python -m mmaudio_jax.initialize` drew.
        weights: folder of converted weights.
        data: a feature set.
        validation_fraction: share of the source videos that validate and never train.
        seed: of every draw, the order of examples and the adapter's start.
        batch_size: examples a micro-batch.
        accumulation: micro-batches an optimizer step.
        num_steps: optimizer steps.
        log_every: steps between lines of training measures.
        eval_every: steps between validations, each followed by a checkpoint.
        workers: processes that read examples; 0 reads in this one.
        compute_dtype: `float32`, `bfloat16`, or `auto`: bfloat16 on an accelerator, float32 on a CPU.
        matmul_precision: JAX's precision of matrix products: `default`, `high` or `highest`.
        mesh: how the devices share the work.
        lora: what is adapted; None trains all weights.
        ema: averages of the trained leaves to track; None tracks none.
        optimizer: AdamW and its schedule.
        objective: how a sample is drawn.
    """

    model: str
    weights: str
    data: str
    validation_fraction: float
    seed: int
    batch_size: int
    accumulation: int
    num_steps: int
    log_every: int
    eval_every: int
    workers: int
    compute_dtype: str
    matmul_precision: str
    mesh: sharding.MeshConfig
    lora: lora.LoRAConfig | None
    ema: ema.EMAConfig | None
    optimizer: optim.OptimizerConfig
    objective: objective.ObjectiveConfig

    def __post_init__(self):
        for name in ("batch_size", "accumulation", "num_steps", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise UserError(f"config.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"config.seed is {self.seed}; it must lie in [0, 2³²)")
        if self.workers < 0:
            raise UserError(f"config.workers is {self.workers}; it must be 0 or more")
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"config.validation_fraction is {self.validation_fraction}; it must lie in (0, 1)")
        for name, known in (
            ("compute_dtype", numerics.DTYPES),
            ("matmul_precision", numerics.PRECISIONS),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"config.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")


def check_fits(features: records.FeatureSet, config: MMAudioConfig, model: str) -> None:
    """Raises a UserError if the feature set was made for another model (other VAE, other encoders)."""
    shapes = features.metadata.shapes
    for array, width, what in (
        ("mean", config.latent_dim, "latent channels"),
        ("clip_f", config.clip_dim, "CLIP channels"),
        ("sync_f", config.sync_dim, "sync channels"),
        ("text_f", config.text_dim, "text channels"),
    ):
        if array in shapes and shapes[array][-1] != width:
            raise UserError(
                f"{features.path} has {shapes[array][-1]} {what}, {model} needs {width}: "
                "extract the features again for this model"
            )


def check_encoders(features: records.FeatureSet, folder: Path) -> None:
    """Raises a UserError if an encoder in the weights folder is not the one that the feature set was made with."""
    for name, fingerprint in features.metadata.encoders.items():
        there = folder / name
        if there.exists() and weights.read_metadata(there)["fingerprint"] != fingerprint:
            raise UserError(
                f"{features.path} was made with another {name} than {there}, which would be heard with it: "
                "extract the features again"
            )


def check_examples(features: records.FeatureSet) -> None:
    """Raises a UserError in every process if any of them found a damaged example in its share of the set."""
    found = None
    try:
        features.check(range(jax.process_index(), len(features), jax.process_count()))
    except UserError as error:
        found = error
    if distributed.anywhere(found is not None):
        raise found or UserError(f"{features.path} has a damaged example, which another process names")


def run(config: TrainConfig, workdir: Path, dry_run: bool, devices: Sequence[jax.Device] | None = None) -> None:
    """Trains, or goes on training, in `workdir`, on these devices or on all.

    A dry run prints what would happen and stops.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; --workdir must name a folder")
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch(config.batch_size, mesh)
    base = weights.load(Path(config.weights) / config.model, "mmaudio", mesh=mesh)
    features = records.open_features(config.data)
    check_fits(features, base.config, config.model)
    check_encoders(features, Path(config.weights))
    train_rows, validation_rows = dataset.split_by_source(features, config.validation_fraction, config.seed)

    dtype = numerics.compute_dtype(config.compute_dtype)
    draw_keys = jax.jit(lambda: jax.random.split(jax.random.key(config.seed)), out_shardings=sharding.replicated(mesh))
    lora_key, run_key = draw_keys()

    network = nnx.eval_shape(
        lambda: MMAudio(base.config, rngs=trees.UNDRAWN, dtype=dtype, precision=config.matmul_precision)
    )
    if config.lora:
        lora.insert(network, config.lora, rngs=nnx.Rngs(lora_key))
        distributed.say(lora.table(network, config.lora))
    graphdef, leaves = trees.split(network)
    mask = trees.mask([lora.ADAPTER], leaves) if config.lora else trees.trainable(network)
    trained, frozen = trees.partition({**leaves, **base.params}, mask)
    distributed.say(
        f"{config.model}: {trees.count(trained):,} parameters are trained{' (the adapter)' if config.lora else ''}, "
        f"{trees.count(frozen):,} are frozen\n"
        f"{config.data}: {len(train_rows)} examples train, {len(validation_rows)} validate, "
        f"{config.batch_size * config.accumulation} examples a step for {config.num_steps} steps; "
        f"compute in {dtype.name} on {mesh.size} × {jax.devices()[0].device_kind}"
        f" ({', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())})"
    )
    if config.num_steps <= config.optimizer.warmup_steps:
        distributed.say(
            f"warning: the run of {config.num_steps} steps ends within the warm-up of {config.optimizer.warmup_steps}; "
            "lower config.optimizer.warmup_steps to train at the full learning rate"
        )
    process = dict(process_index=jax.process_index(), process_count=jax.process_count())
    check_examples(features)
    identity = {
        "config": dataclasses.asdict(config),
        "base": {"path": str(base.directory), "fingerprint": base.metadata["fingerprint"]},
        "data": {
            "mode": features.metadata.mode,
            "duration": features.metadata.duration,
            "ids_sha256": hashlib.sha256("\n".join(features.ids).encode()).hexdigest(),
            "encoders": features.metadata.encoders,
        },
        "mmaudio_jax_version": mmaudio_jax.__version__,
    }
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(RunCheckpoints(workdir, identity, read_only=dry_run))
        if checkpoints.latest_step is not None:
            done = " and so is finished" if checkpoints.latest_step == config.num_steps else ""
            distributed.say(f"{workdir} has come to step {checkpoints.latest_step}{done}")
        if dry_run:
            return

        optimizer = optim.make_optimizer(config.optimizer, config.num_steps)
        averages = config.ema.sigma_rels if config.ema else ()
        if checkpoints.latest_step is None:
            state = training.initial_state(trained, optimizer, mesh, averages)
        else:
            state = checkpoints.restore(training.abstract_state(trained, optimizer, mesh, averages))
        del base, trained  # the state has taken them over, or has others
        start, global_batch = int(state["step"]), config.batch_size * config.accumulation
        if distributed.is_main():
            with atomic_file(workdir / "config.json") as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")

        schedule = optim.learning_rate(config.optimizer, config.num_steps)
        writer = MetricWriter(workdir, start, config.num_steps) if distributed.is_main() else NoWriter()
        stack.callback(writer.close)
        snapshots = stack.enter_context(Snapshots(workdir, start)) if config.ema else None
        clock = Clock(start)
        if start < config.num_steps:
            distributed.say("the first step is compiled first, which can take a minute")

        def log(step: int, values: dict[str, float]) -> None:
            if "train/loss" in values:
                values["train/learning_rate"] = float(schedule(step - 1))
                values["train/samples_per_second"] = clock.rate(step) * global_batch
            writer.write(step, values)

        def validation():
            clock.stop()
            batches = dataset.validation_batches(features, validation_rows, batch_size=config.batch_size, **process)
            return training.on_devices(batches, mesh)

        def save(step: int, state: training.State) -> None:
            if snapshots:  # whoever goes on from this checkpoint has all snapshots before it
                snapshots.wait()
            checkpoints.save(step, state)
            clock.go_on()

        def progress(step: int, state: training.State) -> None:
            if step == start + 1:  # the step is compiled
                clock.start(step)
            if snapshots and (step % config.ema.snapshot_every == 0 or step == config.num_steps):
                clock.stop()
                snapshots.save(step, state["ema"])
                clock.go_on()
            writer.progress(step)

        loss = objective.make_loss(config.objective)
        stream = dataset.training_batches(
            features,
            train_rows,
            batch_size=config.batch_size,
            seed=config.seed,
            start=start * config.accumulation,
            workers=config.workers,
            **process,
        )
        stack.callback(stream.close)
        training.fit(
            train_step=training.make_train_step(graphdef, loss, optimizer, mesh),
            eval_step=training.make_eval_step(graphdef, loss, mesh),
            state=state,
            frozen=frozen,
            batches=training.micro_batched(stream, config.accumulation, mesh),
            validation=validation,
            key=run_key,
            num_steps=config.num_steps,
            log_every=config.log_every,
            eval_every=config.eval_every,
            log=log,
            save=save,
            progress=progress,
        )
    distributed.say(
        f"{'the adapter is' if config.lora else 'the weights are'} in {workdir}; hear what was learnt with "
        f"`python sample.py --weights {config.weights} --model {config.model} --adapter {workdir} "
        "--video VIDEO --prompt WORDS`"
    )
