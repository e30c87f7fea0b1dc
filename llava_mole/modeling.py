"""LlavaMoleForConditionalGeneration: the forward pass, top to bottom.

1. The vision tower turns pixels into patch features and one summary token per image.
2. The projector brings them to the language model's width.
3. The language-conditioned MoE (optional) re-expresses each image's tokens for the text of the
   user turn that holds it.
4. Visual tokens replace the image placeholders, one for one.
5. The language model runs, its MLPs routed; logits are computed only where they are needed.
6. The loss is cross-entropy over supervised tokens plus each component's auxiliary loss, by name.

Loading and saving are in `checkpoint.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput
from transformers.utils.deprecation import deprecate_kwarg

from llava_mole import checkpoint, heads, sharding, tree
from llava_mole.configuration import LlavaMoleConfig
from llava_mole.errors import ConfigError, DataError
from llava_mole.mole import add_experts, auxiliary_losses
from llava_mole.mole.context import RouteContext
from llava_mole.mole.inject import decoder_of
from llava_mole.parrot import LanguageConditionedMoE
from llava_mole.plain_lora import add_lora
from llava_mole.projector import build_projector
from llava_mole.vision import VisionTower, build_structure

IGNORE = -100
IMAGE_INPUTS = ("pixel_values", "image_features", "question_ids", "question_mask")


@dataclass
class LlavaMoleOutput(ModelOutput):
    """What a forward pass returns.

    Attributes:
        loss: scalar, with labels: the sum of `losses`.
        losses: each part of the loss by name ("language", "balance", …), detached.
        logits: with labels, (1, S, V) at the S supervised positions only, row by row; without,
            (B, T, V) or its last positions (`logits_to_keep`).
        cache: the cache, if one was used.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    cache: Cache | None = None


class LlavaMoleForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """open_clip tower -> projector -> Parrot's MoE -> language model with LLaVA-MoLE experts.

    Args:
        config: what to build. Weights are untrained; `from_pretrained` loads a model folder,
            `llava_mole.building.build_model` assembles one from pretrained parts.
        language_model, vision_tower: ready parts to use instead of building them.
    """

    config_class = LlavaMoleConfig
    config: LlavaMoleConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(
        self,
        config: LlavaMoleConfig,
        *,
        language_model: PreTrainedModel | None = None,
        vision_tower: VisionTower | None = None,
    ) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        vision = config.vision_part
        self.vision_tower = vision_tower or build_structure(vision)
        self.projector = build_projector(vision.width, width, config.projector_part)
        parrot = config.parrot_part
        self.parrot = LanguageConditionedMoE(width, parrot) if parrot else None
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        if config.image_token_id >= config.text_config.vocab_size:
            raise ConfigError(
                f"image_token_id={config.image_token_id} is outside the language model's "
                f"vocabulary of {config.text_config.vocab_size}"
            )
        self.mole: RouteContext | None = None
        self.licence_folders: dict[str, Path] = {}  # part -> where its licence files lie
        # transformers would initialise every part again; each has done so itself.
        for module in self.modules():
            module._is_hf_initialized = True
        self.post_init()

    def add_adapters(self) -> None:
        """Put the config's plain LoRA and experts on the language model (see `checkpoint.py`)."""
        if self.config.lora is not None:
            add_lora(self.language_model, self.config.lora)
        if self.config.mole_part is not None:
            self.mole = add_experts(self.language_model, self.config.mole_part)

    # ------------------------------------------------------------------ images to visual tokens

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1 + P, D_v), the summary token first. Gradient only if trained."""
        trained = any(p.requires_grad for p in self.vision_tower.parameters())
        if not trained:
            # In training mode batch norms would read the batch and move their own statistics.
            self.vision_tower.eval()
        dtype = next(self.vision_tower.parameters()).dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            return self.vision_tower(pixel_values.to(dtype))

    def visual_tokens(
        self,
        image_features: Tensor,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
    ) -> Tensor:
        """Steps 2 and 3.

        Args:
            image_features: (N, 1 + P, D_v), from `encode_images`.
            question_ids: (N, Q) tokens of the text that steers each image; needed if Parrot is on
                and reads text.
            question_mask: (N, Q) True at real tokens.

        Returns:
            (N, P, D), P including the class token if the tower keeps it.
        """
        projected = self.projected(image_features)
        summary, patches = projected[:, 0], projected[:, 1:]
        tokens = projected if self.vision_tower.keep_class_token else patches
        if self.parrot is None:
            return tokens
        return self.parrot(
            tokens, summary, *self.steering(len(tokens), question_ids, question_mask)
        )

    def projected(self, image_features: Tensor) -> Tensor:
        """(N, 1 + P, D_v) -> (N, 1 + P, D)."""
        dtype = next(self.projector.parameters()).dtype
        return self.projector(image_features.to(dtype))

    def steering(
        self, images: int, question_ids: Tensor | None, question_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(N, Q, D) embeddings of what steers each image and their mask; None without text."""
        if question_ids is None:
            return None, None
        if len(question_ids) != images:
            raise DataError(f"{images} images but {len(question_ids)} questions")
        mask = torch.ones_like(question_ids) if question_mask is None else question_mask
        return self.get_input_embeddings()(question_ids), mask.bool()

    def language_gate(
        self,
        image_features: Tensor,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
    ) -> Tensor | None:
        """(N, language experts) Parrot's weights, which `visual_tokens` mixes by; None where it is
        off. Arguments as there."""
        if self.parrot is None:
            return None
        summary = self.projected(image_features)[:, 0]
        return self.parrot.gate(summary, *self.steering(len(summary), question_ids, question_mask))

    def place_images(self, input_ids: Tensor, embeds: Tensor, visual: Tensor | None) -> Tensor:
        """Step 4: put visual tokens where the placeholders are.

        Args:
            input_ids: (B, T).
            embeds: (B, T, D).
            visual: (N, P, D) in order of the placeholders, row by row; None without images.

        Raises:
            DataError: the number of placeholders is not N * P. Nothing is ever cut to fit.
        """
        places = input_ids == self.config.image_token_id
        wanted, given = (
            int(places.sum()),
            0 if visual is None else visual.shape[0] * visual.shape[1],
        )
        if wanted != given:
            per_image = self.config.vision_part.tokens_per_image
            raise DataError(
                f"{wanted} image placeholders in input_ids but {given} visual tokens "
                f"({given // per_image} images of {per_image}): every image needs exactly "
                f"{per_image} placeholders; was the text truncated inside an image?"
            )
        if visual is None:
            return embeds
        return embeds.masked_scatter(places.unsqueeze(-1), visual.to(embeds.dtype))

    def blank_picture(self, like: Tensor) -> Tensor:
        """(1, 3, H, W) zeros of the tower's size, in dtype and place of `like`."""
        preprocess = self.config.vision_part.preprocess
        assert preprocess is not None
        size = preprocess["size"]
        side = (size, size) if isinstance(size, int) else tuple(size)
        return like.new_zeros(1, 3, *side)

    def idle_visual(self, like: Tensor) -> Tensor:
        """Zero, but a function of every trainable visual parameter.

        A text-only batch on one rank and images on another must leave the same parameters with
        gradients, and gather the same parameters where these lie in pieces, or training hangs.
        """
        vision = self.config.vision_part
        trained = any(p.requires_grad for p in self.vision_tower.parameters())
        if trained or sharding.in_pieces(self.vision_tower):
            training = self.vision_tower.training
            self.vision_tower.eval()  # a blank picture must not move batch statistics
            features = self.encode_images(self.blank_picture(like))
            self.vision_tower.train(training)
        else:
            features = like.new_zeros(1, 1 + vision.num_patches, vision.width)
        question = torch.zeros(1, 1, dtype=torch.long, device=like.device)
        return 0 * self.visual_tokens(features, question).sum().to(like.dtype)

    # ------------------------------------------------------------------ the forward pass

    @deprecate_kwarg("past_key_values", "6.0.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        segment_ids: Tensor | None = None,
        tree_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        num_samples_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
    ) -> LlavaMoleOutput:
        """One pass.

        Args:
            input_ids: (B, T), image placeholders included.
            pixel_values: (N, 3, H, W), images of the batch in order of their placeholders.
            attention_mask: (B, T or past + T) 1 at real tokens.
            position_ids: (B, T); worked out from the mask if absent.
            cache: a Hugging Face cache (`past_key_values` is its name of old, accepted too).
            inputs_embeds: (B, T, D) in place of input_ids; images are then placed already.
            labels: (B, T) token ids where supervised, -100 elsewhere; the label at t is predicted
                from t - 1, as everywhere in transformers.
            question_ids, question_mask: (N, Q) the text that steers each image (Parrot).
            image_features: (N, 1 + P, D_v) in place of pixel_values, from `encode_images`.
            segment_ids: (B, T) rows that share a picture between branches; see `tree.py`.
            tree_ids: (B, T) with segment_ids: which of the row's trees a token is of, where rows
                are packed.
            use_cache: return a cache.
            logits_to_keep: without labels: logits of the last k positions only; 0 is all.
            num_items_in_batch: supervised tokens of the whole optimizer step; the language loss is
                divided by it. None: of this batch.
            num_samples_in_batch: samples of the whole optimizer step, for auxiliary losses.
            return_dict: asked by `generate`; the output is always a LlavaMoleOutput.

        Raises:
            DataError: placeholders and visual tokens differ in number; no token is supervised.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise DataError("pass input_ids or inputs_embeds")
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if pixel_values is not None and image_features is None:
                image_features = self.encode_images(pixel_values)
            elif image_features is not None and sharding.in_pieces(self.vision_tower):
                raise ConfigError(
                    "image_features for a model whose tower lies in pieces: processes without "
                    "pictures run it, so all must; give pixel_values, or leave the tower whole "
                    "(shard(…, tower=False))"
                )
            visual = None
            if image_features is not None:
                visual = self.visual_tokens(image_features, question_ids, question_mask)
            decoding = cache is not None and cache.get_seq_length() > 0
            if visual is not None or not decoding:
                inputs_embeds = self.place_images(input_ids, inputs_embeds, visual)
            learning = self.training and torch.is_grad_enabled()
            if visual is None and (learning or (not decoding and sharding.in_pieces(self))):
                inputs_embeds = inputs_embeds + self.idle_visual(inputs_embeds)

        mask: Any = attention_mask
        if segment_ids is not None:
            position_ids = tree.tree_positions(segment_ids, tree_ids)
            mask = tree.tree_masks(
                self.language_model.config,
                segment_ids,
                position_ids,
                inputs_embeds.dtype,
                tree_ids,
            )
            if self.mole is not None:
                self.mole.provide(segment_ids, tree_ids=tree_ids)
        elif position_ids is None and attention_mask is not None:
            length = inputs_embeds.shape[1]
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]

        if self.mole is not None and labels is not None:
            # The language model sees no labels; routers that pool the prompt stop where it ends.
            self.mole.provide(answers=labels != IGNORE)
        keep = None
        if labels is not None:
            keep = heads.predecessors(labels, segment_ids, tree_ids)
            logits_to_keep = 0
        with heads.only_at(decoder_of(self.language_model), keep):
            out = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=mask,
                position_ids=position_ids,
                cache=cache,
                use_cache=False if labels is not None and use_cache is None else use_cache,
                logits_to_keep=logits_to_keep,
            )
        result = LlavaMoleOutput(logits=out.logits, cache=out.cache)
        if labels is not None:
            losses = self.losses(out.logits, labels, num_items_in_batch, num_samples_in_batch)
            result.loss = torch.stack([loss.float() for loss in losses.values()]).sum()
            result.losses = {name: loss.detach() for name, loss in losses.items()}
        return result

    def losses(
        self,
        logits: Tensor,
        labels: Tensor,
        num_items: Tensor | int | None,
        num_samples: Tensor | int | None,
    ) -> dict[str, Tensor]:
        """Step 6, by name.

        Args:
            logits: (1, S, V) at the predecessors of the supervised tokens.
            labels: (B, T).
            num_items, num_samples: see `forward`.
        """
        targets = labels[:, 1:][labels[:, 1:] != IGNORE]
        if logits.shape[:2] != (1, len(targets)):
            raise ConfigError(
                f"{type(self.language_model).__name__} returned logits of shape "
                f"{tuple(logits.shape)} for {len(targets)} supervised tokens: this family computes "
                "its head in a way that supervised-only logits do not support"
            )
        total = heads.supervised_cross_entropy(logits.squeeze(0), targets)
        losses = {"language": total / (len(targets) if num_items is None else num_items)}
        if self.mole is not None:
            losses.update(auxiliary_losses(self.language_model, num_samples))
        return losses

    # ------------------------------------------------------------------ generation

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Prefill consumes the images and their questions; decode steps do not see them again."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for key in IMAGE_INPUTS:
                inputs.pop(key, None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Beams and samples: the images of a row are repeated together, not one by one."""
        images = {key: model_kwargs.pop(key) for key in IMAGE_INPUTS if key in model_kwargs}
        if images and expand_size > 1 and input_ids is not None:
            per_image = self.config.vision_part.tokens_per_image
            counts = (input_ids == self.config.image_token_id).sum(dim=1) // per_image
            for key, value in images.items():
                if value is not None:
                    rows = value.split(counts.tolist())
                    images[key] = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **images}

    # ------------------------------------------------------------------ what transformers asks for

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    @property
    def prefix_depends_on_question(self) -> bool:
        """True where visual tokens, or their experts, change with the question: such pictures
        can't be shared."""
        experts = self.config.mole_part
        by_experts = experts is not None and experts.prefix_depends_on_question
        by_parrot = self.parrot is not None and self.parrot.config.reads_question
        return by_parrot or by_experts

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model folder; see `checkpoint.load_model`."""
        return checkpoint.load_model(cls, path, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write a model folder; see `checkpoint.save_model`."""
        checkpoint.save_model(self, save_directory, **kwargs)
