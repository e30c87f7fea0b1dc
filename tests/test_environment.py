"""`llava-mole env` answers, above all, where what it asks about is broken."""

import ast
import copy
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_mole.cache_folder import default_cache
from llava_mole.environment import is_asked_for, system
from llava_mole.environment.command import WELL, lines
from llava_mole.environment.diagnosis import TESTED_PAIR, problems, torchvision_for

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALL = 'pip install -e "."'
LIGHT = {"cache_folder", "environment", "errors", "languages", "quiet"}
"""Modules of ours that import nothing heavy; the package itself imports no others at once."""


@pytest.fixture(scope="module", autouse=True)
def gpus_are_not_hidden() -> Iterator[None]:
    """They are from the other tests; here they are made up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        yield


def python(*words: str, broken: Path | None = None, **variables: str) -> Any:
    """A process of its own; `broken` holds packages that come before the installed ones."""
    path = os.pathsep.join([str(REPOSITORY), *([str(broken)] if broken else [])])
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": path, **variables},
    )  # fmt: skip


def env(*words: str, broken: Path | None = None, **variables: str) -> Any:
    return python("-m", "llava_mole.cli", "env", *words, broken=broken, **variables)


def package(root: Path, name: str, code: str, version: str, requires: str = "") -> Path:
    """An installed package whose import runs `code`."""
    (root / name).mkdir(parents=True)
    (root / name / "__init__.py").write_text(textwrap.dedent(code))
    about = root / f"{name}-{version}.dist-info"
    about.mkdir()
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    )
    return root


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """Of this machine, as the command prints them."""
    done = env("--json")
    assert done.stderr == ""
    found = json.loads(done.stdout)
    for problem in found.pop("problems"):  # a full disk or an idle GPU here is not the test's
        assert "cannot be used" not in problem["what"], problem
    return found


@pytest.fixture
def well(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of a machine without a fault, to be given one."""
    found = copy.deepcopy(facts)
    found["nvidia"] = {"gpus": [], "driver": None, "driver_cuda": None}
    found["packages"]["core_unmet"] = {}
    for disk in found["disks"].values():
        disk.update(free_gib=100.0, writable=True)
    assert problems(found, INSTALL) == []
    return found


def only(facts: dict[str, Any]) -> tuple[str, str]:
    found = problems(facts, INSTALL)
    assert len(found) == 1, found
    return found[0].what, found[0].remedy


# ---------------------------------------------------------------------- where all is well


def test_everything_that_is_imported_is_found(facts: dict[str, Any]) -> None:
    assert {"torch", "torchvision", "transformers", "llava_mole"} <= facts["imports"].keys()
    assert not any("error" in one for one in facts["imports"].values())


def test_the_block_names_what_a_bug_report_needs(facts: dict[str, Any]) -> None:
    block = "\n".join(lines(facts))
    words = ["python 3.", "cpu ", "memory ", "gpu ", "torch 2.", "sdpa", "flash-attn", "hub http"]
    for word in [*words, "grouped_mm cpu: works", "transformers 5.", "extras ", "disk "]:
        assert word in block, word
    assert len(block.splitlines()) < 60


def test_grouped_mm_is_tried_and_not_only_looked_for(facts: dict[str, Any]) -> None:
    assert facts["imports"]["grouped_mm"]["cpu"] == "works"


# ---------------------------------------------------------------------- where something is broken


def test_a_mismatched_torchvision_is_told_with_the_pair_that_fits(tmp_path: Path) -> None:
    # The way a real one of another release fails: it describes an operator that did not load.
    code = """
        import torch
        torch.library.register_fake("torchvision::nms")(lambda boxes: boxes)
    """
    package(tmp_path, "torchvision", code, "0.21.0", requires="torch (==2.6.0)")
    done = env(broken=tmp_path)
    assert done.returncode == 1
    said = done.stdout.splitlines()
    assert said[0] == "1 problem:"
    assert "torchvision 0.21.0 do not belong together, built for torch==2.6.0" in said[1]
    assert "operator torchvision::nms does not exist" in said[1]
    assert re.search(r'pip install torch==2\.\d+\.\d+ "torchvision==0\.\d+\.\*"', said[2])
    assert "cannot import transformers" in done.stdout  # what follows from it, in the block only
    assert done.stderr == ""


