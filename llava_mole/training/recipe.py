"""A recipe: one YAML file that says what is built, from what data, and how it is trained.

Dataclasses with one docstring per key; `schema.py` reads YAML into them and lists every problem at
once. See configs/starter.yaml for a recipe with a comment on each knob.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llava_mole.building import ModelRecipe

STAGE_KINDS = ("warm_start", "language")
WARM_STARTS = ("gradient", "ridge")
TOO_LONG = ("error", "drop")


@dataclass
class KeepRecipe:
    """The `keep:` section of a source: which of its samples take part."""

    domains: list[str] | None = None
    """Those of these domains."""
    languages: list[str] | None = None
    """Those in these languages, by ISO 639 codes."""
    kinds: list[str] | None = None
    """Those of these kinds of question."""
    min_bytes: int | None = field(default=None, metadata={"min": 0})
    """Of a sample's text, all turns together, in UTF-8."""
    max_bytes: int | None = field(default=None, metadata={"min": 1})
    """The other end."""


@dataclass
class SourceRecipe:
    """One dataset."""

    path: str
    """LLaVA or messages JSON or JSONL, Parquet, a saved datasets folder (`DIR:split`), a TSV as
    MMBench's, `DIR/dataset_info.json:NAME`, or `hub:org/name:split`, with a branch, tag or commit
    `hub:org/name@REVISION:split`; see docs/data.md."""
    name: str | None = None
    """In tables and messages; the file's name if empty. The order of its samples follows from
    it."""
    format: str = "auto"
    """Layout of the records; auto: seen from them."""
    image_root: str | None = None
    """Folder that the images' paths start from; the data's own folder if empty."""
    domain: str | None = None
    """For samples that do not name theirs."""
    language: str | None = None
    """For samples that do not name theirs."""
    variants: str | None = None
    """names.json that lists other drawings of each picture (`data/openmoji.py` writes one)."""
    weight: float | None = field(default=None, metadata={"min": 0})
    """Its share relative to the other sources'; for all or for none. Empty: its size."""
    samples: int | None = field(default=None, metadata={"min": 0})
    """Drawn in a pass, in place of weights; for all or for none."""
    cap: int | None = field(default=None, metadata={"min": 1})
    """Size beyond which a source's share grows no further."""
    repeat_limit: float | None = field(default=None, metadata={"above": 0})
    """Times a sample may come in a pass; the other sources fill up what this one may not."""
    keep: KeepRecipe = field(default_factory=KeepRecipe)
    """Which of its samples take part; all where it is empty."""


@dataclass
class FeatureCacheRecipe:
    """The `feature_cache:` section: features of the frozen tower on disk, for the next run too."""

    folder: str | None = None
    """`features/` in the user's cache if empty."""
    max_gib: float = field(default=20, metadata={"above": 0})
    """The least recently used go beyond it."""


@dataclass
class DataRecipe:
    """The `data:` section, or a mixture file of its own (`data: data/mixtures/NAME.yaml`)."""

    sources: list[SourceRecipe]
    """The datasets that are mixed."""
    temperature: float = field(default=1.0, metadata={"above": 0})
    """Shares are weight^(1/temperature): 1 keeps them, more evens them out."""
    length: str | int | None = None
    """Of a pass: until every source was seen once (all_exhausted, if empty), until the first one
    was (first_exhausted), or a number of samples."""
    repeat_limit: float | None = field(default=None, metadata={"above": 0})
    """Of every source that does not name its own."""
    kind_weights: dict[str, float] = field(default_factory=dict)
    """How often each kind of question is drawn, relative to 1; 0 leaves a kind out."""
    language_weights: dict[str, float] | None = None
    """Share of each language in every source, relative to the others'; 0 leaves it out. Names all
    languages that the sources hold. Empty: as they are."""
    variant_share: float = field(default=0.5, metadata={"min": 0, "max": 1})
    """Share of language rows that show another drawing of their picture, where there are any."""
    max_length: int | None = field(default=None, metadata={"min": 1})
    """Tokens of a sample; the language model's context if empty."""
    too_long: str = field(default="error", metadata={"choices": TOO_LONG})
    """Samples beyond max_length: "error" names them all before anything is trained, "drop" leaves
    them out, counted, listed in OUT/left_out.jsonl. Nothing is ever cut."""
    feature_cache: FeatureCacheRecipe | None = None
    """Keep the frozen tower's features on disk; `{}` takes the defaults."""
    held_out: list[SourceRecipe] = field(default_factory=list)
    """Never trained on, scored while a stage trains (`training.eval_strategy`, `eval_steps`); see
    docs/training.md. Of a source's keys: path, name, format, image_root, domain, language, keep,
    and `samples`, which takes as many of them, always the same."""


