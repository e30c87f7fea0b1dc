"""How the mask looks: a conversation as it is trained on, what is learnt between brackets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from llava_mole.processing import IGNORE, LlavaMoleProcessor, Message


def show_mask(
    processor: LlavaMoleProcessor,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    brackets: tuple[str, str] = ("⟦", "⟧"),
) -> str:
    """The text that the tokens of a conversation decode to, the supervised ones in brackets.

    Read from the labels, not from the template: what it shows is what the loss sees. A picture's
    placeholders are shown once, as `<image>×P`.

    Raises:
        DataError: as `LlavaMoleProcessor.encode`.
    """
    encoded = processor.encode(messages, add_generation_prompt=add_generation_prompt)
    picture = f"<image>×{processor.tokens_per_image}"
    pairs = list(zip(encoded.input_ids, encoded.labels, strict=True))
    shown, ids, text = "", [], ""
    image = processor.image_token_id
    for (placeholder, learnt), run in groupby(
        pairs, lambda pair: (pair[0] == image, pair[1] != IGNORE)
    ):
        tokens = [token for token, _ in run]
        if placeholder:
            shown += picture * (len(tokens) // processor.tokens_per_image)
            continue
        # Decoded behind what came before: alone, some tokenizers drop a leading space.
        ids += tokens
        grown = processor.decode(ids, clean_up_tokenization_spaces=False)
        piece, text = grown[len(text) :], grown
        shown += f"{brackets[0]}{piece}{brackets[1]}" if learnt else piece
    return shown
