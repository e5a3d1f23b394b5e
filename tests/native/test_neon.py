"""The NEON kernels, compiled for ARM and run under an emulator, against the kernels of this machine."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from paceline.kernels import compiled
from paceline.kernels.packing import FORMATS, LANES, TYPES, pack
from paceline.targets.weights import aligned
from tests.native.models import random_blocks

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SOURCES = Path(__file__).parents[2] / "src" / "paceline" / "kernels" / "cpp"
UNITS = [SOURCES / f"{name}.cpp" for name in ("model", "threads", "dispatch", "isa_portable", "isa_neon")]
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-march=armv8.2-a+dotprod"]
FLAGS += ["-static", "-pthread", "-DPACELINE_NEON", f"-I{SOURCES}"]

pytestmark = [
    pytest.mark.prove,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}"
    ),
]
assert compiled is not None, "these tests need the compiled kernels"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("neon") / "multiply"
    main = Path(__file__).parent / "cpp" / "multiply.cpp"
    subprocess.run([COMPILER, *FLAGS, "-o", path, *UNITS, main], check=True)
    return path


def run(program: Path, isa: str, cases: bytes) -> bytes:
    return subprocess.run([EMULATOR, program, isa], input=cases, capture_output=True, check=True).stdout


# Other compiled sets with fused multiply-adds must agree to the bit; avx2 stands for them here.
@pytest.mark.parametrize(("emulated", "here"), [("neon-dotprod", "avx2"), ("portable", "portable")])
def test_products_equal_this_machines_to_the_bit(program: Path, emulated: str, here: str) -> None:
    if here not in compiled.available():
        pytest.skip(f"{here} does not run here")
    rng = np.random.default_rng(0)
    cases, wanted = b"", b""
    for kind in TYPES:
        rows, columns = 35, 3 * FORMATS[kind].multiple
        packed = aligned(pack(kind, random_blocks(kind, rows, columns, rng)))
        for n in (1, 2, 3, 4, 5, 17):
            x = rng.standard_normal((n, columns)).astype(np.float32)
            cases += struct.pack("8siii", kind.encode(), rows, columns, n) + packed.tobytes() + x.tobytes()
            out = np.empty((n, -(-rows // LANES) * LANES), np.float32)
            compiled.Product(kind, rows, columns, packed, threads=1, isa=here).multiply(x, out)
            wanted += out.tobytes()
    found = run(program, emulated, cases)
    np.testing.assert_array_equal(np.frombuffer(found, np.float32), np.frombuffer(wanted, np.float32))


def test_draws_equal_this_machines(program: Path) -> None:
    rng = np.random.default_rng(1)
    cases, wanted = b"", []
    for case in range(300):
        size = int(rng.choice([1, 15, 16, 100, 1000, 20000]))
        logits = (rng.standard_normal(size) * rng.choice([0.1, 2, 8])).astype(np.float32)
        if case % 2:
            logits = np.round(logits * 2) / 2  # many ties
        temperature = float(rng.choice([0.0, 0.7, 1.0, 2.0]))
        top_k, top_p = int(rng.choice([0, 1, 40])), float(rng.choice([1.0, 0.9, 0.5]))
        min_p, key = float(rng.choice([0.0, 0.05])), int(rng.integers(0, 2**63))
        cases += struct.pack("8siii", b"draw", 0, size, 0)
        cases += struct.pack("dddi4xQ", temperature, top_p, min_p, top_k, key) + logits.tobytes()
        wanted.append(compiled.draw(logits, temperature, top_k, top_p, min_p, key))
    assert np.frombuffer(run(program, "neon-dotprod", cases), np.int32).tolist() == wanted
