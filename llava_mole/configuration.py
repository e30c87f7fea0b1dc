"""LlavaMoleConfig: what is built. Also what `config.json` of a model folder says.

Each part has a small frozen dataclass that validates itself; in `config.json` it is a plain object.
Where weights come from is a `WeightSource`: the frozen language model and tower are kept by
reference (name, revision, hash), so a fine-tuned folder holds only what was trained.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from llava_mole.errors import ConfigError
from llava_mole.mole.config import MoleConfig

PROJECTORS = ("linear", "mlp2x_gelu", "rbf")
SELECTS = ("patch", "cls_patch")
TEXT_CONDITIONS = ("turn", "unlabelled")
CONDITIONS = (*TEXT_CONDITIONS, "picture", "nothing")
"""What steers Parrot's module; see `ParrotConfig.condition_on`."""


def choose(owner: str, key: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError naming key, value, what is allowed and the nearest match."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{owner}.{key}={value!r}: allowed are {', '.join(allowed)}{hint}")


class Part:
    """to_dict / from_dict for the frozen dataclasses below."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: dict[str, Any] | Self) -> Self:
        """Raises ConfigError on an unknown key, with the nearest known one."""
        if isinstance(values, cls):
            return values
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for key in values:  # type: ignore[union-attr]
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"{cls.__name__}: unknown key {key!r}{hint} (known: {known})")
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class WeightSource(Part):
    """Where frozen weights are found again.

    `name` is "starter", a hub id, an absolute folder, or a folder relative to the model's own
    ("language_model", when the weights are saved in full). `sha256` covers the weight files; a
    different hash at load is a CheckpointError.
    """

    name: str
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class VisionConfig(Part):
    """An open_clip vision tower, resolved so that its structure can be built without its weights.

    `build_vision` fills this in from a name; users name a tower with `model` and `pretrained`.
    """

    model: str
    """open_clip model name, "local-dir:FOLDER", or "starter"."""
    pretrained: str | None = None
    """open_clip tag of the weights, e.g. "openai"."""
    layer: int | None = None
    """Token towers: which block's output, -2 as LLaVA; None is the trunk's final output."""
    select: str = "patch"
    """"patch": patches only. "cls_patch": class token first, as Parrot's released code."""
    features: str = "tokens"
    """"tokens": read with forward_intermediates. "map": a convolutional trunk's last map."""
    grid: int | None = None
    """Patches are averaged to grid x grid visual tokens (as Gemma 3 does); None keeps all."""
    width: int = 0
    """D_v, of one patch feature."""
    num_patches: int = 0
    """Patches per image after averaging, without the class token."""
    model_cfg: dict[str, Any] | None = None
    """open_clip's own model config."""
    preprocess: dict[str, Any] | None = None
    """open_clip's PreprocessCfg: size, mean, std, interpolation, resize_mode, fill_color; and what
    `preprocess.py` adds for imported models."""
    dtype: str = "float32"
    """What the tower computes in. A small convolutional tower loses much to bfloat16."""
    source: dict[str, Any] | None = None
    """A WeightSource, or None if the tower's weights are saved with the model. Its name is
    `model`, or "model-folder:FOLDER" of another model folder that holds the weights."""

    def __post_init__(self) -> None:
        choose("vision", "select", self.select, SELECTS)
        choose("vision", "features", self.features, ("tokens", "map"))
        if self.grid is not None and self.grid < 1:
            raise ConfigError(f"vision.grid={self.grid!r}: must be at least 1, or empty")

    @property
    def tokens_per_image(self) -> int:
        """P: visual tokens that one picture becomes."""
        return self.num_patches + (self.select == "cls_patch")


@dataclass(frozen=True)
class ProjectorConfig(Part):
    """Patch features to the language model's width; see `projector.py`."""

    type: str = "mlp2x_gelu"
    """"linear" and "mlp2x_gelu" as LLaVA; "rbf": radial basis functions around pictures, solved
    for in closed form by a warm start with `method: ridge`."""
    dropout: float = 0.0
    """In training, on the patch features; with "rbf" on the units."""
    units: int | None = None
    """"rbf" only: how many drawings it has units for; None: 4096."""
    width: float | None = None
    """"rbf" only: of a unit, in cosine; None: 0.1."""

    def __post_init__(self) -> None:
        choose("projector", "type", self.type, PROJECTORS)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"projector.dropout={self.dropout!r}: must be in [0, 1)")
        for key, value in (("units", self.units), ("width", self.width)):
            if value is None:
                continue
            if self.type != "rbf":
                raise ConfigError(
                    f"projector.{key}={value!r}: only type 'rbf' has it, not {self.type!r}; "
                    f"say projector: {{type: {self.type}}}"
                )
            least = 1 if key == "units" else 0.01
            if not value >= least:
                raise ConfigError(f"projector.{key}={value!r}: must be at least {least}")


