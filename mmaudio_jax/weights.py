"""Converted weights on disk: one folder a network, `params/` (Orbax) beside `metadata.json`.

`metadata.json` names the network and its config, so that a folder loads without being told what it is, and
says where the weights come from (source name and hashes, licence, versions, element count, content hash).
"""

import dataclasses
import hashlib
import importlib
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

import mmaudio_jax
from mmaudio_jax import sharding, trees
from mmaudio_jax.errors import UserError, reading
from mmaudio_jax.files import atomic_directory

SCHEMA_VERSION = 1

# network name: (module, network class, config class)
NETWORKS = {
    "mmaudio": ("mmaudio_jax.models.mmaudio", "MMAudio", "MMAudioConfig"),
    "vae": ("mmaudio_jax.models.vae", "VAE", "VAEConfig"),
    "bigvgan": ("mmaudio_jax.models.bigvgan", "BigVGAN", "BigVGANConfig"),
    "clip": ("mmaudio_jax.models.clip", "CLIP", "CLIPConfig"),
    "synchformer": ("mmaudio_jax.models.synchformer", "Synchformer", "SynchformerConfig"),
    "mel_dct": ("mmaudio_jax.demo.stand_ins", "MelDCT", "MelDCTConfig"),
    "griffin_lim": ("mmaudio_jax.demo.stand_ins", "GriffinLim", "GriffinLimConfig"),
    "glance": ("mmaudio_jax.demo.stand_ins", "Glance", "GlanceConfig"),
    "motion_energy": ("mmaudio_jax.demo.stand_ins", "MotionEnergy", "MotionEnergyConfig"),
}
# the demo's untrained networks: which trained one each takes the place of, in weights folders that name it
STAND_INS = {"mel_dct": "vae", "griffin_lim": "bigvgan", "glance": "clip", "motion_energy": "synchformer"}


def network_class(network: str) -> type[nnx.Module]:
    """The module class of a network's name, imported on demand."""
    module, name, _ = NETWORKS[network]
    return getattr(importlib.import_module(module), name)


def config_class(network: str) -> type:
    """The frozen config dataclass of a network's name."""
    module, _, name = NETWORKS[network]
    return getattr(importlib.import_module(module), name)


def fingerprint(params: Mapping[str, Any]) -> str:
    """SHA-256 over every path, shape, dtype and byte, independent of how the files are laid out."""
    digest = hashlib.sha256()
    for path in sorted(params):
        array = np.ascontiguousarray(params[path])
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network's config and parameters, as `load` read them."""

    directory: Path
    network: str
    config: Any
    params: trees.Params
    metadata: dict[str, Any]

    def graphdef(self, **numerics) -> nnx.GraphDef:
        """The network's definition; `numerics` are its `dtype` and `precision`."""
        cls = network_class(self.network)
        return trees.abstract(lambda: cls(self.config, rngs=trees.UNDRAWN, **numerics))[0]

    def cast(self, dtype) -> "Weights":
        """These weights in what the network computes in at compute dtype `dtype`: the same sound from less memory."""
        dtypes = _storage(self.network, self.config, dtype)
        return dataclasses.replace(self, params={k: v.astype(dtypes[k].dtype) for k, v in self.params.items()})

    def module(self, **numerics) -> nnx.Module:
        """The network with these parameters."""
        return trees.merge(self.graphdef(**numerics), self.params)


