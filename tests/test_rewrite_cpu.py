"""What a CPU's compiler is spared: the original jaxpr is the oracle."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewritten import fitted, normal

SIZES = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(K=st.lists(SIZES, min_size=1, max_size=2), M=st.lists(SIZES, min_size=1, max_size=2),
       N=st.lists(SIZES, min_size=1, max_size=2), lanes=SIZES)  # fmt: skip
def test_a_product_that_contracts_rows_is_the_same_for_any_shape(K, M, N, lanes):
    a, b = normal(0, lanes, *K, *M), normal(1, lanes, *K, *N)

    def product(a, b):
        return jax.lax.dot_general(a, b, ((range(len(K)), range(len(K))), ((), ())))

    call, jaxpr = fitted(product, a[0], b[0])
    assert "product_of_rows" in str(jaxpr)
    expected = np.einsum("lkm,lkn->lmn", *(np.asarray(x, np.float64).reshape(lanes, np.prod(K), -1) for x in (a, b)))
    got = jax.vmap(call)(a, b)
    assert got.shape == (lanes, *M, *N)
    np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_a_gradient_inside_jit_and_scan_is_exchanged_and_equal():
    x, w = normal(0, 7, 4), normal(1, 4, 3)

    @jax.jit
    def step(x, w):
        def body(w, _):
            return w - 0.1 * jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w), None

        return jax.lax.scan(body, w, None, length=3)[0]

    call, jaxpr = fitted(step, x, w)
    assert "product_of_rows" in str(jaxpr)
    np.testing.assert_allclose(call(x, w), step(x, w), rtol=1e-5, atol=1e-6)


def test_other_products_stay_as_they_are():
    a, b, counts = normal(0, 4, 4), normal(1, 4, 4), jnp.ones((4, 4), jnp.int32)

    def others(a, b, counts):
        return a @ b, a @ b.T, counts.T @ counts, jnp.einsum("bij,bik->bjk", a[None], b[None])

    _, jaxpr = fitted(others, a, b, counts)
    assert "product_of_rows" not in str(jaxpr)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), P=st.lists(SIZES, max_size=2), M=st.lists(SIZES, min_size=1, max_size=2),
       K=st.lists(SIZES, min_size=1, max_size=2), N=st.lists(st.integers(1, 11), min_size=1, max_size=2),
       lanes=SIZES)  # fmt: skip
def test_a_compiled_product_is_the_same_for_any_shape_and_order_of_axes(data, P, M, K, N, lanes):
    letters = {"p": P, "m": M, "k": K, "n": N}
    names = {key: [f"{key}{i}" for i in range(len(sizes))] for key, sizes in letters.items()}
    size = {name: n for key, sizes in letters.items() for name, n in zip(names[key], sizes, strict=True)}
    left = data.draw(st.permutations(names["p"] + names["m"] + names["k"]))
    right = data.draw(st.permutations(names["p"] + names["k"] + names["n"]))
    at = [tuple(order.index(name) for name in names[key]) for key in "kp" for order in (left, right)]

    def product(a, b):
        return jax.lax.dot_general(a, b, ((at[0], at[1]), (at[2], at[3])))

    a, b = (normal(seed, lanes, *(size[name] for name in order)) for seed, order in enumerate((left, right)))
    call, _ = fitted(product, a[0], b[0], compiled_products=True)
    expected = np.stack([product_in_double(x, y, at) for x, y in zip(a, b, strict=True)])
    got = jax.vmap(call)(a, b)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def product_in_double(a, b, at):
    (left_k, right_k, left_p, right_p), left, right = at, [0] * a.ndim, [0] * b.ndim
    for i, (x, y) in enumerate(zip(left_k + left_p, right_k + right_p, strict=True)):
        left[x] = right[y] = 1 + i
    for axes, first in ((left, 20), (right, 40)):
        axes[:] = [axis or first + i for i, axis in enumerate(axes)]
    batch = [left[axis] for axis in left_p]
    rest = [axis for axis in left + right if axis >= 20]
    return np.einsum(np.asarray(a, np.float64), left, np.asarray(b, np.float64), right, batch + rest)


@settings(max_examples=30, deadline=None)
@given(rows=SIZES, inputs=st.integers(1, 20), outputs=st.integers(1, 20), lanes=SIZES, one_batch=st.booleans(),
       alike=st.booleans())  # fmt: skip
def test_a_gradient_of_weights_is_the_same_whoever_shares_the_batch(rows, inputs, outputs, lanes, one_batch, alike):
    def gradient(x, w):
        return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w)

    x, w = normal(0, lanes, rows, inputs), normal(1, lanes, inputs, outputs)
    call, _ = fitted(gradient, x[0], w[0], compiled_products=True, one_batch=one_batch)
    if alike:
        x = x[0]
    got, expected = (jax.jit(jax.vmap(f, in_axes=(None if alike else 0, 0)))(x, w) for f in (call, gradient))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_weights_comes_out_as_the_weights_lie_where_that_costs_less():
    x, w = normal(0, 16, 8), normal(1, 8, 8)
    narrow = normal(2, 8, 1)

    def gradient(x, w):
        return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w)

    def transposed(w, **options):
        _, jaxpr = fitted(gradient, x, w, compiled_products=True, **options)
        shapes = {tuple(v.aval.shape for v in e.invars) for e in equations(jaxpr) if e.primitive.name == "dot_general"}
        return shapes - {((16, 8), w.shape)}

    assert transposed(w) == {((8, 16), (16, 8))}
    assert transposed(narrow) == {((1, 16), (16, 8))}


def test_every_product_of_a_training_step_is_rows_times_columns_where_products_are_compiled():
    x, w = normal(0, 7, 4), normal(1, 4, 4)

    def gradient(x, w):
        return jax.grad(lambda w: jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w)))(w)

    call, jaxpr = fitted(gradient, x, w, compiled_products=True)
    forms = {eqn.params["dimension_numbers"][0] for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general"}
    assert forms == {((1,), (0,))}
    np.testing.assert_allclose(call(x, w), gradient(x, w), rtol=1e-5, atol=1e-6)


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), min_size=1, max_size=5),
    st.floats(2.0**-20, 2.0**20, width=32),
)
@settings(max_examples=50, deadline=None)
def test_a_quotient_by_one_number_is_right_to_two_units_in_the_last_place(values, divisor):
    array, number = jnp.asarray(values, jnp.float32), jnp.float32(divisor)
    call, jaxpr = fitted(lambda a, n: a / n, array, number)
    assert "quotient" in str(jaxpr)
    exact = np.asarray(values, np.float64) / np.float64(divisor)
    np.testing.assert_allclose(call(array, number), exact, rtol=2.5e-7, atol=1e-37)


def test_other_divisions_stay_as_they_are():
    a, n = normal(0, 3, 2), jnp.float32(3)
    _, jaxpr = fitted(lambda a, n: (a / a, n / n, n / a, a.astype(jnp.int32) // 2), a, n)
    assert "quotient" not in str(jaxpr)


FACTORISATIONS = {
    "qr": lambda a: jnp.linalg.qr(a),
    "cholesky": lambda a: jnp.linalg.cholesky(a @ a.mT + 4 * jnp.eye(3)),
    "svd": lambda a: jnp.linalg.svd(a, compute_uv=False),
    "eigh": lambda a: jnp.linalg.eigvalsh(a + a.mT),
    "solve": lambda a: jnp.linalg.solve(a + 4 * jnp.eye(3), jnp.ones((*a.shape[:-1], 1))),
    "orthogonal": lambda a: jax.nn.initializers.orthogonal()(jax.random.key(0), (3, 3)) @ a,
}


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("name", FACTORISATIONS)
def test_lanes_factorise_one_matrix_at_a_time(name, batch):
    function = FACTORISATIONS[name]
    lanes = normal(3, 5, *batch, 3, 3)
    call, _ = fitted(function, lanes[0])
    together = jax.vmap(call)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
                 together(lanes), jax.vmap(function)(lanes))  # fmt: skip
    batched = [
        eqn for eqn in equations(jax.make_jaxpr(together)(lanes).jaxpr)
        if eqn.primitive.name in {"qr", "geqrf", "householder_product", "cholesky", "svd", "eigh", "lu"}
        and eqn.invars[0].aval.ndim > 2
    ]  # fmt: skip
    assert not batched


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


RECURRENT = """
import vmaptune as vt
vt.prepare_devices()
import jax, numpy as np
from vmaptune.engine.plan import Plan
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.program import Program
from vmaptune.task import Task

orthogonal = jax.nn.initializers.orthogonal()
task = Task(
    init=lambda hp, key: [orthogonal(k, (64, 64)) for k in jax.random.split(key, 6)],
    step=lambda state, hp, key: state,
    evaluate=lambda state, hp: {"error": sum(abs(w.T @ w - np.eye(64)).max() for w in state)},
)
program = Program(LaneFunctions(task, {}, {}), {}, Plan(devices=len(jax.devices()), lanes=8, every=1, tiles=2))
L = program.plan.width
for _ in range(10):
    state = program.empty()
    _, result = program.run(state, program.table({}, np.arange(L), np.ones(L), True), 1, fill=True)
    print(float(np.max(program.read(result).metrics["error"])) < 1e-4, flush=True)
"""


def test_orthogonal_initialisation_on_all_cores_comes_to_an_end():
    """Batched, these calls wait for each other for ever on a machine of few cores."""
    done = subprocess.run([sys.executable, "-c", RECURRENT], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["True"] * 10, done.stderr[-2000:]
