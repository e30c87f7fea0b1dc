"""A Hugging Face model's passes: what a question's passes share computed once, or each pass whole.

Whole, a batch goes to `generate` as the processor makes it: the readable twin. Shared, the common
beginning of each question (chat format, picture, question) runs once, its cache is given to every
pass by `reorder_cache`, and `generate` goes on from there. Beside the cache some families keep
`rope_deltas`, how far positions behind a picture are shifted, row by row: they move with the rows.
Whether a family can go on from such a cache is not known from its name; `shares` measures it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.models.chat import Chat, Row

TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
"""How far logits of shared and of whole runs may lie apart: root mean square over the vocabulary,
as a share of the logits' own spread. Both do the same sums in another order. On random models of 2
to 28 layers that is below 4e-6 in float32, while positions that were counted wrong behind a picture
make 7e-3 and more. In bfloat16 (8 bits; float16 has 11) it is 1 % at ordinary weights, as for any
change of batch size; there a fault has to be larger to be seen. A false alarm only costs time."""
STEPS = 3
"""Tokens of a reply that are compared: prompt's end, and positions counted on from there."""
BROKEN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What forward passes and processors raise where a model is not made for what they are given."""


@dataclass(frozen=True)
class Start:
    """Beginnings that have run.

    Attributes:
        input_ids: (U, L), placeholders included.
        cache: keys and values of those.
        shifts: (module, its rope_deltas (U, 1)).
    """

    input_ids: Tensor
    cache: Any
    shifts: list[tuple[nn.Module, Tensor]]


@dataclass(frozen=True)
class Said:
    """A reply's tokens, end token left out; whether it ended; logits (V,) of each step, if kept."""

    tokens: list[int]
    finished: bool
    logits: list[Tensor]


