"""Which llama.cpp: vendor/llama.cpp/pin.toml as a value, and the folders its build lives in."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import data
from pipeline.errors import FormatError

# Instruction sets that a compiler uses by itself; the other flags come and go with kernels and hypervisors.
_X86_SETS = re.compile(
    r"(s?sse\w*|pni|avx\w*|fma\w*|f16c|bmi\d|abm|popcnt|movbe|amx_\w+|v?aes|v?pclmulqdq|sha\w*|gfni|adx)$"
)


@dataclass(frozen=True)
class Pin:
    """The source package, the llama.cpp in it, and how to build it.

    *folder* is llama.cpp's place inside the package, *options* are CMake cache entries without the -D.
    """

    package: str
    version: str
    file: str
    sha256: str
    folder: str
    commit: str
    ggml_version: str
    targets: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def short_commit(self) -> str:
        """The first seven digits of the upstream commit, as llama.cpp prints them."""
        return self.commit[:7]

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits that differ when a build must not be used in another's place."""
        parts = {"pin": asdict(self), "platform": _platform(), "cpu": cpu_features()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def download(self) -> Path:
        """The source package, once fetched."""
        return home() / "download" / self.file

    @property
    def source(self) -> Path:
        """llama.cpp's tree, once unpacked."""
        return home() / f"source-{self.version}-{self.sha256[:8]}"

    @property
    def install(self) -> Path:
        """The finished build for this machine; exists only when it is whole."""
        return home() / f"build-{self.version}-{self.key}"

    @property
    def work(self) -> Path:
        """The build under way for this machine."""
        return home() / f"work-{self.version}-{self.key}"


def home() -> Path:
    """Return the folder of everything about the vendored llama.cpp."""
    return data.cache_home() / "llama.cpp"


def read_pin(path: Path | None = None) -> Pin:
    """Read pin.toml, the shipped one unless *path* names another.

    Raises:
        FormatError: if it is not TOML or lacks an entry.
    """
    path = path or data.path("vendor/llama.cpp/pin.toml")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        package, upstream, build = raw["package"], raw["llama_cpp"], raw["build"]
        return Pin(
            package=package["name"],
            version=package["version"],
            file=package["file"],
            sha256=package["sha256"],
            folder=package["folder"],
            commit=upstream["commit"],
            ggml_version=upstream["ggml_version"],
            targets=tuple(build["targets"]),
            options=tuple(build["options"]),
        )
    except tomllib.TOMLDecodeError as exc:
        raise FormatError("not a TOML file", where=path, found=exc) from exc
    except KeyError as exc:
        raise FormatError(f"entry {exc} is missing", where=path) from exc


def cpu_features() -> tuple[str, ...]:
    """Return the instruction sets of this CPU, sorted: a native build runs only where it finds the same."""
    if sys.platform == "darwin":
        sysctl = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return (sysctl.stdout.strip(),)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return (platform.processor(),)
    return _features_of(text)


def _features_of(cpuinfo: str) -> tuple[str, ...]:
    """Take the instruction sets from the text of /proc/cpuinfo: x86 says "flags", Arm "Features", RISC-V "isa"."""
    found = re.search(r"^(flags|Features|isa)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    if found is None:
        return ()
    names = set(found[2].split())
    if found[1] == "flags":
        names = {name for name in names if _X86_SETS.fullmatch(name)}
    return tuple(sorted(names))


def _platform() -> list[str]:
    """The system, the machine and the C library's name and version: what a shared library is bound to."""
    return [platform.system(), platform.machine(), *platform.libc_ver()]
