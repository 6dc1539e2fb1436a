"""The compiled engine: when it is taken, what it keeps, and that nothing but speed depends on it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import quant
from pipeline.errors import FormatError, ToolError, UsageError
from pipeline.quant import _engines
from pipeline.quant.fast import FastEngine, Processor, host, kernels

HERE = host()
NUMPY = quant.NumpyEngine()


def quantized(engine: quant.Engine, name: str, x: NDArray[np.float32]) -> bytes:
    """Quantize rows."""
    kind = quant.get(name)
    out = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
    engine.quantize_rows(kind, x, out)
    return out.tobytes()


def rows(n_rows: int, n_cols: int = 512) -> NDArray[np.float32]:
    """Return normal weights, some blocks of zeros and ties among them."""
    x = np.random.default_rng(n_rows).standard_normal((n_rows, n_cols)).astype(np.float32)
    x[::3, :256] = 0
    x[1::3, 256:288] = np.where(np.arange(32) % 2, 1, -1)
    return x


@pytest.mark.parametrize("name", kernels())
def test_every_kernel_belongs_to_a_type(name: str) -> None:
    """A kernel's name is that of a type, and one that weighs belongs to a type that is weighted."""
    kind = quant.get(name)
    assert kind.is_weighted or kernels()[name].build_weighted is None


@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("name", kernels())
def test_bytes_do_not_depend_on_the_registers(name: str, width: int, tmp_path: Path) -> None:
    """Code for narrower registers gives NumPy's bytes, and any number of blocks does, fewer than lanes too."""
    engine = FastEngine(Processor(HERE.cpu, HERE.features, width), tmp_path)
    for n_rows in (1, 2, 17, 70):
        x = rows(n_rows)
        assert quantized(engine, name, x) == quantized(NUMPY, name, x)
    assert quantized(engine, name, np.empty((0, 512), np.float32)) == b""


@pytest.mark.parametrize("name", kernels())
def test_bfloat16_gives_the_bytes_of_its_values(name: str) -> None:
    """What reads bfloat16 writes what is written of the decoded values, whatever the number of blocks."""
    engine, kind = FastEngine(), quant.get(name)
    encode = engine.from_bf16(kind)
    assert encode is not None
    assert NUMPY.from_bf16(kind) is None
    for n_rows in (1, 17, 70):
        x = rows(n_rows)
        x[2::3] *= np.exp(np.random.default_rng(n_rows).uniform(-80, 80, (len(x[2::3]), 1)))
        bits = (x.view(np.uint32) >> 16).astype(np.uint16)
        out = np.empty((n_rows, kind.row_bytes(512)), np.uint8)
        encode(bits, out)
        assert out.tobytes() == quantized(NUMPY, name, (bits.astype(np.uint32) << 16).view(np.float32))
    with pytest.raises(UsageError):
        encode(bits.astype(np.int16), out)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        encode(bits, out[:-1])


