"""Every Triton kernel compiles to machine code for real GPUs. The compiler itself needs no GPU.

The interpreter, which tests the kernels' numbers, accepts more than the compiler does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
compiler = pytest.importorskip("triton.compiler")
backends = pytest.importorskip("triton.backends.compiler")

from sn_imagenet.norms.closed_form import triton_backward, triton_forward  # noqa: E402
from sn_imagenet.norms.kernels import triton_kernels  # noqa: E402
from sn_imagenet.norms.kernels.triton_tiles import TILES, Launch, Tile  # noqa: E402

pytestmark = pytest.mark.slow

MODULES = (triton_kernels, triton_forward, triton_backward)
KERNELS = {
    name: kernel
    for module in MODULES
    for name, kernel in vars(module).items()
    if name.endswith("_kernel")
}
ACTIVATION_KERNELS = [name for name in KERNELS if not name.startswith("combine_")]
ACTIVATIONS = {"x", "y", "grad", "dx", "residual", "masked"}
SIZES = {"channels", "area", "per_split", "tables", "splits", "rows", "replicas", "groups"}
SIZES |= {"programs", "entries"}
SIZES |= {"blocks_c", "stride_n", "stride_c", "stride_p", "weights_at", "ln_at", "gn_at", "bn_at"}
# Index of each member in Omega, -1 if it is not in Omega.
OMEGA_CONSTANTS = {
    "in, ln, bn": {"COUNT": 3, "IN_K": 0, "LN_K": 1, "BN_K": 2, "GN_K": -1},
    "bn": {"COUNT": 1, "IN_K": -1, "LN_K": -1, "BN_K": 0, "GN_K": -1},
    "in, ln, bn, gn": {"COUNT": 4, "IN_K": 0, "LN_K": 1, "BN_K": 2, "GN_K": 3},
}


# Variants of the kernels: neither ReLU nor residual, ReLU only, both.
EPILOGUES = (
    {"RELU_MASK": 0, "RELU": False, "RESIDUAL": False},
    {"RELU_MASK": 1, "RELU": True, "RESIDUAL": False},
    {"RELU_MASK": 2, "RELU": True, "RESIDUAL": True},
)


def compile_for(
    capability: int,
    kernel: Any,
    activation: str,
    constants: dict[str, Any],
    ones: set[str],
    num_warps: int = 4,
) -> Any:
    """Compile a kernel. ``ones``: sizes that are 1, which Triton turns into constants."""
    signature, constexprs = {}, {}
    for parameter in kernel.params:
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constexprs[name] = "constexpr", constants[name]
        elif name in ones:
            signature[name], constexprs[name] = "constexpr", 1
        elif name in SIZES:
            signature[name] = "i32"
        elif name in ("momentum", "unbias"):
            signature[name] = "fp32"
        else:
            signature[name] = f"*{activation if name in ACTIVATIONS else 'fp32'}"
    source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
    target = backends.GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": num_warps})


def tile_constants(tile: Tile, rows: bool) -> dict[str, Any]:
    """The constants of a launch for one of ResNet-50's shapes."""
    blocks = dict(Launch(torch.Size((32, 256, 56, 56)), rows, tile).blocks)
    return {"BLOCK": 128, **blocks}


@pytest.mark.parametrize("ones", [{"stride_p"}, {"stride_c"}, {"stride_c", "area", "per_split"}])
@pytest.mark.parametrize("activation", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ACTIVATION_KERNELS)
def test_a_kernel_compiles_for_hopper(name: str, activation: str, ones: set[str]) -> None:
    constants = {**tile_constants(TILES[0], "stride_p" in ones), **EPILOGUES[0]}
    assert compile_for(90, KERNELS[name], activation, constants, ones).asm["cubin"]


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("name", [n for n in ACTIVATION_KERNELS if n != "join_moments_kernel"])
def test_every_tile_and_epilogue_compiles_for_hopper(name: str, tile: Tile, rows: bool) -> None:
    kernel, ones = KERNELS[name], {"stride_p" if rows else "stride_c"}
    flags = {parameter.name for parameter in kernel.params} & EPILOGUES[0].keys()
    for epilogue in EPILOGUES if flags and tile == TILES[0] else EPILOGUES[1:2]:
        blocks = tile_constants(tile, rows)
        warps = blocks.pop("num_warps")
        compiled = compile_for(90, kernel, "bf16", {**blocks, **epilogue}, ones, warps)
        assert compiled.asm["cubin"] and compiled.metadata.num_warps == warps


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("omega", OMEGA_CONSTANTS)
@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("combine_")])
def test_every_combine_kernel_compiles_for_hopper(name: str, omega: str, stored: bool) -> None:
    indices = OMEGA_CONSTANTS[omega]
    constants = {
        **indices,
        "STORED": stored,
        "LOGITS": indices["COUNT"] > 1,
        "GAMMA": True,
        "BETA": True,
        "EPS": 1e-5,
        "BLOCK": 1024,
        "ROWS": 4,
    }
    assert compile_for(90, KERNELS[name], "fp32", constants, {"replicas"}).asm["cubin"]


@pytest.mark.parametrize("capability", [80, 89])
def test_the_activation_kernels_compile_for_older_gpus(capability: int) -> None:
    constants = {**tile_constants(TILES[0], True), **EPILOGUES[1]}
    for name in ACTIVATION_KERNELS:
        assert compile_for(capability, KERNELS[name], "bf16", constants, {"stride_p"}).asm["cubin"]
