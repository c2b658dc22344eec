"""Eight devices compute what one does, each holding its share, and gather weights alone."""

import re

import jax
import numpy as np
import pytest
from conftest import relative_error
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from test_train_step import RECIPE, golden_batch, golden_loss

from mmaudio_jax import lora, optim, sharding, train_step, trees
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.mmaudio import PRESETS, MMAudio

PATTERNS = {"qkv": r".*\.attn\.qkv", "ffn": r".*_blocks\..*\.ffn\.w[123]"}
LORA = lora.LoRAConfig(8, 8.0, False, 0.1, tuple(PATTERNS), PATTERNS, ranks={}, alphas={}, start=None)
MESHES = [(4, 2), (2, 4), (8, 1)]
STEPS = 5


def network(golden, adapted):
    """(definition, trained leaves, frozen leaves) of the tiny flow network."""
    params = golden.weights("flow_tiny.pth").params
    module = nnx.eval_shape(lambda: MMAudio(PRESETS["tiny"], rngs=trees.UNDRAWN))
    if adapted:
        lora.insert(module, LORA, rngs=nnx.Rngs(1))
    graphdef, leaves = trees.split(module)
    mask = trees.mask([lora.ADAPTER], leaves) if adapted else trees.trainable(module)
    leaves = {**leaves, **params}
    rng = np.random.default_rng(0)  # B at zero would hide A's gradient
    leaves |= {k: 0.1 * rng.standard_normal(v.shape, np.float32) for k, v in leaves.items() if k.endswith("lora_b")}
    return graphdef, *trees.partition(leaves, mask)


class Run:
    """Steps of training on a mesh: measures of the first, its gradients, the parameters after all."""

    def __init__(self, golden, adapted, mesh):
        graphdef, trained, frozen = network(golden, adapted)
        optimizer = optim.make_optimizer(RECIPE, 100)
        state = train_step.initial_state({k: np.array(v) for k, v in trained.items()}, optimizer, mesh, averages=(0.1,))
        frozen = sharding.shard(frozen, mesh)
        step = train_step.make_train_step(graphdef, golden_loss, optimizer, mesh)
        batches = [jax.device_put(golden_batch(golden, k, 8), sharding.batch_sharding(mesh, 1)) for k in range(STEPS)]
        self.compiled = step.lower(state, frozen, batches[0], jax.random.key(0)).compile()
        for k, batch in enumerate(batches):
            state, measures = self.compiled(state, frozen, batch, jax.random.key(0))
            if k == 0:
                self.measures = train_step.means([measures])
                self.gradients = jax.tree.map(np.array, state["opt_state"][1][0].mu)  # the first moment: (1 − b1) · g
        self.weights = [*frozen.values(), *state["params"].values()]
        self.state = [*frozen.values(), *jax.tree.leaves(state)]
        self.batch = batches[0]
        self.params = jax.tree.map(np.array, state["params"])


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.fixture(scope="module", params=[False, True], ids=["full", "lora"])
def alone(request, golden, one_device):
    return request.param, Run(golden, request.param, one_device)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_eight_devices_equal_one(golden, alone, sizes):
    adapted, one = alone
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
    many = Run(golden, adapted, mesh)
    assert many.measures["loss"] == pytest.approx(one.measures["loss"], rel=1e-5)
    assert relative_error(flat(many.gradients), flat(one.gradients)) < 1e-5
    assert relative_error(flat(many.params), flat(one.params)) < 1e-4

    # a device holds its share of what is large (parameters, moments, averages, the frozen rest), of the batch, and all
    # else
    fsdp = sizes[1]
    small, large = (
        sum(x.nbytes for x in many.state if (x.size >= sharding.SMALL) == is_large) for is_large in (False, True)
    )
    shared = sum(x.nbytes for x in jax.tree.leaves(many.batch)) / 8
    expected = small + large / fsdp + shared
    told = many.compiled.memory_analysis().argument_size_in_bytes
    print(f"data {sizes[0]} × fsdp {fsdp}: {told:,} bytes a device as compiled, {expected:,.0f} by arithmetic")
    assert told == pytest.approx(expected, rel=0.01)

    # and nothing but weights is gathered
    split = {leaf.shape for leaf in many.weights if leaf.size >= sharding.SMALL}

    def moved(operation):
        """Shapes of what a collective operation makes."""
        found = re.findall(rf"= \w+\[([\d,]*)\]\S* (?:{operation})", many.compiled.as_text())
        return [tuple(int(size) for size in shape.split(",") if size) for shape in found]

    shapes = moved("all-gather")
    assert bool(shapes) == (fsdp > 1) and all(shape in split for shape in shapes)
    assert all(
        np.prod(shape) <= 8 for shape in moved("all-to-all|collective-permute")
    )  # each example's loss, told apart


@given(st.lists(st.integers(1, 4096), max_size=3).map(tuple), st.sampled_from([1, 2, 4, 8]))
def test_an_array_is_split_along_its_longest_axis_that_divides(shape, fsdp):
    spec = sharding.spec(shape, fsdp)
    split = [axis for axis, name in enumerate(spec) if name is not None]
    fitting = [axis for axis in range(len(shape)) if shape[axis] % fsdp == 0]
    if fsdp > 1 and fitting and np.prod(shape) >= sharding.SMALL:
        (axis,) = split
        assert axis in fitting and shape[axis] == max(shape[i] for i in fitting)
    else:
        assert not split


@pytest.mark.parametrize("sizes", [(3, 2), (0, 3), (8, 8)])
def test_a_mesh_that_does_not_fit_the_devices(sizes):
    with pytest.raises(UserError, match=r"does not fit 8 device\(s\)"):
        sharding.make_mesh(sharding.MeshConfig(*sizes))


def test_a_batch_that_cannot_be_shared_out():
    mesh = sharding.make_mesh(sharding.MeshConfig(0, 2))
    with pytest.raises(UserError, match="batch_size 12 cannot be shared out among 8 devices; give a multiple of 8"):
        sharding.check_batch(12, mesh)
