"""Which of JAX's primitives the rewrites know: a set that misses one costs a model its speed without a word."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from vmaptune.rewrite import (
    _columns,
    _factorisations,
    _innermost,
    _jaxpr,
    _precision,
    _random,
    _recurrent,
    _reductions,
    _turned,
    _walk,
)  # fmt: skip

SETS = {
    "_columns.ALIKE": _columns.ALIKE,
    "_columns.OF_ROWS": _columns.OF_ROWS,
    "_factorisations.FACTORISATIONS": _factorisations.FACTORISATIONS,
    "_innermost.BY_NUMBER": _innermost.BY_NUMBER,
    "_innermost.INLINED": _innermost.INLINED,
    "_jaxpr.POOLS": set(_jaxpr.POOLS),
    "_precision.PRODUCTS": set(_precision.PRODUCTS),
    "_random.DRAWS": set(_random.DRAWS),
    "_recurrent.MOVES": _recurrent.MOVES,
    "_reductions.EXTREMES": set(_reductions.EXTREMES),
    "_turned.BY_NUMBER": _turned.BY_NUMBER,
    "_turned.INLINED": _turned.INLINED,
    "_turned.RANDOM": _turned.RANDOM,
    "_turned.REDUCING": _turned.REDUCING,
    "_walk.CALLS": _walk.CALLS,
}
NAMED_BY_THEMSELVES = {"broadcast_in_dim", "concatenate", "gather", "pad"}  # in a rewrite's own code

# What no set holds, and why. Those that only some versions of JAX have are among them.
LEFT_OUT = {
    "reads or writes other places of an array": """
        approx_top_k cumlogsumexp cummax cummin cumprod cumsum dynamic_slice dynamic_update_slice fft iota reduce
        reduce_window reduce_window_min rev scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub
        select_and_gather_add select_and_scatter select_and_scatter_add slice sort split stack tile top_k unstack
    """,
    "a product of another kind": "dot_product_attention_fwd ragged_dot_general scaled_dot scaled_matmul",
    "another form of what is matched, which models don't come with": """
        bitcast_convert_type broadcast_to empty empty2 from_edtype rng_bit_generator rng_uniform tie to_edtype
        zeros_like
    """,
    "draws by other means": """
        iota_2x32_shape philox2x32 philox4x32 random_clone random_gamma random_seed random_unwrap random_wrap
        threefry2x32 threefry4x32
    """,
    "algebra that calls no LAPACK in batches on a CPU, or not there": """
        cholesky_update eigh_jacobi lu_pivots_to_permutation symmetric_product
    """,
    "calls something whose inside is not for us to change": """
        call_exported call_hi_primitive call_hi_primitive_linearized composite core_map cudnn_fusion
        custom_jvp_call_jaxpr custom_lin custom_linear_solve custom_partitioning custom_transpose_call
        custom_vmap_call dce_sink eval_jaxpr ffi_call linear_call platform_index remat_opt run_state shard_map
        xla_pmap
    """,
    "talks to the host": "debug_callback debug_print io_callback pure_callback",
    "concerns several devices, or where an array lies": """
        after_all all_gather all_gather_done all_gather_invariant all_gather_reduced all_gather_reduced_start
        all_gather_start all_to_all all_to_all_done all_to_all_start axis_index create_token device_put
        full_to_shard inspect_sharding pbroadcast pbroadcast_done pbroadcast_dynamic pbroadcast_start pgather pin
        pmax pmin ppermute ppermute_done ppermute_start precv preduced psend psum psum_done psum_invariant
        psum_invariant_start psum_start pvary ragged_all_to_all reduce_scatter reduce_scatter_done
        reduce_scatter_start reduced_vary_cast reduced_vary_cast_p relayout reshard shard_to_full
        sharding_constraint unpin unreduced_pmax unreduced_pmin unreduced_psum unreduced_psum_start
        unreduced_reduce_scatter unreduced_reduce_scatter_start vary_unreduced_cast vary_unreduced_cast_p
        with_memory_space_constraint
    """,
    "concerns references, checks, or sizes without a number": """
        accum_grad_in_ref addupdate box_get box_set check create_linear dim_as_value dimension_size empty_ref
        free_ref freeze get get_variable log_extend log_read new_box new_log new_ref new_variable set_variable
        shape_assertion stage swap unreachable
    """,
    "the inside of a kernel for GPUs": """
        bias_bwd bias_fwd dot_product_attention_bwd dot_product_attention_bwd_wrapper
        dot_product_attention_fp8_bwd dot_product_attention_fp8_bwd_wrapper dot_product_attention_fp8_fwd
        dot_product_attention_fp8_fwd_wrapper dot_product_attention_fwd_wrapper scaled_matmul_wrapper
    """,
}
SPARSE = ("bcoo_", "bcsr_", "coo_", "csr_", "spsolve", "todense")  # jax.experimental.sparse
# Names in our sets that only some of JAX 0.7 to 0.12 have.
OF_SOME_VERSIONS = {"call", "closed_call", "log2", "mulhi", "one_minus_square", "ormqr", "polynomial"}

LISTED = """
import gc
import jax, jax.numpy, jax.nn, jax.scipy.linalg, jax.scipy.special, jax.scipy.stats, jax.experimental.sparse, optax
from flax import linen, nnx
from jax.extend import core
print(*sorted({o.name for o in gc.get_objects() if isinstance(o, core.Primitive)}), sep="\\n")
"""


@pytest.fixture(scope="module")
def primitives() -> set[str]:
    """The names of all that JAX defines, in a process in which nobody else has defined one."""
    done = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")) - {""}


def test_every_primitive_of_this_jax_is_in_a_set_or_left_out_for_a_reason(primitives):
    assert len(primitives) > 200
    known = set().union(NAMED_BY_THEMSELVES, *SETS.values(), *(names.split() for names in LEFT_OUT.values()))
    new = sorted(name for name in primitives - known if not name.startswith(SPARSE))
    assert not new, (
        f"JAX {jax.__version__} defines primitives that vmaptune/rewrite doesn't know: {', '.join(new)}. One that "
        f"computes each number from numbers at its own place belongs in _turned.BY_NUMBER (and below in EXAMPLES), a "
        f"reduction of axes in REDUCING, a call in _walk.CALLS, a factorisation in FACTORISATIONS; any other in "
        f"LEFT_OUT here, with the reason. Until then, models that use it lose speed"
    )


def test_no_set_holds_a_name_that_jax_does_not_define(primitives):
    for where, names in SETS.items():
        assert names - primitives <= OF_SOME_VERSIONS, where


def test_nothing_is_both_in_a_set_and_left_out():
    left_out = {name for names in LEFT_OUT.values() for name in names.split()}
    for where, names in SETS.items():
        assert names & left_out <= _turned.RANDOM, where


def numbers(dtype, seed: int):
    drawn = np.random.default_rng(seed).uniform(0.1, 0.9, (3, 4))
    return jnp.asarray(drawn if jnp.issubdtype(dtype, jnp.inexact) else drawn * 20 - 10, dtype)


OF_ONE = """
    abs acos asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh digamma erf erf_inv erfc exp exp2 expm1
    floor is_finite lgamma log log1p log2 logistic neg one_minus_square optimization_barrier rsqrt sign sin sinh sqrt
    square stop_gradient tan tanh
