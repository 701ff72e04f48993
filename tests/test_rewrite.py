"""Fast convolutions and poolings: XLA's own are the oracle, in value and in gradient."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax import lax
from rewritten import normal

from vmaptune import rewrite
from vmaptune.rewrite import ConvShape, PoolShape, convolve, pool, with_fast_convolutions
from vmaptune.rewrite._choose import by_xla, candidates
from vmaptune.rewrite._convolution import METHODS, supported
from vmaptune.rewrite._pooling import poolable

NHWC = ("NHWC", "HWIO", "NHWC")
SLOW = ("conv_general_dilated", "reduce_window", "select_and_scatter", "select_and_gather")


def assert_close(new, old, rtol=1e-5):
    """Equal to float32 rounding: the error is judged by the largest value of the array."""
    assert jax.tree.structure(new) == jax.tree.structure(old)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max(initial=0) <= rtol * max(np.abs(b).max(initial=0), 1e-3)


def with_gradients(function, weights):
    """(arguments) -> the function's value and the gradients of its product with `weights`."""

    def both(*args):
        out, pull = jax.vjp(function, *args)
        return out, pull(weights(out))

    return both


def waves(out):
    return jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)


def layouts(spatial):
    """Orders of a convolution's dimensions: channels last, channels first, and one that nobody uses."""
    n = range(2, 2 + spatial)
    last = tuple(range(1, 1 + spatial))
    return st.sampled_from([
        ((0, 1 + spatial, *last), (1 + spatial, spatial, *range(spatial)), (0, 1 + spatial, *last)),
        ((0, 1, *n), (0, 1, *n), (0, 1, *n)),
        ((1 + spatial, 0, *reversed(last)), (spatial, 1 + spatial, *reversed(range(spatial))), (0, 1, *reversed(n))),
    ])  # fmt: skip


@st.composite
def conv_shapes(draw):
    spatial = draw(st.integers(1, 3))

    def many(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(spatial))

    specs = draw(layouts(spatial))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    depth, multiplier = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size, kernel = many(1, 7), many(1, 3)
    lhs, rhs = [0] * (2 + spatial), [0] * (2 + spatial)
    lhs[specs[0][0]], lhs[specs[0][1]] = draw(st.integers(1, 3)), groups * depth
    rhs[specs[1][0]], rhs[specs[1][1]] = groups * multiplier, depth
    for i in range(spatial):
        lhs[specs[0][2 + i]], rhs[specs[1][2 + i]] = size[i], kernel[i]
    return ConvShape(
        tuple(lhs), tuple(rhs), "float32", *specs, many(1, 3),
        tuple(zip(many(-1, 2), many(-1, 2), strict=True)), many(1, 2), many(1, 2), groups,
    )  # fmt: skip


@given(conv_shapes())
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_method_equals_xla(shape):
    methods = [m for m in METHODS if m != "depthwise" or shape.in_channels == shape.feature_group_count]
    assume(supported(shape))

    def all_of_them(lhs, rhs):
        old = with_gradients(lambda *a: by_xla(shape, *a), waves)(lhs, rhs)
        return old, [with_gradients(lambda *a, m=m: convolve(shape, m, *a), waves)(lhs, rhs) for m in methods]

    old, new = jax.jit(all_of_them)(normal(1, *shape.lhs), normal(2, *shape.rhs))
    for one in new:
        assert_close(one, old)


def test_a_convolution_by_hand():
    shape = ConvShape(
        (1, 5, 1), (2, 1, 1), "float32", (0, 2, 1), (2, 1, 0), (0, 2, 1), (2,), ((1, 0),), (1,), (1,)
    )  # of 0 1 2 3 4 5, at every second place, with the kernel 10 1
    lhs, rhs = jnp.arange(1.0, 6).reshape(1, 5, 1), jnp.array([10.0, 1.0]).reshape(2, 1, 1)
    for method in ("im2col", "shifted"):
        assert convolve(shape, method, lhs, rhs).ravel().tolist() == [1, 23, 45]
        gradient = jax.grad(lambda x, m=method: convolve(shape, m, x, rhs).sum())(lhs)
        assert gradient.ravel().tolist() == [1, 10, 1, 10, 1]


