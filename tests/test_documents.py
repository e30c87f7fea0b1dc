"""What the documents say can be done: links resolve, commands parse, recipes validate."""

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_mole.cli import as_overrides, build_parser
from llava_mole.errors import ConfigError
from llava_mole.training.schema import load_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for folder in (".", "docs", "data", "eval", "benchmarks")
    for path in (ROOT / folder).glob("*.md")
    if path.name != "CHANGELOG.md"
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SHELL = {"", "bash", "sh", "shell", "text", "console"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OURS = re.compile(
    r"(?:\$ )?((?:llava-mole|python (?:data|eval|benchmarks|examples)/[\w/]+\.py)\b.*)"
)
RECIPE = re.compile(r"<!-- recipe(?:, needs ([\w. ]+))? -->\s*```yaml\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
SHELL_ENDS = {"|", "&&", ";", ">", "&", "||"}


def without_blocks(text: str) -> str:
    return BLOCK.sub("", text)


def commands(text: str) -> Iterator[list[str]]:
    """Every command of ours in the code blocks of a document, and in its text where it is written
    out with options and without an ellipsis; as words."""
    blocks = [found[2] for found in BLOCK.finditer(text) if found[1] in SHELL]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = [code.replace("\n", " ") for code in INLINE.findall(without_blocks(text))]
    lines += [code for code in inline if " --" in code and "…" not in code]
    for line in lines:
        found = OURS.fullmatch(line.strip())
        if found is None:
            continue
        words = ["1" if word == "N" else word for word in shlex.split(found[1], comments=True)]
        ends = [place for place, word in enumerate(words) if word in SHELL_ENDS]
        yield words[: ends[0]] if ends else words


def command_names() -> set[str]:
    actions = build_parser()._actions
    (sub,) = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
    return set(sub.choices)


class Parsed(Exception):  # noqa: N818  (it is no error)
    """A script's own parser took the words; nothing after it is run."""


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a command to the parser that it has, and to nothing else."""
    if words[0] == "llava-mole":
        build_parser().parse_args(as_overrides(words[1:]))
        return
    original = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: object, **options: object) -> None:
        original(self, *args, **options)  # type: ignore[call-overload]
        raise Parsed

    script = ROOT / words[1]
    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        patched.setattr(sys, "argv", [str(script), *words[2:]])
        patched.syspath_prepend(str(script.parent))  # as for a script that is run
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")


# ---------------------------------------------------------------------- links, files


@pytest.mark.parametrize("document", NAMES)
def test_every_relative_link_resolves(document: str) -> None:
    path = ROOT / document
    for target in LINK.findall(without_blocks(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file
        assert there.exists(), f"{document}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{document}: {target}"


@pytest.mark.parametrize("document", NAMES)
def test_every_recipe_mixture_and_script_that_is_named_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/])(?:configs|data/mixtures)/[\w./-]+\.ya?ml", text)
    named += re.findall(
        r"(?<![\w/.])(?:data|eval|benchmarks|examples|llava_mole)/[\w/]+\.py\b", text
    )
    missing = sorted({name for name in named if not (ROOT / name).is_file()})
    assert not missing, f"{document} names {missing}"


# ---------------------------------------------------------------------- commands


@pytest.mark.parametrize("document", NAMES)
def test_every_command_parses(
    document: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands((ROOT / document).read_text(encoding="utf-8")):
        if words[0] == "llava-mole" and words[1] == "convert" and "convert" not in command_names():
            continue  # checked from the day that the command is there
        try:
            parse(words, monkeypatch)
        except SystemExit as end:
            pytest.fail(f"{document}: {shlex.join(words)}: {capsys.readouterr().err or end}")


def test_the_readme_and_the_documents_show_commands() -> None:
    shown = {name: len(list(commands((ROOT / name).read_text("utf-8")))) for name in NAMES}
    assert shown["README.md"] >= 8
    assert sum(shown.values()) >= 40


def test_a_command_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "```bash\nllava-mole train --confg x.yaml\npython eval/mmmb.py --modle m\n```\n"
    for words in commands(text):
        with pytest.raises(SystemExit):
            parse(words, monkeypatch)


def test_commands_are_found_in_every_shape() -> None:
    text = (
        "```bash\nllava-mole train \\\n    --config a.yaml  # why\n```\n"
        "```python\nllava-mole = 1\n```\n```\n$ python eval/mmmb.py --model m | tee log\n```\n"
    )
    assert list(commands(text)) == [
        ["llava-mole", "train", "--config", "a.yaml"],
        ["python", "eval/mmmb.py", "--model", "m"],
    ]


# ---------------------------------------------------------------------- recipes


def recipes(document: str) -> list[tuple[str, str]]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [(found[1] or "", found[2]) for found in RECIPE.finditer(text)]


def problems_of(text: str, folder: Path) -> list[str]:
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    try:
        load_recipe(folder / "recipe.yaml")
    except ConfigError as error:
        return [line.strip() for line in str(error).splitlines()[1:]]
    return []


@pytest.mark.parametrize("document", NAMES)
def test_every_recipe_validates(document: str, tmp_path: Path) -> None:
    """A recipe that starts from a folder, which is not here, may have no other problem."""
    for needs, text in recipes(document):
        wrong = [
            problem
            for problem in problems_of(text, tmp_path)
            if not any(problem.startswith(f"{key}:") for key in needs.split())
        ]
        assert not wrong, f"{document}: {wrong}\n{text}"


def test_the_migration_page_has_a_recipe_for_each_origin() -> None:
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    for origin in ("LLaVA", "LLaMA-Factory", "ms-swift", "TRL and PEFT"):
        section = page.split(f"\n## {origin}\n")[1].split("\n## ")[0]
        assert RECIPE.search(section), origin
        assert re.search(r"^\| .* \| here \|$", section, re.MULTILINE), origin
    marked = len(recipes("docs/migration.md"))
    assert marked == page.count("```yaml"), "a recipe on the page is not marked, so not checked"


def test_keys_in_the_migration_tables_exist() -> None:
    """`model.…`, `data.…`, `stages.N.…` in the right column are keys that a recipe has."""
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    keys = set(re.findall(r"`((?:model|data|stages\.N)\.[\w.]+)", page))
    assert len(keys) > 20
    from llava_mole.building import ModelRecipe
    from llava_mole.configuration import ProjectorConfig
    from llava_mole.training.recipe import DataRecipe, SourceRecipe, StageRecipe

    fields = {"model": ModelRecipe, "model.projector": ProjectorConfig, "data": DataRecipe,
              "data.sources.N": SourceRecipe, "stages.N": StageRecipe}  # fmt: skip
    coming = {"model.start_from"}
    for key in sorted(keys - coming):
        owner, _, name = key.rstrip(".").rpartition(".")
        assert name in fields[owner].__dataclass_fields__, key
