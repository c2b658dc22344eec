"""The rules of the house, read off the source: data flows one way, and the GPU's path needs few packages."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = {"mmaudio_jax.data.check.__main__", "mmaudio_jax.data.show"}  # they bring data and networks together
MAKING_SOUND = set(
    "checkpoint encoders pipeline request sequence decoding measures numerics plots data errors files".split()
)
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for folder in ("mmaudio_jax", "convert", "configs", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
} | {path.stem: ast.parse(path.read_text()) for path in ROOT.glob("*.py")}


def imports(tree):
    """Every module that a file imports, at its top or within a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(name):
    return {module for module in imports(SOURCES[name]) if module in SOURCES and module.split(".")[0] != name}


def test_nobody_imports_in_a_circle():
    graph = {name: ours(name) - {"mmaudio_jax", "convert", name} for name in SOURCES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(SOURCES) - 2


@pytest.mark.parametrize(
    ("room", "may_import"),
    [
        ("mmaudio_jax.models", {"models"}),
        ("mmaudio_jax.data", {"data", "errors", "files", "sequence"}),
        ("mmaudio_jax.train_step", {"ema", "lora", "sharding", "trees"}),
        ("mmaudio_jax.sharding", {"errors"}),
        ("mmaudio_jax.lora", {"errors", "trees"}),
        ("mmaudio_jax.generation", MAKING_SOUND),
    ],
)
def test_a_room_knows_only_what_it_needs(room, may_import):
    for name in SOURCES.keys() - COMMANDS:
        if name == room or name.startswith(f"{room}."):
            rooms = {module.split(".")[1] for module in ours(name) if module.startswith("mmaudio_jax.")}
            assert rooms <= may_import | {room.split(".")[1]}, name


def test_the_demo_s_stand_ins_stay_in_the_demo():
    for name in SOURCES:
        if not name.startswith("mmaudio_jax.demo"):
            assert not {module for module in ours(name) if module.startswith("mmaudio_jax.demo")}, name


def test_nothing_imports_torch():
    for name, tree in SOURCES.items():
        assert not {"torch", "torchaudio", "torchvision"} & {module.split(".")[0] for module in imports(tree)}, name


def test_the_gpu_s_path_loads_no_media_storage_or_text_package():
    modules = ["train_step", "objective", "optim", "sampling", "lora", "weights"]
    modules += [f"models.{name}" for name in ("mmaudio", "vae", "bigvgan", "clip", "synchformer")]
    code = "import sys\n" + "\n".join(f"import mmaudio_jax.{module}" for module in modules)
    code += "\nprint(*sorted({'av', 'grain', 'orbax', 'librosa', 'transformers', 'tensorboardX'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
