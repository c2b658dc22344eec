"""What a run would need, told without running it: memory, floating-point operations, and where every leaf lies."""

from collections import Counter
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from mmaudio_jax import optim, sharding, train_step
from mmaudio_jax.trainer import LoopConfig, Network

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def report(
    config: LoopConfig,
    network: Network,
    loss: train_step.Loss,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    key: jax.Array,
    mesh: Mesh,
    operations: float,
) -> str:
    """All of it, as text. The step is compiled, which can take a minute, and not run.

    Args:
        config: of the loop.
        network: what is trained.
        loss: as `mmaudio_jax.train_step` says.
        batch: shapes of a micro-batch.
        key: all randomness of the run.
        mesh: the devices.
        operations: floating-point operations of a micro-batch, as of `flops.of_gradient`.
    """
    return "\n".join(
        [
            leaves(network, mesh),
            memory(config, network, loss, batch, key, mesh),
            f"operations: {operations * config.accumulation / 1e12:.3g} TFLOP a step of {config.step_size} examples",
        ]
    )


def memory(config, network, loss, batch, key, mesh) -> str:
    """What the compiled step takes on each device; arguments as of `report`."""
    optimizer = optim.make_optimizer(config.optimizer, config.num_steps)
    averages = config.ema.sigma_rels if config.ema else ()
    state = train_step.abstract_state(network.trained, optimizer, mesh, averages)
    where = sharding.batch_sharding(mesh, axis=1)
    micro_batches = {
        name: jax.ShapeDtypeStruct((config.accumulation, *x.shape), x.dtype, sharding=where)
        for name, x in batch.items()
    }
    step = train_step.make_train_step(network.graphdef, loss, optimizer, mesh)
    told = step.lower(state, network.frozen, micro_batches, key).compile().memory_analysis()
    arguments, outputs, temporaries, aliased = (
        getattr(told, f"{name}_size_in_bytes") for name in ("argument", "output", "temp", "alias")
    )
    return (
        f"memory of a step on each device: {_bytes(arguments + outputs - aliased + temporaries)} "
        f"(arguments {_bytes(arguments)}, outputs {_bytes(outputs)}, of which {_bytes(aliased)} take the arguments' "
        f"place, temporaries {_bytes(temporaries)})"
    )


def leaves(network: Network, mesh: Mesh) -> str:
    """The network's leaves as a table; what differs in nothing but one part of its path shares a row."""
    rows = Counter()
    for role, tree in (("trained", network.trained), ("frozen", network.frozen)):
        for path, leaf in tree.items():
            split = sharding.spec(leaf.shape, mesh.shape[sharding.FSDP])
            where = f"split over {sharding.FSDP}, axis {len(split) - 1}" if len(split) else "whole"
            parts = tuple("*" if part.isdigit() else part for part in path.split("."))
            rows[parts, (str(leaf.shape), str(leaf.dtype), where, role)] += 1
    for place in range(max(len(parts) for parts, _ in rows)):
        rows = _joined(rows, place)
    table = [("leaf", "leaves", "shape", "dtype", "on each device", "")]
    table += [(".".join(parts), str(count), *kind) for (parts, kind), count in rows.items()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(f"{v:<{w}}" for v, w in zip(row, widths, strict=True)).rstrip() for row in table)


def _joined(rows: Counter, place: int) -> Counter:
    """Makes one row, with {a,b} at a place of the path, of those that differ there alone."""
    groups: dict[tuple, Counter] = {}
    for (parts, kind), count in rows.items():
        alike = groups.setdefault((parts[:place], parts[place + 1 :], kind), Counter())
        alike[parts[place : place + 1]] += count
    joined = Counter()
    for (before, after, kind), alike in groups.items():
        names = [part for parts in alike for part in parts]
        one = (f"{{{','.join(names)}}}",) if len(names) > 1 else tuple(names)
        joined[before + one + after, kind] = alike.total()
    return joined


def _bytes(count: int) -> str:
    power = min(max(count.bit_length() - 1, 0) // 10, len(UNITS) - 1)
    return f"{count / 1024**power:.3g} {UNITS[power]}"
