"""Every Triton kernel compiles to machine code for real GPUs; the compiler needs none.

The interpreter, under which the kernels' numbers are tested, takes more than the compiler does.
"""

from __future__ import annotations

from typing import Any

import pytest

triton = pytest.importorskip("triton")
compiler = pytest.importorskip("triton.compiler")
backends = pytest.importorskip("triton.backends.compiler")

from sn_imagenet.norms.backends import (  # noqa: E402
    triton_kernels,
    triton_pooling,
    triton_pooling_backward,
)

MODULES = (triton_kernels, triton_pooling, triton_pooling_backward)
KERNELS = {
    name: kernel
    for module in MODULES
    for name, kernel in vars(module).items()
    if name.endswith("_kernel")
}
ACTIVATIONS = {"x", "y", "grad", "dx"}
SIZES = {"channels", "area", "per_split", "tables", "splits", "rows", "replicas", "groups"}
SIZES |= {"blocks_c", "stride_n", "stride_c", "stride_p", "weights_at", "ln_at", "gn_at", "bn_at"}
# Omega by places: where each member stands, -1 if it does not.
MIXTURES = {
    "in, ln, bn": {"COUNT": 3, "IN_K": 0, "LN_K": 1, "BN_K": 2, "GN_K": -1},
    "bn": {"COUNT": 1, "IN_K": -1, "LN_K": -1, "BN_K": 0, "GN_K": -1},
    "in, ln, bn, gn": {"COUNT": 4, "IN_K": 0, "LN_K": 1, "BN_K": 2, "GN_K": 3},
}


def compile_for(
    capability: int, kernel: Any, activation: str, constants: dict[str, Any], ones: set[str]
) -> Any:
    """The compiled kernel. ``ones``: sizes of 1, which Triton turns into constants."""
    signature, constexprs = {}, {}
    for parameter in kernel.params:
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constexprs[name] = "constexpr", constants[name]
        elif name in ones:
            signature[name], constexprs[name] = "constexpr", 1
        elif name in SIZES:
            signature[name] = "i32"
        else:
            signature[name] = f"*{activation if name in ACTIVATIONS else 'fp32'}"
    source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
    return triton.compile(source, target=backends.GPUTarget("cuda", capability, 32))


@pytest.mark.parametrize("ones", [{"stride_p"}, {"stride_c"}, {"stride_c", "area", "per_split"}])
@pytest.mark.parametrize("activation", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", [name for name in KERNELS if not name.startswith("pool_")])
def test_a_pass_compiles_for_hopper(name: str, activation: str, ones: set[str]) -> None:
    tile = {"BC": 4, "BP": 256, "BLOCK": 256}
    assert compile_for(90, KERNELS[name], activation, tile, ones).asm["cubin"]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("pool_")])
def test_the_pooling_compiles_for_hopper(name: str, mixture: str, stored: bool) -> None:
    places = MIXTURES[mixture]
    constants = {
        **places,
        "STORED": stored,
        "LOGITS": places["COUNT"] > 1,
        "AFFINE": True,
        "EPS": 1e-5,
        "BLOCK": 1024,
        "ROWS": 4,
    }
    assert compile_for(90, KERNELS[name], "fp32", constants, {"replicas"}).asm["cubin"]


@pytest.mark.parametrize("capability", [80, 89])
def test_the_passes_compile_for_older_gpus(capability: int) -> None:
    tile = {"BC": 4, "BP": 256, "BLOCK": 256}
    for name, kernel in KERNELS.items():
        if not name.startswith("pool_"):
            assert compile_for(capability, kernel, "bf16", tile, {"stride_p"}).asm["cubin"]