"""
OF_TWO = "add atan2 complex div eq ge gt igamma igamma_grad_a igammac le lt max min mul ne nextafter pow rem sub"
OF_TWO_INTEGERS = "mulhi shift_left shift_right_arithmetic shift_right_logical"
F, N, B, C = jnp.float32, jnp.int32, jnp.bool_, jnp.complex64
# Each element-wise primitive: a function that is made of it, and the types of the arrays that it takes.
EXAMPLES = {
    **{name: (getattr(lax, name), F) for name in OF_ONE.split() if hasattr(lax, name)},
    **{name: (getattr(lax, name), F, F) for name in OF_TWO.split()},
    **{name: (getattr(lax, name), N, N) for name in OF_TWO_INTEGERS.split() if hasattr(lax, name)},
    **{f"{name}_to": (lambda x, y, p=getattr(lax, f"{name}_to_p"): p.bind(x, y), F, F) for name in ("eq", "le", "lt")},
    "acosh": (lambda x: lax.acosh(1 + x), F),
    "polygamma": (lambda x: lax.polygamma(jnp.full_like(x, 2), x), F),
    "zeta": (lambda x, y: lax.zeta(1 + x, y), F, F),
    "add_any": (lambda x, y: jax.linear_transpose(lambda t: (t, t), x)((x, y))[0], F, F),
    "and": (lax.bitwise_and, B, B),
    "clamp": (lambda x, y: lax.clamp(0.3, x, y), F, F),
    "clz": (lax.clz, N),
    "conj": (lambda x: lax.conj_p.bind(x, input_dtype=x.dtype), C),
    "convert_element_type": (lambda x: lax.convert_element_type(x, N), F),
    "copy": (jnp.copy, F),
    "imag": (lax.imag, C),
    "integer_pow": (lambda x: lax.integer_pow(x, 3), F),
    "name": (lambda x: checkpoint_name(x, "x"), F),
    "not": (lax.bitwise_not, B),
    "or": (lax.bitwise_or, B, B),
    "population_count": (lax.population_count, N),
    "real": (lax.real, C),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 5, 3), F),
    "regularized_incomplete_beta": (lax.betainc, F, F, F),
    "round": (lax.round, F),
    "select_n": (lax.select, B, F, F),
    "xor": (lax.bitwise_xor, B, B),
}  # fmt: skip
if hasattr(lax, "polynomial"):
    EXAMPLES["polynomial"] = (lambda x: lax.polynomial(x, [1.0, 2.0, 3.0]), F)


@pytest.mark.parametrize("name", sorted(_turned.BY_NUMBER - {"layout_constraint"}))
def test_what_is_said_to_go_number_by_number_does(name, primitives):
    if name not in EXAMPLES:
        assert name in OF_SOME_VERSIONS - primitives
        return
    function, *types = EXAMPLES[name]
    arrays = [numbers(dtype, seed) for seed, dtype in enumerate(types)]
    across = [x.T for x in arrays]
    (eqn,), (turned,) = (
        [eqn for eqn in jax.make_jaxpr(function)(*given).jaxpr.eqns if eqn.primitive.name == name]
        for given in (arrays, across)
    )
    assert str(eqn.params) == str(turned.params)  # no shape among them: the same ones do for the transposed array
    assert {v.aval.shape for v in (*eqn.invars, *eqn.outvars)} <= {(), (3, 4)}
    expected, found = function(*arrays), function(*across)
    one = function(*(x.at[1, 2].set(x[0, 0]) for x in arrays))  # one place is changed: no other may be
    elsewhere = np.arange(12).reshape(3, 4) != 6
    for a, b, c in zip(*(jax.tree.leaves(x) for x in (expected, found, one)), strict=True):
        np.testing.assert_allclose(b, a.T, rtol=1e-6)
        np.testing.assert_allclose(c[elsewhere], a[elsewhere], rtol=1e-6)
