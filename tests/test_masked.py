"""Masked layers: a narrow lane is the narrow model, and its padding stays zero."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rewritten import in_64_bits

import vmaptune as vt
from vmaptune.engine.alone import Alone
from vmaptune.engine.functions import LaneFunctions
from vmaptune.experiment import Statics, find_statics, lane_arguments
from vmaptune.nn._batch import padded_batch
from vmaptune.nn._laws import LAWS
from vmaptune.search.zoom import Scored, zoom
from vmaptune.study._structure import within_padding
from vmaptune.task import Hyperparameters

MOST = {"width": 24, "depth": 3, "activation": ("relu", "tanh", "gelu")}
X = jax.random.normal(jax.random.key(0), (16, 5))
Y = jax.random.normal(jax.random.key(1), (16, 3))


class Net(nnx.Module):
    """Every masked layer in a row."""

    def __init__(self, hp, rngs):
        width, self.act = vt.nn.size(hp, "width"), vt.nn.activation(hp, "activation")
        self.first = vt.nn.Linear(5, width, rngs=rngs)
        self.norm = vt.nn.LayerNorm(width, rngs=rngs)
        self.blocks = vt.nn.Blocks(
            vt.nn.size(hp, "depth"),
            lambda rngs: vt.nn.Linear(width, width, kernel_init="he_uniform", rngs=rngs),
            between=self.act, rngs=rngs,
        )  # fmt: skip
        self.batch_norm = vt.nn.BatchNorm(width, rngs=rngs)
        self.rms = vt.nn.RMSNorm(width, rngs=rngs)
        self.last = vt.nn.Linear(width, 3, kernel_init="glorot_normal", rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.act(self.first(x)))
        return self.last(self.rms(self.batch_norm(self.blocks(x))))


def loss_and_grads(hp, seed):
    module = Net(hp, nnx.Rngs(jax.random.key(seed)))
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    return params, *jax.value_and_grad(functools.partial(squared_error, hp))(params)


def squared_error(hp, params):
    module = Net(hp, nnx.Rngs(0))
    nnx.update(module, params)
    return ((module(X) - Y) ** 2).mean()


def masked_settings(width, depth, activation):
    chosen = vt.nn.Chosen(activation, MOST["activation"])
    return Hyperparameters({"width": width, "depth": depth, "activation": chosen}, MOST)


@functools.cache
def masked():
    def run(width, depth, activation, seed):
        params, loss, grads = loss_and_grads(masked_settings(width, depth, activation), seed)
        return params, loss, grads

    return jax.jit(jax.vmap(run))


def flat(tree) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def narrow_part(wide: np.ndarray, narrow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corner of a padded array that the narrow one fills, and all that lies outside it."""
    corner = tuple(slice(0, n) for n in narrow.shape)
    outside = wide.copy()
    outside[corner] = 0
    return wide[corner], outside


def in_float64(hp, params):
    """Loss and gradients of the dense model at these parameters, and by how much rounding the parameters and the data
    to float32 moves the loss and any gradient."""
    with in_64_bits(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the batch norm's running averages, which stay float32

        def loss_of(params, x):
            module = Net(hp, nnx.Rngs(0))
            nnx.update(module, params)
            return ((module(x) - np.asarray(Y, np.float64)) ** 2).mean()

        both = jax.jit(jax.value_and_grad(loss_of))
        given = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, X))
        exact = jax.tree.map(np.asarray, both(*given))
        off = np.zeros(2)
        for draw in range(4):
            signs = np.random.default_rng(draw)
            moved = both(*jax.tree.map(lambda a, signs=signs: a * (1 + 6e-8 * signs.choice([-1, 1], a.shape)), given))
            off = np.maximum(off, [abs(moved[0] - exact[0]), furthest(moved[1], exact[1])])
    return *exact, *off


def furthest(found, exact) -> float:
    return max(
        float(np.abs(a - b).max(initial=0.0)) for a, b in zip(*map(jax.tree.leaves, (found, exact)), strict=True)
    )


