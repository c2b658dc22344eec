"""From videos, pictures and words to sound: `from mmaudio_jax import Pipeline`."""

import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh
from jaxtyping import Array, Float

import mmaudio_jax
from mmaudio_jax import numerics, sampling, sharding, solvers, trees, weights
from mmaudio_jax.adapters import FlowNetwork
from mmaudio_jax.data import captions
from mmaudio_jax.data.workers import read_ahead
from mmaudio_jax.decoding import Pictures, fitted, read_pictures, remark_of_length
from mmaudio_jax.encoders import Encoders
from mmaudio_jax.errors import UserError
from mmaudio_jax.request import AdapterUse, Request, use_adapters
from mmaudio_jax.sequence import mode_of

BATCH_SIZE = 4  # guided samples a device at once, where nothing else is asked for


class Features(NamedTuple):
    """The conditions of one sample, on the host; None is the model's own empty feature."""

    clip_f: Float[np.ndarray, "c f"] | None
    sync_f: Float[np.ndarray, "s g"] | None
    text_f: Float[np.ndarray, "t e"] | None
    negative_f: Float[np.ndarray, "t e"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Sound:
    """A generated sound, and how it came about.

    Attributes:
        audio: float32 in [−1, 1], as long as the request says.
        rate: samples a second.
        latent: that it was decoded from, un-normalised; whole latent frames, of all that the network made.
        features: the conditions.
        request: what was asked for.
        provenance: model, adapters and versions, for the record.
    """

    audio: Float[np.ndarray, " l"]
    rate: int
    latent: Float[np.ndarray, "n z"]
    features: Features
    request: Request
    provenance: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """How it came about, as JSON: the request, with the name of its video; then model, adapters, versions."""
        fields = dataclasses.asdict(self.request)
        fields |= {name: fields[name] and Path(fields[name]).name for name in ("video", "image")}
        given = {name: value for name, value in fields.items() if value not in (None, "") and name != "adapters"}
        return {**given, **self.provenance}

    @property
    def tags(self) -> dict[str, str]:
        """What its files tell of it."""
        return {"title": self.request.prompt, "comment": json.dumps(self.record, ensure_ascii=False)}

    def save(self, path: str | Path) -> None:
        """Writes the sound as .wav or .flac, or the request's video or picture with it as .mp4; a folder is made.

        Raises:
            UserError: another suffix, or a video that there is none of.
        """
        from mmaudio_jax.data import audio, muxing

        path, source = Path(path), self.request.video or self.request.image
        if source is not None and path.resolve() == source.resolve():
            raise UserError(f"{path} is what the sound was made for; choose another place")
        if path.suffix.lower() != ".mp4":
            audio.write_audio(path, self.audio, self.rate, self.tags)
        elif source is None:
            raise UserError(f"{path}: the sound was made for no video; save it as .wav or .flac")
        else:
            interval = (self.request.start, self.request.duration)
            if remark := muxing.write_video(path, source, self.audio, self.rate, *interval, tags=self.tags):
                warnings.warn(f"{path} is {remark}", stacklevel=2)


class Generated(NamedTuple):
    """What the devices are making; `sounds` waits for it."""

    requests: Sequence[Request]
    features: Sequence[Features]
    latents: Float[Array, "b n z"]
    audio: list[Float[Array, "b l"]]
    rate: int
    provenance: dict[str, Any]

    def sounds(self) -> list[Sound]:
        """The sounds, in the order of the requests."""
        waves = np.concatenate([np.asarray(part) for part in self.audio])
        latents = np.asarray(self.latents)
        return [
            Sound(wave[: round(r.duration * self.rate)], self.rate, latent, f, r, self.provenance)
            for r, f, wave, latent in zip(self.requests, self.features, waves, latents, strict=False)
        ]


class Pipeline:
    """Everything that turns videos, pictures and words into sound; `from_pretrained` makes one.

    Attributes:
        mode: rate and latent shape of the model.
        encoders: CLIP and Synchformer.
        flow: the flow network and its adapters.
        adapters: what a request has that names none.
        devices: how many share a batch.
    """

    def __init__(
        self,
        flow: FlowNetwork,
        decoder: sampling.Decoder,
        encoders: Encoders,
        adapters: tuple[AdapterUse, ...],
        mesh: Mesh | None,
        **numbers: Any,
    ):
        self.mode, self.encoders, self.flow, self.adapters = decoder.mode, encoders, flow, adapters
        self._decoder, self._mesh, self._flow_def = decoder, mesh, flow.base.graphdef(**numbers)
        self.devices = mesh.size if mesh else 1

    @classmethod
    def from_pretrained(
        cls,
        root: str | Path,
        model: str = "small_16k",
        adapter: str | Path | Sequence[str | Path | AdapterUse] | None = None,
        *,
        dtype: str = "auto",
        precision: str = "default",
        devices: Sequence[jax.Device] = (),
    ) -> "Pipeline":
        """Loads a model and the networks that it needs; CLIP and Synchformer when they are first used.

        Args:
            root: the folder of converted weights.
            model: a flow network in it, e.g. `large_44k_v2`.
            adapter: a training run, several as `runs/rain*0.5, runs/wind`, or as `AdapterUse`s; the weight of each can
                be another in every request.
            dtype: compute dtype of the flow network and the encoders, of `numerics.DTYPES`; sound is decoded in
                float32.
            precision: of matrix products, of `numerics.PRECISIONS`.
            devices: that share every batch; by default the first local one works alone.

        Raises:
            UserError: weights are missing or do not fit together.
        """
        for name, value, known in (("dtype", dtype, numerics.DTYPES), ("precision", precision, numerics.PRECISIONS)):
            if value not in known:
                raise UserError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
        root, dtype = Path(root), numerics.compute_dtype(dtype)
        mesh = sharding.make_mesh(sharding.MeshConfig(0, 1), devices) if len(devices) > 1 else None
        flow = FlowNetwork(root / model, dtype, mesh)
        decoder = sampling.Decoder.load(root, model, flow.base.config.latent_dim, precision, mesh)
        if (clip := root / "clip").exists():  # a sound of noise alone needs none
            has, needs = weights.read_config(clip, "clip")[1].embed_dim, flow.base.config.clip_dim
            if has != needs:
                raise UserError(f"{clip} has {has} channels, {model} needs {needs}: it is another model's")
        adapters = use_adapters(adapter or ())
        flow.params(adapters)  # what is wrong with them is said now
        numbers = dict(dtype=dtype, precision=precision)
        return cls(flow, decoder, Encoders(root, devices=devices, **numbers), adapters, mesh, **numbers)

    def __call__(
        self, requests: Request | Sequence[Request] | None = None, *, batch_size: int = BATCH_SIZE, **fields: Any
    ) -> Sound | list[Sound]:
        """Makes the sound of a request, or of each in a list: `pipe(video="a.mp4", prompt="rain")`.

        Args:
            requests: one, or a list; or else
            **fields: those of `Request`; where some are lists, equally long, a sound is made for each of their items,
                and the other fields are the same for all.
            batch_size: guided samples a device at once.

        Raises:
            UserError: something cannot be made; nothing is, then.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        if (requests is None) == (not fields):
            raise UserError("give requests, or the fields of one; not both, nor neither")
        asked = _spread(fields) if requests is None else requests
        if isinstance(asked, Request):
            return self._make([asked], batch_size)[0]
        return self._make(list(asked), batch_size)

    def _make(self, asked: Sequence[Request], batch_size: int) -> list[Sound]:
        requests = [fitted(request) for request in asked]
        for before, request in zip(asked, requests, strict=True):
            prompts = map(captions.remark_of_cut, (request.prompt, request.negative_prompt))
            for remark in filter(None, [remark_of_length(before, request), *prompts]):
                warnings.warn(remark, stacklevel=3)
        batches = pack(requests, self.key, 2 * batch_size * self.devices)
        in_turn = [i for batch in batches for i in batch.places]
        first: dict[tuple, Request] = {}  # of those that see the same
        for i in in_turn:
            first.setdefault(requests[i].shown, requests[i])
        seen: dict[tuple, Features] = {}
        made: list[Sound] = []
        running: Generated | None = None
        with read_ahead(first.values(), read_pictures, 0) as pictures:
            for batch in tqdm.tqdm(batches, "making sound", unit=" batches", delay=2, leave=False, disable=None):
                given = [requests[i] for i in batch.places]
                features = [self._conditions(request, pictures, seen) for request in given]
                started = self.generate(given, features, batch.capacity)
                made += running.sounds() if running else []  # while the next one computes
                running = started
        made += running.sounds() if running else []
        return [made[k] for k in np.argsort(in_turn)]

    def _conditions(self, request: Request, pictures: Iterator, seen: dict[tuple, Features]) -> Features:
        """The features of a request, whose pictures are the next unless it shows what has been `seen` already."""
        if (known := seen.get(request.shown)) is None:
            _, found = next(pictures)
            seen[request.shown] = self.features(found.result(), request)
            return seen[request.shown]
        words = self.features(None, request)
        return words._replace(clip_f=known.clip_f, sync_f=known.sync_f)

    def uses(self, request: Request) -> tuple[AdapterUse, ...]:
        """The adapters of a request: its own, or else the pipeline's."""
        return self.adapters if request.adapters is None else request.adapters

    def key(self, request: Request) -> tuple:
        """Requests of the same may share a batch: lengths of the streams, by which programs compile, and adapters."""
        return request.lengths(self.mode), self.uses(request)

    def provenance(self, request: Request) -> dict[str, Any]:
        """As `pipeline.provenance`, of this model with the adapters of a request, and what its numbers depend on."""
        adapters = self.flow.described(self.uses(request))
        return {**self._provenance, "adapters": adapters, "numerics": self.encoders.numerics}

    @functools.cached_property
    def _provenance(self) -> dict[str, Any]:
        directory = self.flow.base.directory
        return provenance(directory.parent, directory.name)

    @property
    def fingerprints(self) -> dict[str, str]:
        """{network: hash of its weights} of all that are there."""
        return self._provenance["weights"]

    def features(self, pictures: Pictures | None, request: Request) -> Features:
        """The conditions of one sample.

        Args:
            pictures: what `decoding.read_pictures` read of the request.
            request: for its words, and for how long a still picture is to stand.
        """
        clip_f = sync_f = None
        if pictures is not None:
            if request.use_clip:
                clip_f = self.encoders.encode_clip_frames(pictures.clip_frames[None])[0]
                clip_f = np.broadcast_to(clip_f, (request.lengths(self.mode).clip, clip_f.shape[1]))
            if pictures.sync_frames is not None:
                sync_f = self.encoders.encode_sync_frames(pictures.sync_frames[None])[0]
        text_f, negative_f = (
            self.encoders.encode_captions([text])[0] if text.strip() else None
            for text in (request.prompt, request.negative_prompt)
        )
        return Features(clip_f, sync_f, text_f, negative_f)

    def generate(
        self, requests: Sequence[Request], features: Sequence[Features], capacity: int | None = None
    ) -> Generated:
        """Starts to make a batch of sounds; does not wait for them.

        Args:
            requests: of the same `key`.
            features: the conditions of each.
            capacity: rows of the network in the program, at least as many as the requests have branches; one program
                compiles for each number, and the rest of a batch that has fewer is computed for nothing.
        """
        used = sum(request.branches for request in requests)
        if self._mesh:  # all devices have as many rows, and as many sounds to decode
            capacity = -(-(capacity or used) // (2 * self.devices)) * 2 * self.devices
        capacity = capacity or used
        if used > capacity:
            raise ValueError(f"{used} rows do not fit into {capacity}")
        length = requests[0].lengths(self.mode)
        filled = [*requests, *[requests[0]] * (capacity - len(requests))]  # samples nobody looks at
        noise = sampling.initial_noise([r.seed for r in filled], length.latent, self.mode.latent_dim)
        own = [solvers.table(request.solver, request.steps, request.shift) for request in requests]
        tables = [*own, *[solvers.NONE] * (capacity - len(requests))]
        params = self.flow.params(self.uses(requests[0]))
        latents = sampling.sample(
            self._flow_def,
            params,
            self._everywhere(noise),
            self._rows(params, requests, features, capacity),
            solvers.stack(tables),
            max(len(table.t) for table in own),
        )
        return Generated(
            requests,
            features,
            latents,
            list(self._decoded(latents, len(requests))),
            self.mode.sample_rate,
            self.provenance(requests[0]),
        )

    def _decoded(self, latents: Float[Array, "b n z"], count: int) -> Iterator[Float[Array, "b l"]]:
        """The first `count` latents as sound, half of all at a time: where they are guided, there are no more."""
        size = max(1, len(latents) // 2)
        _, *networks = self._decoder
        for start in range(0, count, size):
            places = np.arange(start, start + size) % len(latents)
            yield sampling.decode(*networks, self._shared(latents[places]))

    def _rows(
        self, params: trees.Params, requests: Sequence[Request], features: Sequence[Features], capacity: int
    ) -> sampling.Rows:
        """What the network is asked for a batch: of each sample all conditions, none of them, and its video alone."""
        length = requests[0].lengths(self.mode)
        empty = {name: np.asarray(params[f"empty_{name}_feat"], np.float32) for name in ("clip", "sync", "string")}
        for name, count in (("clip", length.clip), ("sync", length.sync)):
            empty[name] = np.broadcast_to(empty[name], (count, empty[name].shape[1]))
        rows, sample = [], []
        branches, strengths = np.zeros((capacity, 3), np.int32), np.zeros((capacity, 3), np.float32)
        for i, (request, given) in enumerate(zip(requests, features, strict=True)):
            clip, sync, text, negative = (
                empty[name] if value is None else value
                for name, value in zip(("clip", "sync", "string", "string"), given, strict=True)
            )
            conditions = [(clip, sync, text), (empty["clip"], empty["sync"], negative), (clip, sync, negative)]
            branches[i] = len(rows)
            branches[i, : request.branches] += np.arange(request.branches)
            strengths[i] = _strengths(request)
            rows += conditions[: request.branches]
            sample += [i] * request.branches
        rest = capacity - len(rows)
        rows, sample = rows + rows[:1] * rest, sample + [capacity - 1] * rest
        stacked = (self._shared(np.stack(values)) for values in zip(*rows, strict=True))
        return sampling.Rows(*stacked, self._shared(np.int32(sample)), branches, strengths)

    def _shared(self, values):
        """Over the devices, a part of the rows on each."""
        return jax.device_put(values, sharding.batch_sharding(self._mesh)) if self._mesh else jnp.asarray(values)

    def _everywhere(self, values):
        """Whole on every device."""
        return jax.device_put(values, sharding.replicated(self._mesh)) if self._mesh else values


def provenance(root: Path, model: str, adapters: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What decides a sound beside the request: the weights by their hashes, and the versions; reads none of them.

    Args:
        root: the folder of converted weights.
        model: the flow network in it.
        adapters: of it, as `checkpoint.identify` describes them.

    Raises:
        UserError: there is no such model.
    """
    config = weights.read_config(root / model, "mmaudio")[1]
    mode = mode_of(config.latent_dim)
    names = [model, *(["vae_" + mode.name, "bigvgan_" + mode.name] if mode else []), "clip", "synchformer"]
    there = (name for name in names if (root / name).exists())  # words alone need no Synchformer
    return {
        "model": model,
        "weights": {name: weights.read_metadata(root / name)["fingerprint"] for name in there},
        "adapters": list(adapters),
        "versions": {"mmaudio_jax": mmaudio_jax.__version__, "jax": jax.__version__},
    }


def _strengths(request: Request) -> tuple[float, float, float]:
    """What the velocities under all conditions, under none, and under the video alone count."""
    text, video = request.cfg_strength, request.video_strength
    if request.branches == 1:
        return 1.0, 0.0, 0.0
    if request.branches == 2:
        return text, 1 - text, 0.0
    return text, 1 - video, video - text


class Batch(NamedTuple):
    """Some of a list of requests, by their places, and the rows of the network that they are to share."""

    places: list[int]
    capacity: int


def pack(requests: Sequence[Request], key: Callable[[Request], tuple], most: int) -> list[Batch]:
    """Batches of requests of one key each, of at most so many rows; those of a key are evenly full.

    Batches whose keys begin alike, with the length, have one capacity, so that one program serves them. Requests that
    take equally many evaluations come together, as a batch lasts as long as its longest.
    """
    groups: dict[tuple, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(key(request), []).append(i)
    split = {key: _split(requests, group, most) for key, group in groups.items()}
    capacity = {
        length: max(rows for key, batches in split.items() if key[0] == length for _, rows in batches)
        for length in {key[0] for key in split}
    }
    return [Batch(places, capacity[key[0]]) for key, batches in split.items() for places, _ in batches]


def _split(requests: Sequence[Request], group: list[int], most: int) -> list[tuple[list[int], int]]:
    """The batches of one key, and the rows of each."""
    total = sum(requests[i].branches for i in group)
    share = -(-total // -(-total // most))  # rows of each, were they all the same
    batches: list[list[int]] = []
    rows: list[int] = []
    for i in sorted(group, key=lambda i: (requests[i].steps, requests[i].branches)):
        if not batches or rows[-1] >= share or rows[-1] + requests[i].branches > most:
            batches.append([])
            rows.append(0)
        batches[-1].append(i)
        rows[-1] += requests[i].branches
    return list(zip(batches, rows, strict=True))


def _spread(fields: Mapping[str, Any]) -> Request | list[Request]:
    """One request of these fields, or one for each item of those that are lists."""
    unknown = fields.keys() - {field.name for field in dataclasses.fields(Request)}
    if unknown:
        known = ", ".join(field.name for field in dataclasses.fields(Request))
        raise UserError(f"a request has no {', '.join(sorted(unknown))}; it has {known}")
    listed = {name: value for name, value in fields.items() if isinstance(value, list) and name != "adapters"}
    if not listed:
        return Request(**fields)
    counts = {name: len(value) for name, value in listed.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"lists of several lengths are given: {', '.join(f'{n} has {c}' for n, c in counts.items())}")
    return [
        Request(**{**fields, **dict(zip(listed, values, strict=True))}) for values in zip(*listed.values(), strict=True)
    ]