@dataclass
class WarmStartRecipe:
    """The `warm_start:` section of a warm_start stage (see `warm_start.py` and `ridge.py`)."""

    method: str = field(default="gradient", metadata={"choices": WARM_STARTS})
    """"gradient": contrast and alignment, step by step, for projectors linear and mlp2x_gelu.
    "ridge": solved for in closed form in seconds, for a projector of type rbf; it reads kind, also,
    alignment_weight and ridge, and has no steps."""
    ridge: float = field(default=0.01, metadata={"above": 0})
    """Of "ridge": the penalty on the solution, relative to the mean diagonal of its system."""
    kind: str | list[str] = "naming"
    """Samples of this kind give the pairs: picture, answer. Of several kinds, for data of several
    domains, a picture takes the first that it has an answer of."""
    pictures_per_step: int = field(default=128, metadata={"min": 2})
    """Each is told apart from all the others of its step."""
    learning_rate: float = field(default=1e-3, metadata={"above": 0})
    """Of the projector."""
    weight_decay: float = field(default=0.05, metadata={"min": 0})
    """Of the projector's matrices."""
    temperature: float = field(default=0.07, metadata={"above": 0})
    """Start value; it is learnt."""
    feature_noise: float = field(default=0.2, metadata={"min": 0})
    """Standard deviation of noise on the features, relative to their own."""
    token_dropout: float = field(default=0.67, metadata={"min": 0, "max": 0.95})
    """Share of visual tokens left out of a picture's mean."""
    channel_dropout: float = field(default=0.0, metadata={"min": 0, "max": 0.95})
    """Share of a picture's feature channels set to zero, the same in all of its tokens (spatial
    dropout, arXiv 1411.4280): another artist's picture differs in whole channels."""
    hard_share: float = field(default=0.0, metadata={"min": 0, "max": 1})
    """Share of a step's pictures drawn as neighbours in the source's order (same subject)."""
    alignment_weight: float = field(default=3.0, metadata={"min": 0})
    """Weight of 1 - cosine between a picture and its names. Contrast alone finds directions that
    tell pictures apart; the language model reads those that point to the names."""
    also: dict[str, float] = field(default_factory=dict)
    """Other kinds whose short answers (a category, a colour) the picture is pulled towards as well:
    kind -> weight of 1 - cosine. Many pictures share such an answer, so there is no contrast."""
    one_language: bool = False
    """Pull a picture, at each step, to its answers in one language, drawn by data.language_weights;
    otherwise to those in all languages at once. With the stage's `parrot: true` its tokens pass
    through Parrot, steered by a question of that language, and Parrot is trained too."""
    variant_share: float = field(default=0.5, metadata={"min": 0, "max": 1})
    """Share of pictures shown as another drawing, where there are any."""
    scale_weight: float = field(default=0.0, metadata={"min": 0})
    """Weight of the penalty that keeps projected tokens at the embeddings' scale."""


@dataclass
class StageRecipe:
    """One entry of `stages:`."""

    name: str
    """In messages, in the log, and on the command line: stages.NAME.steps=50."""
    kind: str = field(default="language", metadata={"choices": STAGE_KINDS})
    """"warm_start": projector against names, no language-model pass. "language": next token."""
    steps: int = field(default=100, metadata={"min": 1})
    """Optimizer steps."""
    passes: float | None = field(default=None, metadata={"above": 0})
    """Over the mixture, in place of steps."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Part -> rate; parts not named are frozen. Parts: vision, projector, parrot, experts, routers,
    lora, language_model."""
    pictures_per_step: int = field(default=12, metadata={"min": 1})
    """Rows per micro-batch, of all processes together, whoever started them: a step has this many
    times `training.gradient_accumulation_steps`, on one device as on eight."""
    questions_per_picture: int = field(default=6, metadata={"min": 1})
    """Drawn for each picture of a step, at most as many as it has."""
    share_prefix: bool = True
    """Questions about one picture share its visual tokens. Not with Parrot on, unless its
    condition_on reads no text."""
    packing: int | None = field(default=None, metadata={"min": 16})
    """Tokens of a row into which several pictures or conversations are packed, none of which sees
    another; null: a row each."""
    length_window: int = field(default=8, metadata={"min": 1})
    """Micro-batches among which rows of like length are put side by side, so that less is padded;
    their order stays random. 1: the planned order."""
    parrot: bool = False
    """Switch the language-conditioned MoE on from this stage."""
    data: DataRecipe | None = None
    """This stage's own data, instead of the recipe's: a mapping, or a mixture file."""
    kind_weights: dict[str, float] | None = None
    """Instead of data.kind_weights, for this stage."""
    warm_start: WarmStartRecipe = field(default_factory=WarmStartRecipe)
    """Of a stage of kind warm_start."""
    training: dict[str, Any] = field(default_factory=dict)
    """transformers.TrainingArguments for this stage, over the recipe's own."""
    share_of_time: float | None = field(default=None, metadata={"above": 0, "max": 1})
    """Of `minutes`, where a run is bounded in time."""


@dataclass
class Recipe:
    """A whole recipe."""

    output_dir: str
    """Folder of the run: its log, its stages' checkpoints, and OUT/model."""
    model: ModelRecipe
    """What is built, from which parts."""
    data: DataRecipe
    """What it learns from: this section, or the name of a mixture file."""
    stages: list[StageRecipe]
    """Run one after the other; each starts from what the one before left."""
    seed: int = field(default=0, metadata={"min": 0})
    """Of new weights, the mixture's order and dropout."""
    minutes: float | None = field(default=None, metadata={"above": 0})
    """Bound on training; each stage's schedule ends within its share of it."""
    threads: int | None = field(default=None, metadata={"min": 1})
    """CPU threads of each process; torch's choice if empty."""
    workers: int = field(default=1, metadata={"min": 1})
    """Processes on this machine that share each step's rows; on CPUs two processes of one core each
    are faster than two threads. Fewer are started where there are fewer cores, one where there is
    an accelerator (use torchrun or accelerate launch for several, see docs/distributed.md)."""
    training: dict[str, Any] = field(default_factory=dict)
    """transformers.TrainingArguments for every language stage, by their own names."""

    def data_of(self, stage: StageRecipe) -> DataRecipe:
        """What a stage draws from."""
        return self.data if stage.data is None else stage.data
