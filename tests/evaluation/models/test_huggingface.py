"""Models of other makers: beginnings that are shared where that is right, greedy replies, letters
and options through their own chat templates."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mole.data.images import load_image
from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.evaluation.asks import Unit
from llava_mole.evaluation.models.base import Reply
from llava_mole.evaluation.models.chat import Row
from llava_mole.evaluation.models.huggingface import HuggingFaceModel
from llava_mole.evaluation.plan import make_plan
from llava_mole.evaluation.protocol import Protocol
from tests import helpers
from tests.evaluation.models import questions, vision_language

EVERY_FAMILY = pytest.mark.parametrize("family", vision_language.FAMILIES)
EVERY_ANSWER = pytest.mark.parametrize("answer", ["generate", "letters", "options"])
PROTOCOL = replace(questions.LETTERS, max_new_tokens=6)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        family: vision_language.write(root / family, family) for family in vision_language.FAMILIES
    }


Loaded = Callable[..., HuggingFaceModel]


def load(folder: Path, protocol: Protocol = PROTOCOL, **options: Any) -> HuggingFaceModel:
    return HuggingFaceModel(
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
        protocol,
        name=folder.name,
        **options,
    )


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> Loaded:
    """(family, protocol, share) -> a model that tests only ask."""

    @cache
    def get(family: str, protocol: Protocol = PROTOCOL, share: bool = True) -> HuggingFaceModel:
        return load(folders[family], protocol, share=share)

    return get


def first_row(model: HuggingFaceModel, unit: Unit, turn: int = 0) -> Row:
    ask = unit.asks[turn]
    return model.chat.row(ask.prompt, load_image(ask.item.image))


def answers(model: HuggingFaceModel, units: list[Unit], rows: int = 64) -> list[list[Reply]]:
    """Replies in the order of the units, asked in the plan's batches."""
    found: dict[int, list[Reply]] = {}
    for batch in make_plan(units, model.lengths(units), rows).batches:
        replies = model.answer([units[number] for number in batch])
        found.update(zip(batch, replies, strict=True))
    return [found[number] for number in range(len(units))]


def same(some: list[list[Reply]], others: list[list[Reply]]) -> None:
    """Equal texts, likelihoods equal up to float32's rounding in another order of sums."""
    assert [[reply.text for reply in unit] for unit in some] == [
        [reply.text for reply in unit] for unit in others
    ]
    for one, other in zip(chain(*some), chain(*others), strict=True):
        assert one.finished == other.finished
        assert one.scores == (other.scores and pytest.approx(other.scores, abs=1e-4))


# ---------------------------------------------------------------------- shared and whole


@EVERY_FAMILY
def test_every_family_goes_on_from_a_shared_beginning(family: str, loaded: Loaded) -> None:
    told = loaded(family).describe()
    assert told["shared_beginnings"] is True
    assert told["shared_beginnings_reason"] == (
        "logits of shared and whole runs lie at most 0.0001 of their spread apart"
    )


@EVERY_ANSWER
@EVERY_FAMILY
def test_shared_passes_answer_as_whole_ones(family: str, answer: str, loaded: Loaded) -> None:
    protocol = replace(PROTOCOL, answer=answer)
    units = questions.units(protocol)
    shared, whole = loaded(family, protocol), loaded(family, protocol, False)
    assert not whole.describe()["shared_beginnings"]
    same(answers(shared, units), answers(whole, units))


@EVERY_FAMILY
def test_a_batch_answers_as_one_question_at_a_time(family: str, loaded: Loaded) -> None:
    units = questions.units(PROTOCOL)
    model = loaded(family)
    batches = make_plan(units, model.lengths(units), 64).batches
    assert any(len(batch) > 1 for batch in batches)
    same(answers(model, units), [model.answer([unit])[0] for unit in units])


@EVERY_FAMILY
def test_pictures_change_replies(family: str, loaded: Loaded) -> None:
    protocol = replace(PROTOCOL, answer="letters")
    one, other = questions.units(protocol)[:2]
    swapped = Unit(
        tuple(replace(a, item=replace(a.item, image=other.asks[0].item.image)) for a in one.asks)
    )
    model = loaded(family, protocol)
    assert model.answer([one])[0][0].scores != model.answer([swapped])[0][0].scores


def test_passes_that_show_different_pictures_share_nothing(loaded: Loaded) -> None:
    protocol = replace(PROTOCOL, answer="letters")
    one, other = questions.units(protocol)[:2]
    mixed = Unit(
        (
            one.asks[0],
            replace(one.asks[1], item=replace(one.asks[1].item, image=other.asks[0].item.image)),
        )
    )
    for family in ("llava", "qwen2_5_vl"):
        model = loaded(family, protocol)
        same([model.answer([mixed])[0]], [loaded(family, protocol, False).answer([mixed])[0]])


@EVERY_ANSWER
def test_a_withheld_picture_is_never_looked_at(answer: str, loaded: Loaded) -> None:
    protocol = replace(PROTOCOL, answer=answer, picture=False)
    units = questions.units(protocol)
    broken = [
        Unit(tuple(replace(ask, item=replace(ask.item, image=b"no picture")) for ask in unit.asks))
        for unit in units
    ]
    for family in ("llava", "qwen2_5_vl"):
        model = loaded(family, protocol)
        assert model.share
        same(answers(model, broken), answers(loaded(family, protocol, False), units))


