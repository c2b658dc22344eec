"""Sounds of a run as it trains: always for the same validation examples and seeds, beside the true ones."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from mmaudio_jax import distributed, measures, plots, sampling, sharding, solvers, trees
from mmaudio_jax.data import audio, clips, media, mel, muxing
from mmaudio_jax.data.mixture import Mixture
from mmaudio_jax.errors import UserError
from mmaudio_jax.files import atomic_directory
from mmaudio_jax.request import MAX_STRENGTH
from mmaudio_jax.sequence import lengths
from mmaudio_jax.trainer import Network

FOLDER = "samples"  # of a workdir


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """What is generated during a run.

    Attributes:
        every: steps between generations; the first is before training, the last at the end.
        count: examples, the first that validate; all where there are fewer.
        num_steps: Euler steps.
        cfg_strength: guidance; below 1 none.
        root: the folder that the video_path of the feature set's table starts from: then the true sound is the
            video's, and videos are written as well; None: the true sound is the stored latent, decoded.
    """

    every: int
    count: int
    num_steps: int
    cfg_strength: float
    root: str | None

    def __post_init__(self):
        for name in ("every", "count", "num_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"samples.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.cfg_strength <= MAX_STRENGTH:
            raise UserError(f"samples.cfg_strength is {self.cfg_strength:g}; it must lie in [0, {MAX_STRENGTH:g}]")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a sound is made for: an example's id and caption, the seed of the noise, and the video if there is one."""

    id: str
    text: str
    seed: int
    clip: clips.Clip | None

    @property
    def file(self) -> str:
        """The id as a file name without its ending."""
        return self.id.replace("/", "_")


@functools.partial(jax.jit, static_argnames=("graphdef", "config", "mesh"))
def _latents(
    graphdef: nnx.GraphDef,
    trained: trees.Params,
    frozen: trees.Params,
    examples: Mapping[str, Array],
    noise: Float[Array, "b n z"],
    *,
    config: SamplesConfig,
    mesh: Mesh,
) -> Float[Array, "b n z"]:
    """What the network makes of the noise, whole on every device, for examples that may lack video or text."""
    params = sharding.gather({**frozen, **trained}, mesh)

    def given(name: str, empty: str, there: str):
        return jnp.where(examples[there][:, None, None], examples[name].astype(jnp.float32), params[empty])

    conditions = (
        given("clip_f", "empty_clip_feat", "has_video"),
        given("sync_f", "empty_sync_feat", "has_video"),
        given("text_f", "empty_string_feat", "has_text"),
    )
    if config.cfg_strength >= 1:
        rows = sampling.guided(params, *conditions, params["empty_string_feat"], config.cfg_strength)
    else:
        rows = sampling.plain(*conditions)
    table = solvers.stack([solvers.table("euler", config.num_steps)] * len(noise))
    latent = sampling.sample(graphdef, params, noise, rows, table, config.num_steps)
    return jax.lax.with_sharding_constraint(latent, sharding.replicated(mesh))


@functools.partial(jax.jit, static_argnames=("vae_def", "vocoder_def", "mesh"))
def _decode(
    vae_def: nnx.GraphDef,
    vae: trees.Params,
    vocoder_def: nnx.GraphDef,
    vocoder: trees.Params,
    latent: Float[Array, "b n z"],
    mesh: Mesh,
) -> Float[Array, "b l"]:
    """`sampling.decode` with leaves that are split, whole on every device."""
    vae, vocoder = sharding.gather((vae, vocoder), mesh)
    return jax.lax.with_sharding_constraint(
        sampling.decode(vae_def, vae, vocoder_def, vocoder, latent), sharding.replicated(mesh)
    )


def _clips(features: Mixture, rows: Sequence[int], root: str) -> dict[int, clips.Clip]:
    """The clip of each row, as the table of its set tells."""
    located = {row: features.locate(row) for row in rows}
    tables = {
        place: clips.clips_of(features.sets[place].table, root) for place in {place for place, _ in located.values()}
    }
    return {row: tables[place][within] for row, (place, within) in located.items()}