@settings(max_examples=5, deadline=None)
@given(width=st.integers(3, 24), depth=st.integers(0, 3), activation=st.integers(0, 2), seed=st.integers(0, 2**31 - 1))
@example(width=4, depth=1, activation=2, seed=2)  # a norm over few units blows rounding up: 1.2e-5 of a gradient
@example(width=3, depth=0, activation=1, seed=87587712)
def test_a_masked_narrow_lane_equals_the_dense_narrow_model(width, depth, activation, seed):
    """Judged by float64: the masked lane is as near to it as float32 can be held to, by what rounding the inputs makes
    of it and by how far the dense model in float32 is off."""
    lanes = [[width, 24], [depth, 1], [activation, 0], [seed, 3]]  # beside a lane of another shape
    params, loss, grads = masked()(*(jnp.asarray(v) for v in lanes))
    dense_hp = Hyperparameters({"width": width, "depth": depth, "activation": MOST["activation"][activation]})
    dense_params, dense_loss, dense_grads = jax.jit(lambda s: loss_and_grads(dense_hp, s))(seed)
    exact_loss, exact_grads, loss_off, grads_off = in_float64(dense_hp, dense_params)
    scale = 1e-6
    loss_off, grads_off = (
        max(loss_off, abs(dense_loss - exact_loss)),
        max(grads_off, furthest(dense_grads, exact_grads)),
    )
    np.testing.assert_allclose(loss[0], exact_loss, rtol=scale, atol=scale + 10 * loss_off)
    for wide, narrow, tolerance, off in (
        (params, dense_params, scale, 0.0), (grads, exact_grads, 5 * scale, 10 * grads_off),
    ):  # fmt: skip
        wide, narrow = flat(wide), flat(narrow)
        largest = max((np.abs(v).max() for v in narrow.values()), default=1.0)
        for name, array in wide.items():
            if name not in narrow:
                assert not array[0].any()  # a block beyond the depth
                continue
            inside, outside = narrow_part(array[0], narrow[name])
            atol = tolerance * max(1.0, largest) + off
            np.testing.assert_allclose(inside, narrow[name], rtol=scale, atol=atol)
            assert not outside.any()


@settings(max_examples=8, deadline=None)
@given(width=st.integers(1, 9), law=st.sampled_from(sorted(LAWS)), seed=st.integers(0, 2**31 - 1))
def test_the_first_numbers_are_flax_own_of_the_narrow_layer(width, law, seed):
    flax_law = getattr(jax.nn.initializers, law)()
    theirs = nnx.Linear(7, width, kernel_init=flax_law, rngs=nnx.Rngs(seed)).kernel[...]
    ours = vt.nn.Linear(7, vt.nn.Size(jnp.int32(width), 9), kernel_init=law, rngs=nnx.Rngs(seed)).kernel[...]
    np.testing.assert_allclose(ours[:, :width], theirs, rtol=3e-7)
    assert not ours[:, width:].any()


class Plain(nnx.Module):
    def __init__(self, hp, rngs):
        width = vt.nn.size(hp, "width")
        self.first = vt.nn.Linear(5, width, rngs=rngs)
        self.blocks = vt.nn.Blocks(
            vt.nn.size(hp, "depth"),
            lambda rngs: vt.nn.Linear(width, width, rngs=rngs),
            between=jax.nn.sigmoid,
            rngs=rngs,
        )
        self.last = vt.nn.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.blocks(jax.nn.sigmoid(self.first(x))))  # sigmoid(0) is not 0: padding must be masked


OPTIMIZERS = {
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "momentum and decay, clipped": optax.chain(
        optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9, nesterov=True)
    ),
    "rmsprop": optax.rmsprop(0.01, momentum=0.9),
    "lion": optax.lion(0.01, weight_decay=0.1),
    "lamb": optax.lamb(0.1, weight_decay=0.1),
    "lars": optax.lars(0.1, weight_decay=0.1),
}


