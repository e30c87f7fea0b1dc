"""Routing: which experts held-out questions use, by domain and language, and Parrot's gate.

Each probe runs once with its right answer, as in training, and its tokens are counted apart:
`picture` (visual tokens), `words` (question and chat format), `answer` (what is supervised), and
`all` of them. An expert counts by its share of the token's gates (`mole/statistics.py`), so top-1,
top-k and dense methods are told in one way; a sample is the mean of its tokens, and samples weigh
alike, however long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from llava_mole.errors import DataError
from llava_mole.evaluation.probes import Probe
from llava_mole.features import FeatureStore
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole import Information, mutual_information, shares_by_sample
from llava_mole.processing import IGNORE, Encoded, LlavaMoleProcessor, images_of, pad

PARTS = ("all", "picture", "words", "answer")
LABELS = ("domain", "language")


@dataclass(frozen=True)
class Routing:
    """What was seen.

    Attributes:
        probes: S of them.
        routers: L names, from the first layer to the last; empty without experts.
        experts: L numbers of experts; a router with fewer than E has zeros behind them.
        shares: part -> (S, L, E), rows sum to 1; zeros where a probe has no such token.
        tokens: part -> (S,) how many it has.
        gates: (S, language experts) Parrot's weights, the mean over a probe's pictures; NaN without
            a picture. None where the module is off.
        missing: what this model has not, in sentences.
    """

    probes: tuple[Probe, ...]
    routers: tuple[str, ...]
    experts: tuple[int, ...]
    shares: dict[str, Tensor]
    tokens: dict[str, Tensor]
    gates: Tensor | None
    missing: tuple[str, ...]

    def labels(self, by: str) -> list[str]:
        """S of `LABELS`."""
        return [getattr(probe, by) for probe in self.probes]

    def counted(self, part: str) -> list[int]:
        """Places of the probes that have tokens of a part."""
        return self.tokens[part].nonzero().flatten().tolist()

    def means(self, part: str, *by: str) -> dict[tuple[str, ...], Tensor]:
        """(label, …) -> (L, E), the mean over its probes; labels in order of appearance.

        Args:
            by: of `LABELS`, one or both; none: one mean over all, under ().
        """
        rows: dict[tuple[str, ...], list[int]] = {}
        for number in self.counted(part):
            key = tuple(getattr(self.probes[number], one) for one in by)
            rows.setdefault(key, []).append(number)
        return {key: self.shares[part][numbers].mean(0) for key, numbers in rows.items()}

    def information(
        self, part: str, by: str, *, shuffles: int = 200, seed: int = 0
    ) -> list[Information]:
        """What each router's choice tells about domain or language; none without experts.

        Control: domains are permuted over pictures, since questions about one picture are alike;
        languages over the questions about a picture or of a domain (`shuffled_within`).
        """
        rows = self.counted(part)
        if not rows or not self.routers:
            return []
        return self._information(self.shares[part], rows, by, shuffles, seed)

    def gate_information(
        self, by: str, *, shuffles: int = 200, seed: int = 0
    ) -> Information | None:
        """The same of Parrot's gate, its weights taken for shares; None where it is off."""
        if self.gates is None:
            return None
        rows = self.gates[:, 0].isfinite().nonzero().flatten().tolist()
        if not rows:
            return None
        return self._information(self.gates[:, None], rows, by, shuffles, seed)[0]

    def _information(
        self, shares: Tensor, rows: Sequence[int], by: str, shuffles: int, seed: int
    ) -> list[Information]:
        domain = by == "domain"
        probes = [self.probes[row] for row in rows]
        within = shuffled_within(probes)
        return mutual_information(
            shares[list(rows)],
            [getattr(probe, by) for probe in probes],
            shuffles=shuffles,
            seed=seed,
            units=[probe.picture for probe in probes] if domain else None,
            within=None if domain else [getattr(probe, within) for probe in probes],
        )

    def gate_means(self, by: str) -> dict[str, tuple[Tensor, Tensor, int]]:
        """label -> Parrot's mean weights, their standard deviation over probes, and n."""
        found: dict[str, tuple[Tensor, Tensor, int]] = {}
        if self.gates is None:
            return found
        labels = self.labels(by)
        for label in dict.fromkeys(labels):
            own = self.gates[[number for number, one in enumerate(labels) if one == label]]
            own = own[own[:, 0].isfinite()]
            if len(own):
                spread = own.std(0) if len(own) > 1 else torch.zeros_like(own[0])
                found[label] = (own.mean(0), spread, len(own))
        return found


def shuffled_within(probes: Sequence[Probe]) -> str:
    """Among which questions languages are shuffled: those about a "picture", where every picture is
    asked about in several languages (it is then the same in all, and shuffles over pictures would
    make languages differ more than they can); else those of a "domain", so that a language which
    only one domain has is not credited to the experts."""
    languages: dict[Hashable, set[str]] = {}
    for probe in probes:
        languages.setdefault(probe.picture, set()).add(probe.language)
    return "picture" if all(len(own) > 1 for own in languages.values()) else "domain"


