"""Every rewrite against plain JAX, on generated equations: all shapes with ones, all axes, several results, NaN and
infinities, numbers of 16 bits, and under every transformation. Values are compared to rounding, with float64 as the
judge, and what isn't finite has to be where plain JAX has it."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from rewritten import fitted, in_64_bits

from vmaptune.rewrite import with_fast_convolutions

SHAPES = [
    (1,),
    (34,),
    (1, 1),
    (1, 34),
    (34, 1),
    (20, 20),
    (1, 20, 1),
    (16, 20, 1),
    (16, 1, 20),
    (1, 1100, 1),
    (5, 4, 3, 2),
]
AXES = {shape: [axes for n in range(1, len(shape) + 1) for axes in itertools.combinations(range(len(shape)), n)]
        for shape in SHAPES}  # fmt: skip


def reductions():
    for shape, axes in ((s, a) for s in SHAPES for a in AXES[s]):
        for name in ("sum", "max" if len(axes) % 2 else "min"):
            yield f"{name} of {shape} over {axes}", lambda x, n=name, a=axes: getattr(jnp, n)(x, a), [shape]


def normalisations():
    for shape in SHAPES[4:-1]:
        for axis in range(len(shape)):
            yield f"softmax of {shape} over {axis}", lambda x, a=axis: jax.nn.softmax(x, a), [shape]
        yield f"norm of {shape}", lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1), [shape]


def quotients():
    for shape in SHAPES[:4]:
        yield f"{shape} by a number", lambda x, n: x / n[0], [shape, (1,)]


def picks():
    for shape in SHAPES:
        size = shape[-1]
        index = jnp.asarray(np.arange(int(np.prod(shape[:-1]))).reshape(shape[:-1]) * 7 % (size + 1) - 1)[..., None]
        yield f"{shape} along", lambda x, i=index: jnp.take_along_axis(x, i, -1), [shape]
        for axis in range(len(shape)):
            yield f"{shape} at {axis}", lambda x, a=axis: jnp.take(x, shape_last(x, a), a), [shape]
            yield (
                f"{shape} beyond {axis}",
                lambda x, a=axis: x.at[(slice(None),) * a + (x.shape[a],)].get(mode="fill"),
                [shape],
            )


def shape_last(x, axis):
    return jnp.int32(x.shape[axis] - 1)


def products():
    letters = ("pmk", "pkn"), ("mpk", "knp"), ("km", "kn"), ("mk", "nk"), ("km", "nk"), ("mk", "kn"), ("kjm", "jkn")
    dims = (1, 1, 1), (1, 20, 6), (12, 2, 6), (3, 20, 3), (12, 20, 24), (12, 5, 1)
    sizes = [{"p": 1 + i % 3, "m": m, "k": k, "n": n, "j": 2} for i, (m, k, n) in enumerate(dims)]
    for (left, right), size in itertools.product(letters, sizes):
        out = ("p" if "p" in left else "") + "mn"
        name = f"{left},{right}->{out}"
        yield (
            f"{name} {size}",
            lambda a, b, e=name: jnp.einsum(e, a, b),
            [[size[c] for c in left], [size[c] for c in right]],
        )


def poolings():
    for shape in ((4, 6, 5, 3), (1, 6, 1, 2), (3, 4, 4, 1)):
        for window in ((1, 2, 2, 1), (1, 3, 1, 1), (1, 1, 1, 2), (2, 2, 1, 2), (1, 2, 2, 3)):
            for padding in ("VALID", "SAME"):
                if padding == "SAME" or all(w <= n for w, n in zip(window, shape, strict=True)):
                    name = f"of {shape} in {window} {padding}"

                    def pooled(x, start, operator, window=window, padding=padding):
                        return lax.reduce_window(x, jnp.asarray(start, x.dtype), operator, window, window, padding)

                    yield f"max {name}", lambda x, f=pooled: f(x, -jnp.inf, lax.max), [shape]
                    yield f"sum {name}", lambda x, f=pooled: f(x, 0, lax.add), [shape]


def convolutions():
    for shape, channels, kernel, stride in itertools.product(
        ((2, 5, 6, 3), (1, 4, 1, 1), (17, 3, 3, 2)), (1, 4), ((1, 1), (2, 3)), (1, 2)
    ):  # fmt: skip

        def conv(x, w, stride=stride):
            return lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        yield f"{shape} by {kernel} to {channels} every {stride}", conv, [shape, (*kernel, shape[-1], channels)]


def factorisations():
    for batch in ((), (1,), (2, 1), (0,)):
        yield f"qr {batch}", lambda a: jnp.linalg.qr(a)[1] ** 2, [(*batch, 3, 3)]
        yield f"solve {batch}", lambda a: jnp.linalg.solve(a + 9 * jnp.eye(3), a), [(*batch, 3, 3)]
        yield f"cholesky {batch}", lambda a: jnp.linalg.cholesky(a @ a.mT + jnp.eye(3)), [(*batch, 3, 3)]


def several_results():
    for shape in ((16, 6), (20, 1), (2, 16, 6), (16, 1, 6)):
        yield (
            f"split {shape}",
            lambda x: [h.max(-1) for h in jnp.split(jnp.concatenate([x, 2 * x, -x], -1), 3, -1)],
            [shape],
        )
        yield f"sort {shape}", lambda x: [h.max(-1) for h in lax.sort((x, -x), num_keys=1)], [shape]
        yield (
            f"scan {shape}",
            lambda x: lax.scan(
                lambda c, t: ((c[1] * t, c[0]), (c[0].max(-1), (c[1] + t).max(-1))),
                (x, -x),
                jnp.arange(3.0, dtype=x.dtype),
            ),
            [shape],
        )
        yield (
            f"cond {shape}",
            lambda x: [h.max(-1) for h in lax.cond(x.sum() > 0, lambda x: (x, -x), lambda x: (2 * x, x), x)],
            [shape],
        )


TABLE = {generate.__name__: generate for generate in (
    reductions, normalisations, quotients, picks, products, poolings, convolutions, factorisations, several_results
)}  # fmt: skip
UNLIKE = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-39, 2.0**-126, 1e30)
SHIFTED = ("shifted", "im2col", "innermost")


def arrays_of(shapes, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [
        np.asarray(rng.normal(size=shape).round(1) if len(shape) == 4 else rng.normal(size=shape), dtype)
        for shape in shapes
    ]


def ours(function, args):
    """The function with convolutions, poolings and picks exchanged, then fitted for a CPU, as a study does."""
    fast = with_fast_convolutions(function, choose)
    return fitted(fast, *args, compiled_products=True)[0]


def choose(shape):
    method = SHIFTED[(shape.batch + shape.out_channels) % 3]
    return method if method != "innermost" or shape.has_channels_last else "im2col"


def planted(array, value, seed):
    """The array with a value at two places of it."""
    flat = array.copy().reshape(-1)
    if flat.size:
        flat[np.random.default_rng(seed).integers(0, flat.size, 2)] = value
    return flat.reshape(array.shape)


def assert_agree(name, got, plain, exact):
    """`exact` returns what float64 gives; it is asked where the two differ by more than rounding."""
    for i, (a, b) in enumerate(zip(*map(jax.tree.leaves, (got, plain)), strict=True)):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, name
        for what in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(what(a), what(b), err_msg=name)
        a, b = (np.where(np.isfinite(v), v, 0) for v in (a, b))
        rounding = 3e-6 * max(1, np.abs(b).max(initial=0))
        if (np.abs(a - b) > rounding).any():
            c = np.asarray(jax.tree.leaves(exact())[i], np.float64)
            error, allowed = np.abs(a - c), 10 * np.abs(b - c) + rounding
            assert (error <= allowed)[np.isfinite(c)].all(), name


def in_double(function, args):
    with in_64_bits():
        return function(*(np.asarray(a, np.float64) for a in args))


@pytest.mark.parametrize("rewrite", TABLE)
def test_equations_are_plain_jax_s(rewrite):
    """All equations of a rewrite in one program, so that it is compiled once: with numbers, and with what is none."""
    cases = list(TABLE[rewrite]())
    arrays = [arrays_of(shapes, seed) for seed, (_, _, shapes) in enumerate(cases)]
    new = [ours(function, args) for (_, function, _), args in zip(cases, arrays, strict=True)]
    old = [function for _, function, _ in cases]

    def all_of(functions):
        return jax.jit(lambda arrays: [f(*args) for f, args in zip(functions, arrays, strict=True)])

    got, plain = all_of(new), all_of(old)
    unlike = () if rewrite == "factorisations" else [value for value in UNLIKE for _ in range(2)]
    for turn, value in enumerate((None, *unlike)):
        given = arrays
        if value is not None:  # in the first array, then in the second; a kernel's are multiplied with padding
            given = [
                [
                    planted(a, value, turn + seed) if i == turn % len(args) and a.ndim < 4 + (i == 0) else a
                    for i, a in enumerate(args)
                ]
                for seed, args in enumerate(arrays)
            ]
        for (name, function, _), args, a, b in zip(cases, given, got(given), plain(given), strict=True):
            assert_agree(f"{name} with {value}", a, b, lambda f=function, x=args: in_double(f, x))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32"])
def test_equations_of_other_numbers_are_plain_jax_s(dtype):
    cases = [case for generate in (reductions, quotients, picks, products, poolings) for case in list(generate())[::9]]
    if dtype == "int32":
        cases = [case for case in cases if not case[0].startswith("max")]  # of which the start is no whole number
    arrays = [[jnp.asarray(3 * a, dtype) for a in arrays_of(shapes, seed)] for seed, (_, _, shapes) in enumerate(cases)]
    new = [ours(function, args) for (_, function, _), args in zip(cases, arrays, strict=True)]
    for (name, function, _), new_one, args in zip(cases, new, arrays, strict=True):
        got, plain = jax.jit(lambda args, f=new_one: f(*args))(args), jax.jit(lambda args, f=function: f(*args))(args)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), name
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            np.testing.assert_allclose(a, b, rtol=2e-2 if dtype == "bfloat16" else 2e-3, atol=1e-2, err_msg=name)


def network(weights, x, y, rate):
    """What a rewrite is made for, one of each, in a loss of two heads."""
    kernel, w, v, u = weights
    h = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    h = (h - h.mean((0, 1, 2))) * lax.rsqrt(h.var((0, 1, 2)) + 1e-3)
    h = lax.reduce_window(jax.nn.relu(h), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    h = h.reshape(h.shape[0], -1, h.shape[-1])
    h = (h * jax.nn.softmax(h @ u, 1)).sum(1)
    h = lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, length=3)[0]
    heads = jnp.split(h @ v, 2, -1)
    losses = [-jnp.take_along_axis(jax.nn.log_softmax(head), y[:, None], -1).mean() for head in heads]
    return (losses[0] + 2 * losses[1]) + ((w / rate) ** 2).mean()


def of_own_rule(function):
    call = jax.custom_vjp(function)
    call.defvjp(lambda *args: jax.vjp(function, *args), lambda back, g: back(g))
    return call


def with_a_tangent(function):
    call = jax.custom_jvp(function)
    call.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return call


def twice(weights, *rest, function=network):
    return lax.scan(
        lambda c, scale: (c + function(jax.tree.map(lambda a: a * scale, weights), *rest), None),
        0.0,
        jnp.array([1.0, 0.7]),
    )[0]


UNDER = {
    "nothing": network,
    "jit": jax.jit(network),
    "checkpoint": jax.checkpoint(network),
    "scan": twice,
    "cond": lambda w, *rest: lax.cond(w[0][0, 0, 0, 0] > -9, network, lambda *a: 0.0, w, *rest),
    "custom_vjp": of_own_rule(network),
    "custom_jvp": with_a_tangent(network),
    "vmap": lambda w, *rest: jax.vmap(lambda s: network([a * s for a in w], *rest))(jnp.array([1.0, 0.5])).sum(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("under", "compiled"), [*((name, True) for name in UNDER), ("nothing", False), ("scan", False)]
)
def test_a_network_is_plain_jax_s_under(under, compiled):
    shapes = [(3, 3, 1, 4), (4, 4), (4, 12), (4, 1)]
    weights = [np.stack([a, 1.1 * a]) for a in arrays_of(shapes, 0)]
    x, rate = np.float32(np.random.default_rng(1).normal(size=(16, 4, 6, 1))), np.float32([1.5, 3.0])
    y = jnp.arange(16) % 6

    def gradient(function):
        return lambda w, rate: jax.value_and_grad(function)(w, x, y, rate)

    new, jaxpr = fitted(
        gradient(with_fast_convolutions(UNDER[under])), [w[0] for w in weights], rate[0], compiled_products=compiled
    )
    assert "layout_constraint" in str(jaxpr)
    lanes = [jax.jit(jax.vmap(f))(weights, rate) for f in (new, gradient(UNDER[under]))]
    assert_agree(
        under,
        *lanes,
        lambda: in_double(lambda *w: jax.vmap(gradient(UNDER[under]))(list(w[:-1]), w[-1]), [*weights, rate]),
    )
