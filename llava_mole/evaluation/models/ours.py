"""Our models: the tower once a picture, a question and all of its passes one tree row."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import llava_mole
from llava_mole import heads
from llava_mole.checkpoint import read_config
from llava_mole.decoding import Tree, end_tokens, padded, rows_supported
from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.asks import Ask, Unit
from llava_mole.evaluation.models import decoding
from llava_mole.evaluation.models.base import Answerer, Reply
from llava_mole.evaluation.models.identity import folder_hash, software
from llava_mole.evaluation.protocol import Protocol
from llava_mole.evaluation.scoring import (
    Query,
    option_tokens,
    score_options,
)
from llava_mole.features import MEMORY_BYTES, FeatureStore
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import Encoded, LlavaMoleProcessor


class OurModel(Answerer):
    """A model folder of this project, loaded.

    Args:
        model, processor: of one folder.
        protocol: checked already.
        name: for reports.
        identity: what tells these weights from others; see `folder_hash`.
        share: compute what the passes of a question share once (default); False runs each whole.
    """

    answers = frozenset({"generate", "letters", "options"})

    def __init__(
        self,
        model: LlavaMoleForConditionalGeneration,
        processor: LlavaMoleProcessor,
        protocol: Protocol,
        *,
        name: str = "",
        identity: str = "",
        share: bool = True,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.protocol = protocol
        self.name = name
        self.identity = identity
        self.trees = rows_supported(model)
        self.share = share and self.trees
        self.mixes = self.trees
        self.features = FeatureStore(
            model, processor.image_processor, kept_in=next(model.vision_tower.parameters()).dtype
        )
        self.features.memory_bytes = MEMORY_BYTES
        self.coming: list[bytes] = []
        self._encoded_pictures: set[int] = set()
        self.ends = end_tokens(model, processor)
        self._known: dict[str, Encoded] = {}
        self._letters: dict[str, int] = {}

    @classmethod
    def from_folder(
        cls, folder: Path, protocol: Protocol, *, device: str, dtype: str = "auto"
    ) -> OurModel:
        """Raises CheckpointError where there is no model, ConfigError for an unknown dtype."""
        read_config(folder)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=None if dtype == "auto" else dtype
        )
        return cls(
            model.to(device),
            AutoProcessor.from_pretrained(folder),
            protocol,
            name=str(folder),
            identity=folder_hash(folder),
        )

    def describe(self) -> dict[str, Any]:
        language = next(self.model.language_model.parameters())
        return {
            "kind": "llava-mole",
            "name": self.name,
            "sha256": self.identity,
            "dtype": str(language.dtype).removeprefix("torch."),
            "device": language.device.type,
            "shared_beginnings": self.share,
            "software": {
                "llava-mole": llava_mole.__version__,
                **software("torch", "transformers", "open_clip_torch", "timm", "pillow"),
            },
        }

    # ------------------------------------------------------------------ in tokens

    def lengths(self, units: Sequence[Unit]) -> list[Hashable]:
        """(width of its rows, how many passes); where no trees can be used, the passes' lengths."""
        found: list[Hashable] = []
        room = self.model.config.text_config.max_position_embeddings - self.protocol.max_new_tokens
        for unit in units:
            if self.protocol.answer == "options":
                self._check_options(unit)
                found.append((0,))  # `score_options` sorts by itself
                continue
            passes = [self._ids(ask) for ask in unit.asks]
            longest = max(len(ids) for ids in passes)
            if longest > room:
                raise DataError(
                    f"{unit.asks[0].item.source}: {longest} tokens; with "
                    f"{self.protocol.max_new_tokens} for the reply the context has room for {room} "
                    "(nothing is truncated)"
                )
            if self.trees:
                widths = {padded(one.size) for _, one in self._trees(unit)}
                found.append((max(widths), len(passes)))
            else:
                found.append(tuple(sorted((len(ids) for ids in passes), reverse=True)))
        return found

    def _check_options(self, unit: Unit) -> None:
        context = self.model.config.text_config.max_position_embeddings
        for ask in unit.asks:
            query = self._query(ask, tuple(ask.item.options.values()))
            prompt, _, answers = option_tokens(self.processor, query)
            longest = len(prompt) + max(len(answer) for answer in answers)
            if longest > context:
                raise DataError(
                    f"{ask.item.source}: {longest} tokens with the longest option, the context "
                    f"holds {context} (nothing is truncated)"
                )

    def _trees(self, unit: Unit) -> list[tuple[list[int], Tree]]:
        """(passes, tree) of those passes that may share a beginning; of each by itself if none may.

        A picture that Parrot conditions on the question is the same for two passes if the words of
        their questions are: Parrot attends over them without regard to their order, and moving
        options moves words. Where tokens differ (at the seams of options they may), pictures do.
        """
        parrot = self.model.parrot is not None
        classes: dict[Hashable, list[int]] = {}
        for number, ask in enumerate(unit.asks):
            words = tuple(sorted(self._question(ask))) if parrot else ()
            same: Hashable = (id(ask.item.image), words) if self.protocol.picture else ()
            classes.setdefault(same if self.share else number, []).append(number)
        trees = []
        for numbers in classes.values():
            passes = [self._ids(unit.asks[number]) for number in numbers]
            question = self._question(unit.asks[numbers[0]])
            begin = decoding.common_beginning(passes, {self.model.config.image_token_id})
            if begin:
                rest = [ids[begin:] for ids in passes]
                trees.append((numbers, Tree(passes[0][:begin], rest, question)))
                continue
            trees += [
                ([number], Tree(ids[:-1], [ids[-1:]], question))
                for number, ids in zip(numbers, passes, strict=True)
            ]
        return trees

    def _ids(self, ask: Ask) -> list[int]:
        return self._encoded(ask).input_ids

    def _question(self, ask: Ask) -> list[int]:
        questions = self._encoded(ask).questions
        return questions[0] if questions else []

    def _encoded(self, ask: Ask) -> Encoded:
        if ask.prompt not in self._known:
            messages = self._query(ask, ()).messages()
            self._known[ask.prompt] = self.processor.encode(messages, add_generation_prompt=True)
        return self._known[ask.prompt]

    def _query(self, ask: Ask, options: tuple[str, ...]) -> Query:
        image = ask.item.image if self.protocol.picture else None
        return Query(ask.prompt, options, image, ask.item.language)

    # ------------------------------------------------------------------ answering

    def answer(self, units: Sequence[Unit]) -> list[list[Reply]]:
        if self.protocol.answer == "options":
            return self._by_options(units)
        letters = self.protocol.answer == "letters"
        wanted = self._letter_tokens(units) if letters else {}
        steps = 0 if letters else self.protocol.max_new_tokens
        write = self._write if self.trees else self._write_plainly
        written = write(units, steps, list(wanted.values()))
        return [
            [
                self._by_letters(ask, one, wanted) if letters else self._said(one)
                for ask, one in zip(unit.asks, found, strict=True)
            ]
            for unit, found in zip(units, written, strict=True)
        ]

    def _write(
        self, units: Sequence[Unit], steps: int, wanted: Sequence[int]
    ) -> list[list[decoding.Written]]:
        trees = [(unit, numbers, one) for unit in units for numbers, one in self._trees(unit)]
        pictures = [unit.asks[numbers[0]].item.image for unit, numbers, _ in trees]
        done = decoding.write(
            self.model, [one for _, _, one in trees], self._features(pictures),
            self._steering([one.question for _, _, one in trees]),
            max_new_tokens=steps, ends=self.ends, pad_id=self.processor.pad_id, wanted=wanted,
        )  # fmt: skip
        found: dict[tuple[int, int], decoding.Written] = {}
        for (unit, numbers, _), written in zip(trees, done, strict=True):
            found.update({(id(unit), n): w for n, w in zip(numbers, written, strict=True)})
        return [[found[id(unit), n] for n in range(len(unit.asks))] for unit in units]

    def _write_plainly(
        self, units: Sequence[Unit], steps: int, wanted: Sequence[int]
    ) -> list[list[decoding.Written]]:
        """`generate`, passes of one length together; where no trees can be used."""
        asks = [ask for unit in units for ask in unit.asks]
        found: list[decoding.Written | None] = [None] * len(asks)
        lengths = [len(self._ids(ask)) for ask in asks]
        for length in sorted(set(lengths), reverse=True):
            part = [number for number, other in enumerate(lengths) if other == length]
            inputs: dict[str, Any] = {
                "input_ids": torch.tensor([self._ids(asks[n]) for n in part]),
                "attention_mask": torch.ones(len(part), length, dtype=torch.long),
                **self._steering([self._question(asks[n]) for n in part]),
            }
            features = self._features([asks[n].item.image for n in part])
            if features is not None:
                inputs["image_features"] = features
            inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
            for number, written in zip(part, self._generated(inputs, steps, wanted), strict=True):
                found[number] = written
        done = (written for written in found if written is not None)
        return [[next(done) for _ in unit.asks] for unit in units]

    @torch.inference_mode()
    def _generated(
        self, inputs: dict[str, Any], steps: int, wanted: Sequence[int]
    ) -> list[decoding.Written]:
        if not steps:
            logits = self.model(**inputs, logits_to_keep=1).logits[:, -1]
            scores = logits[:, list(wanted)].float() - heads.log_normalizers(logits)[:, None]
            firsts = [dict(zip(wanted, row, strict=True)) for row in scores.tolist()]
            return [decoding.Written([], True, first) for first in firsts]
        out = self.model.generate(**inputs, max_new_tokens=steps, do_sample=False)
        written = []
        for row in out[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((n for n, token in enumerate(row) if token in self.ends), None)
            written.append(decoding.Written(row[:end], end is not None, {}))
        return written

    def _steering(self, questions: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        return self.processor.steering(questions) if self.protocol.picture else {}

    def forget(self) -> None:
        """Drop what was worked out for earlier questions: tokens and pictures' features."""
        self._known.clear()
        self._encoded_pictures.clear()
        self.features.memory.clear()

    def prepare(self, batches: Iterable[Sequence[Unit]]) -> None:
        """Whose pictures come next, so that the tower's batches are full ones."""
        pictures = (a.item.image for batch in batches for unit in batch for a in unit.asks)
        seen: dict[int, bytes] = {id(picture): picture for picture in pictures}
        self.coming = list(seen.values())

    def _features(self, pictures: Sequence[bytes]) -> torch.Tensor | None:
        """Of these pictures; a tower pass that is needed takes the next ones with it.

        A tower pass is of one size whatever is in it (`FeatureStore`), so a picture's features do
        not hang on its company.
        """
        if not self.protocol.picture:
            return None
        mine = {id(picture): picture for picture in pictures}
        missing = [picture for key, picture in mine.items() if key not in self._encoded_pictures]
        if missing:
            room = -len(missing) % self.features.batch_size
            later = [p for p in self.coming if id(p) not in mine]
            later = [p for p in later if id(p) not in self._encoded_pictures][:room]
            self.features([*missing, *later])
            self._encoded_pictures.update(map(id, [*missing, *later]))
            self.coming = [p for p in self.coming if id(p) not in self._encoded_pictures]
        return self.features(pictures)

    def _said(self, written: decoding.Written) -> Reply:
        text = self.processor.decode(written.tokens, skip_special_tokens=True)
        return Reply(text.strip(), None, written.finished)

    def _by_letters(self, ask: Ask, written: decoding.Written, tokens: dict[str, int]) -> Reply:
        scores = {letter: written.first[tokens[letter]] for letter in ask.scored}
        return Reply(max(scores, key=scores.__getitem__), scores)

    def _letter_tokens(self, units: Sequence[Unit]) -> dict[str, int]:
        """Letter -> the token that an answer of that letter begins with.

        Raises:
            ConfigError: letters that begin with the same token.
        """
        for unit in units:
            for ask in unit.asks:
                missing = [letter for letter in ask.scored if letter not in self._letters]
                if missing:
                    answers = option_tokens(self.processor, self._query(ask, ask.scored))[2]
                    firsts = {a: t[0] for a, t in zip(ask.scored, answers, strict=True)}
                    if len(set(firsts.values())) < len(firsts):
                        raise ConfigError(
                            f"answer=letters: the letters {', '.join(firsts)} begin with one token "
                            "in this tokenizer; ask with answer=options or answer=generate"
                        )
                    self._letters.update(firsts)
        return self._letters

    def _by_options(self, units: Sequence[Unit]) -> list[list[Reply]]:
        asks = [ask for unit in units for ask in unit.asks]
        queries = [self._query(ask, tuple(ask.item.options.values())) for ask in asks]
        found = score_options(
            self.model,
            self.processor,
            queries,
            rows_per_batch=max(1, len(asks)),
            features=self.features,
            progress=False,
        )
        replies = []
        for ask, scores in zip(asks, found, strict=True):
            values = {
                letter: score.value("mean")
                for letter, score in zip(ask.scored, scores, strict=True)
            }
            replies.append(Reply(max(values, key=values.__getitem__), values))
        done = iter(replies)
        return [[next(done) for _ in unit.asks] for unit in units]