def test_short_types_and_wide_results_keep_their_dtypes():
    shape = ConvShape(
        (2, 6, 6, 4), (3, 3, 1, 4), "bfloat16", (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2), (1, 1), ((1, 1),) * 2,
        (1, 1), (1, 1), 4,
    )  # fmt: skip
    lhs, rhs = normal(0, *shape.lhs).astype(jnp.bfloat16), normal(1, *shape.rhs).astype(jnp.bfloat16)
    for wide in (None, "float32"):
        one = dataclasses.replace(shape, preferred_element_type=wide)
        old = by_xla(one, lhs, rhs)
        for method in METHODS:
            assert_close(convolve(one, method, lhs, rhs), old, rtol=1e-2)


def test_what_cannot_be_computed_says_so():
    shape = ConvShape((4, 5, 2), (2, 2, 4), "float32", (0, 2, 1), (2, 1, 0), (0, 2, 1), (1,), ((0, 0),), (1,), (1,))
    lhs, rhs = normal(0, *shape.lhs), normal(1, *shape.rhs)
    with pytest.raises(ValueError, match="must be one of im2col, shifted, depthwise, innermost, but got 'fft'"):
        convolve(shape, "fft", lhs, rhs)
    with pytest.raises(ValueError, match="one input channel in a group, but got 2"):
        convolve(shape, "depthwise", lhs, rhs)
    grouped = dataclasses.replace(shape, batch_group_count=2)
    with pytest.raises(ValueError, match="left to XLA"):
        convolve(grouped, "im2col", lhs, rhs)
    assert candidates(grouped) == ("xla",)


def conv(x, kernel, stride=1):
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=NHWC)


def max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@jax.custom_jvp
def doubled_jvp(x, kernel):
    return conv(x, kernel)


@doubled_jvp.defjvp
def _(primals, tangents):
    return doubled_jvp(*primals), 2 * conv(tangents[0], primals[1]) + 2 * conv(primals[0], tangents[1])


@jax.custom_vjp
def doubled_vjp(x, kernel):
    return conv(x, kernel)


doubled_vjp.defvjp(
    lambda x, kernel: (doubled_vjp(x, kernel), (x, kernel)),
    lambda saved, g: jax.vjp(conv, *saved)[1](2 * g),
)


def in_scan(x, kernel):
    return lax.scan(lambda c, _: (jnp.tanh(conv(c, kernel)), c.mean()), x, None, length=3)


CALLERS = {
    "jit": lambda x, kernel: jax.jit(conv)(x, kernel) + jax.jit(jax.jit(conv))(x, kernel),
    "scan": in_scan,
    "fori_loop": lambda x, kernel: lax.fori_loop(0, 2, lambda _, c: jnp.tanh(conv(c, kernel)), x),
    "cond": lambda x, kernel: lax.cond(x.sum() > 0, lambda: conv(x, kernel), lambda: 2 * conv(x, kernel)),
    "remat": lambda x, kernel: jax.checkpoint(lambda x: jnp.sin(conv(jnp.sin(x), kernel)))(x),
    "remat of a scan": lambda x, kernel: jax.checkpoint(in_scan)(x, kernel),
    "pools": lambda x, kernel: max_pool(linen.avg_pool(conv(x, kernel), (3, 3), padding="SAME")),
}
CUSTOM = {"custom_jvp": doubled_jvp, "custom_vjp": doubled_vjp}


def value_and_gradients(function):
    """The sum of squares of all that a function returns, and its gradients."""

    def loss(*args):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(function(*args)))

    return jax.value_and_grad(loss, argnums=(0, 1))


@pytest.mark.parametrize("name", [*CALLERS, *CUSTOM])
def test_convolutions_are_found_in(name):
    function = {**CALLERS, **CUSTOM}[name]
    x, kernel = normal(0, 2, 4, 4, 3), normal(1, 3, 3, 3, 3) / 5
    fast = with_fast_convolutions(function)
    traced = str(jax.make_jaxpr(fast)(x, kernel))
    if name in CALLERS:
        traced += str(jax.make_jaxpr(value_and_gradients(fast))(x, kernel))
    else:
        traced = traced.split("jvp_jaxpr_fun=")[0].split("fwd_jaxpr_thunk=")[0]
    assert not [word for word in SLOW if word in traced]
    both = jax.jit(lambda f, *a: (f(*a), value_and_gradients(f)(*a)), static_argnums=0)
    assert_close(both(fast, x, kernel), both(function, x, kernel))


