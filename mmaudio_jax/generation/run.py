"""The batch run: decodes ahead, encodes the next batch while one is computed, writes behind, and is gone on with.

A row that fails costs itself alone. What is finished is left alone, and if all is, no network is loaded.
"""

import collections
import dataclasses
import functools
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tqdm

from mmaudio_jax import errors, numerics
from mmaudio_jax.data import captions
from mmaudio_jax.data.part import WHOLE, PartName
from mmaudio_jax.data.workers import NoProcess, read_ahead
from mmaudio_jax.decoding import fitted, remark_of_length
from mmaudio_jax.errors import UserError
from mmaudio_jax.generation.features import FeatureCache, FeatureReader, read_item
from mmaudio_jax.generation.manifest import Manifest
from mmaudio_jax.generation.outputs import Outputs
from mmaudio_jax.generation.tasks import Failure, Task, task_key
from mmaudio_jax.request import AdapterUse, Request

if TYPE_CHECKING:  # it loads the networks' code
    from mmaudio_jax.encoders import Encoders
    from mmaudio_jax.pipeline import Features, Generated, Sound

LOG_INTERVAL = 60.0  # seconds from one word on the progress to the next where nobody watches
WRITERS = 4  # threads that write results
WAITING = 16  # sounds that wait to be written, at most
ENCODERS = ("clip", "synchformer")  # of what is seen
LISTED = 10  # sounds whose files are told at the end, at most


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is told beside its rows.

    Attributes:
        weights: folder of converted weights.
        model: flow network in it.
        adapters: of rows that name none.
        out: folder of the results.
        outputs: which files are made.
        dtype, precision: as of `numerics`.
        batch_size: guided sounds a device at once.
        workers: processes that decode; 0: threads.
        cache: folder of features.
        overwrite: whether results may take the place of files that are not this program's.
        part: which part of how many this process makes.
    """

    weights: Path
    model: str
    out: Path
    adapters: tuple[AdapterUse, ...] = ()
    outputs: Outputs = Outputs()
    dtype: str = "auto"
    precision: str = "default"
    batch_size: int = 4
    workers: int = 0
    cache: Path | None = None
    overwrite: bool = False
    part: PartName = WHOLE


def run(asked: Sequence[Task | Failure], settings: Settings) -> None:
    """Makes all sounds that are not finished.

    Raises:
        UserError: nothing can be made, or some sounds could not be; the table of failures says why.
    """
    with Manifest(settings.out, settings.part) as manifest:
        _Run(settings, manifest).run(asked)


def warn(message: str) -> None:
    """Tells the user, above the bar if there is one."""
    tqdm.tqdm.write(f"warning: {message}", file=sys.stderr)


class _Run:
    """One run, while it is at work."""

    def __init__(self, settings: Settings, manifest: Manifest):
        self.settings, self.manifest = settings, manifest
        self.failed: list[Failure] = []
        self.made: list[Task] = []
        self.warned = 0  # sounds with a warning
        self._said: set[str] = set()
        self._writing: collections.deque[tuple[Task, Future[list[str]]]] = collections.deque()

    def run(self, asked: Sequence[Task | Failure]) -> None:
        """Makes all that is not finished, and tells how it went."""
        for one in asked:
            if isinstance(one, Failure):
                self._fail(one, one.reason)
        tasks = list(self._identified([one for one in asked if isinstance(one, Task)]))
        finished = self.manifest.finished({task.name: task.key for task in tasks})
        sources = {task.source.resolve() for task in tasks if task.source}
        todo = [task for task in tasks if task.name not in finished and self._has_place(task, sources)]
        todo = list(self._fitted(todo))
        with tqdm.tqdm(
            total=len(asked),
            initial=len(finished) + len(self.failed),
            unit=" sounds",
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]",
            mininterval=0.1 if sys.stderr.isatty() else LOG_INTERVAL,
            disable=not todo,
        ) as self.bar:
            try:
                if todo:
                    self._make(todo)
            finally:
                self.manifest.write_failed([failure.columns for failure in dict.fromkeys(self.failed)])
        self._tell(len(asked), len(finished))

    def _tell(self, total: int, finished: int) -> None:
        for task in self.made if len(self.made) <= LISTED else ():
            print(*self._files(task).values())
        before = f", {finished} of them from before" if finished else ""
        print(f"{len(self.made) + finished} sound(s) are in {self.settings.out}{before}")
        if self.warned:
            warn(f"{self.warned} of the {len(self.made)} sounds made now came with a warning, see above")
        if self.failed:
            raise UserError(
                f"{len(self.made) + finished} of {total} made; {len(self.failed)} failed, see {self.manifest.failed}"
            )

    def _fail(self, task: Task | Failure, reason: str) -> None:
        self.failed.append(Failure(task.row, task.name, reason))
        self._say(task, "error", reason)

    def _say(self, task: Task | Failure, kind: str, message: str) -> None:
        """Tells of a row, once for all of its samples."""
        about = message if task.row.where in message else f"{task.row.where}: {message}"
        if about not in self._said:
            self._said.add(about)
            tqdm.tqdm.write(f"{kind}: {about}", file=sys.stderr)

    # Before anything is made

    def _identified(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """The tasks with their keys, each adapter being one very checkpoint from now on."""
        from mmaudio_jax import checkpoint, pipeline

        settings = self.settings
        base = pipeline.provenance(settings.weights, settings.model)
        numbers = {"dtype": str(numerics.compute_dtype(settings.dtype)), "precision": settings.precision}
        fixed = {"outputs": dataclasses.asdict(settings.outputs), **numbers}
        directory = settings.weights / settings.model

        @functools.cache
        def identify(run: Path) -> dict[str, Any]:
            about = checkpoint.identify(run)
            try:
                checkpoint.check_base(
                    checkpoint.read_run(Path(about["run"])), base["weights"][settings.model], directory
                )
            except UserError as error:
                raise UserError(f"the adapter {run}: {error}") from None
            return about

        for run, _ in settings.adapters:  # what is wrong with these is wrong with all rows
            identify(run)
        for task in tasks:
            uses = settings.adapters if task.request.adapters is None else task.request.adapters
            try:
                adapters = [{**identify(run), "weight": weight} for run, weight in uses]
            except UserError as error:
                self._fail(task, str(error))
                continue
            pinned = tuple(AdapterUse(Path(adapter["run"]), adapter["weight"]) for adapter in adapters)
            request = dataclasses.replace(task.request, adapters=pinned)
            key = task_key(request, {**base, "adapters": adapters}, fixed)
            yield dataclasses.replace(task, request=request, key=key)

    def _files(self, task: Task) -> dict[str, Path]:
        return self.settings.outputs.files(self.settings.out, task.name, task.request)

    def _has_place(self, task: Task, sources: Collection[Path]) -> bool:
        """Whether its files may be written; if not, the task has failed."""
        for path in self._files(task).values():
            if path.resolve() in sources:
                self._fail(task, f"{path} is one of the videos themselves; choose another --out")
                return False
            if path.exists() and not self.settings.overwrite and not self.manifest.owns(path):
                self._fail(task, f"{path} exists already; choose another --out or --name, or give --overwrite")
                return False
        return True

    def _fitted(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """The tasks as their videos allow."""
        requests = [task.request for task in tasks]
        with read_ahead(requests, fitted, self._workers(requests)) as ahead:
            for task, (asked, future) in zip(tasks, ahead, strict=True):
                for remark in filter(None, map(captions.remark_of_cut, (asked.prompt, asked.negative_prompt))):
                    self._say(task, "warning", remark)
                try:
                    request = _result(future)
                except UserError as error:
                    self._must_go_on(error)
                    self._fail(task, str(error))
                    continue
                if shorter := remark_of_length(asked, request):
                    self._say(task, "warning", shorter)
                yield dataclasses.replace(task, request=request)

    def _workers(self, requests: Sequence[Request | None]) -> int:
        """Processes that decode: for a single video, starting one takes longer than decoding."""
        videos = {request.video or request.image for request in requests if request} - {None}
        return min(self.settings.workers, len(videos)) if len(videos) > 1 else 0

    # Making

    def _make(self, tasks: Sequence[Task]) -> None:
        import jax

        from mmaudio_jax.pipeline import Pipeline, pack

        settings = self.settings
        pipeline = Pipeline.from_pretrained(
            settings.weights,
            settings.model,
            dtype=settings.dtype,
            precision=settings.precision,
            devices=jax.local_devices(),
        )
        most = 2 * settings.batch_size * pipeline.devices
        batches = pack([task.request for task in tasks], pipeline.key, most)
        in_turn = [tasks[i] for batch in batches for i in batch.places]
        features = FeatureReader(in_turn, pipeline, self._cache(pipeline.encoders, pipeline.fingerprints))
        running: tuple[list[Task], Generated] | None = None
        with (
            ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as writers,
            read_ahead(features.items, read_item, self._workers(features.items)) as ahead,
        ):
            try:
                for batch in batches:
                    ready = [pair for i in batch.places if (pair := self._seen(tasks[i], features, next(ahead)[1]))]
                    started = None
                    if ready:
                        chosen, conditions = zip(*ready, strict=True)
                        requests = [task.request for task in chosen]
                        started = chosen, pipeline.generate(requests, conditions, batch.capacity)
                    self._write(writers, running)
                    running = started
                self._write(writers, running)
                while self._writing:
                    self._settle()
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                while self._writing:
                    self._settle()
                raise UserError(
                    f"the device has too little memory for batches of {settings.batch_size}; what is written is kept: "
                    "start again with a smaller --batch_size"
                ) from None
            finally:
                writers.shutdown(cancel_futures=True)

    def _cache(self, encoders: "Encoders", fingerprints: Mapping[str, str]) -> FeatureCache:
        made_with = {name: fingerprints.get(name) for name in ENCODERS}
        return FeatureCache(self.settings.cache, made_with | {"numerics": encoders.numerics})

    def _seen(self, task: Task, features: FeatureReader, future: Future) -> "tuple[Task, Features] | None":
        try:
            return task, features.of(task, lambda: _result(future))
        except (UserError, OSError) as error:
            self._must_go_on(error)
            self._fail(task, str(error))
            self.bar.update()
            return None

    def _write(self, writers: ThreadPoolExecutor, running: "tuple[Sequence[Task], Generated] | None") -> None:
        """Waits for a batch, and hands its sounds on to be written."""
        if running is None:
            return
        tasks, generated = running
        for task, sound in zip(tasks, generated.sounds(), strict=True):
            while len(self._writing) >= WAITING or self._writing and self._writing[0][1].done():
                self._settle()
            self._writing.append((task, writers.submit(self._commit, task, sound)))

    def _commit(self, task: Task, sound: "Sound") -> list[str]:
        """Writes the files of a sound and then its line; says what is remarkable in it."""
        with self.manifest.new() as place:
            written = self.settings.outputs.write(sound, place)
            about = {"row": task.row.where, **written.about}
            self.manifest.commit(task.name, task.key, written.files, self._files(task), about)
        return written.warnings

    def _settle(self) -> None:
        """What became of the sound that has been written, or waited to be, for the longest time."""
        task, future = self._writing.popleft()
        try:
            warnings = _result(future)
        except UserError as error:
            self._must_go_on(error)
            self._fail(task, str(error))
        else:
            self.made.append(task)
            if warnings:
                self.warned += 1
                self._say(task, "warning", f"{task.name}: {'; '.join(warnings)}")
        self.bar.update()

    def _must_go_on(self, error: Exception) -> None:
        """Ends the run if the disk is full, or no process can start, as all that follows would fail as well."""
        if isinstance(error, NoProcess):
            raise error
        if full := errors.full_disk(error, self.settings.out):
            raise full from None


def _result(future: Future) -> Any:
    """What became of one sound alone; whatever else than a UserError a decoder or an encoder raises becomes one."""
    error = future.exception()
    if error is None or isinstance(error, UserError):
        return future.result()
    raise UserError(f"{type(error).__name__}: {error}")
