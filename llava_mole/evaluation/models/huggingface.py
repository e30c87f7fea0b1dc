"""Any image-text-to-text model of Hugging Face's, asked through its own chat template.

What the passes of a question share is computed once where the model at hand turns out to allow it:
two made-up questions about made-up pictures are answered both ways before the first real one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from llava_mole import heads
from llava_mole.data.images import load_image
from llava_mole.decoding import end_tokens
from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.evaluation.asks import Ask, Unit
from llava_mole.evaluation.models.base import Answerer, Reply
from llava_mole.evaluation.models.beginnings import BROKEN, TOLERANCE, Runner, distance, shares
from llava_mole.evaluation.models.chat import Chat, Row, check_parts
from llava_mole.evaluation.models.identity import folder_hash, software
from llava_mole.evaluation.protocol import Protocol

DTYPES = ("auto", "float32", "bfloat16", "float16")
LEFT_ON_THE_HUB = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "original/*", "consolidated*"]
SIZES = ((64, 48), (48, 64), (300, 100), (500, 2000))
"""Width and height of pictures that tell whether a family reads every picture as equally long."""
TRIED = (
    ("Which one is it?\nA. cat\nB. dog", "Which one is it?\nA. dog\nB. cat",
     "Which one is it?\nA. a red apple\nB. cat"),
    ("Which one is it?\nA. tree\nB. sun", "Which one is it?\nA. sun\nB. a tree"),
)  # fmt: skip


class HuggingFaceModel(Answerer):
    """An image-text-to-text model and its processor, loaded.

    Args:
        model, processor: of one folder. The model's generation config is replaced: replies are
            greedy and end at its end tokens, without penalties or suppressed tokens.
        protocol: checked already.
        name: for reports.
        identity: what tells these weights from others: `sha256`, and a hub `revision`.
        share: compute what the passes of a question share once where that is right (default);
            False runs each whole.

    Raises:
        CheckpointError: no chat template, or nothing can be asked through it.
        ConfigError: no end token is known.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        protocol: Protocol,
        *,
        name: str = "",
        identity: dict[str, Any] | None = None,
        share: bool = True,
    ) -> None:
        self.model = model.eval()
        self.protocol = protocol
        self.name = name
        self.identity = identity or {"sha256": None}
        check_parts(processor, name)
        ends = end_tokens(model, processor)
        self.set_aside = _set_aside(model.generation_config)
        self.chat = Chat(processor, ends, protocol.picture, name)
        self.runner = Runner(self.model, self.chat, ends)
        self.answers = frozenset({"generate", "letters", "options"})
        self._letters: dict[str, int] = {}
        self._sizes: dict[bytes, tuple[int, int]] = {}
        try:
            self.one_length = self._one_length()
            tried = self._try()
        except torch.OutOfMemoryError:
            raise
        except BROKEN as error:
            if isinstance(error, ConfigError | DataError | CheckpointError):
                raise
            raise CheckpointError(
                f"{name}: {type(model).__name__} does not answer a question in its chat format "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). Do "
                "processor and weights belong together?"
            ) from error
        self.share, self.reason = tried if share else (False, "not asked for")

    @classmethod
    def from_folder(
        cls, name: str | Path, protocol: Protocol, *, device: str, dtype: str = "auto"
    ) -> HuggingFaceModel:
        """Loads a local folder, or the hub's repository of that id.

        Raises:
            CheckpointError: nothing there, the hub cannot be asked, or no image-text-to-text model.
            ConfigError: unknown dtype.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"dtype={dtype!r}: allowed are {', '.join(DTYPES)}")
        folder = _locate(str(name))
        # Code that comes with weights is not run, nor are pickles read.
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(_unreadable(name, error)) from error
        known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if not known or config.is_encoder_decoder:
            what = "is an encoder-decoder" if known else "is no image-text-to-text model"
            raise CheckpointError(
                f"{name}: {config.model_type} {what}; expected one that "
                "AutoModelForImageTextToText loads and that writes behind its prompt"
            )
        try:
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(_unreadable(name, error)) from error
        # transformers would draw them at random.
        absent = sorted(
            set(report["missing_keys"]) | {str(key) for key in report["mismatched_keys"]}
        )
        if absent:
            raise CheckpointError(
                f"{name}: {len(absent)} weights are not in its files, or of another shape (first: "
                f"{absent[0]}); was it cut, or is it an adapter without its base?"
            )
        revision = {} if Path(name).is_dir() else {"revision": folder.name}
        identity = {"sha256": folder_hash(folder), **revision}
        return cls(model.to(device), processor, protocol, name=str(name), identity=identity)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "huggingface",
            "name": self.name,
            **self.identity,
            "architecture": type(self.model).__name__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "shared_beginnings": self.share,
            "shared_beginnings_reason": self.reason,
            "set_aside": self.set_aside,
            "software": software("torch", "transformers", "tokenizers", "torchvision", "pillow"),
        }

    # ------------------------------------------------------------------ before the first answer

    def _one_length(self) -> bool:
        """Whether pictures of every size become tensors of one shape."""
        if not self.protocol.picture:
            return True
        shapes = []
        for size in SIZES:
            row = self.chat.row(TRIED[0][0], Image.new("RGB", size, (90, 120, 150)))
            inputs = self.chat.encode([row])
            shapes.append({key: value.shape for key, value in inputs.items()})
        return all(found == shapes[0] for found in shapes)

    def _try(self) -> tuple[bool, str]:
        """Whether to share, and why; also whether options can be scored."""
        units = []
        for number, prompts in enumerate(TRIED):
            picture = Image.linear_gradient("L").rotate(90 * number).convert("RGB").resize((96, 64))
            shown = picture if self.protocol.picture else None
            units.append([self.chat.row(prompt, shown) for prompt in prompts])
        begin = min(self.chat.beginning([row.tokens for row in unit]) for unit in units)
        told = shares(self.runner, units, begin)
        if self.protocol.answer == "options" and self._looks_ahead(units[0][0]):
            self.answers -= {"options"}
        return told

    def _looks_ahead(self, row: Row) -> bool:
        """Whether the model sees an answer before it says it (a bidirectional prompt)."""
        said = self.runner.write([[row]], 1, begin=0, logits=True)[0][0].logits[0]
        read = self.runner.read([[[self.chat.answered(row, "a tree")]]], begin=0)[0][0][0][0]
        return distance(said, read) > TOLERANCE.get(self.model.dtype, TOLERANCE[torch.float32])

    # ------------------------------------------------------------------ in tokens

    def lengths(self, units: Sequence[Unit]) -> list[Hashable]:
        """(picture's pixels, width, height, common beginning, longest pass).

        A picture's size stands for its number of tokens, which only the processor knows; where
        every picture is equally long it is left out. Passes that run on a common beginning need no
        length of their own: `Runner` sorts them.
        """
        found: list[Hashable] = []
        for unit in units:
            width, height = (0, 0) if self.one_length else self._size(unit.asks[0])
            prompts = [self.chat.prompt_tokens(ask.prompt) for ask in unit.asks]
            begin = self._begin(unit)
            longest = 0 if begin else max(len(prompt) for prompt in prompts)
            found.append((width * height, width, height, begin, longest))
        return found

    def _size(self, ask: Ask) -> tuple[int, int]:
        content = ask.item.image
        if content not in self._sizes:
            self._sizes[content] = _picture(ask).size
        return self._sizes[content]

    def _begin(self, unit: Unit) -> int:
        """Length of what all passes begin with, their picture included; 0 runs each whole."""
        alone = len(unit.asks) == 1 and self.protocol.answer != "options"
        shown = {ask.item.image for ask in unit.asks} if self.protocol.picture else {b""}
        if alone or not self.share or len(shown) > 1:
            return 0
        return self.chat.beginning([self.chat.prompt_tokens(ask.prompt) for ask in unit.asks])

    # ------------------------------------------------------------------ answering

    def answer(self, units: Sequence[Unit]) -> list[list[Reply]]:
        rows = [self._rows(unit) for unit in units]
        begin = self._begin(units[0])
        if self.protocol.answer == "options":
            return self._by_options(units, rows, begin)
        if self.protocol.answer == "letters":
            return self._by_letters(units, rows, begin)
        said = self.runner.write(rows, self.protocol.max_new_tokens, begin=begin)
        decode = self.chat.tokenizer.decode
        return [
            [
                Reply(decode(one.tokens, skip_special_tokens=True).strip(), None, one.finished)
                for one in passes
            ]
            for passes in said
        ]

    def _rows(self, unit: Unit) -> list[Row]:
        shown: dict[bytes, Image.Image] = {}
        rows = []
        for ask in unit.asks:
            if self.protocol.picture and ask.item.image not in shown:
                shown[ask.item.image] = _picture(ask)
            rows.append(self.chat.row(ask.prompt, shown.get(ask.item.image)))
        return rows

    def _by_letters(
        self, units: Sequence[Unit], rows: Sequence[Sequence[Row]], begin: int
    ) -> list[list[Reply]]:
        for unit, passes in zip(units, rows, strict=True):
            for ask, row in zip(unit.asks, passes, strict=True):
                self._learn_letters(ask, row)
        written = self.runner.write(rows, 1, begin=begin, logits=True)
        replies = []
        for unit, said in zip(units, written, strict=True):
            scores = []
            for ask, one in zip(unit.asks, said, strict=True):
                tokens = [self._letters[letter] for letter in ask.scored]
                scores.append(_logprobs(one.logits[0][None], [0] * len(tokens), tokens))
            replies.append(_best(unit, scores))
        return replies

    def _learn_letters(self, ask: Ask, row: Row) -> None:
        """Letter -> the token that an answer of that letter begins with."""
        if all(letter in self._letters for letter in _needed(ask)):
            return
        firsts = {letter: self.chat.answered(row, letter).rest[0] for letter in ask.scored}
        if len(set(firsts.values())) < len(firsts):
            raise ConfigError(
                f"answer=letters: the letters {', '.join(firsts)} begin with one token in "
                f"{self.name}'s tokenizer; ask with answer=options or answer=generate"
            )
        self._letters.update(firsts)

    def _by_options(
        self, units: Sequence[Unit], rows: Sequence[Sequence[Row]], begin: int
    ) -> list[list[Reply]]:
        asked = [
            [
                [self.chat.answered(row, ask.item.options[letter]) for letter in _needed(ask)]
                for ask, row in zip(unit.asks, passes, strict=True)
            ]
            for unit, passes in zip(units, rows, strict=True)
        ]
        read = self.runner.read(asked, begin=begin)
        replies = []
        for unit, passes, logits in zip(units, asked, read, strict=True):
            scores = []
            for options, found in zip(passes, logits, strict=True):
                each = [
                    _logprobs(one, range(len(one)), row.scored)
                    for row, one in zip(options, found, strict=True)
                ]
                scores.append([sum(one) / len(one) for one in each])
            replies.append(_best(unit, scores))
        return replies


def _best(unit: Unit, scores: Sequence[Sequence[float]]) -> list[Reply]:
    replies = []
    for ask, found in zip(unit.asks, scores, strict=True):
        values = dict(zip(ask.scored, found, strict=True))
        replies.append(Reply(max(values, key=values.__getitem__), values))
    return replies


def _needed(ask: Ask) -> tuple[str, ...]:
    if not ask.scored:
        raise DataError(f"{ask.item.source}: no options to score; ask with answer=generate")
    return ask.scored


def _logprobs(logits: Tensor, at: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Natural-log probabilities of tokens, each by row `at` of the logits (S, V)."""
    chosen = logits[list(at), list(tokens)].float()
    found: list[float] = (chosen - heads.log_normalizers(logits)[list(at)]).tolist()
    return found


def _picture(ask: Ask) -> Image.Image:
    try:
        return load_image(ask.item.image)
    except DataError as error:
        raise DataError(f"{ask.item.source}: {error}") from error


def _set_aside(config: Any) -> dict[str, Any]:
    """What generation_config.json would have changed in a greedy reply."""
    kept = {"eos_token_id", "pad_token_id", "bos_token_id", "do_sample", "num_beams"}
    kept |= {"temperature", "top_p", "top_k", "min_p", "typical_p", "transformers_version"}
    kept |= {"use_cache", "output_attentions", "output_hidden_states", "_from_model_config"}
    kept |= {"max_length", "max_new_tokens", "cache_implementation"}
    return {key: value for key, value in config.to_diff_dict().items() if key not in kept}


def _locate(name: str) -> Path:
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if Path(name).is_dir() or Path(name).is_absolute() or name.startswith("."):
        raise CheckpointError(f"{name}: no config.json; expected a model folder, or a hub id")
    try:
        return Path(snapshot_download(name, ignore_patterns=LEFT_ON_THE_HUB))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: no local folder, and the hub did not give it ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Give a folder, or fetch it where the hub is reachable "
            f"(`hf download {name}`)"
        ) from error


def _unreadable(name: str | Path, error: Exception) -> str:
    return (
        f"{name}: cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]}). "
        "Expected config.json, *.safetensors, a tokenizer and preprocessor_config.json, of an "
        "architecture that the installed transformers has (a model's own code is not run)"
    )
