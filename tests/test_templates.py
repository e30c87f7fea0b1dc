"""Chat templates: the text a model reads, and the exact span it learns to say."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llava_mole.errors import ConfigError
from llava_mole.processing import LlavaMoleImageProcessor, LlavaMoleProcessor
from llava_mole.templates import TEMPLATES, chat_template
from tests.helpers import SPECIAL, assistant, byte_tokenizer, picture, user

SYSTEM = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
CHAT = [user("What?", picture()), assistant("a cat"), user("Sure?"), assistant("yes")]

TEXT = {
    "qa": "<bos><image>What?\na cat<eos>\nSure?\nyes<eos>\n",
    "gemma": (
        "<bos><start_of_turn>user\n<image>What?<end_of_turn>\n"
        "<start_of_turn>model\na cat<end_of_turn>\n"
        "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
    ),
    "chatml": (
        "<|im_start|>user\n<image>What?<|im_end|>\n<|im_start|>assistant\na cat<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    ),
    "vicuna_v1": (
        "<bos>A chat between a curious user and an artificial intelligence assistant. The "
        "assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>What? ASSISTANT: a cat<eos>USER: Sure? ASSISTANT: yes<eos>"
    ),
}
END = {"qa": "<eos>", "gemma": "<end_of_turn>"}
END |= {"chatml": "<|im_end|>", "vicuna_v1": "<eos>"}
BEGIN = {"vicuna_v1": " "}
"""Of an answer. Vicuna's prompt ends before the space that an answer's first token begins with."""


def processor(name: str) -> LlavaMoleProcessor:
    return LlavaMoleProcessor(
        LlavaMoleImageProcessor({"size": 16}),
        byte_tokenizer(),
        tokens_per_image=4,
        chat_template=chat_template(name, image_token="<image>"),
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_writes_its_published_format(name: str) -> None:
    assert processor(name).apply_chat_template(CHAT) == TEXT[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_label_mask_is_the_assistants_words_and_its_end_token(name: str) -> None:
    made = processor(name)
    encoded = made.encode(CHAT)
    said = [token for token in encoded.labels if token != -100]
    begin, end = BEGIN.get(name, ""), END[name]
    assert made.decode(said) == f"{begin}a cat{end}{begin}yes{end}"
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (-100, token)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_start_of_its_training_row(name: str) -> None:
    made = processor(name)
    prompt = made.encode(CHAT[:3], add_generation_prompt=True).input_ids
    whole = made.encode(CHAT).input_ids
    assert whole[: len(prompt)] == prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_character_of_every_language_keeps_its_place(name: str) -> None:
    made = processor(name)
    for answer in ("红苹果", "maçã", "تفاحة", "kırmızı", "яблоко", "👩🏽‍🚀"):
        encoded = made.encode([user("什么？", picture()), assistant(answer)])
        said = [token for token in encoded.labels if token != -100]
        assert made.decode(said) == BEGIN.get(name, "") + answer + END[name]


WORDS = "a chat between USER: and ASSISTANT: what is this? a cat yes it is a big cat, sure? I see. "


def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A small BPE tokenizer that cuts as Llama 2's (metaspace) or GPT 2's (bytes) does."""
    core = Tokenizer(models.BPE())
    if kind == "metaspace":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        core.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        core.post_processor = processors.ByteLevel(trim_offsets=kind == "bytes, trimmed")
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(SPECIAL),
        initial_alphabet=["\n", "é", *pre_tokenizers.ByteLevel.alphabet()],
    )  # fmt: skip
    core.train_from_iterator([WORDS] * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        additional_special_tokens=list(SPECIAL[3:]),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["metaspace", "bytes", "bytes, trimmed"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_token_after_the_prompt_is_learnt_up_to_the_end(name: str, kind: str) -> None:
    made = LlavaMoleProcessor(
        LlavaMoleImageProcessor({"size": 16}), trained_tokenizer(kind), tokens_per_image=4,
        chat_template=chat_template(name, image_token="<image>"),
    )  # fmt: skip
    for answer in ("a cat", "yes", "it is  a big cat", "I see a é cat"):
        asked = [user("what is this?", picture())]
        prompt = made.encode(asked, add_generation_prompt=True).input_ids
        whole = made.encode([*asked, assistant(answer)])
        assert whole.input_ids[: len(prompt)] == prompt
        learnt = [place for place, label in enumerate(whole.labels) if label != -100]
        assert learnt == list(range(len(prompt), learnt[-1] + 1)), answer
        end = made.tokenizer.convert_tokens_to_ids(END[name])
        assert whole.input_ids[learnt[-1]] == end


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_turn_is_read_and_not_learnt(name: str) -> None:
    made = processor(name)
    assert "Be brief." in made.apply_chat_template([SYSTEM, *CHAT])
    encoded = made.encode([SYSTEM, *CHAT])
    assert encoded.supervised == made.encode(CHAT).supervised


def test_plain_strings_are_content_too() -> None:
    made = processor("qa")
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    assert made.apply_chat_template(chat) == "<bos>Hi\nHo<eos>\n"


def test_an_unknown_template_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'chatml'"):
        chat_template("chatlm", image_token="<image>")