@pytest.mark.parametrize("name", kernels())
def test_bfloat16_is_looked_at_on_the_way(name: str) -> None:
    """Where all is finite the encoder says so, if it can; NaN, Inf and scales that are too large it never passes."""
    kind = quant.get(name)
    encode = FastEngine().from_bf16(kind)
    assert encode is not None
    sees_all = kind.has_only_half_scales and kind.block_size > 1
    for n_rows in (1, 17, 70):
        bits = (rows(n_rows).view(np.uint32) >> 16).astype(np.uint16)
        out = np.empty((n_rows, kind.row_bytes(512)), np.uint8)
        assert encode(bits, out) == sees_all
        for row, column, found in ((0, 0, 0x7F80), (n_rows - 1, 511, 0xFFC0), (n_rows // 2, 300, 0x7F81)):
            damaged = bits.copy()
            damaged[row, column] = found
            assert not encode(damaged, out)
        large = bits.copy()
        large[-1] = 0x7F00  # 1.7e38, more than float16 can scale
        passed, is_bad = encode(large, out), NUMPY.has_bad_scale(kind, out)
        assert passed == (sees_all and not is_bad)
        assert is_bad or name not in {"Q4_K", "Q8_0"}


@pytest.mark.parametrize("kind", quant.types().values(), ids=str)
def test_bad_scales_are_found_by_both_engines(kind: quant.BlockType) -> None:
    """Bytes of any kind: the compiled look finds a bad scale just where the type's own one does."""
    engine, rng = FastEngine(), np.random.default_rng(7)
    for n_blocks in (1, 2, 40):
        for _ in range(30):
            data = rng.integers(0, 256, (1, n_blocks * kind.type_size), np.uint8)
            assert engine.has_bad_scale(kind, data) == NUMPY.has_bad_scale(kind, data)
            assert NUMPY.has_bad_scale(kind, data) == (kind.bad_scale(data) is not None)


def test_arguments_are_checked() -> None:
    """What NumPy's kernels refuse is refused, before any address is passed on."""
    engine, out = FastEngine(), np.empty((1, 144), np.uint8)
    with pytest.raises(UsageError):
        engine.quantize_rows(quant.get("Q4_K"), np.zeros((1, 256)), out)  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        engine.quantize_rows(quant.get("Q4_K"), np.zeros((1, 255), np.float32), out)
    with pytest.raises(UsageError):
        engine.quantize_rows(quant.get("Q4_K"), np.zeros((2, 256), np.float32), out)


def test_auto_takes_the_engine_that_is_through_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Large jobs are compiled, small ones and types without a kernel are not; less is enough once code is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert quant.get_engine("auto", {"Q4_K": 1_000_000_000}).name == "fast"
    assert quant.get_engine("auto", {"Q4_K": 1_000_000}).name == "numpy"
    assert quant.get_engine("auto", {"F32": 1_000_000_000}).name == "numpy"
    assert quant.get_engine("auto", {}).name == "numpy"
    assert quant.get_engine("auto", {"Q4_K": 8_000_000}).name == "numpy"
    quantized(FastEngine(), "Q4_K", rows(1))
    assert quant.get_engine("auto", {"Q4_K": 8_000_000}).name == "fast"
    assert quant.get_engine("numpy", {"Q4_K": 1_000_000_000}).name == "numpy"
    assert quant.get_engine("fast", {}).name == "fast"


@pytest.mark.parametrize("version", [None, "0.44.1"])
def test_without_the_extra(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where LLVM is not installed, or too old, NumPy does all the work; who wants the other is told what to install."""
    if version is None:
        monkeypatch.setitem(sys.modules, "llvmlite", None)
    else:
        monkeypatch.setattr("llvmlite.__version__", version)
    _engines._is_installed.cache_clear()
    try:
        assert quant.get_engine("auto", {"Q4_K": 1_000_000_000}).name == "numpy"
        assert quant.describe_fast()[0] is False
        with pytest.raises(ToolError, match=r"pip install 'gguf-pipeline\[fast\]'"):
            quant.check_engine("fast")
    finally:
        _engines._is_installed.cache_clear()


BROKEN = ["raise OSError('libllvmlite.so: wrong ELF class')", "import nothing_of_this_name", "raise RuntimeError('x')"]


@pytest.mark.parametrize("broken", BROKEN)
def test_llvm_that_cannot_be_loaded(broken: str, tmp_path: Path) -> None:
    """For "fast" a broken LLVM is an error that names the way out; "auto" takes NumPy, and says why, once."""
    (tmp_path / "llvmlite.py").write_text(broken)
    code = (
        "import contextlib\n"
        "from pipeline.errors import ToolError\n"
        "from pipeline.quant import describe_fast, fallback_note, get_engine\n"
        "assert get_engine('auto', {'Q4_K': 1000}).name == 'numpy' and fallback_note() is None\n"
        "assert get_engine('auto', {'Q4_K': 10**10}).name == 'numpy'\n"
        "assert 'force-reinstall llvmlite' in fallback_note(), fallback_note()\n"
        "assert describe_fast()[0] is False and 'cannot be loaded' in describe_fast()[1]\n"
        "get_engine('fast', {})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}, check=False
    )
    assert "ToolError: llvmlite: LLVM is installed but cannot be loaded" in done.stderr
    assert broken.split("'")[1 if "'" in broken else 0].removeprefix("import ") in done.stderr
    assert "--engine numpy" in done.stderr


def test_a_broken_llvm_costs_time_only(demo: Path, tmp_path: Path) -> None:
    """With the engine left to choose, NumPy does a large job; one note says the cause and the way to mend it."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "llvmlite.py").write_text(BROKEN[0])
    command = [sys.executable, "-c", "from pipeline.quant import _engines; _engines._LOAD_SECONDS = 0.0\n"
               "from pipeline.cli import main; main()"]  # fmt: skip
    options = ["convert", str(demo), "--dtype", "f16", "-o", str(tmp_path / "x.gguf")]
    quantize = ["quantize", str(tmp_path / "x.gguf"), "-o", str(tmp_path / "y.gguf"), "--quant", "Q4_K_M"]
    env = {"PYTHONPATH": str(tmp_path / "broken"), "HOME": str(tmp_path)}
    said = [
        subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, check=False)
        for arguments in (options, quantize, [*quantize, "--engine", "fast"])
    ]
    assert [one.returncode for one in said] == [0, 0, 1], said
    (note,) = [line for line in said[1].stderr.splitlines() if "wrong ELF class" in line]
    assert note.startswith("note: NumPy quantizes, with the same bytes")
    assert "pip install --force-reinstall llvmlite" in note
    assert "wrong ELF class" in said[2].stderr


def test_an_unknown_engine_is_refused() -> None:
    """The error names those there are."""
    with pytest.raises(UsageError, match="auto, numpy, fast"):
        quant.check_engine("warp")


def test_compiled_code_is_kept(tmp_path: Path) -> None:
    """A kernel is one file, which the next engine takes as it is; a damaged one is made again."""
    x, expected = rows(40), quantized(NUMPY, "Q8_0", rows(40))
    assert quantized(FastEngine(folder=tmp_path), "Q8_0", x) == expected
    (path,) = tmp_path.iterdir()
    kept, time = path.read_bytes(), path.stat().st_mtime_ns
    assert kept[:32] == hashlib.sha256(kept[32:]).digest()
    assert quantized(FastEngine(folder=tmp_path), "Q8_0", x) == expected
    assert path.stat().st_mtime_ns == time
    path.write_bytes(kept[:-1])
    assert quantized(FastEngine(folder=tmp_path), "Q8_0", x) == expected
    assert path.read_bytes() == kept


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    """Where the cache folder cannot be made, code is compiled each time."""
    (tmp_path / "file").touch()
    engine = FastEngine(folder=tmp_path / "file" / "kernels")
    assert quantized(engine, "Q8_0", rows(40)) == quantized(NUMPY, "Q8_0", rows(40))


def test_threads_and_processes_compile_at_once(tmp_path: Path) -> None:
    """Three processes and four threads that begin with an empty folder all give the same bytes and leave one file."""
    code = f"""
import sys
from pathlib import Path
import numpy as np
from pipeline import quant
from pipeline.quant.fast import FastEngine
x = np.random.default_rng(0).standard_normal((40, 512)).astype(np.float32)
out = np.empty((40, 288), np.uint8)
FastEngine(folder=Path({str(tmp_path)!r})).quantize_rows(quant.get("Q4_K"), x, out)
sys.stdout.buffer.write(out.tobytes())
"""
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)]
    x = np.random.default_rng(0).standard_normal((40, 512)).astype(np.float32)
    engine = FastEngine(folder=tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: quantized(engine, "Q4_K", x), range(4)))
    found += [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert set(found) == {quantized(NUMPY, "Q4_K", x)}
    assert len(list(tmp_path.iterdir())) == 1


@given(n=st.integers(0, 3000), exponent=st.integers(-60, 60), seed=st.integers(0, 1 << 31))
def test_sums_are_numpys(n: int, exponent: int, seed: int) -> None:
    """Two vectors of any length compare alike on both engines: to twelve digits, the largest difference to the last."""
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal((2, n)) * 2.0**exponent).astype(np.float32)
    found, expected = FastEngine().compare(x, y), NUMPY.compare(x, y)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12 * expected.xx)
    assert found.largest == expected.largest


def test_the_largest_magnitude() -> None:
    """Words of 16 and 32 bits, few and many: the largest without its sign, on both engines."""
    for dtype, bits in ((np.uint16, 16), (np.uint32, 32)):
        for n in (1, 5, 64, 1001):
            words = np.random.default_rng(n).integers(0, 1 << bits, n).astype(dtype)
            expected = int((words & dtype((1 << (bits - 1)) - 1)).max())
            assert FastEngine().largest_magnitude(words) == NUMPY.largest_magnitude(words) == expected
    assert FastEngine().largest_magnitude(np.empty(0, np.uint16)) == 0
