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

from vmaptune.rewrite import products_are_short
from vmaptune.rewrite._walk import _jitted

SIZES = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(K=st.lists(SIZES, min_size=1, max_size=2), M=st.lists(SIZES, min_size=1, max_size=2),
       N=st.lists(SIZES, min_size=1, max_size=2), lanes=SIZES)  # fmt: skip
def test_a_product_that_contracts_rows_is_the_same_for_any_shape(K, M, N, lanes):
    a, b = normal(0, lanes, *K, *M), normal(1, lanes, *K, *N)

    def product(a, b):
        return jax.lax.dot_general(a, b, ((range(len(K)), range(len(K))), ((), ())))

    call, jaxpr = fitted(product, a[0], b[0])
    tiny = np.prod(K) <= 3 or max(np.prod(M), np.prod(N)) <= 3  # which XLA writes as a plain loop
    assert ("product_of_rows" in str(jaxpr)) == (not tiny)
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


ANY = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-39, -1e-45, 2.0**-126, 2.0**126, 3e38, -3.4e38, np.inf])


@given(st.lists(ANY, min_size=3, max_size=3), ANY)
@settings(max_examples=200, deadline=None)
def test_a_quotient_by_any_number_is_right(values, divisor):
    """By zero, infinity, NaN, and numbers whose reciprocals overflow or vanish; float64 is the oracle.
    Subnormal numbers count as they are, or as zeros, as the processor takes them."""
    array, number = np.asarray(values, np.float32), np.float32(divisor)
    got = np.asarray(quotient(array, number), np.float64)
    with np.errstate(all="ignore"):
        either = [np.float64(f(array)) / np.float64(f(number)) for f in (np.float32, without_subnormal)]
        right = [
            (np.isnan(got) & np.isnan(exact))
            | (np.isinf(got) & (np.abs(exact) > 3.4028e38) & (np.sign(got) == np.sign(exact)))
            | ((np.abs(got - exact) <= 2.5e-7 * np.abs(exact) + 1.2e-38) & (np.signbit(got) == np.signbit(exact)))
            for exact in either
        ]
    assert (right[0] | right[1]).all(), (got, either)


def without_subnormal(x):
    return np.where(np.abs(x) < 2.0**-126, np.copysign(np.float32(0), x), x)


quotient = jax.jit(fitted(lambda a, n: a / n, normal(0, 3), jnp.float32(2))[0])


def test_a_number_known_beforehand_is_left_to_xla():
    """So that whole quotients stay whole: `floor(x / 49)` of 49 is 1."""
    x = jnp.arange(0.0, 4900, 49)
    call, jaxpr = fitted(lambda x: jnp.floor(x / 49), x)
    assert "quotient" not in str(jaxpr)
    np.testing.assert_array_equal(jax.jit(call)(x), jax.jit(lambda x: jnp.floor(x / 49))(x))


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


TINY = """
import vmaptune as vt
vt.prepare_devices()
import jax, jax.numpy as jnp, optax
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.plan import Plan
from vmaptune.engine.program import Program
from vmaptune.task import Task

HEADS = {
    "vmap": lambda w, h: jax.vmap(lambda h: w @ h)(h),
    "inner": lambda w, h: jnp.inner(w, h).T,
    "turned": lambda w, h: (w @ h.T).T,
    "einsum": lambda w, h: jnp.einsum("hk,bk->bh", w, h),
}

def task(head, batch, inputs, units, outputs):
    def init(hp, key):
        shapes = (inputs, units), (units, units), (outputs, units)
        return [0.3 * jax.random.normal(k, s) for k, s in zip(jax.random.split(key, 3), shapes)]

    def loss(weights, x):
        a, b, w = weights
        h = jax.lax.scan(lambda h, x: (jnp.tanh(x @ a + h @ b), None), jnp.zeros((batch, units)), x)[0]
        out = HEADS[head](w, h)
        return (out**2).mean() + optax.softmax_cross_entropy_with_integer_labels(out, jnp.zeros(batch, int)).mean()

    def step(weights, hp, key, x):
        value, gradient = jax.value_and_grad(loss)(weights, x)
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient), value

    def shared(done, count):
        return jax.random.normal(jax.random.fold_in(jax.random.key(7), done), (count, 5, batch, inputs))

    def evaluate(weights, hp):
        return {"loss": loss(weights, shared(0, 1)[0])}

    return Task(init, step, evaluate, has_loss=True, shared=shared)

for case in CASES:
    Program(LaneFunctions(task(*case), {}, {}), {}, Plan(devices=1, lanes=2, every=1, tiles=1), uneven=False)
    print(case, flush=True)
"""
CASES = [
    ("vmap", 8, 6, 16, 2),
    ("inner", 32, 6, 8, 3),
    ("turned", 8, 4, 8, 2),
    ("einsum", 16, 4, 8, 2),
    ("vmap", 3, 2, 3, 3),
]


def test_a_recurrent_network_of_few_outputs_compiles():
    """Its head has the weights [out, in]; a transposition kept from the product of its gradient ended the process."""
    code = f"CASES = {CASES}\n{TINY}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split("\n") == [*map(str, CASES), ""], done.stderr[-2000:]


WRITTEN_OUT = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
import vmaptune as vt
vt.prepare_devices()
import jax, jax.numpy as jnp
from vmaptune.engine.compiling import compiled, products_are_compiled
from vmaptune.rewrite import fit_for_cpu

def compile(lanes, m, k, n, own):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((m, k), (k, n))]
    jaxpr = fit_for_cpu(jax.make_jaxpr(jnp.matmul)(*shapes).jaxpr, compiled_products=True)
    function = jax.vmap(lambda *x: jax.core.eval_jaxpr(jaxpr, (), *x), in_axes=[0 if o else None for o in own])
    shapes = [jax.ShapeDtypeStruct((lanes, *s.shape) if o else s.shape, s.dtype) for s, o in zip(shapes, own)]
    compiled(jax.jit(function).lower(*shapes), products=True)

if products_are_compiled():
    compile(3, 12, 24, 24, (True, True))
    compile(2, 6, 24, 24, (True, False))
    compile(2, 15, 25, 12, (False, True))
print("done")
"""


def test_a_product_of_less_than_two_tiles_each_way_compiles_in_little_memory():
    """LLVM takes gigabytes for one that is written out whole."""
    done = subprocess.run([sys.executable, "-c", WRITTEN_OUT], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "done\n", done.stderr[-2000:]


def test_a_product_of_other_numbers_that_would_be_written_out_is_not_compiled():
    def product(dtype, m, k, n):
        shapes = [jax.ShapeDtypeStruct(s, dtype) for s in ((m, k), (k, n))]
        return jax.make_jaxpr(lambda a, b: jax.lax.dot(a, b))(*shapes).jaxpr

    assert products_are_short(product(jnp.int32, 12, 16, 24))
    assert not products_are_short(product(jnp.int32, 12, 24, 24))
    assert not products_are_short(product(jnp.bfloat16, 12, 24, 24))
    assert products_are_short(product(jnp.float32, 12, 24, 24))  # it gets zeros


def test_what_is_exchanged_is_not_kept_for_ever():
    for n in range(3):
        fitted(lambda a, n=n: jnp.linalg.qr(a)[1], normal(n, 2 + n, 2 + n))
    found = _jitted.cache_info()
    assert 0 < found.currsize <= (found.maxsize or 0)
