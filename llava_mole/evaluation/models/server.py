"""A model behind an OpenAI-compatible address (vLLM, SGLang, llama.cpp, a vendor), by `openai`."""

from __future__ import annotations

import base64
import difflib
import io
import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from llava_mole.data.images import load_image
from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.evaluation.asks import Ask, Unit
from llava_mole.evaluation.models.base import Answerer, Reply
from llava_mole.evaluation.models.identity import software
from llava_mole.evaluation.protocol import Protocol

LISTED = 20
"""Likeliest first tokens that are asked for; most servers give no more."""
TOLD = ("id", "owned_by", "root", "max_model_len")
"""What is kept of a server's word on a model; the rest (times, permissions) changes by itself."""
NOTE = "weights unseen: a server may change what stands behind a name, and how it rounds"
SECONDS = 300.0


class ServerModel(Answerer):
    """One model of a server. Replies are greedy (temperature 0) and bounded by max_new_tokens.

    Pictures go out as the bytes of their files. By letters, a letter's score is that of the
    likeliest listed token that is this letter, space aside; a letter that the server does not list
    among the first tokens gets the lowest listed log-probability as its floor, and where none is
    listed the reply is empty.

    Args:
        address: base URL, ending in /v1 for most.
        served: name of the model there.
        protocol: checked already.
        key_variable: environment variable that holds the key; unset is right for a server that
            asks for none.
        concurrent: requests under way at once.
        retries: of a request, on lost connections, 429 and 5xx, with growing pauses (0.5 to 8 s, or
            what the server asks for).

    Raises:
        ConfigError: `openai` is not installed, the server has no such model or refuses the key, or
            it does not give log-probabilities and answer=letters.
        CheckpointError: it cannot be reached.
    """

    def __init__(
        self,
        address: str,
        served: str,
        protocol: Protocol,
        *,
        key_variable: str = "OPENAI_API_KEY",
        concurrent: int = 8,
        retries: int = 6,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError(
                'a served model is asked through the package openai: pip install -e ".[eval]"'
            ) from error
        if concurrent < 1:
            raise ConfigError(f"concurrent={concurrent}: must be at least 1")
        self.openai = openai
        self.address = address
        self.served = served
        self.protocol = protocol
        self.key_variable = key_variable
        self.concurrent = concurrent
        self.client = openai.OpenAI(
            base_url=address,
            api_key=os.environ.get(key_variable) or "none",
            max_retries=retries,
            timeout=SECONDS,
        )
        self.told = self._look_up()
        self.answers = frozenset({"generate"})
        if protocol.answer == "letters":
            self._try_letters()
            self.answers |= {"letters"}

    def _look_up(self) -> dict[str, Any] | None:
        """What the server says of the model; None where it lists none."""
        try:
            models = {model.id: model.model_dump() for model in self.client.models.list()}
        except (self.openai.NotFoundError, self.openai.APIResponseValidationError):
            return None
        except self.openai.APIError as error:
            raise self._failed("looking for its models", error) from error
        if self.served not in models:
            near = difflib.get_close_matches(self.served, models, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{self.address}: no model {self.served!r}; it serves {', '.join(models)}.{hint}"
            )
        found = models[self.served]
        return {key: found[key] for key in TOLD if found.get(key) is not None}

    def _try_letters(self) -> None:
        try:
            choice = self._ask([{"type": "text", "text": "A or B?"}])
        except self.openai.APIError as error:
            raise self._failed("asking for log-probabilities", error) from error
        if not _first_tokens(choice):
            raise ConfigError(
                f"{self.address}: {self.served} gives no top_logprobs; ask with answer=generate"
            )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "server",
            "name": self.served,
            "host": urlsplit(self.address).netloc.rpartition("@")[2],
            "served": self.told,
            "sha256": None,
            "note": NOTE,
            "software": software("openai"),
        }

    def lengths(self, units: Sequence[Unit]) -> list[Hashable]:
        """All alike: how requests share a batch is the server's business."""
        return [0] * len(units)

    # ------------------------------------------------------------------ answering

    def answer(self, units: Sequence[Unit]) -> list[list[Reply]]:
        asks = [ask for unit in units for ask in unit.asks]
        pool = ThreadPoolExecutor(self.concurrent, thread_name_prefix="ask")
        try:
            done = iter(list(pool.map(self._reply, asks)))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error: what has not begun stays undone
        return [[next(done) for _ in unit.asks] for unit in units]

    def _reply(self, ask: Ask) -> Reply:
        parts: list[dict[str, Any]] = [{"type": "text", "text": ask.prompt}]
        if self.protocol.picture:
            parts.insert(0, {"type": "image_url", "image_url": {"url": data_url(ask)}})
        try:
            choice = self._ask(parts)
        except self.openai.APIError as error:
            raise self._failed(f"question {ask.item.source}", error) from error
        if self.protocol.answer == "letters":
            return _by_letters(ask, _first_tokens(choice))
        text = choice.message.content or ""
        return Reply(text.strip(), None, choice.finish_reason == "stop")

    def _ask(self, parts: list[dict[str, Any]]) -> Any:
        letters = self.protocol.answer == "letters"
        options: dict[str, Any] = {"logprobs": True, "top_logprobs": LISTED} if letters else {}
        answer: Any = self.client.chat.completions.create(
            model=self.served,
            messages=[{"role": "user", "content": parts}],  # type: ignore[list-item,misc]
            temperature=0,
            max_tokens=1 if letters else self.protocol.max_new_tokens,
            **options,
        )
        if not answer.choices:
            raise CheckpointError(f"{self.address}: {self.served} sent a reply without a choice")
        return answer.choices[0]

    def _failed(self, doing: str, error: Exception) -> Exception:
        said = f"{self.address}: {doing}: {type(error).__name__}: {str(error).splitlines()[0]}"
        if isinstance(error, self.openai.AuthenticationError | self.openai.PermissionDeniedError):
            return ConfigError(f"{said}. The key is read from ${self.key_variable}")
        refused = isinstance(error, self.openai.APIStatusError) and error.status_code < 500
        if refused and not isinstance(error, self.openai.RateLimitError):
            return ConfigError(f"{said}. The server refuses the request; repeating it won't help")
        return CheckpointError(
            f"{said}, after {self.client.max_retries} retries. Finished batches are kept: once the "
            "server answers, the same command goes on from there"
        )


