"""What is known without importing anything heavy: machine, driver, packages, variables, disks."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llava_mole.cache_folder import default_cache

Facts = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("probe.py")
PROBE_SECONDS = 300
"""First imports from a network disk take minutes; a hang takes forever."""
VARIABLES = re.compile(
    r"(HF_|LLAVA_MOLE_|OMP_|MKL_|CUDA_|PYTORCH_|TORCH_|TRANSFORMERS_|NCCL_|ACCELERATE_|FSDP_).*"
    r"|HUGGING_?FACE_HUB_TOKEN|TOKENIZERS_PARALLELISM|WORLD_SIZE|LOCAL_RANK|RANK|XDG_CACHE_HOME"
    r"|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV|CONDA_PREFIX|https?_proxy",
    flags=re.IGNORECASE,
)
SECRET = re.compile(
    r"TOKEN(?!IZERS)|SECRET|PASSWORD|CREDENTIAL|(?<!\w)KEY|_KEY|PROXY", re.IGNORECASE
)
SHOWN_PACKAGES = (
    "llava-mole", "torch", "torchvision", "transformers", "huggingface_hub", "tokenizers",
    "safetensors", "accelerate", "peft", "open_clip_torch", "timm", "pillow", "numpy", "pyarrow",
    "datasets", "trl", "bitsandbytes", "deepspeed", "flash-attn", "gradio",
)  # fmt: skip


def first_line_of(command: list[str]) -> str | None:
    """The first line that a program prints; None where there is no such program."""
    lines = lines_of(command)
    return lines[0] if lines else None


def lines_of(command: list[str]) -> list[str]:
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# ---------------------------------------------------------------------- machine


def cpu() -> Facts:
    """Model, cores this process may use, and the instructions that decide how fast bf16 is."""
    text = read("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = set((re.search(r"^flags\s*: (.+)$", text, re.MULTILINE) or ["", ""])[1].split())
    name = model[1] if model else first_line_of(["sysctl", "-n", "machdep.cpu.brand_string"])
    may_use = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = read("/sys/fs/cgroup/cpu.max").split()
    limited = len(quota) == 2 and quota[0] != "max"
    return {
        "model": name or platform.processor() or platform.machine(),
        "cores": may_use,
        "quota": round(int(quota[0]) / int(quota[1]), 1) if limited else None,
        "instructions": [
            label
            for label, flag in (
                ("avx2", "avx2"), ("avx512", "avx512f"), ("avx512_bf16", "avx512_bf16"),
                ("amx_bf16", "amx_bf16"),
            )
            if flag in flags
        ],
    }  # fmt: skip


def memory() -> Facts:
    """GiB of the machine, and of the container where that is less."""
    text = read("/proc/meminfo")
    found = {key: int(kib) / 2**20 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    if not found and (size := first_line_of(["sysctl", "-n", "hw.memsize"])):
        found = {"MemTotal": int(size) / 2**30}
    limit = read("/sys/fs/cgroup/memory.max").strip()
    return {
        "total_gib": round(found["MemTotal"], 1) if "MemTotal" in found else None,
        "free_gib": round(found["MemAvailable"], 1) if "MemAvailable" in found else None,
        "limit_gib": round(int(limit) / 2**30, 1) if limit.isdigit() else None,
    }


def nvidia() -> Facts:
    """NVIDIA's own word about its GPUs, whatever torch sees."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    rows = [[cell.strip() for cell in line.split(",")] for line in lines_of(query)]
    rows = [row for row in rows if len(row) == 3]
    if rows:
        head = "\n".join(lines_of(["nvidia-smi"]))
        highest = re.search(r"CUDA Version: (\d+\.\d+)", head)
        return {
            "gpus": [f"{name} ({size})" for name, _, size in rows],
            "driver": rows[0][1],
            "driver_cuda": highest[1] if highest else None,
        }
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = [re.search(r"^Model:\s*(.+)$", read(str(card)), re.MULTILINE) for card in cards]
    driver = re.search(
        r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", read("/proc/driver/nvidia/version")
    )
    return {
        "gpus": [name[1].strip() if name else "unnamed GPU" for name in names],
        "driver": driver[1] if driver else None,
        "driver_cuda": None,
    }