def save(
    directory: Path,
    network: str,
    config: Any,
    params: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a weights folder, whole or not at all.

    Args:
        directory: the folder to make; it must not exist, unless `overwrite` is true.
        network: a key of `NETWORKS`.
        config: that network's config dataclass.
        params: flat parameters, exactly those of the network.
        provenance: source name, hashes and licence, kept in `metadata.json`.

    Raises:
        UserError: the folder exists.
    """
    import orbax.checkpoint as ocp

    metadata = {
        "schema_version": SCHEMA_VERSION,
        "network": network,
        "config": dataclasses.asdict(config),
        "elements": trees.count(params),
        "fingerprint": fingerprint(params),
        "mmaudio_jax_version": mmaudio_jax.__version__,
        **(provenance or {}),
    }
    # float32 weights hardly compress, and these limits keep the copies in flight small beside the weights themselves
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, save_concurrent_gb=1, save_device_host_concurrent_gb=1)
    with atomic_directory(directory, overwrite=overwrite) as temporary:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(temporary.absolute() / "params", dict(params))
        (temporary / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def read_metadata(directory: Path) -> dict[str, Any]:
    """What a weights folder says of itself.

    Raises:
        UserError: it is not there (names the command that makes it), or is damaged.
    """
    try:
        metadata = json.loads((directory / "metadata.json").read_text())
    except FileNotFoundError:
        raise UserError(_missing(directory)) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / 'metadata.json'} cannot be read ({error}); convert the weights again") from None
    version = metadata.get("schema_version") if isinstance(metadata, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{directory} has schema version {version}, this release reads {SCHEMA_VERSION}; convert the weights again"
        )
    return metadata


def read_config(directory: Path, network: str) -> tuple[dict[str, Any], Any]:
    """(what a weights folder says of itself, the network's config); errors as of `load`."""
    metadata = read_metadata(directory)
    found = metadata["network"]
    if STAND_INS.get(found, found) != network:
        raise UserError(f"{directory} holds a {found} network where a {network} one is needed")
    try:
        return metadata, config_class(found)(**_tuples(metadata["config"]))
    except TypeError as error:
        raise UserError(f"{directory / 'metadata.json'} is damaged ({error}); convert the weights again") from None


def check_stand_ins(root: Path, names: Iterable[str]) -> None:
    """Raises a UserError if some of these networks in `root` are the demo's stand-ins, and others are not.

    Those that are not there are left to `load`.
    """
    networks = {name: read_metadata(root / name)["network"] for name in names if (root / name).exists()}
    untrained = [name for name, network in networks.items() if network in STAND_INS]
    if untrained and len(untrained) < len(networks):
        raise UserError(
            f"{', '.join(untrained)} in {root} are the demo's untrained stand-ins, the others there are not: none "
            "works with both; keep the demo's weights in a folder of their own"
        )


def load(
    directory: Path, network: str, dtype=jnp.float32, mesh: Mesh | None = None, only: Collection[str] = ()
) -> Weights:
    """Reads a weights folder.

    Args:
        directory: e.g. `weights/small_16k`.
        network: what it must hold, a key of `NETWORKS`.
        dtype: compute dtype to be; with bfloat16 the leaves that are computed in it are stored in it too. Whoever
            trains or adapts weights needs float32.
        mesh: where the leaves are to lie, by `sharding.param_shardings`; None: on the first local device.
        only: the leaves to read; by default all.

    Raises:
        UserError: it is not there (names the command that makes it), holds another network or is damaged.
    """
    import orbax.checkpoint as ocp

    directory = Path(directory)
    metadata, config = read_config(directory, network)
    found = metadata["network"]
    if found in STAND_INS and jax.process_index() == 0:
        print(f"note: {directory} is {found}, the demo's untrained stand-in for {network}", file=sys.stderr)
    storage = _storage(found, config, dtype)
    storage = {name: storage[name] for name in only} or storage
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    where = sharding.param_shardings(storage, mesh) if mesh else dict.fromkeys(storage, one_device)
    target = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where[k]) for k, v in storage.items()}
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    wanted = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=bool(only))
    with reading(directory, "convert the weights again"), ocp.PyTreeCheckpointer() as checkpointer:
        params = checkpointer.restore((directory / "params").absolute(), args=wanted)
    return Weights(directory, found, config, params, metadata)


def _storage(network: str, config: Any, dtype) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape of every leaf, and what it is computed in at compute dtype `dtype`."""
    cls = network_class(network)
    module = nnx.eval_shape(lambda: cls(config, rngs=trees.UNDRAWN, dtype=dtype))
    dtypes = trees.compute_dtypes(module)
    return {k: jax.ShapeDtypeStruct(v.shape, dtypes[k]) for k, v in trees.split(module)[1].items()}


def _missing(directory: Path) -> str:
    """That there are no weights, what there is instead, and how to make them."""
    there = sorted(path.parent.name for path in directory.parent.glob("*/metadata.json"))
    return (
        f"there are no weights in {directory}"
        + (f" ({directory.parent} has {', '.join(there)})" if there else "")
        + f"; bring them with `python -m convert.fetch MODEL --out {directory.parent}`, or make them of a file with "
        f"`python -m convert FILE --out {directory.parent}`"
    )


def _tuples(value: Any) -> Any:
    """JSON has lists where the configs have tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
