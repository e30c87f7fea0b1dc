"""Forward and backward of a stage's model on tensors without memory: what is alive, and operations.

The model's real layers run under torch's FakeTensorMode, with the recipe's adapters, precision and
activation checkpointing, and what is alive at once is summed up. Two and three layers are run; the
others are taken to be like the third. `estimate.py` puts a stage's estimate together of it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole.inject import decoder_of
from llava_mole.structure import model_without_weights, text_config_of, vision_of
from llava_mole.training.alive import AliveBytes
from llava_mole.training.parts import set_trainable
from llava_mole.training.recipe import Recipe, StageRecipe
from llava_mole.vision import build_structure


@dataclass(frozen=True)
class Rows:
    """A micro-batch on one device."""

    rows: int
    tokens: int
    """Of a row, visual tokens included."""
    supervised: int
    """Of a row."""
    images: int = 1
    """Of a row."""
    question: int = 64
    """Tokens that steer an image, where Parrot is on."""


@dataclass(frozen=True)
class Measured:
    """Of one pass, in bytes, and its operations."""

    kept: float
    """Alive when the forward pass of the decoder is over."""
    peak: float
    """The most there was, forward or backward."""
    flops: float

    def at(self, further: Measured, layers: int) -> Measured:
        """This one has a layer less than `further`: what the pass takes with so many layers."""
        return Measured(
            *(
                getattr(further, key) + layers * (getattr(further, key) - getattr(self, key))
                for key in ("kept", "peak", "flops")
            )
        )


class Probes:
    """Passes of a stage's model on tensors without memory. What was found is kept."""

    def __init__(self, recipe: Recipe, stage: StageRecipe) -> None:
        on = recipe.stages[: 1 + recipe.stages.index(stage)]
        parrot = recipe.model.parrot if any(one.parrot for one in on) else None
        self.model_recipe = dataclasses.replace(recipe.model, parrot=parrot)
        self.stage = stage
        self.text = text_config_of(recipe.model)
        self.vision = vision_of(recipe.model)
        self.autocast = bool({**recipe.training, **stage.training}.get("bf16"))
        with torch.device("meta"):
            self.tower = build_structure(self.vision)
        self._found: dict[tuple[object, ...], Measured] = {}

    @functools.cached_property
    def whole(self) -> LlavaMoleForConditionalGeneration:
        return self.build(None)

    def build(self, layers: int | None) -> LlavaMoleForConditionalGeneration:
        recipe = self.model_recipe
        if recipe.experts is not None:
            # Sorting needs to know how many tokens go to each expert. On a GPU it begins where
            # there are more rank units than recipes have (`kernels.WIDE_UNITS`).
            wide = dataclasses.replace(recipe.experts, kernel="masked")
            recipe = dataclasses.replace(recipe, experts=wide)
        model = model_without_weights(
            recipe,
            text_config=self.text,
            vision=self.vision,
            layers=layers,
            tower=self.tower,
        )
        set_trainable(model, self.stage.learning_rates)
        return model

    def depths(self) -> tuple[int, int] | None:
        """Numbers of layers to run; None: all, where layers differ by their number."""
        experts = self.model_recipe.experts
        lists = experts is not None and any(
            isinstance(value, tuple) for key, value in vars(experts).items()
            if key in ("num_experts", "r", "top_k", "layers_to_transform")
        )  # fmt: skip
        return None if lists or self.text.num_hidden_layers <= 3 else (2, 3)

    def measure(
        self, rows: Rows, checkpointing: bool, *, cast: bool = False, counting: bool = False
    ) -> Measured:
        """Bytes, or with `counting` operations, of all layers."""
        key = (rows, checkpointing, cast, counting)
        if key not in self._found:
            depths, layers = self.depths(), self.text.num_hidden_layers
            runs = [self.run(depth, *key) for depth in depths or (layers,)]
            last = runs[-1]
            self._found[key] = runs[0].at(last, layers - depths[1]) if depths else last
        return self._found[key]

    def activations(
        self, rows: Rows, checkpointing: bool, on_gpu: bool, *, cast: bool, tower: bool
    ) -> dict[str, float]:
        """What is alive at the peak, beside weights and gradients.

        Args:
            cast: weights are gathered in the dtype that is computed in; autocast copies nothing.
            tower: pictures go through the tower at every step.
        """
        measured = self.measure(rows, checkpointing, cast=cast)
        positions = rows.rows * rows.supervised
        width = torch.finfo(getattr(torch, self.model_recipe.dtype)).bits // 8
        width = 2 if self.autocast else width
        # Logits, their gradient, and the rows in float32 from which it is worked out (`heads.py`).
        head = positions * self.text.vocab_size * (2 * width + (4 if on_gpu else 0))
        at_head = measured.kept + head
        peak = max(at_head, measured.peak, self.tower_peak(rows) if tower else 0.0)
        kept = min(measured.kept, peak)
        if peak == at_head:
            return {"activations": kept, "logits at supervised positions": float(head)}
        return {"activations": kept, "while going backward": peak - kept}

    def flops(self, rows: Rows, checkpointing: bool, *, tower: bool) -> float:
        """Of a micro-batch; those of one row are counted."""
        one = dataclasses.replace(rows, rows=1)
        passes = 3 if "language_model" in self.stage.learning_rates else 2
        head = passes * 2.0 * one.supervised * self.text.vocab_size * self.text.hidden_size
        layers = self.measure(one, checkpointing, counting=True).flops
        return rows.rows * (layers + head + (self.tower_flops(one) if tower else 0.0))

    def run(
        self, layers: int, rows: Rows, checkpointing: bool, cast: bool, counting: bool
    ) -> Measured:
        """Forward to the decoder's last hidden state, and back from the supervised positions."""
        model = self.build(layers)
        with FakeTensorMode() as mode:
            own = {name: part for name, part in model.named_children() if name != "vision_tower"}
            for part in own.values():
                without_memory(part)
            parameters = [parameter for part in own.values() for parameter in part.parameters()]
            if cast:
                for parameter in parameters:
                    parameter.data = parameter.data.to(torch.bfloat16)
            model.train()
            if checkpointing:
                model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
            for parameter in parameters:
                if parameter.requires_grad:  # as in every micro-batch but the first
                    parameter.grad = torch.zeros_like(parameter)
            alive, counter = AliveBytes(), FlopCounterMode(display=False)
            features, inputs = self.inputs(model, rows)
            buffers = [buffer for part in own.values() for buffer in part.buffers()]
            alive.leave_out(*parameters, *buffers, features, *inputs.values())
            alive.leave_out(*(p.grad for p in parameters if p.grad is not None))
            wanted = rows.rows * rows.supervised
            # One at a time: the counter's own hooks hold on to tensors.
            watching = counter if counting else alive
            with watching, self.autocasting():
                embeds = model.get_input_embeddings()(inputs["input_ids"])
                visual = None
                if rows.images:
                    visual = model.visual_tokens(
                        features, inputs["question_ids"], inputs["question_mask"]
                    )
                    embeds = embeds.masked_scatter(
                        inputs["places"].unsqueeze(-1), visual.to(embeds.dtype)
                    )
                decoder = decoder_of(model.language_model)
                out = decoder(inputs_embeds=embeds, use_cache=False)
                hidden = out.last_hidden_state
                chosen = hidden.reshape(-1, hidden.shape[-1])[:wanted]
                del out, hidden, embeds, visual
                kept = alive.now
                # What routers believe goes into a loss too; what never goes back is never freed.
                routes = [] if model.mole is None else model.mole.records
                beliefs = [r.route.probs.float().sum() for r in routes if r.route.probs is not None]
                beliefs = [one for one in beliefs if one.requires_grad]
                torch.autograd.backward(
                    [chosen, *beliefs], [torch.ones_like(chosen), *map(torch.ones_like, beliefs)]
                )
            attention = attention_flops(self.text, layers, rows, checkpointing)
            found = Measured(kept, alive.peak, counting and counter.get_total_flops() + attention)
        del model, own, parameters, buffers, features, inputs, chosen, beliefs, routes, mode
        gc.collect()
        return found

    def inputs(
        self, model: LlavaMoleForConditionalGeneration, rows: Rows
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (N, 1 + P, D_v), and ids, all of the right shape and dtype."""
        images = rows.rows * max(rows.images, 1)
        vision = self.vision
        features = torch.zeros(
            images, 1 + vision.num_patches, vision.width, dtype=getattr(torch, vision.dtype)
        )
        shape = (rows.rows, rows.tokens)
        return features, {
            "input_ids": torch.zeros(shape, dtype=torch.long),
            "places": torch.zeros(shape, dtype=torch.bool),
            "question_ids": torch.zeros(images, rows.question, dtype=torch.long),
            "question_mask": torch.ones(images, rows.question, dtype=torch.bool),
        }

    def autocasting(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast:
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()

    def tower_pass(self, rows: Rows, watching: AliveBytes | FlopCounterMode) -> None:
        """The tower over the pictures of a micro-batch."""
        if not rows.images:
            return
        assert self.vision.preprocess is not None
        size = self.vision.preprocess["size"]
        side = (size, size) if isinstance(size, int) else tuple(size)
        tower = copy.deepcopy(self.tower)
        with FakeTensorMode():
            without_memory(tower)
            pixels = torch.zeros(rows.rows * rows.images, 3, *side)
            pixels = pixels.to(getattr(torch, self.vision.dtype))
            if isinstance(watching, AliveBytes):
                watching.leave_out(*tower.parameters(), *tower.buffers(), pixels)
            with torch.set_grad_enabled("vision" in self.stage.learning_rates), watching:
                tower(pixels)

    def tower_peak(self, rows: Rows) -> float:
        alive = AliveBytes()
        self.tower_pass(rows, alive)
        return float(alive.peak)

    def tower_flops(self, rows: Rows) -> float:
        """Attention over patches is small beside the products and not counted."""
        counter = FlopCounterMode(display=False)
        self.tower_pass(rows, counter)
        return float(counter.get_total_flops()) * (
            3 if "vision" in self.stage.learning_rates else 1
        )


def without_memory(model: nn.Module) -> None:
    """Inside FakeTensorMode: parameters and buffers of the meta device become fake ones."""
    memo: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is None:
                    continue
                if id(tensor) not in memo:
                    fake: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    memo[id(tensor)] = fake
                tensors[name] = memo[id(tensor)]  # type: ignore[assignment]


def attention_flops(text: object, layers: int, rows: Rows, checkpointing: bool) -> float:
    """Causal attention, which the counter does not know on a CPU: half of 4 T^2 D forward, two and
    a half times that backward, and the first once more where it is computed anew."""
    config = vars(text)
    heads = config["num_attention_heads"]
    width = heads * (config.get("head_dim") or config["hidden_size"] // heads)
    forward = 0.5 * 4.0 * rows.rows * rows.tokens**2 * width * layers
    return forward * (4.5 if checkpointing else 3.5)
