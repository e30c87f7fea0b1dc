"""`llava-mole env`: one line that says whether all is well, then a block for a bug report."""

from __future__ import annotations

import argparse
import json
from typing import Any

from llava_mole.environment.diagnosis import Problem, problems
from llava_mole.environment.system import collect, install_line

Facts = dict[str, Any]

DESCRIPTION = """\
Say what this machine and installation are, and what is wrong with them. The first line says that
all is well, or lists problems with their remedies (exit code 1); the rest is made to be pasted into
a bug report: no token, no password, no name of your home folder. It answers also where torch,
torchvision or transformers cannot be imported.
"""
WELL = "all is well"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print all facts as JSON instead")


def main(words: list[str]) -> int:
    """`llava-mole env`, by itself: the whole command line needs packages that may be broken."""
    parser = argparse.ArgumentParser(
        prog="llava-mole env",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    return run(parser.parse_args(words))


def run(args: argparse.Namespace) -> int:
    facts = collect()
    found = problems(facts, install=install_line(""))
    if args.json:
        listed = [{"what": one.what, "remedy": one.remedy} for one in found]
        print(json.dumps({"problems": listed, **facts}, indent=2, ensure_ascii=False))
    else:
        print(headline(found))
        print("\n".join(lines(facts)))
    return 1 if found else 0


def headline(found: list[Problem]) -> str:
    if not found:
        return WELL
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    return "\n".join([f"{count}:", *(f"- {one.what}\n  remedy: {one.remedy}" for one in found)])


def lines(facts: Facts) -> list[str]:
    """The block, a subject a line."""
    imports, versions = facts["imports"], facts["packages"]["versions"]
    cpu, memory = facts["cpu"], facts["memory"]
    quota = f", of which a quota allows {cpu['quota']:g}" if cpu["quota"] else ""
    limit = f", container limit {memory['limit_gib']}" if memory["limit_gib"] else ""
    said = [
        f"llava-mole {versions['llava-mole'] or '(not installed)'} in {facts['package']}",
        f"python {facts['python']} {facts['executable']} on {facts['system']}",
        f"cpu {cpu['model']}, {cpu['cores']} cores{quota}; "
        f"{' '.join(cpu['instructions']) or 'no AVX seen'}",
        f"memory {memory['total_gib']} GiB, {memory['free_gib']} free{limit}",
        f"gpu {gpu_line(facts)}",
        f"torch {torch_line(imports.get('torch', {}))}",
        f"attention {attention_line(imports.get('attention', {}), versions)}",
        "grouped_mm " + listed(imports.get("grouped_mm", {})),
        f"hub {hub_line(imports.get('huggingface_hub', {}))}",
        "packages "
        + ", ".join(f"{name} {version or '-'}" for name, version in versions.items() if
                    name != "llava-mole"),
    ]  # fmt: skip
    failed = {name: one["error"] for name, one in imports.items() if "error" in one}
    said += [f"cannot import {name}: {error}" for name, error in failed.items()]
    said += extras_lines(facts["packages"]["extras_unmet"])
    said += [f"disk {name} {disk['folder']}: {disk['free_gib']} GiB free"
             for name, disk in facts["disks"].items()]  # fmt: skip
    said += [f"{name}={value}" for name, value in facts["variables"].items()]
    return said


def gpu_line(facts: Facts) -> str:
    seen = [
        f"{gpu['name']} ({gpu['memory_gib']} GiB, sm {gpu['capability']})"
        for gpu in facts["imports"].get("torch", {}).get("gpus", [])
    ]
    card = facts["nvidia"]
    driver = f"driver {card['driver']}"
    if card["driver_cuda"]:
        driver += f", CUDA up to {card['driver_cuda']}"
    if seen:
        return f"{', '.join(seen)}; {driver}"
    if card["gpus"]:
        return f"{', '.join(card['gpus'])}, {driver}, not seen by torch"
    return "none"


def torch_line(build: Facts) -> str:
    if "version" not in build:
        return "cannot be imported"
    target = f"CUDA {build['cuda']}" if build["cuda"] else f"ROCm {build['hip']}"
    if not (build["cuda"] or build["hip"]):
        target = "no CUDA"
    return (
        f"{build['version']}, {target}, accelerator {build['accelerator'] or 'none'}, "
        f"{build['threads']} threads, {build['cpu_capability']}{', MKL' * build['mkl']}"
    )


def attention_line(state: Facts, versions: Facts) -> str:
    sdpa = "+".join(state.get("sdpa", [])) or "unknown"
    flex = {True: "yes", False: "no", None: "unknown"}[state.get("flex")]
    return f"eager, sdpa ({sdpa}), flex {flex}, flash-attn {versions['flash-attn'] or 'no'}"


def hub_line(hub: Facts) -> str:
    if "endpoint" not in hub:
        return "cannot be asked"
    return (
        f"{hub['endpoint']}, {'offline' if hub['offline'] else 'online'}, "
        f"{'logged in' if hub['logged_in'] else 'not logged in'}, cache {hub['cache']}"
    )


def listed(state: Facts) -> str:
    return ", ".join(f"{name}: {value}" for name, value in state.items()) or "unknown"


def extras_lines(unmet: dict[str, dict[str, str]]) -> list[str]:
    whole = [name for name, reasons in unmet.items() if not reasons]
    said = [f"extras complete: {', '.join(whole) or 'none'}"]
    for name, reasons in unmet.items():
        if reasons:
            wanting = ", ".join(f"{one} ({why})" for one, why in reasons.items())
            said.append(f"extra {name} lacks {wanting}; {install_line(name)}")
    return said
