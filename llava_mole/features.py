"""Features of a frozen tower, computed once per picture.

A frozen tower gives the same features at every step, so the stages read them: from memory, or with
a `FeatureCache` from disk, where the next run finds them too. They are kept in bfloat16 unless told
otherwise: half the size, and below the noise of what the projector makes of them.

A picture is known by its content, so one that changes under its name has new features. Batches are
filled up to one size, for the last bit of a picture's features may depend on how many pictures
share a tower pass: so it does not matter what was computed before, by whom.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from llava_mole import ranks
from llava_mole.digests import Digests, Picture, unreadable
from llava_mole.errors import ConfigError
from llava_mole.feature_cache import FeatureCache
from llava_mole.feature_key import Model, about, feature_key, tensors_state
from llava_mole.folding import folded
from llava_mole.processing import LlavaMoleImageProcessor
from llava_mole.vision import VisionTower

logger = logging.getLogger(__name__)

MEMORY_BYTES = 4 * 2**30
"""With a cache: bound on the rows that it could not take; more are computed whenever needed."""


class FeatureStore:
    """Picture (a path, or a file's bytes) -> (1 + P, D_v).

    Args:
        model: its tower computes the features.
        image_processor: of the model.
        batch_size: pictures per tower pass.
        cache: on disk, of any key: the model's is taken, and again when its tower has changed.
        memory_bytes: with a cache, bound on rows in memory. Without one all stay there, unless
            the attribute is set.
        kept_in: dtype of the rows, without a cache; float32 where a model that is not trained on
            them must see what it would see without a store.
    """

    def __init__(
        self,
        model: Model,
        image_processor: LlavaMoleImageProcessor,
        batch_size: int = 16,
        cache: FeatureCache | None = None,
        *,
        memory_bytes: int = MEMORY_BYTES,
        kept_in: torch.dtype = torch.bfloat16,
    ) -> None:
        if cache is not None and kept_in != torch.bfloat16:
            raise ConfigError(f"features on disk are bfloat16, not {kept_in}: leave the cache out")
        self.model = model
        self.kept_in = kept_in
        self.image_processor = image_processor
        self.batch_size = batch_size
        self.memory_bytes = None if cache is None else memory_bytes
        self.memory: OrderedDict[bytes, Tensor] = OrderedDict()
        self.digests = Digests() if cache is None else cache.digests
        self.cache = cache
        self._keyed_for: Any = None
        self._folded: tuple[Any, VisionTower] | None = None

    # ------------------------------------------------------------------ what is there

    def clear(self) -> None:
        """Forget all: the tower has changed. What is on disk belongs to the old one, and stays."""
        self.memory.clear()
        self._keyed_for = self._folded = None

    def _rekey(self) -> None:
        """Before anything is looked up: is the tower still the one that the cache is keyed for?"""
        if self.cache is None:
            return
        # A tensor's state does not show what is written past autograd (`w.data.mul_(2)`).
        vision = self.model.config.vision_part
        what = (vision.layer, vision.features, vision.grid, self.image_processor.preprocess)
        state = (tensors_state(self.vision_tower), repr(what))
        if self._keyed_for == state:
            return
        key = feature_key(self.model, self.image_processor)
        if key != self.cache.key:
            self.memory.clear()
            self.cache = self.cache.with_key(key, about(self.model))
        self._keyed_for = state

    def _refresh(self) -> None:
        """See what other processes have stored meanwhile."""
        self._rekey()
        if self.cache is not None:
            self.cache.refresh()

    def _has(self, digest: bytes) -> bool:
        return digest in self.memory or (self.cache is not None and self.cache.has(digest))

    def _read(self, digest: bytes) -> Tensor | None:
        """(1 + P, D_v) bfloat16, to be copied; None if it must be computed."""
        row = self.memory.get(digest)
        if row is not None:
            self.memory.move_to_end(digest)
        elif self.cache is not None:
            row = self.cache.read(digest)
        return row

    def _keep(self, rows: Mapping[bytes, Tensor]) -> None:
        self._remember(rows if self.cache is None else self.cache.add(rows))

    def _remember(self, rows: Mapping[bytes, Tensor]) -> None:
        """Hold rows in memory, within its bound."""
        for digest, row in rows.items():
            self.memory[digest] = row
            self.memory.move_to_end(digest)
            if self.memory_bytes is not None:
                while self.memory and len(self.memory) * row.nbytes > self.memory_bytes:
                    self.memory.popitem(last=False)

    def _flush(self) -> None:
        if self.cache is not None:
            self._remember(self.cache.flush())

    # ------------------------------------------------------------------ filling

    def fill(self, pictures: Sequence[Picture], progress: bool = True) -> int:
        """Compute what is not there yet.

        Returns:
            How many pictures were computed.

        Raises:
            DataError: a picture is missing or broken.
        """
        self._refresh()
        by_digest = self._distinct(pictures, self.digests(pictures, progress))
        return self._fill([p for digest, p in by_digest.items() if not self._has(digest)], progress)

    def fill_together(self, pictures: Sequence[Picture], progress: bool = True) -> int:
        """`fill`, each rank computing its share for all. A collective: every rank must call it with
        the same pictures. Returns how many pictures were computed, by all."""
        if ranks.size() == 1:
            return self.fill(pictures, progress)
        self._refresh()
        number, count, bar = ranks.rank(), ranks.size(), progress and ranks.is_main()
        digests: list[bytes] = [b""] * len(pictures)
        for start, share in enumerate(ranks.gather(self.digests(pictures[number::count], bar))):
            digests[start::count] = share
        by_digest = self._distinct(pictures, digests)
        known = list(by_digest)
        # What no rank may take for granted: all must agree on whether there is anything to share.
        todo = self._lacking(known, range(len(known)))
        mine = todo[number::count]
        lacking = [by_digest[known[n]] for n in mine if not self._has(known[n])]
        computed = sum(ranks.gather(self._fill(lacking, bar)))
        self._refresh()
        wanted = set(self._lacking(known, todo))
        if wanted:  # no disk that all ranks share, or no room on it
            rows = {n: self._read(known[n]) for n in mine if n in wanted}
            # A copy: what is mapped would travel with its whole file.
            share = {n: row.clone() for n, row in rows.items() if row is not None}
            for arrived in ranks.gather(share):
                self._keep({known[n]: r for n, r in arrived.items() if not self._has(known[n])})
            self._flush()
        return computed

    def _lacking(self, known: Sequence[bytes], numbers: Iterable[int]) -> list[int]:
        """Which of the pictures any rank lacks, the same list on every rank. A collective."""
        mine = [number for number in numbers if not self._has(known[number])]
        return sorted(set().union(*ranks.gather(mine)))

    def _fill(self, pictures: Sequence[Picture], progress: bool) -> int:
        try:
            self._compute(pictures, progress)
        finally:  # what was done before a broken picture is not done again
            self._flush()
            self._folded = None
        return len(pictures)

    @staticmethod
    def _distinct(pictures: Sequence[Picture], digests: Sequence[bytes]) -> dict[bytes, Picture]:
        return dict(zip(digests, pictures, strict=True))

    def _compute(
        self, pictures: Sequence[Picture], progress: bool = False, *, keep: bool = False
    ) -> list[Tensor]:
        """Run the tower over pictures and store what it gives.

        The next batch is read while the tower works on one.

        Args:
            keep: return the rows, (1 + P, D_v) bfloat16 each, in order.

        Raises:
            DataError: a picture is missing or broken.
        """
        kept: list[Tensor] = []
        if not pictures:
            return kept
        tower = self.tower()
        device = next(tower.parameters()).device
        threads = 1 if device.type == "cpu" else min(16, ranks.cores())
        bar = tqdm(total=len(pictures), desc="image features", unit="image", disable=not progress)
        with torch.inference_mode(), bar, ThreadPoolExecutor(threads) as pool:

            def read(start: int) -> list[Future[tuple[bytes, Tensor]]]:
                part = pictures[start : start + self.batch_size]
                return [pool.submit(self._load, picture) for picture in part]

            ahead = read(0)
            for start in range(0, len(pictures), self.batch_size):
                loaded = [future.result() for future in ahead]
                ahead = read(start + self.batch_size)
                pixels = torch.stack([pixels for _, pixels in loaded])
                blank = pixels.new_zeros(self.batch_size - len(loaded), *pixels.shape[1:])
                pixels = torch.cat([pixels, blank]).to(device, self.dtype)
                features = tower(pixels)[: len(loaded)].to("cpu", self.kept_in)
                rows = [row.clone() for row in features]
                # By the content that was read: the file may have changed since it was looked up.
                self._keep({digest: row for (digest, _), row in zip(loaded, rows, strict=True)})
                if keep:
                    kept += rows
                bar.update(len(loaded))
        return kept

    def _load(self, picture: Picture) -> tuple[bytes, Tensor]:
        """(digest, (3, H, W)) of one picture, read once."""
        content: Any = picture
        if not isinstance(picture, bytes):
            try:
                with open(picture, "rb") as file:
                    content = NamedBytes(file.read(), str(picture))
            except (OSError, ValueError) as error:
                raise unreadable(os.fspath(picture), error) from error
        plain = picture if isinstance(picture, bytes) else content.getbuffer()
        digest = hashlib.sha256(plain).digest()
        return digest, self.image_processor([content])["pixel_values"][0]

    def tower(self) -> VisionTower:
        """The model's tower in evaluation mode, its batch norms folded."""
        state = tensors_state(self.vision_tower)
        if self._folded is None or self._folded[0] != state:
            assert self.model.config.vision_part.preprocess is not None
            size = self.model.config.vision_part.preprocess["size"]
            side = (size, size) if isinstance(size, int) else tuple(size)
            device = next(self.vision_tower.parameters()).device
            blank = torch.zeros(1, 3, *side, dtype=self.dtype, device=device)
            was_training = self.vision_tower.training
            self.vision_tower.eval()
            with torch.inference_mode():
                self._folded = state, folded(self.vision_tower, blank)
            self.vision_tower.train(was_training)
        return self._folded[1]

    @property
    def vision_tower(self) -> VisionTower:
        return self.model.vision_tower

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vision_tower.parameters()).dtype

    def __call__(self, pictures: Sequence[Picture]) -> Tensor:
        """(N, 1 + P, D_v) in the dtype they are kept in; computes what is missing."""
        self._rekey()
        digests = self.digests(pictures)
        rows = {digest: self._read(digest) for digest in dict.fromkeys(digests)}
        missing = {d: p for d, p in zip(digests, pictures, strict=True) if rows[d] is None}
        rows.update(zip(missing, self._compute(list(missing.values()), keep=True), strict=True))
        vision = self.model.config.vision_part
        # Filled, not stacked: tensors made under inference_mode cannot take part in autograd.
        out = torch.empty(len(pictures), 1 + vision.num_patches, vision.width, dtype=self.kept_in)
        for place, digest in enumerate(digests):
            row = rows[digest]
            assert row is not None
            out[place].copy_(row)
        return out


class NamedBytes(BytesIO):
    """A file's content that knows where it came from, for messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name
