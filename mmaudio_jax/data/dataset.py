"""The Grain stream: shuffled by seed, sharded by process, its order a function of (seed, step) alone.

The stream is one endless sequence of positions, each epoch of it a permutation drawn from the seed. The
global batch k is positions [k·B, (k+1)·B); process p of P takes the p-th of P equal parts of it. So a run that starts
again at a step needs the step and nothing else, on any number of workers or processes.
"""

import atexit
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mmaudio_jax.data.example import Batch, Example, FeatureSet
from mmaudio_jax.data.memory import Memory
from mmaudio_jax.data.split import told_sides
from mmaudio_jax.data.workers import CORES, live_with_parent
from mmaudio_jax.errors import UserError

READ_THREADS = min(4, CORES)  # each an equal share of a batch
BATCHES_AHEAD = 2
WORKER_BUFFER = 4  # examples a worker holds ready in shared memory


def split(features: FeatureSet, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the examples into (training, validation) indices, so that no source video is in both.

    Where a table has the column `split`, its rows `train` train, `val` validate and `test` do neither; `fraction` and
    `seed` are not used. An example that it says nothing of, as one of another set, goes where others of its source
    video go, or else trains. Where no table has it: as of `split_by_source`.

    Raises:
        UserError: the column puts a source video on two sides, has another word, or leaves a side without examples; or
            as of `split_by_source`.
    """
    if not any(features.sides):
        return split_by_source(features, fraction, seed)
    told = told_sides(zip(features.sources, features.sides, strict=True))
    sides = np.array([told[source] or "train" for source in features.sources])
    train, validation = (np.flatnonzero(sides == side) for side in ("train", "val"))
    for found, side in ((train, "train"), (validation, "val")):
        if not len(found):
            raise UserError(
                f"the column split of {features.path} puts no example on the side {side}; put some there, or take the "
                "column out of clips.tsv to have config.validation_fraction decide"
            )
    return train, validation


def split_by_source(features: FeatureSet, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the examples into (training, validation) indices by source video, so that no video is in both.

    Args:
        features: its `sources` say which video each example comes from.
        fraction: of the source videos for validation, in [0, 1); rounded, but each side keeps at least one.
        seed: of the draw.

    Raises:
        UserError: the fraction is out of range, or there are not two source videos to split.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"the validation fraction must be in [0, 1), not {fraction:g}")
    sources = features.sources
    names = sorted(set(sources))
    if fraction == 0:
        return np.arange(len(features)), np.arange(0)
    if len(names) < 2:
        raise UserError(
            f"all {len(features)} examples of {features.path} come from one source video ({names[0]}): "
            "none is left for validation; add clips of another video, or fill the column original_video"
        )
    count = min(max(round(fraction * len(names)), 1), len(names) - 1)
    held_out = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:count]}
    validation = np.array([source in held_out for source in sources])
    return np.flatnonzero(~validation), np.flatnonzero(validation)


class _Read:
    """Reads the i-th example of one process's stream, and says at which position of the whole stream it stands."""

    def __init__(self, features: FeatureSet, rows: Sequence[int], local_size: int, index: int, count: int):
        self._features, self._rows = features, rows
        self._local_size, self._index, self._count = local_size, index, count

    def __call__(self, i: int) -> Example:
        position = self._position(i)
        return self._features[int(self._rows[position])] | {"position": np.int64(position)}

    def into(self, i: int, batch: Batch, place: int) -> None:
        """Reads it to its place in a batch."""
        position = self._position(i)
        self._features.read_into(int(self._rows[position]), batch, place)
        batch["position"][place] = position

    def _position(self, i: int) -> int:
        batch, within = divmod(int(i), self._local_size)
        return (batch * self._count + self._index) * self._local_size + within


class _ReadBatch:
    """Reads the k-th batch of one process's stream, each example straight to its place: to hold examples and stack them
    would take the batch's memory twice, and fresh memory is what costs most.
    """

    def __init__(self, read: _Read, size: int):
        self._read, self._size = read, size
        self._memory = Memory(BATCHES_AHEAD)
        self._arrays: dict[str, tuple[tuple[int, ...], np.dtype]] = {}  # {array: (shape, type)} of every batch

    def __call__(self, k: int) -> Batch:
        start = int(k) * self._size
        if not self._arrays:
            example = self._read(start)
            self._arrays = {name: ((self._size, *value.shape), value.dtype) for name, value in example.items()}
        batch = {name: self._memory.empty(shape, dtype) for name, (shape, dtype) in self._arrays.items()}

        def read_some(first: int) -> None:
            for i in range(first, self._size, READ_THREADS):
                self._read.into(start + i, batch, i)

        with ThreadPoolExecutor(READ_THREADS) as pool:
            for _ in pool.map(read_some, range(READ_THREADS)):
                pass
        return batch


def training_batches(
    features: FeatureSet,
    indices: Sequence[int],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches for one process, the same whatever `workers`, `process_count` and `start` are.

    Args:
        features: the set.
        indices: the examples to train on.
        batch_size: of the global batch; each process gets `batch_size / process_count` of it.
        seed: of the order, 0 ≤ seed < 2³².
        start: the number of the batch that comes first.
        process_index, process_count: this process among all.
        workers: processes that read ahead; 0 reads in threads. Each starts as a fresh interpreter, so a
            script must keep its work under `if __name__ == "__main__"`.

    Returns:
        An iterator of examples stacked along a first axis, with `position` (b,) int64, each example's place
        in the global stream: the key of every random draw. `close()` it when done.

    Raises:
        UserError: there is nothing to train on, the batch cannot be shared out, or (on iteration) a damaged
            example.
    """
    import grain

    if len(indices) == 0:
        raise UserError(f"there is no example of {features.path} to train on")
    local_size = _local_size(batch_size, process_count)
    rows = order(indices, seed)
    read = _Read(features, rows, local_size, process_index, process_count)
    if not workers:
        stream = grain.MapDataset.range(start, sys.maxsize).map(_ReadBatch(read, local_size))
        return _iterate(stream.to_iter_dataset(_read_options(1, BATCHES_AHEAD)))
    _parse_flags()
    stream = grain.MapDataset.range(start * local_size, sys.maxsize).map(read)
    options = _read_options(READ_THREADS, max(BATCHES_AHEAD * local_size // workers, READ_THREADS))
    # batched after the workers: whole batches may be more than the shared memory
    dataset = stream.to_iter_dataset(options).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=WORKER_BUFFER),
        worker_init_fn=live_with_parent,
    )
    return _iterate(dataset.batch(local_size))


def order(indices: Sequence[int], seed: int) -> "grain.MapDataset[int]":
    """The index at each position of the endless stream: epoch after epoch, each a permutation of `indices`."""
    import grain

    return grain.MapDataset.source(np.asarray(indices)).seed(seed).shuffle().repeat()


def validation_batches(
    features: FeatureSet,
    indices: Sequence[int],
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example once, in fixed order, in batches of one shape.

    Returns:
        An iterator as of `training_batches`; `position` counts from 0, and `weight` (b,) float32 is 1, or 0
        for the examples that fill up the last batch.
    """
    import grain

    local_size = _local_size(batch_size, process_count)
    padded = -(-len(indices) // batch_size) * batch_size
    rows = np.resize(np.asarray(indices, np.int64), padded)
    weight = (np.arange(padded) < len(indices)).astype(np.float32)
    read = _Read(features, rows, local_size, process_index, process_count)
    stream = grain.MapDataset.range(padded // batch_size).map(_ReadBatch(read, local_size))
    stream = stream.map(lambda batch: batch | {"weight": weight[batch["position"]]})
    return _iterate(stream.to_iter_dataset(_read_options(1, BATCHES_AHEAD)))


def _local_size(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"a batch of {batch_size} cannot be shared out among {process_count} processes")
    return batch_size // process_count


def _read_options(threads: int, ahead: int):
    """Not more ahead than that: Grain's default of 500 examples would be 600 MB."""
    import grain

    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)


def _parse_flags() -> None:
    """Grain's workers read absl flags, which a program that is no absl app never parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _iterate(dataset) -> Iterator[Batch]:
    iterator = iter(dataset)
    # workers and their shared memory must go before the interpreter takes the modules that they need to go
    atexit.register(iterator.close)
    try:
        yield from iterator
    finally:
        iterator.close()
        atexit.unregister(iterator.close)
