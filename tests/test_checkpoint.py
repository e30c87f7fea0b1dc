"""One folder is one model: identical after loading, and every way it can be damaged has a name."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from llava_mole import LlavaMoleForConditionalGeneration, LlavaMoleProcessor
from llava_mole.building import ModelRecipe, build_model
from llava_mole.checkpoint import restore
from llava_mole.configuration import LlavaMoleConfig, ParrotConfig, ProjectorConfig
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.mole import MoleConfig
from tests.helpers import (
    FAMILIES,
    assistant,
    awaken,
    picture,
    training_batch,
    user,
    write_language_model,
    write_tower,
)
from tests.mole.arms import ARMS, ONE_OF_EACH

REPOSITORY = Path(__file__).resolve().parents[1]
EVERYTHING = {"mole": True, "lora": True, "parrot": True}
CHAT = [user("What is it?", picture(1)), assistant("a cat")]


def logits(model: Any, processor: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**training_batch(processor, [CHAT])).logits


def load(folder: Path, **options: Any) -> Any:
    return LlavaMoleForConditionalGeneration.from_pretrained(folder, **options)


@pytest.fixture
def saved(tiny_model: Callable[..., Any], tmp_path: Path) -> Path:
    """A folder with everything in it, to be damaged."""
    model, processor = tiny_model("llama", **EVERYTHING)
    model.save_pretrained(tmp_path / "model", processor=processor)
    return tmp_path / "model"


# ---------------------------------------------------------------------- the same model again


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tower", ["vit", "cnn"])
@pytest.mark.parametrize("trained_tower", [False, True])
def test_save_and_load_gives_identical_logits(
    tiny_model: Callable[..., Any], tmp_path: Path, dtype: str, tower: str, trained_tower: bool
) -> None:
    model, processor = tiny_model("llama", tower=tower, dtype=dtype, **EVERYTHING)
    model.projector.input_scale.fill_(1.7)  # a buffer that only training sets
    if trained_tower:
        model.vision_tower.requires_grad_(True)
        with torch.no_grad():
            for tensor in [*model.vision_tower.parameters(), *model.vision_tower.buffers()]:
                tensor.add_(0.01 if tensor.is_floating_point() else 1)
    model.save_pretrained(tmp_path / "m", processor=processor)
    found = load(tmp_path / "m")
    assert_close(logits(found, processor), logits(model, processor), rtol=0, atol=0)
    states = found.state_dict(), model.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[1].items():
        assert torch.equal(states[0][name], tensor), name
        assert states[0][name].dtype == tensor.dtype, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_saves_and_loads_identically(
    tiny_model: Callable[..., Any], tmp_path: Path, family: str
) -> None:
    options = {"attn_implementation": "eager"} if family == "gemma2" else {}
    model, processor = tiny_model(family, **EVERYTHING)
    model.save_pretrained(tmp_path / "m", processor=processor)
    found = load(tmp_path / "m", **options)
    processor_found = LlavaMoleProcessor.from_pretrained(tmp_path / "m")
    assert_close(logits(found, processor_found), logits(model, processor), rtol=0, atol=0)


@pytest.mark.parametrize("parts", [{}, {"mole": True}, {"lora": True}, {"parrot": True}], ids=str)
def test_each_part_alone_saves_and_loads_identically(
    tiny_model: Callable[..., Any], tmp_path: Path, parts: dict[str, bool]
) -> None:
    model, processor = tiny_model("llama", **parts)
    model.save_pretrained(tmp_path / "m", processor=processor)
    assert_close(logits(load(tmp_path / "m"), processor), logits(model, processor), rtol=0, atol=0)


def test_a_folder_with_its_frozen_parts_works_where_the_originals_are_gone(
    tiny_parts: Any, tmp_path: Path
) -> None:
    base = write_language_model(tmp_path / "base", "gemma3_text")
    tower = write_tower(tmp_path / "tower", "cnn")
    recipe = tiny_parts.recipe("gemma3_text", language_model=base, **EVERYTHING)
    recipe.vision_model = f"local-dir:{tower}"
    model, processor = build_model(recipe)
    awaken(model)
    model.save_pretrained(tmp_path / "m", processor=processor, include_frozen=True)
    expected = logits(model, processor)
    shutil.rmtree(base)
    shutil.rmtree(tower)
    moved = tmp_path / "elsewhere" / "other name"
    moved.parent.mkdir()
    (tmp_path / "m").rename(moved)
    found, read = load(moved), LlavaMoleProcessor.from_pretrained(moved)
    assert_close(logits(found, read), expected, rtol=0, atol=0)


def test_a_trained_language_model_is_saved_in_full_without_its_adapters(
    tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    model, processor = tiny_model("llama", **EVERYTHING)
    model.language_model.requires_grad_(True)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path / "m", processor=processor)
    assert_close(logits(load(tmp_path / "m"), processor), logits(model, processor), rtol=0, atol=0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m" / "language_model")
    assert not any("mole" in name or "lora" in name for name in plain.state_dict())


def test_saving_what_was_loaded_changes_nothing(
    saved: Path, tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    processor = LlavaMoleProcessor.from_pretrained(saved)
    again = load(saved)
    again.save_pretrained(tmp_path / "again", processor=processor)
    assert_close(
        logits(load(tmp_path / "again"), processor), logits(again, processor), rtol=0, atol=0
    )


def test_the_folders_lora_opens_with_peft(saved: Path, tiny_parts: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_parts.language_model("llama"))
    opened = PeftModel.from_pretrained(base, saved / "adapters" / "lora").state_dict()
    tensors = load_file(saved / "adapters" / "lora" / "adapter_model.safetensors")
    assert tensors
    for name, tensor in tensors.items():
        twin = name.replace(".weight", ".default.weight")
        assert_close(opened[twin], tensor, rtol=0, atol=0)


def test_nothing_in_the_root_looks_like_an_adapter_or_a_pickle(saved: Path) -> None:
    assert not (saved / "adapter_config.json").exists()
    pickles = [p for p in saved.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert pickles == []
    assert {"config.json", "README.md", "model.safetensors", "chat_template.jinja"} <= {
        path.name for path in saved.iterdir()
    }


def test_dtype_may_be_chosen_at_load(saved: Path) -> None:
    found = load(saved, dtype=torch.bfloat16)
    assert found.get_input_embeddings().weight.dtype == torch.bfloat16
    assert found.projector.layers[0].weight.dtype == torch.float32


def test_the_auto_classes_need_no_more_than_the_import(saved: Path) -> None:
    """In a fresh interpreter, as a stranger would write it."""
    program = f"""
        import llava_mole
        from PIL import Image
        from transformers import AutoModelForImageTextToText, AutoProcessor
        model = AutoModelForImageTextToText.from_pretrained({str(saved)!r})
        processor = AutoProcessor.from_pretrained({str(saved)!r})
        chat = [{{"role": "user", "content": [
            {{"type": "image", "image": Image.new("RGB", (9, 9), "red")}},
            {{"type": "text", "text": "What?"}}]}}]
        inputs = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt")
        reply = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        print(type(model).__name__, type(processor).__name__, len(reply[0]) > 3)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = "LlavaMoleForConditionalGeneration LlavaMoleProcessor True"
    assert done.stdout.splitlines()[-1] == expected


