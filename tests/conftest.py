"""Fixtures for the whole suite: the golden vectors and the files that go with them."""

import atexit
import functools
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from media_files import save_small_videos
from random_networks import save_random_features, save_random_weights

from convert.conversion import convert
from mmaudio_jax import sharding, weights
from mmaudio_jax.demo.__main__ import BASE
from mmaudio_jax.demo.stand_ins import save_stand_ins

HERE = Path(__file__).parent / "golden"
# how long a case takes, the first of which reads all of Unicode, depends on what else the machine does
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")
jax.config.update("jax_num_cpu_devices", 8)  # for the tests of sharding; the others use the first

# what one test compiles, another, the suite's other process, and the processes that tests start, need not compile again
PROGRAMS, MIN_COMPILE_TIME = "JAX_COMPILATION_CACHE_DIR", "jax_persistent_cache_min_compile_time_secs"
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ[PROGRAMS] = tempfile.mkdtemp(prefix="mmaudio_jax_programs_")
    atexit.register(shutil.rmtree, os.environ[PROGRAMS], ignore_errors=True)
for option, value in {"jax_compilation_cache_dir": os.environ[PROGRAMS], MIN_COMPILE_TIME: 0.3}.items():
    jax.config.update(option, value)
    os.environ[option.upper()] = str(value)
# they would take most of the suite's time
QUICK = "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
if QUICK not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"


def relative_error(a, b) -> float:
    """‖a − b‖ / ‖b‖ in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


class Golden:
    """What the published system computes on reproducible weights (tests/golden/README.md).

    GOLDEN_DIR names another folder of .npz files, GOLDEN_SEED the seed that they were made with.
    """

    def __init__(self, scratch: Path):
        spec = importlib.util.spec_from_file_location("recipe", HERE / "recipe.py")
        self.recipe = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.recipe)
        self.folder = Path(os.environ.get("GOLDEN_DIR", HERE / "expected"))
        self.seed = int(os.environ.get("GOLDEN_SEED", "1"))
        self._scratch = scratch

    def expected(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)

    def input(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.recipe.tensor(f"input.{key}", shape, self.seed)

    def manifest(self, name: str) -> dict:
        return self.recipe.load_manifest(name)

    def state_dict(self, name: str) -> dict[str, np.ndarray]:
        return self.recipe.state_dict(self.manifest(name), self.seed)

    @functools.lru_cache(maxsize=2)  # noqa: B019  the released networks are large; nothing of them stays on disk
    def weights(self, name: str) -> weights.Weights:
        """A checkpoint of this name, converted as a user would, and loaded."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            source = self.recipe.write_checkpoint(name, folder, self.seed)
            report = convert(source, folder, quiet=True)
            source.unlink()
            return weights.load(report.directory, report.network)

    def checkpoint(self, name: str) -> Path:
        path = self._scratch / name
        return path if path.exists() else self.recipe.write_checkpoint(name, self._scratch, self.seed)


@pytest.fixture(scope="session")
def golden(tmp_path_factory) -> Golden:
    return Golden(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def one_device() -> Mesh:
    """The mesh of the first device."""
    return sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1), jax.devices()[:1])


@pytest.fixture(autouse=True)
def _full_float32():
    """Parity is stated for float32 products; on an accelerator the default may be less."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory) -> Path:
    """A weights folder of small random networks under the released 16 kHz names."""
    folder = tmp_path_factory.mktemp("small") / "weights"
    save_random_weights(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def demo_weights(tmp_path_factory) -> Path:
    """The demo's weights folder: stand-ins, and its trained base."""
    folder = tmp_path_factory.mktemp("demo") / "weights"
    save_stand_ins(folder)
    shutil.copytree(BASE, folder / "demo_16k")
    return folder


@pytest.fixture(scope="session")
def small_features(tmp_path_factory) -> Path:
    """A feature set of twelve 1-second examples from six videos, for the small networks; the values are random."""
    folder = tmp_path_factory.mktemp("features") / "set"
    save_random_features(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory) -> Path:
    """A folder of videos and sounds of about a second, good and bad."""
    return save_small_videos(tmp_path_factory.mktemp("small_videos") / "videos")


@pytest.fixture
def run_check(tmp_path, monkeypatch, capsys):
    """`python -m mmaudio_jax.data.check SET …`: (exit code, {name: found by the checks}, what it printed)."""

    from mmaudio_jax.data.check import __main__ as check

    def call(path, *options):
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", ["check", str(path), "--json", str(report), *map(str, options)])
        with pytest.raises(SystemExit) as end:
            check.main()
        printed = capsys.readouterr()
        found = json.loads(report.read_text())["checks"] if report.exists() else []
        return end.value.code, {each["name"]: each for each in found}, printed.out + printed.err

    return call