def data_url(ask: Ask) -> str:
    """The picture's file as a data URL. Raises DataError for one that cannot be decoded."""
    content = ask.item.image
    try:
        load_image(content)
    except DataError as error:
        raise DataError(f"{ask.item.source}: {error}") from error
    with Image.open(io.BytesIO(content)) as picture:
        # MPO is a JPEG with more behind it.
        kind = "JPEG" if picture.format == "MPO" else str(picture.format)
    return f"data:{Image.MIME[kind]};base64,{base64.b64encode(content).decode('ascii')}"


def _first_tokens(choice: Any) -> dict[str, float]:
    """Text, space aside -> log-probability of the likeliest such first token."""
    listed = choice.logprobs.content if choice.logprobs is not None else None
    found: dict[str, float] = {}
    for token in listed[0].top_logprobs if listed else []:
        text = token.token.strip("▁Ġ \n\t")
        found[text] = max(token.logprob, found.get(text, token.logprob))
    return found


def _by_letters(ask: Ask, found: dict[str, float]) -> Reply:
    if not ask.scored:
        raise DataError(f"{ask.item.source}: no options to score; ask with answer=generate")
    if not any(letter in found for letter in ask.scored):
        return Reply("")
    floor = min(found.values())
    scores = {letter: found.get(letter, floor) for letter in ask.scored}
    return Reply(max(scores, key=scores.__getitem__), scores)
