"""What the Triton kernels compile to for real GPUs. The compiler itself needs no GPU.

The interpreter, which tests the kernels' numbers, accepts more than the compiler does, and shows
nothing of speed. Kernels are compiled here with the facts that Triton learns from a launch.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
compiler = pytest.importorskip("triton.compiler")
backends = pytest.importorskip("triton.backends.compiler")

from sn_imagenet.data.triton_pixels import BLOCK, normalize_kernel  # noqa: E402
from sn_imagenet.norms.closed_form import triton_backward, triton_forward  # noqa: E402
from sn_imagenet.norms.kernels import triton_kernels, triton_launch  # noqa: E402
from sn_imagenet.norms.kernels.triton_tiles import TILES, Launch, Tile  # noqa: E402

pytestmark = pytest.mark.slow

KERNELS = {
    name: kernel
    for module in (triton_kernels, triton_forward, triton_backward)
    for name, kernel in vars(module).items()
    if name.endswith("_kernel")
}
ACTIVATIONS = {"x", "y", "grad", "dx", "residual", "masked", "out"}
DTYPES = {"batches": "i64", "stored": "u8"}
SIZES = {"area", "per_part", "tables", "parts", "rows", "replicas", "channels", "groups"}
SIZES |= {"weights_at", "ln_at", "gn_at", "bn_at", "values"}
# Index of each member in Omega, -1 if it is not in Omega.
OMEGA_CONSTANTS = {
    "in, ln, bn": {"COUNT": 3, "IN_K": 0, "LN_K": 1, "BN_K": 2, "GN_K": -1},
    "bn": {"COUNT": 1, "IN_K": -1, "LN_K": -1, "BN_K": 0, "GN_K": -1},
    "in, ln, bn, gn": {"COUNT": 4, "IN_K": 0, "LN_K": 1, "BN_K": 2, "GN_K": 3},
}
# The kernels over the activation, with the variants that need most registers.
PASSES: dict[str, list[dict[str, Any]]] = {
    "moments": [{}],
    "affine": [{"RELU": True, "RESIDUAL": True}],
    "gradient_sums": [{"RELU_MASK": 1}, {"RELU_MASK": 2}],
    "input_gradient": [{"RELU_MASK": 1}],
}
SHAPE = torch.Size((32, 256, 56, 56))
CAPABILITIES = (80, 90, 100, 120)
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compile_for(
    capability: int,
    kernel: Any,
    activation: str,
    numbers: Sequence[int],
    constants: dict[str, Any],
    num_warps: int = 4,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Compile a kernel as a launch with ``numbers`` after aligned tensors would."""
    signature, constexprs, attributes = {}, {}, {}
    first = sum(not parameter.is_constexpr for parameter in kernel.params) - len(numbers)
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constexprs[name] = "constexpr", constants[name]
        elif index < first:
            dtype = activation if name in ACTIVATIONS else DTYPES.get(name, "fp32")
            signature[name] = f"*{dtype}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif (number := numbers[index - first]) == 1:
            signature[name], constexprs[name] = "constexpr", 1
        else:
            signature[name] = "i32"
            if number % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = compiler.ASTSource(
        fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes
    )
    target = backends.GPUTarget("cuda", capability, 32)
    options = {"num_warps": num_warps, **triton_launch.OPTIONS, **(options or {})}
    return triton.compile(source, target=target, options=options)


def compile_pass(
    name: str, flags: dict[str, Any], capability: int, activation: str, tiles: Launch
) -> Any:
    numbers = tiles.elementwise if name in ("affine", "input_gradient") else tiles.reduction
    constants = {**tiles.blocks, **flags}
    warps = constants.pop("num_warps")
    return compile_for(capability, KERNELS[f"{name}_kernel"], activation, numbers, constants, warps)


def loops(ptx: str) -> list[str]:
    """The code between each label and the last jump back to it."""
    found = []
    for label in re.finditer(r"^(\$L\w+):", ptx, re.MULTILINE):
        if back := list(re.finditer(rf"bra(?:\.uni)?\s+\{label[1]};", ptx[label.end() :])):
            found.append(ptx[label.end() : label.end() + back[-1].end()])
    return found


@pytest.mark.parametrize("activation", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("capability", "tile", "rows"),
    [
        *((90, tile, False) for tile in TILES),
        *((capability, TILES[0], False) for capability in (80, 100, 120)),
        (90, TILES[0], True),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_streams(
    name: str, capability: int, tile: Tile, rows: bool, activation: str, tmp_path: Path
) -> None:
    """The loop over the pixels has 16-byte loads and stores only, and its threads do not wait for
    each other. Nothing is spilled, and at least six programs of 128 threads run at once.
    """
    tiles = Launch(SHAPE, rows, tile if name in ("moments", "affine") else tile.half(), 132)
    for flags in PASSES[name]:
        compiled = compile_pass(name, flags, capability, activation, tiles)
        (body,) = loops(compiled.asm["ptx"])
        moved = re.findall(r"\b(?:ld|st)\.global\S*", body)
        assert moved and all(".v4.b32" in access for access in moved), moved
        assert not re.search(r"\bbar\.|\bbarrier\.|\bshfl\.|\b(ld|st)\.shared", body)
        if not TOOL.exists():
            continue
        binary = tmp_path / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage = subprocess.check_output([TOOL, "-res-usage", binary], stderr=-2, text=True)
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        assert stack == 0 and registers <= 80, usage


@pytest.mark.parametrize("shape", [(3, 65, 7, 7), (2, 48, 1, 1), (1, 64, 40, 40)], ids=str)
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_compiles_for_odd_shapes(name: str, shape: tuple[int, ...]) -> None:
    flags = dict.fromkeys(PASSES[name][0], 0)
    tiles = Launch(torch.Size(shape), shape[1] == 64, TILES[0], 132)
    assert compile_pass(name, flags, 90, "fp16", tiles).asm["cubin"]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_joining_moments_compiles(capability: int) -> None:
    numbers, constants = (3136, 64, 2048, 49), {"PARTS": 64, "BLOCK": 32}
    kernel = KERNELS["join_moments_kernel"]
    assert compile_for(capability, kernel, "fp32", numbers, constants).asm["cubin"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_images_are_normalized_without_fused_rounding(capability: int, dtype: str) -> None:
    constants = {"SCALE": 1 / 255, "SHIFTS": True, "BLOCK": BLOCK}
    options = {"enable_fp_fusion": False}
    compiled = compile_for(
        capability, normalize_kernel, dtype, (2**24, 3 * 2**16), constants, options=options
    )
    assert "fma" not in compiled.asm["ptx"] and "st.global.v4.b32" in compiled.asm["ptx"]
    assert ("cvt.rn.bf16" in compiled.asm["ptx"]) == (dtype == "bf16")


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("omega", OMEGA_CONSTANTS)
@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("combine_")])
def test_every_combine_kernel_compiles(
    name: str, omega: str, stored: bool, capability: int
) -> None:
    indices = OMEGA_CONSTANTS[omega]
    constants = {
        **indices,
        "STORED": stored,
        "LOGITS": indices["COUNT"] > 1,
        "GAMMA": True,
        "BETA": True,
        "EPS": 1e-5,
        "MOMENTUM": -1.0 if stored else 0.1,
        "BLOCK": 256,
        "ROWS": 8,
    }
    kernel = KERNELS[name]
    count = sum(p.name in SIZES and not p.is_constexpr for p in kernel.params)
    numbers = [1 if p.name == "replicas" else 48 for p in kernel.params if p.name in SIZES]
    assert count == len(numbers)
    assert compile_for(capability, kernel, "fp32", numbers, constants).asm["cubin"]