def test_padding_stays_exactly_zero_under_any_optimizer_and_the_rest_trains_like_the_narrow_model():
    def trained(hp):
        params = nnx.to_pure_dict(nnx.state(Plain(hp, nnx.Rngs(0)), nnx.Param))

        def loss(params):
            module = Plain(hp, nnx.Rngs(0))
            nnx.update(module, params)
            return ((module(X) - Y) ** 2).mean()

        found = {}
        for name, optimizer in OPTIMIZERS.items():

            def step(_, state, optimizer=optimizer):
                updates, opt = optimizer.update(jax.grad(loss)(state[0]), state[1], state[0])
                return optax.apply_updates(state[0], updates), opt

            found[name] = jax.lax.fori_loop(0, 5, step, (params, optimizer.init(params)))
        return found

    wide = flat(
        jax.jit(lambda w, d: trained(Hyperparameters({"width": w, "depth": d}, {"width": 9, "depth": 3})))(6, 2)
    )
    narrow = flat(jax.jit(lambda: trained(Hyperparameters({"width": 6, "depth": 2})))())
    for path, array in wide.items():
        if path not in narrow:
            assert not array.any(), path
        elif array.ndim:
            inside, outside = narrow_part(array, narrow[path])
            assert not outside.any(), path
            np.testing.assert_allclose(inside, narrow[path], rtol=1e-3, atol=1e-4, err_msg=path)


def test_a_convolution_with_a_number_of_channels_per_lane():
    images = jax.random.normal(jax.random.key(2), (4, 6, 6, 2))

    def net(width, seed):
        rngs = nnx.Rngs(seed)
        first = vt.nn.Conv(2, width, (3, 3), rngs=rngs)
        second = vt.nn.Conv(width, 3, (3, 3), strides=2, rngs=rngs)
        return second(jax.nn.sigmoid(first(images))), second.kernel[...]

    for width in (1, 4, 5):
        wide, kernel = net(vt.nn.Size(jnp.int32(width), 8), 3)
        narrow, narrow_kernel = net(width, 3)
        np.testing.assert_allclose(wide, narrow, atol=2e-6)
        np.testing.assert_allclose(kernel[:, :, :width], narrow_kernel, rtol=1e-6)
        assert not kernel[:, :, width:].any()


class Linen(linen.Module):
    width: object

    @linen.compact
    def __call__(self, x, train):
        x = vt.nn.LinenConv(self.width, (2,), name="conv")(x[..., None])
        x = vt.nn.LinenBatchNorm(inputs=self.width, use_running_average=not train, name="batch")(x)
        x = vt.nn.LinenLayerNorm(inputs=self.width, name="layer")(jax.nn.softplus(x))
        x = vt.nn.LinenDense(self.width, inputs=self.width, name="dense")(x)
        return vt.nn.LinenDense(2, inputs=self.width, kernel_init="he_normal", name="last")(jax.nn.softplus(x))


class Flax(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x, train):
        x = linen.Conv(self.width, (2,), name="conv")(x[..., None])
        x = linen.BatchNorm(use_running_average=not train, name="batch")(x)
        x = linen.LayerNorm(name="layer")(jax.nn.softplus(x))
        x = linen.Dense(self.width, name="dense")(x)
        return linen.Dense(2, kernel_init=jax.nn.initializers.he_normal(), name="last")(jax.nn.softplus(x))


@pytest.mark.parametrize("width", [3, 5, 8])
def test_linen_layers_equal_flax_own(width):
    def run(module):
        variables = module.init(jax.random.key(0), X, train=False)

        def loss(params):
            out, changed = module.apply({**variables, "params": params}, X, train=True, mutable=["batch_stats"])
            return (out**2).mean(), changed

        (value, changed), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return value, flat(variables["params"]), flat(grads), flat(changed)

    theirs = run(Flax(width))
    dense = run(Linen(width))
    wide = run(Linen(vt.nn.Size(jnp.int32(width), 8)))
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(wide[0], theirs[0], rtol=1e-6)
    for ours, flax_own, padding_is_zero in zip(wide[1:], theirs[1:], (True, True, False), strict=True):
        assert ours.keys() == flax_own.keys()
        for path in ours:
            inside, outside = narrow_part(ours[path], flax_own[path])
            # rounding within two norms is of the size of an array's largest number, whatever the others are
            np.testing.assert_allclose(inside, flax_own[path], rtol=0, atol=2e-6 + 1e-5 * abs(flax_own[path]).max())
            assert not (padding_is_zero and outside.any()), path


