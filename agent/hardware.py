"""What this machine is: facts from /proc, /sys and the platform, in the wire's closed fields."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

from agent.protocol.messages import Hardware

RUNTIMES = ("onnxruntime", "onnxruntime_genai")
MIB = 1 << 20
_FLAGS = ("flags", "Features")  # x86's and ARM's word for it in /proc/cpuinfo
_MODELS = ("model name", "Model", "Hardware")


def read(data: Path) -> Hardware:
    """Return this machine's facts; `data` lies on the disk whose free space counts."""
    cpu, flags, memory_mb = _macos() if sys.platform == "darwin" else _linux()
    return Hardware(
        arch=platform.machine(),
        cpu=cpu,
        flags=flags,
        cores=os.cpu_count() or 0,
        memory_mb=memory_mb,
        disk_free_mb=_free_mb(data),
        os=f"{platform.system()} {platform.release()}",
        board=_board(),
        runtimes=[name for name in RUNTIMES if importlib.util.find_spec(name)],
    )


def has_runtime(name: str) -> bool:
    """Say whether a runtime is installed, without loading it."""
    return name in RUNTIMES and importlib.util.find_spec(name) is not None


def _free_mb(data: Path) -> int:
    found = os.statvfs(data)
    return found.f_bavail * found.f_frsize // MIB


def _linux() -> tuple[str, list[str], int]:
    info = cpu_info(_text(Path("/proc/cpuinfo")))
    memory = dict(_pairs(_text(Path("/proc/meminfo"))))
    kib = memory.get("MemTotal", "0").split()[0]
    return info[0], info[1], int(kib) // 1024


def cpu_info(text: str) -> tuple[str, list[str]]:
    """Return name and flags of the first core in a /proc/cpuinfo."""
    facts = dict(reversed(_pairs(text)))
    name = next((facts[key] for key in _MODELS if key in facts), "")
    flags = next((facts[key] for key in _FLAGS if key in facts), "")
    return name, sorted(flags.split())


def _pairs(text: str) -> list[tuple[str, str]]:
    lines = (line.partition(":") for line in text.splitlines())
    return [(key.strip(), value.strip()) for key, colon, value in lines if colon]


def _macos() -> tuple[str, list[str], int]:
    names = ("machdep.cpu.brand_string", "machdep.cpu.features", "hw.memsize")
    cpu, features, memory = (_sysctl(name) for name in names)
    return cpu, sorted(features.lower().split()), int(memory or 0) // MIB


def _sysctl(name: str) -> str:
    found = subprocess.run(
        ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


def _board() -> str:
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        name = _text(Path(path)).strip("\0\n ")
        if name:
            return name
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
