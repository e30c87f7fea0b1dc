"""Facts to problems, each with its remedy. A pure function: no file, no import, no process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]

TESTED_PAIR = ("2.14.1", "0.29.1")
"""torch and torchvision that the project is tested with, as the Makefile installs them."""
PACKAGES = {
    "PIL": "pillow", "open_clip": "open_clip_torch", "yaml": "pyyaml", "attention": "torch",
    "grouped_mm": "torch",
}  # fmt: skip
"""What to install, where it is called otherwise than the module or the step."""
FOUNDATIONS = ("torch", "torchvision", "transformers")
LITTLE_DISK_GIB = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    what: str
    remedy: str


def numbers(version: str) -> tuple[int, int]:
    """(major, minor) of "2.14.1+cpu"."""
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def torchvision_for(torch: str) -> str | None:
    """The torchvision release that belongs to a torch: 2.N goes with 0.(N + 15), as far as that is
    known (2.0 to 2.14)."""
    major, minor = numbers(torch)
    return f"0.{minor + 15}" if major == 2 and minor <= 14 else None


def pair_problem(packages: Facts, error: str | None) -> Problem | None:
    """torch and torchvision of different releases: torchvision's import failed, and its operators
    are why or its release is another."""
    needs = packages["torchvision_needs"]
    torch, vision = packages["versions"]["torch"], packages["versions"]["torchvision"]
    if torch is None or vision is None or error is None:
        return None
    fits = torchvision_for(torch)
    mismatched = "torchvision::" in error or "undefined symbol" in error
    other_release = fits is not None and not vision.startswith(fits + ".")
    if not (mismatched or other_release):
        return None
    built_for = f", built for {', '.join(needs)}" if needs else ""
    public = torch.split("+")[0]
    if fits is not None and other_release:
        pip = f'pip install torch=={public} "torchvision=={fits}.*"'
        advice = f"torch {public} goes with torchvision {fits}: {pip}"
    else:
        pair = f"torch=={TESTED_PAIR[0]} torchvision=={TESTED_PAIR[1]}"
        advice = f"install a pair of one release, as tested: pip install {pair}"
    if "+" in torch:
        advice += f" (from where torch {torch} came: both must be +{torch.split('+')[1]} builds)"
    return Problem(
        f"torch {torch} and torchvision {vision} do not belong together{built_for}: {error}",
        advice,
    )


def gpu_problem(build: Facts, card: Facts, variables: dict[str, str]) -> Problem | None:
    """An NVIDIA GPU that this torch cannot use."""
    if not card["gpus"] or build.get("hip") or build.get("cuda_available", True):
        return None
    if variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None  # hidden on purpose
    gpu, driver = card["gpus"][0], card["driver"] or "unknown"
    version = build["version"].split("+")[0]
    if build["cuda"] is None:
        return Problem(
            f"torch {build['version']} is a build without CUDA, but this machine has an NVIDIA GPU "
            f"({gpu}, driver {driver})",
            f"pip uninstall -y torch torchvision && pip install torch=={version} torchvision "
            "(on Linux the default build has CUDA; elsewhere: https://pytorch.org/get-started)",
        )
    reason = build.get("cuda_warning") or build.get("cuda_error") or "no reason given"
    highest = card["driver_cuda"]
    if highest is not None and numbers(highest)[0] < numbers(build["cuda"])[0]:
        return Problem(
            f"the NVIDIA driver {driver} is too old: it runs CUDA up to {highest}, torch "
            f"{build['version']} was built for CUDA {build['cuda']}",
            f"update the driver to one for CUDA {numbers(build['cuda'])[0]}, or install a torch "
            f"built for CUDA {numbers(highest)[0]} (https://pytorch.org/get-started)",
        )
    return Problem(
        f"torch {build['version']} (CUDA {build['cuda']}) cannot use {gpu}, driver {driver}: "
        f"{reason}",
        "compare `nvidia-smi` with the line above: the driver must run that CUDA; in a container, "
        "start it with its GPUs (docker run --gpus all)",
    )


def import_problems(imports: dict[str, Facts], packages: Facts) -> list[Problem]:
    """Imports that fail, without those that follow from an earlier one or from a package that is
    missing, which is told already."""
    told = {package_name(requirement) for requirement in packages["core_unmet"]}
    found = []
    for name, facts in imports.items():
        if "error" not in facts:
            continue
        package = PACKAGES.get(name, name)
        missing = (facts.get("missing") or "").split(".")[0]
        missing = PACKAGES.get(missing, missing)
        pair = None
        if name == "torchvision":
            pair = pair_problem(packages, facts["error"])
        if pair is not None:
            found.append(pair)
        elif package_name(package) not in told and package_name(missing) not in told:
            where = f" ({facts['at']})" if facts["at"] else ""
            if missing:
                remedy = f"pip install {missing}"
            elif name == "llava_mole":
                remedy = "report it, with the lines below and what `import llava_mole` says"
            else:
                remedy = f"pip install --force-reinstall --no-deps {package}"
            found.append(Problem(f"{name} cannot be used: {facts['error']}{where}", remedy))
        if name in FOUNDATIONS:
            break  # what comes after needs it
    return found


def package_name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def problems(facts: Facts, install: str) -> list[Problem]:
    """All that is wrong, most fundamental first.

    Args:
        facts: of `system.collect`.
        install: the pip line that installs the project's requirements.
    """
    found = []
    if tuple(int(part) for part in facts["python"].split(".")[:2]) < (3, 11):
        found.append(
            Problem(
                f"Python {facts['python']} is too old", "use Python 3.11 or newer, in a new venv"
            )
        )
    packages, imports = facts["packages"], facts["imports"]
    pair = pair_problem(packages, imports.get("torchvision", {}).get("error"))
    for requirement, reason in packages["core_unmet"].items():
        if pair is not None and package_name(requirement) == "torchvision":
            continue  # which release is needed is told with the pair
        pip = f'pip install "{requirement}"'
        found.append(Problem(f"{requirement} is needed, {reason}", f"{pip}, or all: {install}"))
    found += import_problems(imports, packages)
    build = imports.get("torch", {})
    if "version" in build and (gpu := gpu_problem(build, facts["nvidia"], facts["variables"])):
        found.append(gpu)
    for device, state in imports.get("grouped_mm", {}).items():
        if state == "gives wrong values":
            found.append(
                Problem(
                    f"torch.nn.functional.grouped_mm gives wrong values on {device}",
                    "another torch; until then the recipe's experts: {kernel: gathered}",
                )
            )
    for name, disk in facts["disks"].items():
        if not disk["writable"]:
            found.append(
                Problem(
                    f"the {name} folder {disk['folder']} cannot be written",
                    "name another: LLAVA_MOLE_CACHE, HF_HOME or TMPDIR",
                )
            )
        elif disk["free_gib"] < LITTLE_DISK_GIB:
            found.append(
                Problem(
                    f"only {disk['free_gib']} GiB are free for the {name} folder {disk['folder']}",
                    "free some, or name another disk's: LLAVA_MOLE_CACHE, HF_HOME or TMPDIR",
                )
            )
    return found