class Listener:
    """Generates the sounds of a run, with the leaves as they are trained; each of its programs compiles once."""

    def __init__(
        self,
        config: SamplesConfig,
        network: Network,
        decoder: sampling.Decoder,
        features: Mixture,
        rows: Any,
        workdir: Path,
        mesh: Mesh,
    ):
        """Prepares what stays the same.

        Args:
            config: what is generated.
            network: the flow network, whose frozen leaves are kept.
            decoder: on the mesh.
            features: the feature sets.
            rows: which examples of it validate, in order.
            workdir: gets the folder `samples`.
            mesh: the devices.

        Raises:
            UserError: `config.root` is given and the table of the set does not lead to videos in it.
        """
        self._config, self._features, self._decoder = config, features, decoder
        self._folder, self._mesh, self._mel = workdir / FOLDER, mesh, mel.PRESETS[decoder.mode.name]
        ids, captions = features.ids, features.captions
        first: dict[str, int] = {}  # of each file name
        for row in rows:
            first.setdefault(ids[row].replace("/", "_"), int(row))
        rows = list(first.values())[: config.count]
        found = _clips(features, rows, config.root) if config.root else {}
        self._prompts = [Prompt(ids[row], captions[row], seed, found.get(row)) for seed, row in enumerate(rows)]

        examples = [features[row] for row in rows]
        self._examples = self._put({name: np.stack([each[name] for each in examples]) for name in examples[0]})
        noise = sampling.initial_noise(range(len(rows)), *features.metadata.shapes["mean"])
        self._noise = self._put(np.asarray(noise))
        self._graphdef, self._frozen = network.graphdef, network.frozen

    def done(self, step: int) -> bool:
        """Whether the sounds of a step have been written."""
        return (self._folder / f"{step:06d}").exists()

    def act(self, step: int, trained: trees.Params, writer) -> None:
        """Generates with the leaves as they are trained, and shows what comes of it; every process must take part."""
        latent = _latents(
            self._graphdef, trained, self._frozen, self._examples, self._noise, config=self._config, mesh=self._mesh
        )
        sounds, true = self._decode(latent), self._true
        if distributed.is_main():
            self._show(step, sounds, true, writer)

    @functools.cached_property
    def _true(self) -> Float[np.ndarray, "b l"]:
        """The true sounds, as long as the generated ones."""
        if not self._config.root:
            return self._decode(self._examples["mean"])
        duration, mode = self._features.metadata.duration, self._decoder.mode
        length = (duration, mode.sample_rate, lengths(duration, mode).samples)
        chosen = (prompt.clip for prompt in self._prompts)
        return np.stack([media.read_audio(clip.video, clip.start_time, *length, clip.end_time) for clip in chosen])

    def _put(self, tree: Any) -> Any:
        """Whole on every device, the same from every process."""
        return jax.device_put(tree, sharding.replicated(self._mesh))

    def _decode(self, latent: Float[Array, "b n z"]) -> Float[np.ndarray, "b l"]:
        _, *networks = self._decoder
        return np.asarray(_decode(*networks, latent, self._mesh))

    def _show(self, step: int, sounds: Float[np.ndarray, "b l"], true: Float[np.ndarray, "b l"], writer) -> None:
        """Writes the folder of a step, whole or not at all, and tells the writer."""
        rate, duration = self._decoder.mode.sample_rate, self._features.metadata.duration
        folder = self._folder / f"{step:06d}"
        end = round(duration * rate)  # sounds are whole latents long
        measured = [measures.compare(*pair, self._mel) for pair in zip(sounds, true, strict=True)]
        with atomic_directory(folder, overwrite=True) as temporary:
            for prompt, generated, real in zip(self._prompts, sounds[:, :end], true[:, :end], strict=True):
                audio.write_audio(temporary / "generated" / f"{prompt.file}.wav", generated, rate)
                audio.write_audio(temporary / "true" / f"{prompt.file}.wav", real, rate)
                pair = {f"{prompt.id}, step {step}": generated, "true": real}
                plots.save_comparison(temporary / "pictures" / f"{prompt.file}.png", pair, self._mel)
                if clip := prompt.clip:
                    path = temporary / "videos" / f"{prompt.file}.mp4"
                    muxing.write_video(path, clip.video, generated, rate, clip.start_time, duration)
            described = [
                {"id": prompt.id, "prompt": prompt.text, "step": step, "seed": prompt.seed, "measures": values}
                for prompt, values in zip(self._prompts, measured, strict=True)
            ]
            (temporary / "samples.json").write_text(json.dumps(described, indent=2) + "\n")
        means = {f"samples/{name}": float(np.mean([values[name] for values in measured])) for name in measured[0]}
        each = {
            f"samples/{prompt.id}/{name}": value
            for prompt, values in zip(self._prompts, measured, strict=True)
            for name, value in values.items()
        }
        writer.write(step, means | each)
        for prompt, generated, real in zip(self._prompts, sounds[:, :end], true[:, :end], strict=True):
            writer.sound(step, f"samples/{prompt.id}/generated", generated, rate)
            writer.sound(step, f"samples/{prompt.id}/true", real, rate)
            writer.picture(step, f"samples/{prompt.id}", folder / "pictures" / f"{prompt.file}.png")
