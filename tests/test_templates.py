"""Chat templates: the text a model reads, and the exact span it learns to say.

Expected texts are written from the published formats, ⟦⟧ around what is learnt. Formats whose
vendor template is installed beside (TRL keeps unchanged copies) are compared with it too.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from llava_mole.errors import ConfigError, DataError
from llava_mole.mask_view import show_mask
from llava_mole.processing import IGNORE, LlavaMoleImageProcessor, LlavaMoleProcessor
from llava_mole.templates import TEMPLATES, chat_template
from tests.helpers import assistant, picture, user
from tests.tokenizers import FAMILIES, bytes_gpt4, llama2

CHAT = [user("What?", picture()), assistant("a cat"), user("Sure?"), assistant("yes")]
SYSTEM = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
WITH_SYSTEM = [SYSTEM, user("What?"), assistant("a cat")]

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)
DATES = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦a cat<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦yes<|eot_id|>⟧"
)
CHATML = (
    "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n⟦a cat<|im_end|>⟧\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n⟦yes<|im_end|>⟧\n"
)
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
TEXT = {
    "qa": "<s><image>What?\n⟦a cat</s>⟧\nSure?\n⟦yes</s>⟧\n",
    "gemma": (
        "<s><start_of_turn>user\n<image>What?<end_of_turn>\n"
        "<start_of_turn>model\n⟦a cat<end_of_turn>⟧\n"
        "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n⟦yes<end_of_turn>⟧\n"
    ),
    "chatml": CHATML,
    "qwen2": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + CHATML,
    "qwen2_5": f"<|im_start|>system\n{QWEN}<|im_end|>\n" + CHATML,
    "qwen3": (
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\na cat<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n⟦yes<|im_end|>⟧\n"
    ),
    "qwen3_every_answer": CHATML.replace(
        "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ),
    "vicuna_v1": (
        f"<s>{VICUNA}USER: <image>\nWhat? ASSISTANT:⟦ a cat</s>⟧USER: Sure? ASSISTANT:⟦ yes</s>⟧"
    ),
    "llama3": "<s>" + LLAMA3,
    "llama3_1": "<s>" + DATES + "<|eot_id|>" + LLAMA3,
    "mistral_v1": "<s> [INST] <image>\nWhat? [/INST]⟦ a cat</s>⟧ [INST] Sure? [/INST]⟦ yes</s>⟧",
    "mistral_v3": "<s>[INST] <image>\nWhat?[/INST]⟦ a cat</s>⟧[INST] Sure?[/INST]⟦ yes</s>⟧",
    "mistral_v3_tekken": "<s>[INST]<image>\nWhat?[/INST]⟦a cat</s>⟧[INST]Sure?[/INST]⟦yes</s>⟧",
    "mistral_v7": "<s>[INST]<image>\nWhat?[/INST]⟦a cat</s>⟧[INST]Sure?[/INST]⟦yes</s>⟧",
    "phi3": (
        "<|user|>\n<image>\nWhat?<|end|>\n<|assistant|>\n⟦a cat<|end|>⟧\n"
        "<|user|>\nSure?<|end|>\n<|assistant|>\n⟦yes<|end|>⟧\n</s>"
    ),
    "phi4": (
        "<|im_start|>user<|im_sep|><image>\nWhat?<|im_end|>"
        "<|im_start|>assistant<|im_sep|>⟦a cat<|im_end|>⟧"
        "<|im_start|>user<|im_sep|>Sure?<|im_end|><|im_start|>assistant<|im_sep|>⟦yes<|im_end|>⟧"
    ),
    "phi4_mini": (
        "<|user|><image>\nWhat?<|end|><|assistant|>⟦a cat<|end|>⟧"
        "<|user|>Sure?<|end|><|assistant|>⟦yes<|end|>⟧</s>"
    ),
    "plain": "<s><image>⟦a cat\n⟧",  # of the first round
}
ASKED = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n⟦a cat<|im_end|>⟧\n"
BRIEF = "<|im_start|>system\nBe brief.<|im_end|>\n"
SYSTEM_TEXT = {
    "qa": "<s>Be brief.\nWhat?\n⟦a cat</s>⟧\n",
    "gemma": (
        "<s><start_of_turn>user\nBe brief.\n\nWhat?<end_of_turn>\n"
        "<start_of_turn>model\n⟦a cat<end_of_turn>⟧\n"
    ),
    "chatml": BRIEF + ASKED,
    "qwen2": BRIEF + ASKED,
    "qwen2_5": BRIEF + ASKED,
    "qwen3": BRIEF + ASKED.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n"),
    "qwen3_every_answer": BRIEF
    + ASKED.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n"),
    "vicuna_v1": "<s>Be brief. USER: What? ASSISTANT:⟦ a cat</s>⟧",
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦a cat<|eot_id|>⟧"
    ),
    "llama3_1": (
        f"<s>{DATES}Be brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦a cat<|eot_id|>⟧"
    ),
    "mistral_v1": "<s> [INST] Be brief.\n\nWhat? [/INST]⟦ a cat</s>⟧",
    "mistral_v3": "<s>[INST] Be brief.\n\nWhat?[/INST]⟦ a cat</s>⟧",
    "mistral_v3_tekken": "<s>[INST]Be brief.\n\nWhat?[/INST]⟦a cat</s>⟧",
    "mistral_v7": "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]What?[/INST]⟦a cat</s>⟧",
    "phi3": (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nWhat?<|end|>\n<|assistant|>\n⟦a cat<|end|>⟧\n</s>"
    ),
    "phi4": (
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>What?<|im_end|>"
        "<|im_start|>assistant<|im_sep|>⟦a cat<|im_end|>⟧"
    ),
    "phi4_mini": "<|system|>Be brief.<|end|><|user|>What?<|end|><|assistant|>⟦a cat<|end|>⟧</s>",
}
ROUNDS = tuple(name for name in TEMPLATES if name != "plain")
"""Formats of conversations; `plain` is one picture and its caption."""


def processor(name: str, tokenizer: Any = None) -> LlavaMoleProcessor:
    return LlavaMoleProcessor(
        LlavaMoleImageProcessor({"size": 16}),
        tokenizer or bytes_gpt4(),
        tokens_per_image=4,
        chat_template=chat_template(name, image_token="<image>"),
    )


def bracketed(made: LlavaMoleProcessor, chat: list[dict[str, Any]]) -> str:
    """The rendered text, ⟦⟧ where the generation marks are."""
    text, spans = made.render(chat)
    for start, end in reversed(spans):
        text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
    return text


# ---------------------------------------------------------------------- the published formats


def test_every_format_has_its_expected_text() -> None:
    assert set(TEXT) == set(TEMPLATES)
    assert set(SYSTEM_TEXT) == set(ROUNDS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_writes_its_published_format_and_marks_what_is_learnt(name: str) -> None:
    chat = CHAT[:2] if name == "plain" else CHAT
    assert bracketed(processor(name), chat) == TEXT[name]


@pytest.mark.parametrize("name", ROUNDS)
def test_a_system_turn_stands_where_the_format_puts_it_and_is_not_learnt(name: str) -> None:
    assert bracketed(processor(name), WITH_SYSTEM) == SYSTEM_TEXT[name]


@pytest.mark.parametrize(
    ("name", "family"),
    # Phi 3's marks swallow the line breaks behind them, which other formats need.
    [(n, family) for n in TEMPLATES for family in FAMILIES if family != "phi 3" or n == "phi3"],
)
def test_labels_are_the_marked_words_in_tokens_whatever_the_tokenizer(
    name: str, family: str
) -> None:
    tokenizer = FAMILIES[family]()
    made = processor(name, tokenizer)
    chat = CHAT[:2] if name == "plain" else CHAT
    text = TEXT[name].replace("<s>", tokenizer.bos_token or "")
    shown = text.replace("<image>", "<image>×4")
    if family == "phi 3":  # <|end|> takes the line break behind it, as in Phi 3's own vocabulary
        shown = shown.replace("⟧\n", "⟧").replace("|>\n", "|>")
    if family == "llama 2, legacy":  # it puts a space behind every special token
        assert without_spaces(show_mask(made, chat)) == without_spaces(shown)
    else:
        if family == "llama 2":  # as it does before the first word of every text
            shown = shown.replace("<s>A chat", "<s> A chat")
        assert show_mask(made, chat) == shown
    encoded = made.encode(chat)
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (IGNORE, token)


def without_spaces(text: str) -> str:
    return text.replace(" ", "")


@pytest.mark.parametrize("name", ROUNDS)
def test_pictures_stand_where_the_data_put_them(name: str) -> None:
    asked = user("", picture(1))
    asked["content"] = [
        {"type": "text", "text": "This "},
        {"type": "image", "image": picture(1)},
        {"type": "text", "text": " or\n"},
        {"type": "image", "image": picture(2)},
    ]
    text = processor(name).render([asked])[0]
    if name in ("qa", "gemma"):
        assert "This<image>or<image>" in text
    else:
        assert "This\n<image>\nor\n<image>" in text


@pytest.mark.parametrize("name", ROUNDS)
def test_plain_strings_are_content_too(name: str) -> None:
    strings = [
        {"role": message["role"], "content": message["content"][-1]["text"]}
        for message in WITH_SYSTEM
    ]
    assert bracketed(processor(name), strings) == SYSTEM_TEXT[name]


# ---------------------------------------------------------------------- vendors' own templates

VENDORS = {
    "chatml": ("qwen3_instruct_2507",),
    "qwen2": ("qwen2_5_vl",),  # Qwen2-VL's and Qwen2.5-VL's; Qwen2's own writes the same
    "qwen2_5": ("qwen2_5",),
    "qwen3": ("qwen3",),
    "llama3": ("llama3",),
    "llama3_1": ("llama3_1", "llama3_2"),
    "gemma": ("gemma", "gemma3"),
    "phi3": ("phi3", "phi3_5"),
}
SAID = {"role": "assistant", "content": "A cat."}
PROBES = [
    [{"role": "user", "content": "What?"}],
    [{"role": "user", "content": "What?"}, SAID],
    [{"role": "user", "content": "这是什么？"}, SAID, {"role": "user", "content": "ما هذا؟"}],
    [{"role": "user", "content": "a\n\nb"}, SAID, {"role": "user", "content": "c"}, SAID],
]
PROBES += [[{"role": "system", "content": "Be brief."}, *chat] for chat in PROBES]


def vendor_template(stem: str) -> str:
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        pytest.skip("needs TRL, whose copies of vendors' templates are compared with")
    path = Path(found.origin).parent / "chat_templates" / f"{stem}.jinja"
    if not path.is_file():
        pytest.skip(f"this TRL has no {stem}.jinja")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "vendor"), [(name, vendor) for name, all_ in VENDORS.items() for vendor in all_]
)
def test_text_is_the_vendors_own_templates(name: str, vendor: str) -> None:
    source, made = vendor_template(vendor), processor(name)
    for chat in PROBES:
        if vendor == "gemma" and chat[0]["role"] == "system":
            continue  # it refuses system turns
        prompt = chat[-1]["role"] == "user"
        (theirs,), _ = render_jinja_template(
            [chat], chat_template=source, add_generation_prompt=prompt, bos_token="<s>",
            eos_token="</s>", enable_thinking=False, date_string="26 Jul 2024",
        )  # fmt: skip
        assert made.render(chat, add_generation_prompt=prompt)[0] == theirs


# ---------------------------------------------------------------------- a prompt begins its row

PICTURE = picture()
WORDS = st.text(
    st.sampled_from("aB é.!?:<>|[]/ \n\t1çãığşÖпривет这是什么猫苹果，。ما هذاقطة؟👩🏽‍🚀"),
    max_size=24,
)
ANSWERS = WORDS.filter(lambda text: bool(text.strip()))
LANGUAGES = ("It is a cat.", "这是一只猫。", "É um gato.", "هذه قطة.", "Bu bir kedi.", "Это кошка.")


@st.composite
def conversations(draw: Any, rounds: int = 3) -> list[dict[str, Any]]:
    chat: list[dict[str, Any]] = []
    if draw(st.booleans()):
        chat.append({"role": "system", "content": draw(ANSWERS)})
    for _ in range(draw(st.integers(1, rounds))):
        images = [PICTURE] * draw(st.integers(0, 2))
        chat.append(user(draw(WORDS | st.sampled_from(LANGUAGES)), *images))
        chat.append(assistant(draw(ANSWERS | st.sampled_from(LANGUAGES))))
    return chat


@pytest.mark.parametrize("name", ROUNDS)
@settings(max_examples=40, deadline=None)
@given(chat=conversations(), family=st.sampled_from(sorted(FAMILIES)))
def test_a_prompt_is_the_start_of_its_training_row_in_tokens(
    name: str, family: str, chat: list[dict[str, Any]]
) -> None:
    made = processor(name, FAMILIES[family]())
    prompt = made.encode(chat[:-1], add_generation_prompt=True).input_ids
    whole = made.encode(chat)
    assert whole.input_ids[: len(prompt)] == prompt
    learnt = [place for place, label in enumerate(whole.labels) if label != IGNORE]
    # What follows the prompt is learnt from its first token on, without a gap, up to the end mark.
    last = [place for place in learnt if place >= len(prompt)]
    assert last == list(range(len(prompt), last[-1] + 1))
    assert whole.labels[last[-1]] in made.control.ids


@settings(max_examples=40, deadline=None)
@given(caption=ANSWERS, family=st.sampled_from(sorted(FAMILIES)))
def test_a_picture_is_the_start_of_its_caption(caption: str, family: str) -> None:
    made = processor("plain", FAMILIES[family]())
    chat = [user("left out", PICTURE), assistant(caption)]
    prompt = made.encode(chat[:1], add_generation_prompt=True).input_ids
    whole = made.encode(chat)
    assert whole.input_ids[: len(prompt)] == prompt
    assert whole.labels == [IGNORE] * len(prompt) + whole.input_ids[len(prompt) :]


@pytest.mark.parametrize("name", ROUNDS)
def test_every_answer_keeps_its_characters(name: str) -> None:
    made = processor(name)
    for answer in (*LANGUAGES, "👩🏽‍🚀"):
        shown = show_mask(made, [user("什么？", picture()), assistant(answer)])
        assert f"{answer}" in shown[shown.index("⟦") : shown.index("⟧")]


# ---------------------------------------------------------------------- LLaVA's traps


def llava_ids(chat: list[tuple[str, str]], tokenizer: Any) -> list[int]:
    """LLaVA's vicuna_v1 (conversation.get_prompt, tokenizer_image_token): each stretch between
    placeholders is tokenized alone, with <s> before it, of which the first stays."""
    text = VICUNA
    for question, answer in chat:
        text += f"USER: {question} ASSISTANT: {answer}</s>"
    ids: list[int] = []
    for place, stretch in enumerate(text.split("<image>")):
        ids += [tokenizer.convert_tokens_to_ids("<image>")] * 4 if place else [1]
        ids += tokenizer(stretch, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("legacy", [False, True])
def test_vicunas_tokens_are_llavas(legacy: bool) -> None:
    """But for one: LLaVA's stretch behind a picture begins with SentencePiece's ▁, before the line
    break; ours does where the tokenizer is a legacy one."""
    tokenizer = llama2(legacy=legacy)
    said = [("<image>\nWhat is this?", "It is a cat."), ("Sure?", "I see a big cat.")]
    theirs = llava_ids(said, tokenizer)
    if not legacy:
        behind = theirs.index(tokenizer.convert_tokens_to_ids("<image>")) + 4
        assert tokenizer.convert_ids_to_tokens(theirs[behind : behind + 2]) == ["▁", "<0x0A>"]
        del theirs[behind]
    chat = [user("What is this?", picture()), assistant("It is a cat."),
            user("Sure?"), assistant("I see a big cat.")]  # fmt: skip
    assert processor("vicuna_v1", tokenizer).encode(chat).input_ids == theirs


@pytest.mark.parametrize("legacy", [False, True])
def test_every_round_of_vicuna_is_learnt_from_its_space_to_its_end(legacy: bool) -> None:
    tokenizer = llama2(legacy=legacy)
    chat = [user("What is this?", picture()), assistant("a cat"), user("Sure?"), assistant("a")]
    encoded = processor("vicuna_v1", tokenizer).encode(chat)
    learnt = [token for token in encoded.labels if token != IGNORE]
    assert tokenizer.convert_ids_to_tokens(learnt) == ["▁a", "▁cat", "</s>", "▁a", "</s>"]


def test_a_vocabulary_without_spare_tokens_takes_its_unknown_token_for_pictures() -> None:
    tokenizer = llama2(marks=False)
    tokenizer.pad_token = "<unk>"
    made = LlavaMoleProcessor(
        LlavaMoleImageProcessor({"size": 16}), tokenizer, 4, "<unk>",
        chat_template=chat_template("vicuna_v1", image_token="<unk>"),
    )  # fmt: skip
    encoded = made.encode([user("这是什么？ <image>", picture()), assistant("猫")])
    assert encoded.input_ids.count(0) == 4  # bytes stand for the characters it does not know
    assert made.pad_id == tokenizer.eos_token_id


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["gemma", "mistral_v1", "mistral_v3", "mistral_v3_tekken"])
def test_turns_that_do_not_alternate_are_refused_where_the_vendor_does(name: str) -> None:
    with pytest.raises(DataError, match="found user as turn 2"):
        processor(name).encode([user("a"), user("b"), assistant("c")])


@pytest.mark.parametrize("name", [name for name in ROUNDS if name != "qa"])
def test_an_unknown_role_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="found tool"):
        processor(name).encode([user("a"), {"role": "tool", "content": "x"}, assistant("c")])


def test_plain_refuses_what_it_would_leave_out() -> None:
    made = processor("plain")
    with pytest.raises(DataError, match="one picture and its caption"):
        made.encode(CHAT)
    with pytest.raises(DataError, match="one picture and its caption"):
        made.encode(WITH_SYSTEM)
    with pytest.raises(DataError, match="needs a picture"):
        made.encode([user("What?"), assistant("a cat")])


@pytest.mark.parametrize("name", ["qwen3", "qwen3_every_answer"])
def test_thoughts_are_refused_where_thinking_is_off(name: str) -> None:
    with pytest.raises(DataError, match="thinking off"):
        processor(name).encode([user("a"), assistant("<think>\nhm\n</think>\n\nb")])


def test_an_unknown_template_is_refused_with_the_nearest_and_how_to_add_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'chatml'") as caught:
        chat_template("chatlm", image_token="<image>")
    assert "{%- generation -%}" in str(caught.value)