def test_pictures_of_one_length_share_batches_whatever_their_size(loaded: Loaded) -> None:
    square, wide = questions.units(PROTOCOL)[1:3]
    wide = replace(
        wide, asks=tuple(replace(ask, prompt=square.asks[0].prompt) for ask in wide.asks[:2])
    )
    square = replace(square, asks=square.asks[:1] * 2)
    fixed = loaded("llava").lengths([square, wide])
    assert fixed[0] == fixed[1]
    by_size = loaded("qwen2_5_vl").lengths([square, wide])
    assert by_size[0] != by_size[1]


def test_a_model_that_reads_in_both_directions_runs_whole_and_scores_no_options() -> None:
    protocol = replace(PROTOCOL, answer="options")
    model = HuggingFaceModel(
        vision_language.model_that_reads_both_ways(), vision_language.processor("gemma3"), protocol
    )
    told = model.describe()
    assert told["shared_beginnings"] is False
    assert "more than 0.0001 of their spread apart" in told["shared_beginnings_reason"]
    assert model.answers == {"generate", "letters"}


# ---------------------------------------------------------------------- replies


def written(folder: Path, unit: Unit, **settings: Any) -> list[str]:
    """Replies by transformers alone: one conversation, no cache handed on."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    said = []
    for ask in unit.asks:
        file = folder.parent / "picture.png"
        file.write_bytes(ask.item.image)
        content = [{"type": "image", "path": str(file)}, {"type": "text", "text": ask.prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        out = model.generate(**inputs, do_sample=False, **settings)
        new = out[0, inputs["input_ids"].shape[1] :]
        said.append(processor.decode(new, skip_special_tokens=True).strip())
    return said


@EVERY_FAMILY
def test_replies_are_those_of_generate(
    family: str, folders: dict[str, Path], loaded: Loaded
) -> None:
    unit = questions.units(PROTOCOL)[0]
    replies = loaded(family).answer([unit])[0]
    assert [reply.text for reply in replies] == written(folders[family], unit, max_new_tokens=6)
    assert any(reply.text for reply in replies)


def test_wishes_of_the_generation_config_are_set_aside_and_told(
    loaded: Loaded, tmp_path: Path
) -> None:
    folder = vision_language.write(tmp_path / "model", "qwen2_5_vl")
    file = folder / "generation_config.json"
    wishes = {"repetition_penalty": 30.0, "do_sample": True, "temperature": 5.0, "num_beams": 3,
              "suppress_tokens": [70, 71, 72]}  # fmt: skip
    file.write_text(json.dumps({**json.loads(file.read_text()), **wishes}))
    model = load(folder)
    units = questions.units(PROTOCOL)
    same(answers(model, units), answers(loaded("qwen2_5_vl"), units))
    assert model.describe()["set_aside"] == {
        "repetition_penalty": 30.0,
        "suppress_tokens": [70, 71, 72],
    }


@pytest.mark.parametrize("share", [True, False])
def test_a_reply_stops_at_an_end_token_of_the_generation_config(
    share: bool, folders: dict[str, Path]
) -> None:
    folder = folders["qwen2_5_vl"]
    unit = questions.units(PROTOCOL)[0]
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    whole = HuggingFaceModel(model, processor, PROTOCOL).answer([unit])[0][0]
    assert not whole.finished
    ids = processor.tokenizer(whole.text, add_special_tokens=False)["input_ids"]
    end = next(token for token in ids if token != ids[0])
    model.generation_config.eos_token_id = [2, end]
    short = HuggingFaceModel(model, processor, PROTOCOL, share=share).answer([unit])[0][0]
    assert short.finished
    assert short.text == processor.decode(ids[: ids.index(end)]).strip()


# ---------------------------------------------------------------------- letters and options


@EVERY_FAMILY
@torch.no_grad()
def test_letters_are_the_reply_s_first_token(family: str, loaded: Loaded) -> None:
    protocol = replace(PROTOCOL, answer="letters")
    unit = questions.units(protocol)[0]
    model = loaded(family, protocol)
    reply = model.answer([unit])[0][1]
    inputs = model.chat.encode([first_row(model, unit, 1)])
    logprobs = model.model(**inputs).logits[0, -1].log_softmax(-1)
    expected = {
        letter: float(logprobs[model.chat.tokens(letter)[0]]) for letter in unit.asks[1].scored
    }
    assert reply.scores == pytest.approx(expected, abs=1e-4)
    assert reply.text == max(expected, key=expected.__getitem__)


@EVERY_FAMILY
@torch.no_grad()
def test_an_option_s_score_is_its_mean_log_likelihood_with_its_end(
    family: str, loaded: Loaded
) -> None:
    protocol = replace(PROTOCOL, answer="options", style="question", passes="vanilla")
    unit = questions.units(protocol)[0]
    model = loaded(family, protocol)
    scores = model.answer([unit])[0][0].scores or {}
    prompt = model.chat.encode([first_row(model, unit)])
    end = 2 if family == "llava" else vision_language.END_OF_TURN
    for letter, option in unit.asks[0].item.options.items():
        answer = [*model.chat.tokens(option), end]
        inputs = {**prompt, "input_ids": extended(prompt["input_ids"], answer)}
        for key in {"attention_mask", "mm_token_type_ids", "token_type_ids"} & set(prompt):
            inputs[key] = extended(prompt[key], [int(key == "attention_mask")] * len(answer))
        logprobs = model.model(**inputs).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
        expected = logprobs[range(len(answer)), answer].mean()
        assert scores[letter] == pytest.approx(float(expected), abs=1e-4)


def extended(row: Tensor, values: list[int]) -> Tensor:
    """(1, T) -> (1, T + len(values))."""
    return torch.cat([row, torch.tensor([values])], dim=1)


def test_letters_that_begin_with_one_token_are_refused(folders: dict[str, Path]) -> None:
    protocol = replace(PROTOCOL, answer="letters")
    model = load(folders["qwen2_5_vl"], protocol)
    model.chat.processor.chat_template = vision_language.template("qwen2_5_vl").replace(
        "{{ part.text }}", "{{ ' ' if message.role == 'assistant' }}{{ part.text }}"
    )
    with pytest.raises(ConfigError, match="A, B, C begin with one token"):
        model.answer(questions.units(protocol)[:1])


def test_a_template_whose_prompt_changes_with_an_answer_is_refused(
    folders: dict[str, Path],
) -> None:
    protocol = replace(PROTOCOL, answer="options")
    model = load(folders["qwen2_5_vl"], protocol)
    model.chat.processor.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    with pytest.raises(ConfigError, match="Unless the prompt stays as it is"):
        model.answer(questions.units(protocol)[:1])


# ---------------------------------------------------------------------- refusals


def test_what_cannot_be_loaded_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    def refuse(name: str | Path, match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            HuggingFaceModel.from_folder(name, PROTOCOL, device="cpu")

    refuse(tmp_path / "nowhere", "no config.json")
    refuse("someone/a-model-that-is-not-cached", "hf download someone/a-model-that-is-not-cached")
    text = helpers.write_language_model(tmp_path / "text", "llama")
    refuse(text, "llama is no image-text-to-text model")
    bare = vision_language.write(tmp_path / "bare", "llava")
    (bare / "chat_template.jinja").unlink()
    refuse(bare, "no chat template")
    empty = vision_language.write(tmp_path / "empty", "llava")
    (empty / "model.safetensors").unlink()
    refuse(empty, "cannot be loaded")
    (empty / "model.safetensors").write_bytes(b"half a file")
    refuse(empty, "cannot be loaded .SafetensorError")
    cut = vision_language.write(tmp_path / "cut", "llava")
    weights = load_file(cut / "model.safetensors")
    weights.pop(next(name for name in weights if "multi_modal_projector" in name))
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    refuse(cut, "1 weights are not in its files, or of another shape .first: .*projector")
    alone = vision_language.write(tmp_path / "alone", "llava")
    for file in ("processor_config.json", "preprocessor_config.json"):
        (alone / file).unlink(missing_ok=True)
    refuse(alone, "cannot be loaded|has no image_processor")
    with pytest.raises(ConfigError, match="dtype='int3': allowed are auto, float32"):
        HuggingFaceModel.from_folder(folders["llava"], PROTOCOL, device="cpu", dtype="int3")


def test_a_template_that_shows_no_picture_is_refused(tmp_path: Path) -> None:
    processor = vision_language.processor("llava")
    processor.chat_template = processor.chat_template.replace("<image>", "")
    with pytest.raises(CheckpointError, match="same prompt with a picture as without"):
        HuggingFaceModel(vision_language.model("llava"), processor, PROTOCOL)


def test_a_broken_picture_and_a_long_question_name_their_place(loaded: Loaded) -> None:
    unit = questions.units(PROTOCOL)[1]
    ask = replace(unit.asks[0], item=replace(unit.asks[0].item, image=b"no picture"))
    for family in ("llava", "qwen2_5_vl"):
        with pytest.raises(DataError, match=r"some.tsv:3: image given as 10 bytes"):
            loaded(family).answer([Unit((ask,))])
    long = replace(unit.asks[0], prompt="what " * 500)
    with pytest.raises(DataError, match="the context holds 2048"):
        loaded("llava").answer([Unit((long,))])


def test_a_folder_tells_what_it_is(folders: dict[str, Path]) -> None:
    model = HuggingFaceModel.from_folder(
        folders["gemma3"], PROTOCOL, device="cpu", dtype="bfloat16"
    )
    told = model.describe()
    assert told["architecture"] == "Gemma3ForConditionalGeneration"
    assert told["dtype"] == "bfloat16"
    assert len(told["sha256"]) == 64
    assert told == json.loads(json.dumps(told))
    again = HuggingFaceModel.from_folder(
        folders["gemma3"], PROTOCOL, device="cpu", dtype="bfloat16"
    )
    assert again.describe() == told