def test_what_a_custom_rule_computes_is_reached_around_the_gradient():
    x, kernel = normal(0, 2, 4, 4, 3), normal(1, 3, 3, 3, 3)
    gradient = value_and_gradients(doubled_jvp)
    fast = with_fast_convolutions(gradient)
    assert SLOW[0] in str(jax.make_jaxpr(value_and_gradients(with_fast_convolutions(doubled_jvp)))(x, kernel))
    counts = [str(jax.make_jaxpr(f)(x, kernel)).count(SLOW[0]) for f in (gradient, fast)]
    assert counts[1] < counts[0]
    assert_close(jax.jit(fast)(x, kernel), jax.jit(gradient)(x, kernel))


def test_lanes_have_their_own_kernels_and_do_not_touch_each_other():
    x, kernel = normal(0, 3, 2, 4, 4, 3), normal(1, 3, 3, 3, 3, 3) / 5
    function = CALLERS["pools"]
    run = jax.jit(jax.vmap(value_and_gradients(with_fast_convolutions(function))))
    lanes = run(x, kernel)
    assert_close(lanes, jax.jit(jax.vmap(value_and_gradients(function)))(x, kernel))
    spoiled = run(x.at[1].set(jnp.nan), kernel.at[1].set(jnp.inf))
    for a, b in zip(jax.tree.leaves(lanes), jax.tree.leaves(spoiled), strict=True):
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[2], b[2])
        assert not np.isfinite(b[1]).all()


def test_forward_mode_and_second_derivatives_go_through():
    x, kernel = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 2)

    def loss(kernel, f):
        return jnp.sum(jnp.sin(f(x, kernel)) ** 2)

    def product(kernel, f):  # of the Hessian with a vector, forward over reverse
        return jax.jvp(lambda k: jax.grad(loss)(k, f), (kernel,), (jnp.ones_like(kernel),))[1]

    function = CALLERS["pools"]
    run = jax.jit(product, static_argnums=1)
    assert_close(run(kernel, with_fast_convolutions(function)), run(kernel, function), rtol=1e-4)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.second = nnx.Conv(4, 8, (3, 3), strides=2, padding="VALID", feature_group_count=2, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.first(x))), (2, 2), strides=(2, 2))
        return self.last(nnx.relu(self.second(x)).mean((1, 2)))


def test_an_nnx_model_stays_as_it_is():
    graph, params, rest = nnx.split(NnxModel(nnx.Rngs(0)), nnx.Param, ...)
    x = normal(0, 8, 10, 10, 1)

    def loss(params, rest, x):
        model = nnx.merge(graph, params, rest, copy=True)
        value = jnp.mean(model(x) ** 2)
        return value, nnx.state(model, nnx.BatchStat)

    run = jax.jit(lambda f, *a: jax.value_and_grad(f, has_aux=True)(*a), static_argnums=0)
    fast = with_fast_convolutions(loss)
    assert_close(run(fast, params, rest, x), run(loss, params, rest, x), rtol=1e-4)
    traced = str(jax.make_jaxpr(jax.grad(fast, has_aux=True))(params, rest, x))
    assert not [word for word in SLOW if word in traced]


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False)(linen.Conv(4, (3, 3))(x))
        x = linen.max_pool(linen.relu(x), (3, 3), (2, 2), "SAME")
        x = linen.ConvTranspose(4, (3, 3), (2, 2))(x)
        x = linen.avg_pool(linen.Conv(4, (3, 3), feature_group_count=4, kernel_dilation=2)(x), (2, 2), (2, 2))
        return linen.Dense(3)(x.reshape(x.shape[0], -1))


def test_a_linen_model_stays_as_it_is():
    model, x = LinenModel(), normal(0, 4, 8, 8, 1)
    variables = model.init(jax.random.key(0), x)

    def loss(params, stats):
        # `x` is closed over, and a whole tree of statistics is returned beside the loss.
        out, new = model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return jnp.mean(out**2), new

    run = jax.jit(lambda f, *a: jax.value_and_grad(f, has_aux=True)(*a), static_argnums=0)
    args, fast = (variables["params"], variables["batch_stats"]), with_fast_convolutions(loss)
    assert_close(run(fast, *args), run(loss, *args), rtol=1e-4)
    traced = str(jax.make_jaxpr(jax.grad(fast, has_aux=True))(*args))
    assert not [word for word in SLOW if word in traced]


