"""From what a recipe says to a chat template that can train: a name, a file, the tokenizer's own.

Vendors' templates have no generation marks, so they give no label mask. Where one of them writes
what a known format writes, on conversations of every shape, the known one is taken in its place; it
is the same text, with marks. Any template is tried out before use: its marks, its end of turn, its
prompt, its placeholder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from llava_mole.errors import ConfigError, DataError
from llava_mole.processing import (
    IGNORE,
    LlavaMoleImageProcessor,
    LlavaMoleProcessor,
    Message,
    message_text,
)
from llava_mole.templates import HOW_TO_ADD, TEMPLATES, chat_template, completed

logger = logging.getLogger(__name__)

SYSTEM, USER, ASSISTANT = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A cat."},
)
MORE = ({"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes, sure."})
ASKED: Message = {
    "role": "user",
    "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}],
}
ANSWERED: Message = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
LAST_ONLY = "learns: last answer"
"""In a comment of a template: of several rounds only the last answer is learnt, on purpose."""
FIXED = {"date_string": "26 Jul 2024", "enable_thinking": False}
"""What templates ask for beside a conversation, as the known formats write it."""


def has_marks(template: Any) -> bool:
    """Whether a template marks what the assistant says."""
    return isinstance(template, str) and bool(re.search(r"\{%-?\s*generation\s*-?%\}", template))


def template_source(choice: str, tokenizer: PreTrainedTokenizerBase, image_token: str) -> str:
    """The Jinja source that a recipe's `chat_template` means, tried out.

    Args:
        choice: a name of TEMPLATES, a path that ends in .jinja, or "tokenizer".
        tokenizer: of the language model.
        image_token: its placeholder.

    Raises:
        ConfigError: unknown name, no such file, or a template that cannot train: what is wrong with
            it, and how to add one.
    """
    if choice == "tokenizer":
        return _of_tokenizer(tokenizer, image_token)
    if choice.endswith(".jinja"):
        path = Path(choice)
        if not path.is_file():
            raise ConfigError(f"chat_template={choice!r}: no such file\n{HOW_TO_ADD}")
        source = completed(path.read_text(encoding="utf-8"), image_token)
    else:
        source = chat_template(choice, image_token=image_token)
    problem = problem_with(source, tokenizer, image_token)
    if problem is not None:
        hint = f"\n{HOW_TO_ADD}" if choice.endswith(".jinja") else ""
        raise ConfigError(f"chat_template={choice!r}: {problem}{hint}")
    return source


def _of_tokenizer(tokenizer: PreTrainedTokenizerBase, image_token: str) -> str:
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if not isinstance(own, str):
        raise ConfigError(
            "chat_template='tokenizer': the tokenizer has no chat template, as base models' have "
            f"not; name one of {', '.join(TEMPLATES)} (qa suits any base model)\n{HOW_TO_ADD}"
        )
    problem: str | None = "it has no {% generation %} marks, so no label mask can be made"
    if has_marks(own):
        problem = problem_with(own, tokenizer, image_token)
        if problem is None:
            return own
    known, refused = recognised(own, tokenizer)
    if known is not None:
        logger.info(
            "chat_template: the tokenizer's own writes what %r writes, which is taken: it has "
            "generation marks and places for pictures%s",
            known,
            "; the tokenizer's refuses system turns, this one does not" if refused else "",
        )
        return template_source(known, tokenizer, image_token)
    raise ConfigError(
        f"chat_template='tokenizer': {problem}; and it writes other text than every known format "
        f"({', '.join(TEMPLATES)})\n{HOW_TO_ADD}"
    )


def recognised(own: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, bool]:
    """The known format that renders as a template does, and whether the template refuses system
    turns, so that these could not be compared.

    Compared are prompts and whole conversations of one round and of two, with a system turn and
    without. Where two formats render alike, the first by name.
    """
    bare = [[USER], [USER, ASSISTANT], [USER, ASSISTANT, *MORE]]
    probes = [*bare, *([SYSTEM, *chat] for chat in bare)]
    cases = [(chat, prompt) for chat in probes for prompt in (False, True)]
    theirs = [_text(own, chat, prompt, tokenizer) for chat, prompt in cases]
    refused = [text is None for text in theirs]
    if any(text is None for text in theirs[: 2 * len(bare)]):
        return None, False
    for name in TEMPLATES:
        source = chat_template(name, image_token="<image>")
        ours = [_text(source, chat, prompt, tokenizer) for chat, prompt in cases]
        if all(a is None or a == b for a, b in zip(theirs, ours, strict=True)):
            return name, any(refused)
    return None, False


def _text(
    source: str, chat: list[Message], prompt: bool, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """A conversation as a template renders it; None if it refuses."""
    if prompt and chat[-1]["role"] == "assistant":
        chat = chat[:-1]
    try:
        texts, _ = render_jinja_template(
            [chat],
            chat_template=source,
            add_generation_prompt=prompt,
            bos_token=tokenizer.bos_token or "",
            eos_token=tokenizer.eos_token or "",
            **FIXED,
        )
    except (jinja2.TemplateError, TypeError):  # TypeError: a template that wants typed parts
        return None
    return str(texts[0])


def problem_with(source: str, tokenizer: PreTrainedTokenizerBase, image_token: str) -> str | None:
    """What keeps a template from training, on one round with a picture and on two with a system
    turn; None if nothing does."""
    if not has_marks(source):
        return "it has no {% generation %} marks, so no label mask can be made"
    processor = LlavaMoleProcessor(
        LlavaMoleImageProcessor({}), tokenizer, 1, image_token, chat_template=source
    )
    try:
        text, spans = processor.render([ASKED, ANSWERED])
        prompt, _ = processor.render([ASKED], add_generation_prompt=True)
        whole = processor.encode([ASKED, ANSWERED])
        asked = processor.encode([ASKED], add_generation_prompt=True).input_ids
    except (DataError, TypeError) as error:
        return f"a picture, a question and an answer cannot be written with it: {error}"
    said = "".join(text[start:end] for start, end in spans)
    answer = "A cat."
    if answer not in said:
        return f"between its generation marks stands {said!r}, not the answer {answer!r}"
    if "What is it?" in said:
        return f"the question stands between its generation marks: {said!r}"
    end = said[said.index(answer) + len(answer) :]
    if not end:
        return (
            "its generation marks end with the answer's words: the end-of-turn token belongs "
            "between them, or the model never learns to stop"
        )
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    known |= set(tokenizer.get_vocab())
    if end.strip() and end.strip() not in known:
        return (
            f"an answer ends with {end!r}, which is no token of this vocabulary: nothing could "
            "stop the generation there. Take a format that the vocabulary knows, or qa or "
            "vicuna_v1, which end with its end-of-sequence token"
        )
    if not text.startswith(prompt) or whole.input_ids[: len(asked)] != asked:
        return (
            f"its prompt {prompt!r} is not the beginning of the conversation that is trained on, "
            f"{text!r}: the model would be asked in other words than it learnt"
        )
    if not any(label != IGNORE for label in whole.labels):
        return "no token of the answer is learnt"
    return _problem_with_rounds(processor, said[: said.index(answer)], end)


def _problem_with_rounds(processor: LlavaMoleProcessor, lead: str, end: str) -> str | None:
    """What is wrong with the marks of two rounds and a system turn, or of what the template takes
    of that; what it refuses it will refuse in the data too, by name.

    Args:
        lead: what stands before an answer between the marks of one round.
        end: what stands after it there.
    """
    source = processor.chat_template or ""
    system, *more = (
        {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
        for m in (SYSTEM, *MORE)
    )
    one: list[Message] = [ASKED, ANSWERED]
    for chat in ([system, *one, *more], [*one, *more], [system, *one]):
        try:
            text, spans = processor.render(chat)
        except (DataError, TypeError):
            continue
        learnt = [text[start:stop].strip() for start, stop in _merged(spans)]
        for message in chat:
            words = message_text(message)
            if words not in text:
                return (
                    f"a conversation with system turn or two rounds is written without {words!r}, "
                    f"which the {message['role']} says: {text!r}. Write it, or refuse such a turn "
                    "with raise_exception"
                )
            if message["role"] != "assistant" and any(words in said for said in learnt):
                return (
                    f"what the {message['role']} says stands between its generation marks: "
                    f"{learnt!r}"
                )
        answers = [message_text(m) for m in chat if m["role"] == "assistant"]
        wanted = [f"{lead}{answer}{end}".strip() for answer in answers]
        if learnt == wanted or (LAST_ONLY in source and learnt == wanted[-1:]):
            return None
        return (
            f"of a conversation of {len(answers)} round(s), between its generation marks stands "
            f"{learnt!r}, expected {wanted!r}. A format in which only the last answer is learnt, "
            f"as Qwen3's, says so in a comment: {{#- {LAST_ONLY} -#}}"
        )
    return None


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that touch as one."""
    merged: list[tuple[int, int]] = []
    for start, stop in spans:
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        merged.append((start, stop))
    return merged


def end_of_turn(processor: LlavaMoleProcessor) -> int:
    """The token that ends an answer: the first control token learnt, else the last token."""
    learnt = [label for label in processor.encode([ASKED, ANSWERED]).labels if label != IGNORE]
    return next((label for label in learnt if label in processor.control.ids), learnt[-1])