@torch.inference_mode()
def look(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    probes: Sequence[Probe],
    *,
    rows_per_batch: int = 16,
    features: Callable[[Sequence[Any]], Tensor] | None = None,
    progress: bool = True,
) -> Routing:
    """Run every probe once and read the routes.

    Args:
        model, processor: of one model folder.
        probes: at least one; batches are of like length and depend on the probes alone.
        rows_per_batch: of one pass.
        features: the frozen tower's features by picture. None: a store for this call.
        progress: show a bar.

    Raises:
        DataError: no probe, or one that is malformed or longer than the context.
    """
    if not probes:
        raise DataError("no held-out question to look at: are the files empty?")
    encoded = [encoded_probe(model, processor, probe) for probe in probes]
    store = FeatureStore(model, processor.image_processor) if features is None else features
    was_training = model.training
    model.eval()
    found: list[tuple[list[int], dict[str, Any]]] = []
    try:
        with tqdm(total=len(probes), desc="routing", unit="probe", disable=not progress) as bar:
            for rows in by_length(encoded, rows_per_batch):
                seen = one_pass(model, processor, [(probes[r], encoded[r]) for r in rows], store)
                found.append((rows, seen))
                bar.update(len(rows))
    finally:
        model.train(was_training)
    first = found[0][1]
    experts = tuple(shares.shape[1] for shares, _ in first["all"].values())
    widest = max(experts, default=0)
    shares = {part: torch.zeros(len(probes), len(experts), widest) for part in PARTS}
    tokens = {part: torch.zeros(len(probes)) for part in PARTS}
    gates = None
    if model.parrot is not None:
        gates = torch.full((len(probes), model.parrot.config.num_experts), torch.nan)
    for rows, seen in found:
        for part in PARTS:
            for number, (own, count) in enumerate(seen[part].values()):
                shares[part][rows, number, : own.shape[1]] = own.float().cpu()
                tokens[part][rows] = count.float().cpu()
        if gates is not None:
            gates[rows] = seen["gates"]
    return Routing(
        tuple(probes), tuple(first["all"]), experts, shares, tokens, gates, missing(model)
    )


def encoded_probe(
    model: LlavaMoleForConditionalGeneration, processor: LlavaMoleProcessor, probe: Probe
) -> Encoded:
    try:
        encoded = processor.encode(probe.messages)
    except DataError as error:
        raise DataError(f"{probe.source}: {error}") from error
    context = model.config.text_config.max_position_embeddings
    if len(encoded.input_ids) > context:
        raise DataError(
            f"{probe.source}: {len(encoded.input_ids)} tokens, the context holds {context} "
            "(nothing is truncated)"
        )
    return encoded


def by_length(encoded: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    """Places of rows for each pass, the longest first: one that does not fit fails at once."""
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i].input_ids), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def one_pass(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    rows: Sequence[tuple[Probe, Encoded]],
    features: Callable[[Sequence[Any]], Tensor],
) -> dict[str, Any]:
    """Part -> router -> ((B, E) shares, (B,) tokens); "gates" -> (B, language experts)."""
    device = model.device
    ids, mask = pad([row.input_ids for _, row in rows], processor.pad_id, left=False)
    labels = pad([row.labels for _, row in rows], IGNORE, left=False)[0]
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    pictures = [images_of(probe.messages) for probe, _ in rows]
    seen: dict[str, Any] = {part: {} for part in PARTS}
    if any(pictures):
        questions = [question for _, row in rows for question in row.questions]
        steering = {k: v.to(device) for k, v in processor.steering(questions).items()}
        every = features([picture for own in pictures for picture in own]).to(device)
        inputs |= {"image_features": every, **steering}
        gates = model.language_gate(every, **steering)
        if gates is not None:
            own = gates.float().cpu().split([len(one) for one in pictures])
            seen["gates"] = torch.stack([one.mean(0) for one in own])  # NaN without a picture
    elif model.parrot is not None:
        seen["gates"] = torch.full((len(rows), model.parrot.config.num_experts), torch.nan)
    if model.mole is None:
        return seen
    model(**inputs, logits_to_keep=1, use_cache=False)
    real, picture, answer = mask.bool(), ids == processor.image_token_id, labels != IGNORE
    masks = {"all": real, "picture": picture & real, "answer": answer}
    masks["words"] = real & ~masks["picture"] & ~answer
    for part in PARTS:
        for entry in shares_by_sample(model.language_model, masks[part].to(device)):
            seen[part][entry.name] = (entry.shares, entry.tokens)
    return seen


def missing(model: LlavaMoleForConditionalGeneration) -> tuple[str, ...]:
    """What this model has not, so that a page without a picture explains itself."""
    said = []
    experts = model.config.mole_part
    if experts is None:
        said.append("The model has no experts: every token goes the same way.")
    elif all(record.route.probs is None for record in (model.mole.records if model.mole else ())):
        said.append(
            f"Experts of method {experts.method} are all on for every token: there is no choice."
        )
    parrot = model.config.parrot_part
    if parrot is None:
        said.append("Parrot's module is off: visual tokens do not depend on the question.")
    elif not parrot.reads_question:
        said.append(
            f"Parrot's module is conditioned on {parrot.condition_on}, a control: it reads no "
            "text, so its gate cannot know the language."
        )
    return tuple(said)


def cells(probes: Sequence[Probe]) -> dict[tuple[str, str], int]:
    """(domain, language) -> probes."""
    return dict(Counter((probe.domain, probe.language) for probe in probes))