KINDS: dict[str, dict[str, Any]] = {
    "parts by reference": {},
    "parts in full": {"include_frozen": True},
    "everything by reference": EVERYTHING,
    "everything in full": {**EVERYTHING, "include_frozen": True},
    "convolutional tower by reference": {"tower": "cnn"},
    "convolutional tower in full": {"tower": "cnn", "include_frozen": True},
    "Parrot as released": {"parrot": ParrotConfig.released(num_experts=3, hidden_size=16)},
    "Parrot, top-k": {"parrot": ParrotConfig(num_experts=3, hidden_size=16, top_k=2)},
    "linear projector": {"projector": ProjectorConfig(type="linear")},
    "radial basis projector": {"projector": ProjectorConfig(type="rbf", units=5)},
    "bfloat16": {**EVERYTHING, "dtype": "bfloat16"},
    "a trained language model": {**EVERYTHING, "trained": "language_model"},
    "a trained tower": {**EVERYTHING, "trained": "vision_tower"},
} | {f"experts of {name}": {"mole": ARMS[name].config(), "lora": True} for name in ONE_OF_EACH}


def test_every_kind_of_folder_gives_the_same_logits_in_a_process_of_its_own(
    tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    """Nothing but `import llava_mole` and the folder: all kinds in one process, for speed."""
    expected = {}
    for number, (kind, wanted) in enumerate(KINDS.items()):
        options = dict(wanted)
        in_full, trained = options.pop("include_frozen", False), options.pop("trained", None)
        released = kind == "Parrot as released"
        model, processor = tiny_model(
            "llama", **options, **({"vision_select": "cls_patch"} if released else {})
        )
        if options.get("projector", ProjectorConfig()).type == "rbf":
            torch.nn.init.normal_(model.projector.centres)
        if trained is not None:
            part = getattr(model, trained)
            part.requires_grad_(True)
            with torch.no_grad():
                next(part.parameters()).mul_(1.5)
        model.save_pretrained(tmp_path / str(number), processor=processor, include_frozen=in_full)
        expected[str(number)] = logits(model, processor).contiguous()
    program = f"""
        import sys
        import torch
        from safetensors.torch import save_file
        import llava_mole
        from transformers import AutoModelForImageTextToText, AutoProcessor
        torch.set_num_threads(1)
        sys.path.insert(0, {str(REPOSITORY)!r})
        from tests.helpers import assistant, picture, training_batch, user
        chat = [user("What is it?", picture(1)), assistant("a cat")]
        found = {{}}
        for number in {sorted(expected)!r}:
            folder = {str(tmp_path)!r} + "/" + number
            model = AutoModelForImageTextToText.from_pretrained(folder)
            processor = AutoProcessor.from_pretrained(folder)
            with torch.no_grad():
                logits = model(**training_batch(processor, [chat])).logits
            found[number] = logits.contiguous()
        save_file(found, {str(tmp_path / "found.safetensors")!r})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    for (kind, _), number in zip(KINDS.items(), expected, strict=True):
        assert_close(
            found[number], expected[number], rtol=0, atol=0, msg=lambda m, kind=kind: f"{kind}: {m}"
        )


# ---------------------------------------------------------------------- damage, by name


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "model.safetensors",
        "adapters/lora/adapter_model.safetensors",
        "adapters/experts/adapter_model.safetensors",
        "adapters/experts/adapter_config.json",
    ],
)
def test_a_missing_file_is_named(saved: Path, file: str) -> None:
    (saved / file).unlink()
    with pytest.raises(CheckpointError, match=Path(file).name):
        load(saved)


@pytest.mark.parametrize(
    "file",
    [
        "model.safetensors",
        "adapters/lora/adapter_model.safetensors",
        "adapters/experts/adapter_model.safetensors",
    ],
)
@pytest.mark.parametrize("which", [0, -1])
def test_a_missing_key_is_named(saved: Path, file: str, which: int) -> None:
    tensors = load_file(saved / file)
    gone = sorted(tensors)[which]
    del tensors[gone]
    save_file(tensors, saved / file)
    with pytest.raises(CheckpointError, match=gone.removeprefix("base_model.model.")):
        load(saved)


def test_a_missing_buffer_is_named(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model, _ = tiny_model("llama", tower="cnn")
    model.save_pretrained(tmp_path / "m", include_frozen=True)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("running_var"))
    del tensors[gone]
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CheckpointError, match=gone):
        load(tmp_path / "m")


def test_an_unknown_key_is_named(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    save_file({**tensors, "projector.extra": torch.zeros(1)}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"projector\.extra"):
        load(saved)


def test_half_a_weight_file_is_refused(saved: Path) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load(saved)


def test_another_architecture_is_refused_by_name(tiny_parts: Any) -> None:
    with pytest.raises(CheckpointError, match="holds a 'llama' model, expected 'llava_mole'"):
        load(tiny_parts.language_model("llama"))


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing_here"):
        load(tmp_path / "nothing_here")


def test_changed_weights_of_the_referenced_language_model_are_refused(
    tiny_parts: Any, tmp_path: Path
) -> None:
    base = write_language_model(tmp_path / "base", "llama")
    model, _ = build_model(tiny_parts.recipe("llama", language_model=base))
    model.save_pretrained(tmp_path / "m")
    load(tmp_path / "m")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"base.*has sha256 .*this model was trained on"):
        load(tmp_path / "m")


def test_changed_weights_of_the_referenced_tower_are_refused(
    tiny_parts: Any, tmp_path: Path
) -> None:
    recipe = tiny_parts.recipe("llama")
    recipe.vision_model = f"local-dir:{write_tower(tmp_path / 'tower', 'cnn')}"
    model, _ = build_model(recipe)
    model.save_pretrained(tmp_path / "m")
    shutil.rmtree(tmp_path / "tower")
    write_tower(tmp_path / "tower", "cnn", seed=1)
    with pytest.raises(CheckpointError, match=r"vision tower .*has sha256"):
        load(tmp_path / "m")


def test_parts_named_by_relative_folders_are_found_from_elsewhere(
    tiny_parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_parts.language_model("llama"), tmp_path / "llama")
    shutil.copytree(tiny_parts.tower("cnn"), tmp_path / "cnn")
    monkeypatch.chdir(tmp_path)
    recipe = ModelRecipe("llama", vision_model="local-dir:cnn", dtype="float32")
    model, processor = build_model(recipe)
    model.save_pretrained("m", processor=processor)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = LlavaMoleForConditionalGeneration.from_pretrained(tmp_path / "m")
    there, here = found.state_dict(), model.state_dict()
    assert all(torch.equal(there[name], here[name]) for name in here)


def test_a_vanished_language_model_is_named(tiny_parts: Any, tmp_path: Path) -> None:
    base = write_language_model(tmp_path / "base", "llama")
    model, _ = build_model(tiny_parts.recipe("llama", language_model=base))
    model.save_pretrained(tmp_path / "m")
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match=str(base)):
        load(tmp_path / "m")


def test_another_base_shape_is_refused_by_key(saved: Path, tiny_parts: Any) -> None:
    values = json.loads((saved / "config.json").read_text())
    other = tiny_parts.language_model("llama", hidden_size=64)
    values["text_source"] = {"name": str(other), "revision": None, "sha256": None}
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="hidden_size=64, this model was trained on one"):
        load(saved)


def test_another_width_of_the_mlps_is_refused_by_shape(saved: Path, tiny_parts: Any) -> None:
    values = json.loads((saved / "config.json").read_text())
    other = tiny_parts.language_model("llama", intermediate_size=64)
    values["text_source"] = {"name": str(other), "revision": None, "sha256": None}
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"another shape \(another base model\?\)"):
        load(saved)


def test_a_pickled_language_model_is_not_read(tiny_parts: Any, tmp_path: Path) -> None:
    base = write_language_model(tmp_path / "base", "llama")
    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        build_model(tiny_parts.recipe("llama", language_model=base))


def test_a_vocabulary_larger_than_the_embedding_is_refused(tiny_parts: Any, tmp_path: Path) -> None:
    base = write_language_model(tmp_path / "base", "llama", vocab_size=200)
    with pytest.raises(ConfigError, match="has 264 tokens, the embedding only 200 rows"):
        build_model(tiny_parts.recipe("llama", language_model=base))


def test_an_unsupported_option_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(ConfigError, match="quantization_config"):
        load(saved, quantization_config={"bits": 4})


def test_an_unknown_key_in_a_part_of_the_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        LlavaMoleConfig(parrot={"topk": 2}).parrot_part  # noqa: B018


# ---------------------------------------------------------------------- saving over an older one


@pytest.mark.parametrize("limit", [3_000, 40_000])
def test_out_of_room_while_saving_leaves_the_previous_checkpoint(
    tiny_model: Callable[..., Any], tmp_path: Path, limit: int
) -> None:
    """The kernel refuses to let a file grow beyond `limit` bytes, as a full disk would."""
    folder = tmp_path / "m"
    model, processor = tiny_model("llama", **EVERYTHING)
    model.save_pretrained(folder, processor=processor)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    program = f"""
        import resource, signal
        import llava_mole, torch
        from llava_mole.errors import CheckpointError
        from transformers import AutoModelForImageTextToText, AutoProcessor
        model = AutoModelForImageTextToText.from_pretrained({str(folder)!r})
        processor = AutoProcessor.from_pretrained({str(folder)!r})
        with torch.no_grad():
            for parameter in model.projector.parameters():
                parameter.add_(1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            model.save_pretrained({str(folder)!r}, processor=processor, include_frozen=True)
        except CheckpointError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "What was saved there before is unchanged" in done.stdout
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    assert_close(logits(load(folder), processor), logits(model, processor), rtol=0, atol=0)


def test_a_newer_save_replaces_the_older_and_keeps_strangers_files(
    tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    model, processor = tiny_model("llama", **EVERYTHING)
    model.save_pretrained(tmp_path / "m", processor=processor)
    (tmp_path / "m" / "notes.txt").write_text("mine")
    awaken(model, seed=9)
    model.save_pretrained(tmp_path / "m", processor=processor)
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    assert_close(logits(load(tmp_path / "m"), processor), logits(model, processor), rtol=0, atol=0)


def test_restore_puts_a_folders_weights_into_a_model_of_the_same_shape(
    saved: Path, tiny_model: Callable[..., Any]
) -> None:
    model, processor = tiny_model("llama", seed=5, **EVERYTHING)
    awaken(model, seed=6)
    expected = logits(load(saved), processor)
    assert not torch.allclose(logits(model, processor), expected)
    restore(model, saved)
    assert_close(logits(model, processor), expected, rtol=0, atol=0)


def test_experts_on_the_linears_of_a_plain_lora_are_saved_apart_from_it(
    tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    """MoLA puts experts on attention too."""
    model, processor = tiny_model(mole=MoleConfig(method="mola", num_experts=2, r=2), lora=True)
    model.save_pretrained(tmp_path / "model", processor=processor)
    plain = load_file(tmp_path / "model" / "adapters" / "lora" / "adapter_model.safetensors")
    assert plain
    assert not [name for name in plain if "mole" in name]
    again = LlavaMoleForConditionalGeneration.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[1, 20, 30, 40]])
    assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float32)],
)
def test_plain_lora_has_the_dtype_of_its_base_but_for_float16(tiny_model, dtype, expected):
    """Gradients in float16 cannot be unscaled."""
    model, _ = tiny_model("llama", lora=True, dtype=dtype)
    found = {p.dtype for name, p in model.named_parameters() if ".lora_" in name}
    assert found == {expected}