class Runner:
    """Runs batches of rows; greedy, whatever generation_config.json wishes.

    Args:
        model: in eval mode. Its generation config is replaced: `generate` fills what a call leaves
            open from there, a repetition penalty among it.
        chat: of the same folder.
        ends: tokens that end a reply.
    """

    def __init__(self, model: Any, chat: Chat, ends: frozenset[int]) -> None:
        self.model = model
        self.chat = chat
        self.ends = ends
        self.pad = chat.tokenizer.pad_token_id
        model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=sorted(ends), pad_token_id=self.pad
        )
        self.context = model.config.get_text_config().to_dict().get("max_position_embeddings")
        self.narrows = "logits_to_keep" in inspect.signature(model.forward).parameters

    # ------------------------------------------------------------------ replies

    @torch.inference_mode()
    def write(
        self, units: Sequence[Sequence[Row]], steps: int, *, begin: int, logits: bool = False
    ) -> list[list[Said]]:
        """Replies of at most `steps` tokens, by unit and pass.

        Args:
            units: questions and their passes; with `begin`, all passes of a unit have that many
                `Row.tokens` in common.
            begin: 0 runs each pass whole.
        """
        start = self.start(units, begin, steps) if begin else None
        places = [(u, p) for u, unit in enumerate(units) for p in range(len(unit))]
        found: dict[tuple[int, int], Said] = {}
        for length in sorted({len(row.tokens) for unit in units for row in unit}):
            part = [(u, p) for u, p in places if len(units[u][p].tokens) == length]
            rows = [units[u][p] for u, p in part]
            if start is None:
                inputs = self._to_model(self.chat.encode(rows, side="left"))
                self._check_room(rows, inputs["input_ids"].shape[1], steps)
            else:
                inputs = self._go_on(start, [u for u, _ in part])
                tails = torch.tensor([row.tokens[begin:] for row in rows]).to(self.model.device)
                inputs["input_ids"] = torch.cat([inputs["input_ids"], tails], dim=1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            result = self._generate(inputs, steps, logits)
            new = result.sequences[:, inputs["input_ids"].shape[1] :].tolist()
            for number, (place, tokens) in enumerate(zip(part, new, strict=True)):
                kept = [step[number] for step in result.logits] if logits else []
                end = next((n for n, token in enumerate(tokens) if token in self.ends), None)
                found[place] = Said(tokens[:end], end is not None, kept)
        return [[found[u, p] for p in range(len(unit))] for u, unit in enumerate(units)]

    # ------------------------------------------------------------------ options

    @torch.inference_mode()
    def read(
        self, units: Sequence[Sequence[Sequence[Row]]], *, begin: int
    ) -> list[list[list[Tensor]]]:
        """Logits (S, V) that predict the S scored tokens of each option, by unit, pass and option.

        The first options of all passes run together, then the second ones, …; behind the shorter
        ones is padding, which nothing that counts looks at.
        """
        start = None
        if begin:
            start = self.start([[options[0] for options in unit] for unit in units], begin, 0)
        found: dict[tuple[int, int, int], Tensor] = {}
        for o in range(max(len(options) for unit in units for options in unit)):
            part = [
                (u, p)
                for u, unit in enumerate(units)
                for p, options in enumerate(unit)
                if o < len(options)
            ]
            rows = [units[u][p][o] for u, p in part]
            if start is None:
                inputs = self._to_model(self.chat.encode(rows))
                ends = inputs["attention_mask"].sum(1).tolist()
                self._check_ends(rows, inputs["input_ids"], ends)
            else:
                inputs = self._go_on(start, [u for u, _ in part])
                tails = [[*row.tokens[begin:], *row.rest] for row in rows]
                ends = [len(tail) for tail in tails]
                padded = [tail + [self.pad] * (max(ends) - len(tail)) for tail in tails]
                inputs["input_ids"] = torch.tensor(padded).to(self.model.device)
            length = inputs["input_ids"].shape[1]
            self._check_room(rows, length + (start.input_ids.shape[1] if start else 0), 0)
            first = [end - len(row.rest) - 1 for row, end in zip(rows, ends, strict=True)]
            kept = {"logits_to_keep": length - min(first)} if self.narrows else {}
            logits = self.model(**inputs, **kept, use_cache=start is not None).logits
            skipped = length - logits.shape[1]
            for number, ((u, p), row) in enumerate(zip(part, rows, strict=True)):
                at = first[number] - skipped
                found[u, p, o] = logits[number, at : at + len(row.scored)].float()
        return [
            [[found[u, p, o] for o in range(len(options))] for p, options in enumerate(unit)]
            for u, unit in enumerate(units)
        ]

    # ------------------------------------------------------------------ beginnings

    def start(self, units: Sequence[Sequence[Row]], begin: int, steps: int) -> Start | None:
        """Runs the beginnings of all units; None where they cannot be told from what is behind.

        A beginning's length in the model's own tokens is counted from the end, where both forms of
        a pass are the same.
        """
        rows = [unit[0] for unit in units]
        plain = [Row(row.prompt, row.picture, row.tokens) for row in rows]
        inputs = self.chat.encode(plain)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        lengths = set()
        for number, row in enumerate(plain):
            own = ids[number, : int(mask[number].sum())].tolist()
            behind = len(row.tokens) - begin
            # Two tokens more: the last one of the beginning is text behind the picture.
            if begin < 2 or own[-behind - 2 :] != row.tokens[begin - 2 :]:
                return None
            lengths.add(len(own) - behind)
        if len(lengths) > 1:
            return None
        length = lengths.pop()
        longest = max(len(row.tokens) for unit in units for row in unit)
        self._check_room(rows, length + longest - begin, steps)
        cut = {
            key: value[:, :length] if _by_token(value, ids) else value
            for key, value in inputs.items()
        }
        cut = self._to_model(cut)
        # One token is written and dropped; the cache ends before it.
        cache = self._generate(cut, 1, False)["cache"]
        shifts = [
            (module, module.rope_deltas)
            for module in self.model.modules()
            if isinstance(vars(module).get("rope_deltas"), Tensor)
        ]
        return Start(cut["input_ids"], cache, shifts)

    def _go_on(self, start: Start, owners: Sequence[int]) -> dict[str, Any]:
        """A cache with a row for each owner, its own to fill."""
        index = torch.tensor(owners, device=start.input_ids.device)
        cache = copy.deepcopy(start.cache)
        cache.reorder_cache(index)
        for module, shift in start.shifts:
            module.rope_deltas = shift.index_select(0, index.to(shift.device))
        return {"input_ids": start.input_ids[index], "cache": cache}

    def _generate(self, inputs: dict[str, Any], steps: int, logits: bool) -> Any:
        options = GenerationConfig(
            max_new_tokens=steps, return_dict_in_generate=True, output_logits=logits
        )
        return self.model.generate(**inputs, generation_config=options)

    def _to_model(self, inputs: dict[str, Any]) -> dict[str, Any]:
        model = self.model
        return {
            key: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }

    def _check_ends(self, rows: Sequence[Row], ids: Tensor, ends: Sequence[int]) -> None:
        for row, own, end in zip(rows, ids.tolist(), ends, strict=True):
            if own[end - len(row.rest) : end] != list(row.rest):
                raise ConfigError(
                    f"{self.chat.name}: behind option {row.option!r} its processor writes "
                    f"{self.chat.tokenizer.decode(own[end - len(row.rest) : end])!r}, the chat "
                    f"template {self.chat.tokenizer.decode(row.rest)!r}; ask with answer=generate"
                )

    def _check_room(self, rows: Sequence[Row], length: int, steps: int) -> None:
        if self.context is not None and length + steps > self.context:
            raise DataError(
                f"question {rows[0].prompt[:60]!r}: {length} tokens with its picture, and {steps} "
                f"for the reply; the context holds {self.context} (nothing is truncated)"
            )


def shares(runner: Runner, passes: Sequence[Sequence[Row]], begin: int) -> tuple[bool, str]:
    """Whether shared runs say what whole runs say, and why (not).

    Args:
        passes: two questions or more, of unequal numbers of passes, as `Runner.write` takes them.
        begin: what the passes of each have in common.
    """
    if not begin:
        return False, "the chat template puts the picture behind the question"
    whole = runner.write(passes, STEPS, begin=0, logits=True)
    try:
        if runner.start(passes, begin, STEPS) is None:
            return False, "the question's tokens are others beside a picture"
        shared = runner.write(passes, STEPS, begin=begin, logits=True)
    except torch.OutOfMemoryError:
        raise
    except BROKEN as error:
        return False, f"its forward does not go on from a cache ({type(error).__name__})"
    limit = TOLERANCE.get(runner.model.dtype, TOLERANCE[torch.float32])
    pairs = [pair for two in zip(whole, shared, strict=True) for pair in zip(*two, strict=True)]
    if any(_apart(one, other) > limit for one, other in pairs):
        return (
            False,
            f"logits of shared and whole runs lie more than {limit:g} of their spread apart",
        )
    return True, f"logits of shared and whole runs lie at most {limit:g} of their spread apart"


def _apart(one: Said, other: Said) -> float:
    """Largest relative distance of two replies' logits, as long as they have the same tokens."""
    worst = 0.0
    for step, (mine, its) in enumerate(zip(one.logits, other.logits, strict=False)):
        if one.tokens[:step] != other.tokens[:step]:
            break
        worst = max(worst, distance(mine, its))
    return worst


def distance(mine: Tensor, its: Tensor) -> float:
    """Root mean square of the difference over the spread of the first; (V,) each."""
    spread = mine.float().std()
    return float((mine.float() - its.float()).square().mean().sqrt() / spread)


def _by_token(value: Tensor, ids: Tensor) -> bool:
    return value.ndim >= 2 and value.shape[:2] == ids.shape
