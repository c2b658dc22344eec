"""Solvers converge at their order, and their tables are what one program takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from hypothesis import given
from hypothesis import strategies as st

from mmaudio_jax import sampling, solvers

ORDERS = {"euler": 1, "midpoint": 2, "adams_bashforth": 2}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


RATES = np.arange(1.0, 6.0)
EXACT = np.exp(2 * np.sin(RATES) / RATES)


def solved(tables):
    """x(1) of dx/dt = 2 cos(r t) x from x(0) = 1 for several r, for each table; exactly exp(2 sin(r) / r)."""

    def velocity(x, t):
        return 2 * jnp.cos(RATES * t[:, None, None]) * x

    x0 = jnp.ones((len(tables), 1, len(RATES)), jnp.float64)
    most = max(len(table.t) for table in tables)
    return np.asarray(sampling.integrate(velocity, x0, solvers.stack(tables), most))[:, 0]


def errors(tables):
    return np.linalg.norm(solved(tables) - EXACT, axis=1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_halving_the_steps_shrinks_the_error_as_the_order_says(solver, shift):
    found = errors([solvers.table(solver, steps, shift) for steps in (80, 160, 320)])
    order = np.log2(found[:-1] / found[1:])
    np.testing.assert_allclose(order, ORDERS[solver], atol=0.15)


@pytest.mark.usefixtures("float64")
def test_at_equal_cost_the_higher_orders_are_nearer():
    euler, midpoint, two_step = errors([solvers.table(solver, 24) for solver in solvers.SOLVERS])
    assert midpoint < euler / 5 and two_step < euler / 5


@pytest.mark.usefixtures("float64")
def test_samples_of_one_batch_do_not_know_of_each_other():
    tables = [solvers.table("euler", 5), solvers.table("midpoint", 40), solvers.table("adams_bashforth", 11, 2.0)]
    np.testing.assert_allclose(solved(tables), [solved([table])[0] for table in tables], rtol=1e-12)


@given(st.integers(1, solvers.MAX_STEPS), st.floats(0.01, 100))
def test_times_lead_from_noise_to_data(steps, shift):
    times = solvers.times(steps, shift)
    assert times.dtype == np.float32 and len(times) == steps + 1
    assert times[0] == 0 and times[-1] == 1 and (np.diff(times) > 0).all()


def test_a_shift_above_one_dwells_near_the_noise():
    assert solvers.times(2, 3.0)[1] == pytest.approx(0.25) and solvers.times(2, 1 / 3)[1] == pytest.approx(0.75)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 25), ("midpoint", 24), ("adams_bashforth", 25)])
def test_steps_are_evaluations_of_the_network(solver, evaluations):
    assert len(solvers.table(solver, 25).t) == evaluations


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_a_step_moves_by_the_whole_of_its_time(solver):
    table = solvers.table(solver, 10, 2.0)
    moved = (table.a + table.b)[table.completes]
    assert moved.sum() == pytest.approx(1, rel=1e-5)
    assert relative_error(moved, np.diff(solvers.times(len(moved), 2.0))) < 1e-5


def test_on_the_golden_network_they_converge_at_their_order(golden):
    """Against 400 evaluations of the midpoint method: halving the steps, and beside Euler's own 200 steps."""
    network = golden.weights("flow_tiny.pth")
    asked = [(solver, steps) for solver in solvers.SOLVERS for steps in (24, 48)] + [("euler", 200), ("midpoint", 400)]
    shapes = dict(latent=(2, 250, 20), clip=(2, 64, 1024), sync=(2, 192, 768), text=(2, 77, 1024))
    latent, *given = (np.repeat(golden.input(key, shape)[:1], len(asked), axis=0) for key, shape in shapes.items())
    table = solvers.stack([solvers.table(*each) for each in asked])
    made = sampling.sample(network.graphdef(), network.params, latent, sampling.plain(*given), table, 400)
    error = dict(zip(asked, (relative_error(sample, made[-1]) for sample in made[:-1]), strict=False))
    for solver, order in ORDERS.items():
        assert np.log2(error[solver, 24] / error[solver, 48]) == pytest.approx(order, abs=0.3), error
    assert error["midpoint", 48] < error["euler", 200] and error["adams_bashforth", 48] < error["euler", 200]