def test_a_torch_that_does_not_load_is_told(tmp_path: Path) -> None:
    package(tmp_path, "torch", "raise OSError('libcudart.so.12: cannot open')", "2.14.1")
    done = env(broken=tmp_path)
    assert done.stdout.startswith("1 problem:\n- torch cannot be used: OSError: libcudart.so.12")
    assert "pip install --force-reinstall --no-deps torch" in done.stdout
    assert "cpu " in done.stdout


def test_a_torch_that_kills_its_process_is_told(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    package(tmp_path, "torch", code, "2.14.1")
    done = env(broken=tmp_path)
    assert "torch cannot be used: killed the process (SIGILL)" in done.stdout
    assert "memory " in done.stdout


def test_a_broken_transformers_is_told(tmp_path: Path) -> None:
    package(tmp_path, "transformers", "raise ImportError('half an upgrade')", "5.24.0")
    done = env(broken=tmp_path)
    assert "- transformers cannot be used: ImportError: half an upgrade" in done.stdout
    assert "--force-reinstall --no-deps transformers" in done.stdout


def test_a_transformers_that_is_too_old_is_told(tmp_path: Path) -> None:
    package(tmp_path, "transformers", "raise ImportError('old')", "4.37.2")
    said = env(broken=tmp_path).stdout
    assert "transformers>=5.24 is needed, 4.37.2 is installed" in said
    assert 'pip install "transformers>=5.24"' in said


def test_an_import_that_fails_points_to_the_command(tmp_path: Path) -> None:
    package(tmp_path, "transformers", "raise ImportError('half an upgrade')", "5.24.0")
    done = python("-c", "import llava_mole", broken=tmp_path)
    assert done.returncode == 1
    assert "half an upgrade" in done.stderr
    assert "`llava-mole env` says which package is broken" in done.stderr


def test_nothing_heavy_is_imported_by_the_process_that_answers() -> None:
    light = {"llava_mole", "llava_mole_cli", *sys.stdlib_module_names}
    ours = REPOSITORY / "llava_mole"
    files = [ours / f"{name}.py" for name in ["__init__", "cli", *(LIGHT - {"environment"})]]
    for file in [REPOSITORY / "llava_mole_cli.py", *files, *(ours / "environment").glob("*.py")]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                top, *rest = name.split(".")
                assert top in light, (file, name)
                assert top != "llava_mole" or rest[0] in LIGHT, (file, name)


@pytest.mark.parametrize(
    ("argv", "orig_argv", "asked"),
    [
        (["/bin/llava-mole", "env"], ["python", "/bin/llava-mole", "env"], True),
        (["/bin/llava-mole", "--verbose", "env"], ["python", "llava-mole", "env"], True),
        (["/bin/llava-mole", "chat", "--model", "env"], ["python", "llava-mole"], False),
        (["-m", "env"], ["python", "-m", "llava_mole.cli", "env"], True),
        (["-m", "env"], ["python", "-m", "other.cli", "env"], False),
        (["train.py", "env"], ["python", "train.py", "env"], False),
        ([""], ["python"], False),
    ],
)
def test_only_the_command_itself_leaves_the_package_unimported(
    argv: list[str], orig_argv: list[str], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert is_asked_for() is asked


# ---------------------------------------------------------------------- what must not be said


def test_no_secret_is_printed(monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any]) -> None:
    for name, value in {
        "HF_TOKEN": "hf_SECRET1", "HUGGING_FACE_HUB_TOKEN": "hf_SECRET2",
        "HTTPS_PROXY": "http://me:SECRET3@proxy", "HF_ENDPOINT": "https://me:SECRET4@mirror.example",
        "LLAVA_MOLE_API_KEY": "SECRET5", "AWS_SECRET_ACCESS_KEY": "SECRET6",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    shown = system.variables()
    assert "SECRET" not in json.dumps(shown)
    assert shown["HF_TOKEN"] == "(set, hidden)"
    assert shown["HF_ENDPOINT"] == "https://(hidden)@mirror.example"
    assert "AWS_SECRET_ACCESS_KEY" not in shown


def test_a_token_of_the_hub_is_only_known_to_be_there(tmp_path: Path) -> None:
    done = env("--json", HF_TOKEN="hf_SECRET1", HF_HOME=str(tmp_path))
    assert json.loads(done.stdout)["imports"]["huggingface_hub"]["logged_in"] is True
    assert "SECRET" not in done.stdout


def test_the_home_folder_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("HF_HOME", "/home/somebody/cache")
    assert system.variables()["HF_HOME"] == "~/cache"
    monkeypatch.delenv("LLAVA_MOLE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert system.disk(default_cache())["folder"].startswith("~/")


# ---------------------------------------------------------------------- facts to problems


CARD = {"gpus": ["NVIDIA H100 (81559 MiB)"], "driver": "535.104", "driver_cuda": "12.2"}


def test_a_build_without_cuda_beside_an_nvidia_gpu_is_a_problem(well: dict[str, Any]) -> None:
    well["nvidia"] = CARD
    well["imports"]["torch"].update(version="2.14.1+cpu", cuda=None, cuda_available=False)
    what, remedy = only(well)
    assert "2.14.1+cpu is a build without CUDA" in what
    assert "NVIDIA H100" in what
    assert "pip install torch==2.14.1 torchvision" in remedy


def test_a_driver_that_is_too_old_is_a_problem(well: dict[str, Any]) -> None:
    well["nvidia"] = CARD
    well["imports"]["torch"].update(cuda="13.0", cuda_available=False, cuda_warning="too old")
    what, remedy = only(well)
    assert "driver 535.104 is too old: it runs CUDA up to 12.2" in what
    assert "built for CUDA 12" in remedy


def test_a_gpu_that_cannot_be_used_is_told_with_torchs_reason(well: dict[str, Any]) -> None:
    well["nvidia"] = {**CARD, "driver_cuda": None}
    well["imports"]["torch"].update(cuda="13.0", cuda_available=False, cuda_error="Error 802")
    assert "Error 802" in only(well)[0]


def test_a_gpu_hidden_on_purpose_is_no_problem(well: dict[str, Any]) -> None:
    well["nvidia"] = CARD
    well["imports"]["torch"].update(cuda="13.0", cuda_available=False)
    well["variables"]["CUDA_VISIBLE_DEVICES"] = ""
    assert problems(well, INSTALL) == []


def test_a_missing_package_is_told_once(well: dict[str, Any]) -> None:
    well["packages"]["core_unmet"] = {"pyyaml>=6": "not installed"}
    well["imports"]["llava_mole"] = {
        "error": "ModuleNotFoundError: No module named 'yaml'", "at": "x.py:1", "missing": "yaml",
    }  # fmt: skip
    what, remedy = only(well)
    assert what == "pyyaml>=6 is needed, not installed"
    assert remedy == f'pip install "pyyaml>=6", or all: {INSTALL}'


def test_little_room_and_a_folder_without_permission_are_problems(well: dict[str, Any]) -> None:
    well["disks"]["temporary"]["free_gib"] = 0.3
    well["disks"]["llava-mole"]["writable"] = False
    told = [problem.what for problem in problems(well, INSTALL)]
    assert len(told) == 2
    assert "cannot be written" in told[0]
    assert "only 0.3 GiB" in told[1]


def test_each_torch_has_its_torchvision() -> None:
    pairs = {"2.0.1": "0.15", "2.6.0+cu124": "0.21", "2.10.0": "0.25", "2.14.1": "0.29"}
    assert {torch: torchvision_for(torch) for torch in pairs} == pairs
    assert torchvision_for("3.0.0") is None


def test_the_tested_pair_is_what_the_makefile_installs() -> None:
    torch, torchvision = TESTED_PAIR
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH ?= torch=={torch} torchvision=={torchvision}\n" in makefile


def test_all_is_well_is_the_whole_first_line(well: dict[str, Any]) -> None:
    assert WELL == "all is well"


def test_the_form_for_bug_reports_asks_for_its_output() -> None:
    path = REPOSITORY / ".github" / "ISSUE_TEMPLATE" / "bug.yml"
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    asked = {field["id"]: field for field in form["body"]}
    assert "llava-mole env" in asked["environment"]["attributes"]["label"]
    assert asked["environment"]["validations"]["required"]
