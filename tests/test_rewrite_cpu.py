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

from vmaptune.rewrite import fit_for_cpu

SIZES = st.integers(1, 5)


def fitted(function, *args):
    """`function` computed by its jaxpr as fitted, and that jaxpr."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
    jaxpr = fit_for_cpu(closed.jaxpr)

    def call(*values):
        flat = jax.core.eval_jaxpr(jaxpr, closed.consts, *jax.tree.leaves(values))
        return jax.tree.unflatten(jax.tree.structure(out), flat)

    return call, jaxpr


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


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
from vmaptune.engine.program import LaneFunctions, Program
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
    ones = program.put(np.ones(L, np.int32))
    _, result = program.run(state, {}, program.put(np.arange(L, dtype=np.uint32)), np.ones(L, bool), ones, 1)
    print(float(np.max(result.metrics["error"])) < 1e-4, flush=True)
"""


def test_orthogonal_initialisation_on_all_cores_comes_to_an_end():
    """Batched, these calls wait for each other for ever on a machine of few cores."""
    done = subprocess.run([sys.executable, "-c", RECURRENT], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["True"] * 10, done.stderr[-2000:]
