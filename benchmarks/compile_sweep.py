"""Compiles products `[M, K] x [K, N]` of lanes under a limit of memory, each as a study's program would have it.

    python benchmarks/compile_sweep.py            a sample of 400 shapes, the ones that are known to be hard among them
    python benchmarks/compile_sweep.py --quick    60 of them
    python benchmarks/compile_sweep.py --all      every M, K and N from 1 to 40, in each of three forms: hours

A form says which factors are each lane's own. The programs are compiled in processes that may have 4 GiB of memory
each; one that dies is told with its shape, and the next goes on with the rest. The sweep fails if one died.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import subprocess
import sys
from collections.abc import Iterator

LARGEST, LIMIT = 40, 4 * 2**30
FORMS = {"own": (True, True), "shared-second": (True, False), "shared-first": (False, True)}
HARD = [(M, K, N) for M in (6, 9, 12, 15) for K in (18, 24, 31) for N in (12, 14, 20, 31)]
Case = tuple[str, int, int, int]


def compile_all() -> None:
    """Compiles the cases that the standard input names, one a line; says which one begins, and which has ended."""
    import vmaptune as vt

    vt.prepare_devices()
    import jax
    import jax.numpy as jnp

    from vmaptune.engine.compiling import compiled, products_are_compiled
    from vmaptune.rewrite import fit_for_cpu

    jax.config.update("jax_enable_compilation_cache", False)
    print("compiled with the program" if products_are_compiled() else "products are not compiled here", flush=True)
    for line in sys.stdin:
        form, *sizes = line.split()
        m, k, n = map(int, sizes)
        print(f"begin {line.strip()}", flush=True)
        factors = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((m, k), (k, n))]
        jaxpr = fit_for_cpu(jax.make_jaxpr(jnp.matmul)(*factors).jaxpr, compiled_products=True)
        lanes = 2 + (m + k + n) % 2
        function = jax.vmap(
            lambda *given, jaxpr=jaxpr: jax.core.eval_jaxpr(jaxpr, (), *given),
            in_axes=[0 if own else None for own in FORMS[form]],
        )
        given = [
            jax.ShapeDtypeStruct((lanes, *factor.shape) if own else factor.shape, factor.dtype)
            for factor, own in zip(factors, FORMS[form], strict=True)
        ]
        compiled(jax.jit(function).lower(*given), products=True)
        print("end", flush=True)


def sweep(cases: list[Case]) -> Iterator[Case]:
    """The cases whose compilation ended the process."""
    started = len(cases)
    while cases:
        child = subprocess.Popen(
            [sys.executable, __file__, "--child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        )  # fmt: skip
        out, _ = child.communicate("".join(f"{form} {m} {k} {n}\n" for form, m, k, n in cases))
        words = out.split("\n")
        done, begun = words.count("end"), sum(word.startswith("begin") for word in words)
        if child.returncode and not begun:
            sys.exit("the process died before it compiled anything: is there less memory than 4 GiB?")
        print(f"{words[0]}: {started - len(cases) + done} of {started}", flush=True)
        if begun > done:
            yield cases[done]
        cases = cases[begun:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 shapes")
    parser.add_argument("--all", action="store_true", help="every M, K, N from 1 to 40")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return compile_all()
    sizes = range(1, LARGEST + 1)
    if args.all:
        cases = [(form, *shape) for form in FORMS for shape in itertools.product(sizes, repeat=3)]
    else:
        draw = random.Random(args.seed)
        hard = [(form, *shape) for form in FORMS for shape in HARD]
        drawn = [(draw.choice(list(FORMS)), *(draw.choice(sizes) for _ in range(3))) for _ in range(400 - len(hard))]
        cases = draw.sample(hard, 20) + drawn[:40] if args.quick else hard + drawn
    dead = list(sweep(cases))
    for case in dead:
        print("died:", *case)
    print(f"{len(cases)} products, {len(dead)} deaths")
    sys.exit(bool(dead))


if __name__ == "__main__":
    main()
