"""One training run of MMAudio: its config, and what the trainer is given for it."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import dtypes

import mmaudio_jax
from mmaudio_jax import (
    augment,
    distributed,
    flops,
    listening,
    lora,
    numerics,
    objective,
    optim,
    sampling,
    sharding,
    train_step,
    trainer,
    trees,
    weights,
)
from mmaudio_jax.checkpoint import FOLDER, Adapter, RunCheckpoints, load_adapter, read_run
from mmaudio_jax.data import dataset, mixture
from mmaudio_jax.data.example import FeatureSet
from mmaudio_jax.dry_run import report
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.mmaudio import REMAT, MMAudio, MMAudioConfig
from mmaudio_jax.trainer import LoopConfig, Network

LOGS = (".log", ".out", ".err", ".txt")  # that a shell or a cluster may write to a workdir before a run does


@dataclasses.dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Everything that decides a run; config files in configs/ fill it. Beside what `LoopConfig` says:

    Attributes:
        model: name of the base under `weights`; from scratch, one that `python -m mmaudio_jax.initialize` drew.
        weights: folder of converted weights.
        data: a feature set, or several with how often each comes in an epoch, as `mmaudio_jax.data.mixture` reads them.
        validation_fraction: share of the source videos that validate and never train; not used where a table of the
            data has the column `split`, which then decides.
        workers: processes that read examples; 0 reads in this one.
        compute_dtype: `float32`, `bfloat16`, or `auto`: bfloat16 on an accelerator, float32 on a CPU.
        matmul_precision: JAX's precision of matrix products: `default`, `high` or `highest`.
        remat: what the backward pass computes again, for memory: see `MMAudio`.
        lora: what is adapted; None trains all weights.
        objective: how a sample is drawn.
        augment: what else is done to a sample that trains.
        samples: the sounds to generate on the way; None generates none.
    """

    model: str
    weights: str
    data: str
    validation_fraction: float
    workers: int
    compute_dtype: str
    matmul_precision: str
    remat: str
    lora: lora.LoRAConfig | None
    objective: objective.ObjectiveConfig
    augment: augment.AugmentConfig
    samples: listening.SamplesConfig | None

    def __post_init__(self):
        super().__post_init__()
        if self.workers < 0:
            raise UserError(f"config.workers is {self.workers}; it must be 0 or more")
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"config.validation_fraction is {self.validation_fraction}; it must lie in (0, 1)")
        if self.augment.mixup and self.batch_size == 1:
            raise UserError("augment.mixup mixes the samples of a batch, and config.batch_size is 1; give at least 2")
        for name, known in (
            ("compute_dtype", numerics.DTYPES),
            ("matmul_precision", numerics.PRECISIONS),
            ("remat", REMAT),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"config.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")


