"""The command line: what it writes, what it keeps, what it says."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from llava_mole.cli import main
from llava_mole.conversion.importing import plan_import
from llava_mole.conversion.plan import Options
from llava_mole.conversion.writing import write_model
from tests.conversion.tiny import ROOT, assert_same_logits, load

Make = Callable[..., Path]


def test_the_folder_is_whole_and_says_where_it_came_from(
    tiny_llava: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_llava()
    assert main(["convert", str(source), "--out", str(tmp_path / "m")]) == 0
    assert "licence of the source: cc0-1.0" in capsys.readouterr().err
    record = json.loads((tmp_path / "m" / "conversion.json").read_text())
    weights = source / "model.safetensors"
    assert record["files"] == {str(weights): hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert record["kind"] == "Hugging Face LLaVA"
    card = (tmp_path / "m" / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert str(source) in card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_licence_files_travel_with_the_model(tiny_llava: Make, tmp_path: Path) -> None:
    import shutil

    source = shutil.copytree(tiny_llava(), tmp_path / "source")
    (source / "LICENSE.txt").write_text("terms")
    (source / "README.md").unlink()
    assert main(["convert", str(source), "--out", str(tmp_path / "m")]) == 0
    assert (tmp_path / "m" / "LICENSE.txt").read_text() == "terms"
    card = (tmp_path / "m" / "README.md").read_text()
    assert "license: other" in card
    assert "states no licence" in card


def test_an_existing_folder_is_kept_unless_forced(
    tiny_llava: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m"
    command = ["convert", str(tiny_llava()), "--out", str(out)]
    assert main(command) == 0
    (out / "old.txt").write_text("of the old model")
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert (out / "old.txt").exists()
    assert main([*command, "--force"]) == 0
    assert not (out / "old.txt").exists()


def test_a_model_is_not_replaced_by_its_own_conversion(
    tiny_llava: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(tiny_llava())
    assert main(["convert", source, "--out", source, "--force"]) == 2
    assert "is the source" in capsys.readouterr().err


def test_force_does_not_delete_what_is_no_model(
    tiny_llava: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    assert main(["convert", str(tiny_llava()), "--out", str(tmp_path), "--force"]) == 2
    assert "holds no model" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all"], "no such folder"),
        (["some/model"], "hub is switched off"),
        (["SOURCE", "--language-model", "x"], "leave it out"),
        (["SOURCE", "--vision-layer", "-3"], "--vision-layer=-3: this source holds its own"),
        (["SOURCE", "--image-token", "<pad>"], "this source holds its own"),
        (["SOURCE", "--merge-lora"], "not for an import"),
        (["SOURCE", "--export", "hf"], "expected 'llava_mole'"),
        (["SOURCE", "--export", "hf", "--chat-template", "qa"], "not for an export"),
        (["SOURCE", "--chat-template", "vicuna"], "did you mean 'vicuna_v1'"),
        (["SOURCE/config.json"], "expected a model folder"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_message(
    tiny_llava: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    words = [word.replace("SOURCE", str(tiny_llava())) for word in words]
    assert main(["convert", *words, "--out", str(tmp_path / "m")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_model_folder_is_not_imported_again(
    tiny_llava: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["convert", str(tiny_llava()), "--out", str(tmp_path / "m")])
    assert main(["convert", str(tmp_path / "m"), "--out", str(tmp_path / "n")]) == 2
    assert "model.start_from" in capsys.readouterr().err


def test_export_and_import_from_the_command_line(tiny_llava: Make, tmp_path: Path) -> None:
    out, back = tmp_path / "m", tmp_path / "back"
    assert main(["convert", str(tiny_llava()), "--out", str(out)]) == 0
    assert main(["convert", str(out), "--export", "hf", "--out", str(back)]) == 0
    assert (back / "model.safetensors").is_file()


def test_large_models_are_written_in_shards(tiny_llava: Make, tmp_path: Path) -> None:
    source = tiny_llava()
    plan = plan_import(str(source), Options())
    write_model(plan, tmp_path / "m", progress=False, shard=100_000)
    files = sorted((tmp_path / "m" / "language_model").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 110_000 for file in files)
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert opened.keys()
    ours, processor = load(tmp_path / "m")
    assert_same_logits(load(source)[0], ours, processor)


def test_a_full_disk_leaves_nothing_behind(tiny_llava: Make, tmp_path: Path) -> None:
    """The kernel refuses to let a file grow beyond the limit, as a full disk would."""
    program = f"""
        import resource, signal
        from llava_mole.cli import main
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        raise SystemExit(main(["convert", {str(tiny_llava())!r}, "--out", {str(tmp_path / "m")!r}]))
    """
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "no room" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_example_writes_a_model_that_converts_and_chats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "tiny_llava.py"), str(tmp_path / "tiny")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sum(f.stat().st_size for f in (tmp_path / "tiny").iterdir()) < 4 * 2**20
    assert main(["convert", str(tmp_path / "tiny"), "--out", str(tmp_path / "m")]) == 0
    Image.new("RGB", (70, 50), "red").save(tmp_path / "red.png")
    ask = ["chat", "--model", str(tmp_path / "m"), "--image", str(tmp_path / "red.png")]
    assert main([*ask, "--max-new-tokens", "4", "What is this?"]) == 0
    assert capsys.readouterr().out.strip()
