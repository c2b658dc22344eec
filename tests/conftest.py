"""Fixtures for the whole suite: the golden vectors and the files that go with them."""

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import pytest

HERE = Path(__file__).parent / "golden"


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

    def checkpoint(self, name: str) -> Path:
        path = self._scratch / name
        return path if path.exists() else self.recipe.write_checkpoint(name, self._scratch, self.seed)


@pytest.fixture(scope="session")
def golden(tmp_path_factory) -> Golden:
    return Golden(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(autouse=True)
def _full_float32():
    """Parity is stated for float32 products; on an accelerator the default may be less."""
    with jax.default_matmul_precision("highest"):
        yield