def check_workdir(workdir: Path) -> None:
    """Raises a UserError unless a run can lie there: in a folder that is new, or a run's, or holds logs at most."""
    there = next(place for place in (workdir, *workdir.parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file; --workdir must name a folder")
    if there == workdir and not any((workdir / name).exists() for name in (FOLDER, trainer.LOCK)):
        found = (path for path in workdir.iterdir() if not path.name.startswith("."))
        if others := sorted(path.name for path in found if path.is_dir() or path.suffix not in LOGS):
            raise UserError(
                f"{workdir} holds other things than a run, the first {others[0]}; choose a new or an empty --workdir"
            )


def check_fits(features: FeatureSet, config: MMAudioConfig, model: str) -> None:
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


def check_encoders(features: FeatureSet, folder: Path) -> None:
    """Raises a UserError if an encoder in the weights folder is not the one that the feature set was made with."""
    for name, fingerprint in features.metadata.encoders.items():
        there = folder / name
        if there.exists() and weights.read_metadata(there)["fingerprint"] != fingerprint:
            raise UserError(
                f"{features.path} was made with another {name} than {there}, which would be heard with it: "
                "extract the features again"
            )


def check_examples(features: FeatureSet, state: str, workdir: Path) -> None:
    """Raises a UserError in every process if any of them found a damaged example in its share of the set.

    A run that goes on with files that have not changed since need not read them all again.

    Args:
        features: the set.
        state: of its files.
        workdir: of the run.
    """
    known = None
    if workdir.exists():
        with contextlib.suppress(UserError):  # there is no checkpoint yet
            known = read_run(workdir)["data"].get("files")
    with distributed.together():
        if known != state:
            features.check(range(jax.process_index(), len(features), jax.process_count()))


class Examples:
    """A mixture of feature sets as the trainer takes it, in this process's part."""

    def __init__(self, features: mixture.Mixture, config: TrainConfig):
        self.features, self._config = features, config
        self.train_rows, self.validation_rows = dataset.split(features, config.validation_fraction, config.seed)
        self._epoch = np.repeat(self.train_rows, features.repeats[self.train_rows])
        self._process = dict(process_index=jax.process_index(), process_count=jax.process_count())

    def training(self, start: int) -> Iterator[dataset.Batch]:
        """As of `trainer.Data`."""
        order = dict(batch_size=self._config.batch_size, seed=self._config.seed, start=start)
        return dataset.training_batches(
            self.features, self._epoch, **order, **self._process, workers=self._config.workers
        )

    def validation(self) -> Iterator[dataset.Batch]:
        """As of `trainer.Data`."""
        return dataset.validation_batches(
            self.features, self.validation_rows, batch_size=self._config.batch_size, **self._process
        )

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a micro-batch over all processes."""
        example = self.features[int(self.train_rows[0])] | {"position": np.int64(0)}
        return {
            name: jax.ShapeDtypeStruct((self._config.batch_size, *value.shape), dtypes.canonicalize_dtype(value.dtype))
            for name, value in example.items()
        }

    def names(self, step: int) -> list[str]:
        """As of `trainer.Data`."""
        order, size, ids = dataset.order(self._epoch, self._config.seed), self._config.step_size, self.features.ids
        return [ids[order[i]] for i in range((step - 1) * size, step * size)]

    def digests(self) -> dict[str, str]:
        """Hashes of what trains, as often as it does in an epoch, and of what validates: of ids, captions, recipes."""

        def digest(values: Sequence[str], *sides: np.ndarray) -> str:
            said = [[values[i] for i in rows.tolist()] for rows in sides]
            return hashlib.sha256(json.dumps(said).encode()).hexdigest()

        return {
            "ids": digest(self.features.ids, self._epoch, self.validation_rows),
            "captions": digest(self.features.captions, self.train_rows, self.validation_rows),
            "recipes": digest(self.features.recipes, self.train_rows, self.validation_rows),
        }

    def table(self) -> str:
        """How many examples of each set train and validate, as text."""
        sides = (self.train_rows, self.validation_rows)
        counts = [np.bincount(self.features.places[rows], minlength=len(self.features.sets)) for rows in sides]
        lines = []
        for place, features in enumerate(self.features.sets):
            repeat = self.features.repeats[self.features.places == place][0]
            often = f" {repeat} times an epoch" if repeat > 1 else ""
            train, validate = (count[place] for count in counts)
            neither = len(features) - train - validate
            lines.append(
                f"{features.path}: {train} examples train{often}, {validate} validate"
                + (f", {neither} do neither" if neither else "")
            )
        if any(self.features.sides):
            lines.append("the column split of the data says which; config.validation_fraction is not used")
        if (size := self._config.step_size) > (count := len(self._epoch)):
            lines.append(f"a step of {size} examples is more than an epoch, of {count}: some come several times in it")
        return "\n".join(lines)


def find_start(config: TrainConfig, workdir: Path) -> tuple[dict[str, Any] | None, Adapter | None]:
    """What the run's adapter begins as: what it is, as checkpoints keep it, and the adapter.

    A run that has come to a checkpoint needs its start no more: under the name that the checkpoint has, it is not read.

    Raises:
        UserError: the start is no run.
    """
    path = config.lora and config.lora.start
    if not path:
        return None, None
    known = None
    if workdir.exists():
        with contextlib.suppress(UserError):  # there is no checkpoint yet
            known = read_run(workdir).get("start")
    if known and known["path"] == path:
        return known, None
    adapter = load_adapter(Path(path))
    return {"path": path, "step": adapter.step, "fingerprint": weights.fingerprint(adapter.params)}, adapter


def begun_as(start: Adapter, drawn: trees.Params, config: TrainConfig, base: weights.Weights) -> trees.Params:
    """The drawn adapter, grown from `start`; says so.

    Raises:
        UserError: `start` has another base or no adapter, or cannot be grown into this one (see `lora.grow`).
    """
    start.check_base(base.metadata["fingerprint"], base.directory)
    if start.lora is None:
        raise UserError(
            f"lora.start is {config.lora.start}, a run of all weights; merge it (python -m mmaudio_jax.merge) and give "
            "that as config.model"
        )
    begun = lora.grow(drawn, config.lora, start.params, start.lora)
    distributed.say(f"the adapter begins as that of {config.lora.start}, step {start.step}")
    return begun


def build(config: TrainConfig, base: weights.Weights, key: jax.Array, start: Adapter | None) -> Network:
    """The flow network with what is trained, an adapter or all weights; says which.

    The adapter is drawn from `key`, and begins as `start` where that is given.
    """
    dtype = numerics.compute_dtype(config.compute_dtype)
    network = nnx.eval_shape(
        lambda: MMAudio(
            base.config, rngs=trees.UNDRAWN, dtype=dtype, precision=config.matmul_precision, remat=config.remat
        )
    )
    if config.lora:
        lora.insert(network, config.lora, rngs=nnx.Rngs(key))
        distributed.say(lora.table(network, config.lora))
    graphdef, leaves = trees.split(network)
    mask = trees.mask([lora.ADAPTER], leaves) if config.lora else trees.trainable(network)
    trained, frozen = trees.partition({**leaves, **base.params}, mask)
    if start:
        trained = begun_as(start, trained, config, base)
    distributed.say(
        f"{config.model}: {trees.count(trained):,} parameters are trained{' (the adapter)' if config.lora else ''}, "
        f"{trees.count(frozen):,} are frozen; compute in {dtype.name}"
    )
    if config.optimizer.no_decay:
        spared = trees.partition(trained, optim.decayed(config.optimizer, trained))[1]
        distributed.say(f"weight decay leaves {trees.count(spared):,} of them in {len(spared)} leaves alone")
    return Network(graphdef, trained, frozen)


def identify(
    config: TrainConfig, base: weights.Weights, data: Examples, state: str, start: dict[str, Any] | None
) -> dict[str, Any]:
    """What the run is, as its checkpoints keep it; `state` is of the sets' files, `start` of `find_start`."""
    metadata = data.features.metadata
    return {
        "config": dataclasses.asdict(config),
        "base": {"path": str(base.directory), "fingerprint": base.metadata["fingerprint"]},
        "start": start,
        "data": {
            "mode": metadata.mode,
            "duration": metadata.duration,
            "encoders": metadata.encoders,
            "examples": {"dtype": ", ".join(each.metadata.dtype for each in data.features.sets), **data.digests()},
            "files": state,
        },
        "mmaudio_jax_version": mmaudio_jax.__version__,
    }


def operations(network: Network, loss: train_step.Loss, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
    """As of `flops.of_gradient`, of a micro-batch; what `remat` computes again is not among them."""

    def once(model, batch, key):
        model.remat = "none"
        return loss(model, batch, key)

    return flops.of_gradient(network.graphdef, once, network.trained, network.frozen, batch)


def run(config: TrainConfig, workdir: Path, dry_run: bool, devices: Sequence[jax.Device] | None = None) -> int:
    """Trains, or goes on training, in `workdir`, on these devices or on all; returns the exit code.

    A dry run prints what would happen and stops.
    """
    check_workdir(workdir)
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch(config.batch_size, mesh)
    base = weights.load(Path(config.weights) / config.model, "mmaudio", mesh=mesh)
    features = mixture.open_mixture(config.data)
    check_fits(features, base.config, config.model)
    check_encoders(features, Path(config.weights))
    data = Examples(features, config)

    draw_keys = jax.jit(lambda: jax.random.split(jax.random.key(config.seed)), out_shardings=sharding.replicated(mesh))
    lora_key, run_key = draw_keys()
    begins, start = find_start(config, workdir)
    network = build(config, base, lora_key, start)
    distributed.say(data.table())
    distributed.say(
        f"{config.step_size} examples a step for {config.num_steps} steps on {mesh.size} × "
        f"{jax.devices()[0].device_kind} ({', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())})"
    )
    if config.num_steps <= config.optimizer.warmup_steps:
        distributed.say(
            f"warning: the run of {config.num_steps} steps ends within the warm-up of {config.optimizer.warmup_steps}; "
            "lower config.optimizer.warmup_steps to train at the full learning rate"
        )
    state = features.state
    check_examples(features, state, workdir)
    identity, latent_dim = identify(config, base, data, state, begins), base.config.latent_dim
    del base, start  # the run takes the leaves over
    sets, periodic = features.names if len(features.names) > 1 else (), None
    loss, validation_loss = (objective.make_loss(config.objective, sets, also) for also in (config.augment, None))
    needed = operations(network, validation_loss, data.shapes())
    if config.samples:
        root, precision = Path(config.weights), config.matmul_precision
        decoder = sampling.Decoder.load(root, config.model, latent_dim, precision, mesh)
        listener = listening.Listener(config.samples, network, decoder, features, data.validation_rows, workdir, mesh)
        periodic = trainer.Periodic(config.samples.every, listener.act, listener.done)
    if dry_run:
        with RunCheckpoints(workdir, identity, read_only=True) as checkpoints:
            step = checkpoints.latest_step
        if step is not None:
            done = " and so is finished" if step == config.num_steps else ""
            distributed.say(f"{workdir} has come to step {step}{done}")
        if step != config.num_steps:
            distributed.say(report(config, network, loss, data.shapes(), run_key, mesh, needed))
        return 0
    peak = flops.peak(numerics.compute_dtype(config.compute_dtype), config.matmul_precision)
    code = trainer.train(
        config,
        network,
        loss,
        data,
        workdir=workdir,
        identity=identity,
        key=run_key,
        mesh=mesh,
        full_speed=mesh.size * peak * config.batch_size / needed,
        periodic=periodic,
        validation_loss=validation_loss,
    )
    if not code:
        distributed.say(
            f"{'the adapter is' if config.lora else 'the weights are'} in {workdir}; hear what was learnt with "
            f"`python sample.py VIDEO --weights {config.weights} --model {config.model} --adapter {workdir} "
            "--prompt WORDS`"
        )
    return code