def test_only_a_lanes_own_examples_count():
    values = jax.random.normal(jax.random.key(0), (16, 3))
    for size in (1, 5, 16):
        with padded_batch(vt.nn.Size(jnp.int32(size), 16)) as batch:

            def loss(v):
                norm = vt.nn.BatchNorm(3, rngs=nnx.Rngs(0))  # in here: flax forbids changing one of an outer trace
                return vt.nn.batch_mean(norm(v) ** 3), norm.var[...]

            (value, var), grad = jax.value_and_grad(loss, has_aux=True)(values)
        assert batch.averaged
        own = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(value, (own(values[:size]) ** 3).mean(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(var, own.var[...], rtol=1e-5)
        assert not grad[size:].any()
    np.testing.assert_array_equal(vt.nn.batch_mean(values), values.mean())


def test_mistakes_are_told():
    traced = jnp.int32(3)
    with pytest.raises(vt.InputError, match="largest value"):
        vt.nn.size(Hyperparameters({"width": traced}), "width")
    assert vt.nn.size(Hyperparameters({"width": traced}), "width", 8).most == 8
    with pytest.raises(vt.InputError, match="most=4"):
        vt.nn.Size(5, 4)
    with pytest.raises(vt.InputError, match="glorot_uniform"):
        vt.nn.Linear(3, 4, kernel_init="lecun", rngs=nnx.Rngs(0))
    fans = jax.nn.initializers.orthogonal()
    with pytest.raises(vt.InputError, match="must not depend on the shape"):
        vt.nn.Linear(3, vt.nn.Size(traced, 4), kernel_init=fans, rngs=nnx.Rngs(0))
    with pytest.raises(vt.InputError, match="'swish' has none"):
        vt.nn.activation(Hyperparameters({"activation": "swish"}), "activation")


def shapes_experiment(**changes) -> vt.Experiment:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    y = x.sum(1, keepdims=True) * np.ones(3, np.float32)

    def loss(model, batch):
        return vt.nn.batch_mean((model(batch[0]) - batch[1]) ** 2)

    parts = {"model": Plain, "loss": loss} | changes
    return vt.Experiment(
        space={"rate": vt.loguniform(1e-3, 1e-1), "width": vt.ordinal([3, 6, 9]), "depth": vt.ordinal([1, 3]),
               "batch": vt.ordinal([4, 8])},
        optimizer=lambda hp, steps: optax.adam(hp.rate), data=vt.Data(train=(x[:32], y[:32]), valid=(x[32:], y[32:])),
        batch_size="batch", steps=20, **parts,
    )  # fmt: skip


def test_an_experiment_of_masked_layers_is_one_program_and_trains_like_the_dense_one():
    experiment = shapes_experiment()
    statics = find_statics(experiment)
    assert statics.static == ()
    assert statics.structure == ("width", "depth", "batch")
    values = {"rate": 0.01, "width": 6, "depth": 1, "batch": 4}
    found = []
    for each in (statics, statics.with_static(statics.structure)):
        traced = lane_arguments(experiment.space, each.traced)
        functions = LaneFunctions(experiment.build(), dict(each.group_of(values)), traced)
        lane = Alone(functions, experiment.space.lane_values(values, each.traced), 7)
        found.append([(p.loss, p.metrics["loss"]) for p in lane.train([1, 20])])
    np.testing.assert_allclose(found[0], found[1], rtol=2e-5)


def test_a_loss_that_takes_the_mean_of_padded_batches_itself_makes_the_batch_size_static():
    experiment = shapes_experiment(loss=lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean())
    statics = find_statics(experiment)
    assert statics.static == ("batch",)
    assert statics.structure == ("width", "depth")


def test_a_zoom_that_expands_stays_within_the_padding():
    first = vt.Space({"width": vt.randint(2, 8), "count": vt.randint(2, 8), "depth": vt.ordinal([1, 2])})
    held = [Scored(i, {"width": n, "count": n, "depth": 2}, float(i)) for i, n in enumerate([8, 8, 8, 5, 8, 6])]
    wider = zoom(first, first, held, expand=True)
    assert wider["width"].high > 8
    masked = Statics((), ("width", "count", "depth"), ("width", "depth"))
    space, notes = within_padding(wider, first, masked)
    assert (space["width"].high, space["count"], space["depth"]) == (8, wider["count"], wider["depth"])
    assert wider["count"].high > 8
    assert len(notes) == 1
    assert "width: --expand stays within 2 and 8" in notes[0]
    assert within_padding(wider, first, masked.with_static(["width"])) == (wider, [])