# ---------------------------------------------------------------------- packages


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def requirements(package: str) -> list[tuple[str, str | None]]:
    """(requirement, extra or None) of an installed package, for this system."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []
    try:
        lines = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    found: list[tuple[str, str | None]] = []
    for line in lines:
        one = Requirement(line)
        extra = re.search(r"extra == ['\"](.+?)['\"]", line)
        applies = one.marker is None or one.marker.evaluate({"extra": extra[1] if extra else ""})
        if applies:
            found.append((f"{one.name}{one.specifier}", extra[1] if extra else None))
    return found


def unmet(requirement: str) -> str | None:
    """Why a requirement is not met: "not installed", or the version found; None where it is."""
    from packaging.requirements import Requirement

    one = Requirement(requirement)
    found = version_of(one.name)
    if found is None:
        return "not installed"
    return None if one.specifier.contains(found, prereleases=True) else f"{found} is installed"


def packages() -> Facts:
    """Versions, and what of the project's own requirements is not met."""
    missing: dict[str, dict[str, str]] = {"": {}}
    for requirement, extra in requirements("llava-mole"):
        reasons = missing.setdefault(extra or "", {})
        if reason := unmet(requirement):
            reasons[requirement] = reason
    return {
        "versions": {name: version_of(name) for name in SHOWN_PACKAGES},
        "core_unmet": missing.pop(""),
        "extras_unmet": missing,
        "torchvision_needs": [r for r, _ in requirements("torchvision") if r.startswith("torch")],
    }


def install_line(extra: str) -> str:
    """The pip line that installs an extra ("" for none), as it is to be run here."""
    chosen = f"[{extra}]" if extra else ""
    in_clone = (ROOT / "pyproject.toml").is_file()
    return f'pip install -e ".{chosen}"' if in_clone else f'pip install "llava-mole{chosen}"'


# ---------------------------------------------------------------------- variables, disks


def shown(name: str, value: str) -> str:
    """A variable's value as it may be pasted in public: no secret, no name of a home folder."""
    if SECRET.search(name):
        return "(set, hidden)" if value else "(empty)"
    parts = urlsplit(value)
    if "@" in parts.netloc:
        value = value.replace(parts.netloc, "(hidden)@" + parts.netloc.rpartition("@")[2])
    return without_home(value)


def without_home(text: str) -> str:
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def variables() -> dict[str, str]:
    return {
        name: shown(name, value)
        for name, value in sorted(os.environ.items())
        if VARIABLES.fullmatch(name)
    }


def disk(folder: Path) -> Facts:
    """Of the folder, or of the nearest one above it that exists."""
    there = folder.expanduser().absolute()
    while not there.exists():
        there = there.parent
    return {
        "folder": without_home(str(folder)),
        "free_gib": round(shutil.disk_usage(there).free / 2**30, 1),
        "writable": os.access(there, os.W_OK),
    }


# ---------------------------------------------------------------------- all of it


def probe() -> dict[str, Facts]:
    """What the steps of `probe.py` found; a step that killed its process is told as such."""
    found: dict[str, Facts] = {}
    # The child sees what this process would import, and no neighbour of its own file (-P).
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "facts.jsonl"
        while True:
            out.write_text("")
            command = [sys.executable, "-P", str(PROBE), str(out), *found]
            try:
                code: int | None = subprocess.run(
                    command,
                    capture_output=True,
                    env=environment,
                    timeout=PROBE_SECONDS,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
            begun = None
            for line in out.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                if "begin" in entry:
                    begun = entry["begin"]
                else:
                    found[entry["end"]], begun = entry["facts"], None
            if begun is None:
                return found
            found[begun] = {"error": how_it_ended(code), "at": None}


def how_it_ended(code: int | None) -> str:
    if code is None:
        return f"no answer within {PROBE_SECONDS} s"
    if code < 0:
        return f"killed the process ({signal.Signals(-code).name})"
    return f"ended the process (exit code {code})"


def collect() -> Facts:
    """All facts, as `--json` prints them."""
    imports = probe()
    hub = imports.get("huggingface_hub", {})
    cache = hub.get("cache")
    if "endpoint" in hub:
        hub.update(endpoint=shown("", hub["endpoint"]), cache=without_home(hub["cache"]))
    folders = {"llava-mole": default_cache(), "temporary": Path(tempfile.gettempdir())}
    if cache is not None:
        folders["hub"] = Path(cache)
    return {
        "python": platform.python_version(),
        "executable": without_home(sys.executable),
        "system": platform.platform(),
        "package": without_home(str(Path(__file__).resolve().parents[1])),
        "cpu": cpu(),
        "memory": memory(),
        "nvidia": nvidia(),
        "packages": packages(),
        "imports": imports,
        "variables": variables(),
        "disks": {name: disk(folder) for name, folder in folders.items()},
    }