def test_a_function_without_convolutions_is_untouched():
    def function(tree, by, name=None):
        return {"sum": jnp.sin(tree["x"]) * by, "name": name, "by": by, "key": tree["key"]}, None

    tree = {"x": normal(0, 5), "key": jax.random.key(1)}
    fast = with_fast_convolutions(function)
    (new, nothing), (old, _) = fast(tree, 2, name="a"), function(tree, 2, name="a")
    assert nothing is None
    assert (new["name"], new["by"]) == ("a", 2)
    assert isinstance(new["by"], int)
    assert np.array_equal(new["sum"], old["sum"])
    assert new["key"] == old["key"]

    def arrays(f):
        return lambda tree: f(tree, 2)[0]["sum"]

    assert str(jax.make_jaxpr(arrays(fast))(tree)) == str(jax.make_jaxpr(arrays(function))(tree))


def test_the_choice_is_the_callers():
    x, kernel = normal(0, 2, 4, 4, 3), normal(1, 3, 3, 3, 3)
    seen = []

    def choose(shape):
        seen.append(shape)
        return "xla" if len(seen) % 2 else "shifted"

    def twice(x, kernel):
        return conv(conv(x, kernel), kernel)

    fast = with_fast_convolutions(twice, choose)
    assert str(jax.make_jaxpr(fast)(x, kernel)).count("conv_general_dilated") == 1
    assert seen[0] == seen[1]
    left = with_fast_convolutions(CALLERS["pools"], lambda _: "xla", pools=False)
    assert str(jax.make_jaxpr(left)(x, kernel)) == str(jax.make_jaxpr(CALLERS["pools"])(x, kernel))


def test_distinct_convolutions_are_listed_and_timed_once():
    def model(x, kernel):
        x, _ = in_scan(conv(x, kernel), kernel)
        return conv(x, kernel, stride=2)

    found = rewrite.find_convolutions(jax.make_jaxpr(model)(normal(0, 2, 4, 4, 3), normal(1, 3, 3, 3, 3)))
    assert [shape.window_strides for shape in found] == [(1, 1), (2, 2)]
    first = found[0]
    assert (first.lhs, first.rhs, first.out_spatial) == ((2, 4, 4, 3), (3, 3, 3, 3), (4, 4))
    assert first.flops == 2 * 2 * 16 * 27 * 3
    chosen = rewrite.fastest([first, first], lanes=2)
    assert list(chosen) == [first]
    assert chosen[first] in candidates(first)
    times = rewrite.measure(first, 2)
    assert rewrite.measure(first, 2) is times
    assert all(math.isfinite(t) and t > 0 for t in times.values())


@st.composite
def pool_shapes(draw):
    n = draw(st.integers(1, 3))

    def many(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(n))

    window = many(1, 3)
    strides = draw(st.sampled_from([window, many(1, 3)]))
    padding = draw(st.sampled_from([((0, 0),) * n, tuple(zip(many(0, 1), many(0, 1), strict=True))]))
    kind = draw(st.sampled_from(["max", "max", "sum"]))
    return PoolShape(kind, many(1, 7), "float32", window, strides, padding, (1,) * n, many(1, 2))


def pool_by_xla(shape, x):
    init, combine = (-jnp.inf, lax.max) if shape.kind == "max" else (0.0, lax.add)
    return lax.reduce_window(
        x, init, combine, shape.window_dimensions, shape.window_strides, shape.padding,
        window_dilation=shape.window_dilation,
    )  # fmt: skip