@dataclass(frozen=True)
class ParrotConfig(Part):
    """Parrot's language-conditioned MoE (arXiv 2406.02539).

    Its paper and its released code disagree. Each disagreement is an option; `paper()` and
    `released()` are the two sides, and the defaults are ours: the paper's, with a last matrix that
    starts at zero, so that switching the module on loses nothing already learnt.
    """

    num_experts: int = 6
    """One for each language in the paper; nothing ties them to one."""
    hidden_size: int | None = None
    """Width inside an expert. None: D (Parrot-7B: 4096 = D)."""
    expert: str = "silu_mlp"
    """"silu_mlp": two matrices (paper, Table 13). "swiglu": three (code)."""
    residual: str = "experts_scaled"
    """"experts_scaled": G = H + alpha MoE(H), paper Eq. 5. "input_scaled": G = MoE(H) + alpha H,
    the code."""
    alpha: float = 1.0
    """The paper gives no value. The code's default is 0.1."""
    top_k: int | None = None
    """None: dense softmax over all experts (code, and the paper's k = E). Else the k best,
    renormalised (paper, Eq. 4)."""
    condition_on: str = "turn"
    """What steers an image. "turn": the user turn that holds it. "unlabelled": every token without
    a label, that is system text, template and all user turns (code). Two controls with as many
    parameters that read no text, so that no language can steer: "picture": its own projected
    summary; "nothing": a constant, so that all images get the same learnt weights."""
    last_matrix: str = "zero"
    """"zero", or "default": torch's own initialisation (code)."""

    def __post_init__(self) -> None:
        choose("parrot", "expert", self.expert, ("silu_mlp", "swiglu"))
        choose("parrot", "residual", self.residual, ("experts_scaled", "input_scaled"))
        choose("parrot", "condition_on", self.condition_on, CONDITIONS)
        choose("parrot", "last_matrix", self.last_matrix, ("zero", "default"))
        if self.num_experts < 1:
            raise ConfigError(f"parrot.num_experts={self.num_experts}: must be at least 1")
        if self.top_k is not None and not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(
                f"parrot.top_k={self.top_k}: must be from 1 to num_experts={self.num_experts}"
            )

    @property
    def reads_question(self) -> bool:
        """Whether visual tokens change with text."""
        return self.condition_on in TEXT_CONDITIONS

    @classmethod
    def paper(cls, **changes: Any) -> ParrotConfig:
        return cls(**{"last_matrix": "default", **changes})

    @classmethod
    def released(cls, **changes: Any) -> ParrotConfig:
        """The released code. Its tower must also select "cls_patch"."""
        code = {
            "expert": "swiglu",
            "residual": "input_scaled",
            "alpha": 0.1,
            "condition_on": "unlabelled",
            "last_matrix": "default",
        }
        return cls(**{**code, **changes})


class LlavaMoleConfig(PreTrainedConfig):
    """Configuration of one vision-language model.

    Attributes:
        text_config: of any Hugging Face causal language model whose MLPs are linears.
        text_source: a WeightSource of the frozen language model; None: saved in full.
        vision, projector, parrot, mole: the parts above; `parrot` and `mole` may be None.
        lora: keyword arguments of peft.LoraConfig for plain LoRA, or None.
        quantization: keyword arguments of transformers.BitsAndBytesConfig by which the referenced
            language model is packed when it is loaded, or None.
        image_token_id: the placeholder that visual tokens replace.
        provenance: parts, licences and training, for the model card; see `provenance.py`. Nothing
            is built from it.
        origin: of a converted model, and of what is trained from it: what it was made from
            ("source", "sha256") and under which "licence"; None: put together from its parts.
    """

    model_type = "llava_mole"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    text_config: Any = None
    text_source: dict | None = None
    vision: dict | None = None
    projector: dict | None = None
    parrot: dict | None = None
    mole: dict | None = None
    lora: dict | None = None
    quantization: dict | None = None
    image_token_id: int = 0
    provenance: dict | None = None
    origin: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for key in ("vision", "projector", "parrot", "mole", "text_source"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, dict):
                setattr(self, key, value.to_dict())

    @property
    def vision_part(self) -> VisionConfig:
        if self.vision is None:
            raise ConfigError("config.vision is empty: name a tower, e.g. build_vision('starter')")
        return VisionConfig.from_dict(self.vision)

    @property
    def projector_part(self) -> ProjectorConfig:
        return ProjectorConfig.from_dict(self.projector or {})

    @property
    def parrot_part(self) -> ParrotConfig | None:
        return None if self.parrot is None else ParrotConfig.from_dict(self.parrot)

    @property
    def mole_part(self) -> MoleConfig | None:
        return None if self.mole is None else MoleConfig.from_dict(self.mole)