@given(pool_shapes(), st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_pooling_equals_xla_in_ties_too(shape, seed):
    assume(poolable(shape))
    # JAX has no gradient of a maximum over a dilated window, so such a window is compared undilated.
    if shape.kind == "max":
        shape = dataclasses.replace(shape, window_dilation=(1,) * len(shape.operand))
    values = np.random.default_rng(seed).integers(0, 3, size=shape.operand).astype(np.float32)
    if shape.kind == "max" and seed % 3 == 0:
        values[values == 0] = -np.inf  # so that whole windows are, and padding ties with them

    def whole(out):  # whole numbers, so that sums of gradients are exact
        return (jnp.arange(out.size, dtype=out.dtype) + 1).reshape(out.shape)

    def both(x):
        return [with_gradients(lambda x, f=f: f(shape, x), whole)(x) for f in (pool, pool_by_xla)]

    new, old = jax.jit(both)(values)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tie_goes_to_the_first_of_the_window():
    x = jnp.array([[1.0, 2.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]])
    shape = PoolShape("max", (2, 4), "float32", (2, 2), (2, 2), ((0, 0),) * 2, (1, 1), (1, 1))
    expected = [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert jax.grad(lambda x: pool(shape, x).sum())(x).tolist() == expected
    assert jax.grad(lambda x: pool_by_xla(shape, x).sum())(x).tolist() == expected
    spoiled = pool(shape, x.at[1, 0].set(jnp.nan))
    assert np.isnan(spoiled[0, 0])
    assert spoiled[0, 1] == 0


def test_padding_ties_with_minus_infinity_as_in_xla():
    shape = PoolShape("max", (3,), "float32", (2,), (2,), ((1, 1),), (1,), (1,))
    low = -jnp.inf
    for values, expected in [([low, low, 0], [0, 0, 10]), ([low, 1, low], [0, 10, 0]), ([1, 2, low], [1, 10, 0])]:
        for f in (pool, pool_by_xla):
            (gradient,) = jax.vjp(lambda x, f=f: f(shape, x), jnp.array(values, jnp.float32))[1](jnp.array([1.0, 10]))
            assert gradient.tolist() == expected


def test_the_public_names_are_documented():
    for name in rewrite.__all__:
        assert getattr(rewrite, name).__doc__, name


# ---- random bits -------------------------------------------------------------------------------------


def drawn(seed):
    key = jax.random.fold_in(jax.random.key(seed), 7)
    a, b, c = jax.random.split(key, 3)
    module_key = nnx.Rngs(a).params()
    return {
        "keys": jax.random.key_data(jax.random.split(a, (2, 3))),
        "bits": jax.random.bits(b, (3, 5)),
        "words": [jax.random.bits(b, (4,), dtype) for dtype in (jnp.uint8, jnp.uint16)],
        "one": jax.random.uniform(c),
        "none": jax.random.bits(c, (0, 4)),
        "normal": jax.random.truncated_normal(module_key, -2, 2, (40, 7)),
        "kept": jax.random.bernoulli(jax.random.fold_in(c, seed), 0.3, (5,)),
        "order": jax.random.permutation(a, 9),
        "whole": jax.random.randint(b, (4,), 0, 1000),
        "other": jax.random.bits(jax.random.key(3, impl="rbg"), (2,)),
    }


@pytest.mark.parametrize("lanes", [1, 100])
def test_random_numbers_in_one_piece_are_jax_own_to_the_bit(lanes):
    bits = np.random.default_rng(lanes).integers(0, 2**32, 100, np.uint64)
    bits[:3] = 0, 1, 2**32 - 1
    closed, shape = jax.make_jaxpr(drawn, return_shape=True)(jax.ShapeDtypeStruct((), jnp.uint32))
    new = rewrite.fit_for_cpu(closed.jaxpr)

    def unrolled(seed):
        return jax.tree.unflatten(jax.tree.structure(shape), jax.core.eval_jaxpr(new, closed.consts, seed))

    got, expected = (jax.jit(jax.vmap(f)) for f in (unrolled, drawn))
    for seeds in jnp.asarray(bits, jnp.uint32).reshape(-1, lanes):
        for a, b in zip(jax.tree.leaves(got(seeds)), jax.tree.leaves(expected(seeds)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_random_bits_are_exchanged():
    closed = jax.make_jaxpr(lambda seed: jax.random.normal(jax.random.key(seed), (3,)))(1)
    assert "random_bits" in str(closed)
    assert "random_bits" not in str(rewrite.fit_for_cpu(closed.jaxpr))


def test_a_choice_is_settled_once_and_shown_to_have_changed():
    choice = rewrite.Choice()
    first, second = conv1d(8), conv1d(9)
    assert choice(first) == rewrite.default_choice(first)
    assert choice.settle({str(first): "xla"})
    assert choice(first) == "xla"
    assert not choice.settle({str(first): "shifted"})  # later measurements do not move what lanes were trained with
    assert choice(first) == "xla"
    choice(second)
    assert not choice.settle({})
    assert choice.chosen == {str(first): "xla", str(second): rewrite.default_choice(second)}


def conv1d(length):
    return ConvShape(
        lhs=(2, length, 3), rhs=(3, 3, 4), dtype="float32", lhs_spec=(0, 2, 1), rhs_spec=(2, 1, 0), out_spec=(0, 2, 1),
        window_strides=(1,), padding=((1, 1),), lhs_dilation=(1,), rhs_dilation=(1,), feature_group_count=1,
        batch_group_count=1, precision=None, preferred_element_type=None,
    )  # fmt: skip
