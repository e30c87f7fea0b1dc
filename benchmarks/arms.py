"""The arms of the two experiments: overrides of their base recipes, built and counted.

    python benchmarks/arms.py --out configs/experiments/arms.md

Each arm is built on the recipe's real parts, trained parameters are counted by part, and one
picture with one question goes forward and backward: the loss must be finite, and every part that
the recipe trains must get a gradient. (What starts at zero is given small random values first: as
long as experts answer 0, no router learns from the task.) No data set is needed; nothing is
trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "configs/experiments"
DOMAINS, LANGUAGES = f"{FOLDER}/domain-mix.yaml", f"{FOLDER}/language-84-english.yaml"

STARTER = (
    "model.start_from=null", "model.language_model=starter", "model.vision_model=starter",
    "model.vision_grid=7", "model.chat_template=qa", "model.projector={type: mlp2x_gelu}",
)  # fmt: skip
"""The parts of the models that arms start from: to count, no trained model is needed."""


@dataclass(frozen=True)
class Arm:
    """Overrides of a base recipe; none: the base itself."""

    name: str
    base: str
    what: str
    overrides: tuple[str, ...] = ()


ATTENTION = "model.lora.target_modules=[q_proj, k_proj, v_proj, o_proj]"
RATES = "stages.instruct.learning_rates={projector: 3e-4, lora: 1e-3, experts: 1e-3, routers: 1e-3}"
NO_ROUTERS = "stages.instruct.learning_rates={projector: 3e-4, lora: 1e-3, experts: 1e-3}"


def experts(
    name: str, what: str, options: str, *more: str, rates: str = RATES, alpha: int = 32
) -> Arm:
    """Experts in the place of the MLPs' LoRA; attention keeps its own."""
    block = f"model.experts={{{options}, lora_alpha: {alpha}}}"
    return Arm(name, DOMAINS, what, (ATTENTION, block, rates, *more))


MLP = "target_modules: mlp-linears, lora_dropout: 0"
ARMS = (
    Arm("mix", DOMAINS, "plain LoRA of rank 16 on every linear"),
    Arm(
        "rank", DOMAINS, "plain LoRA, on the MLPs of the experts' total rank, 4 × 16",
        ("model.lora.rank_pattern={(gate|up|down)_proj: 64}",
         "model.lora.alpha_pattern={(gate|up|down)_proj: 128}"),
    ),
    experts("llava_mole", "top-1, one router an MLP", "method: llava_mole, num_experts: 4, r: 16"),
    experts("llava_mole_learnt", "the same, the router learns from the task too",
            "method: llava_mole, num_experts: 4, r: 16, gate: straight_through"),
    experts("loramoe", "dense softmax", f"method: loramoe, num_experts: 4, r: 16, {MLP}"),
    experts("mola", "top-2", f"method: mola, num_experts: 4, r: 16, {MLP}"),
    experts("dynmole", "dense or top-p by entropy",
            f"method: dynmole, num_experts: 4, r: 16, {MLP}"),
    experts("smora", "16 of 45 units of rank 1",
            f"method: smora, num_experts: 45, top_k: 16, {MLP}"),
    experts("hydralora", "dense softmax, A shared",
            f"method: hydralora, num_experts: 4, r: 23, {MLP}", alpha=46),
    experts("malora", "top-2, down-projection shared",
            f"method: malora, num_experts: 4, r: 21, shared_r: 32, {MLP}", alpha=42),
    experts("multilora", "several LoRAs, no router",
            f"method: multilora, num_experts: 4, r: 16, {MLP}", rates=NO_ROUTERS),
    experts("conditional_mixlora", "4 of 18 factors a question",
            f"method: conditional_mixlora, num_experts: 18, r: 4, gate: scaled, {MLP}",
            "stages.instruct.share_prefix=false", alpha=8),
    Arm("parrot", LANGUAGES, "steered by the question"),
    Arm("parrot_picture", LANGUAGES, "steered by the picture alone",
        ("model.parrot.condition_on=picture",)),
    Arm("parrot_nothing", LANGUAGES, "steered by nothing: one learnt mixture for all",
        ("model.parrot.condition_on=nothing",)),
    Arm("parrot_paper", LANGUAGES, "the paper's form (`ParrotConfig.paper()`)",
        ("model.parrot.last_matrix=default",)),
    Arm("parrot_released", LANGUAGES, "the released code's form (`ParrotConfig.released()`)",
        ("model.parrot={num_experts: 6, hidden_size: 213, expert: swiglu, residual: input_scaled, "
         "alpha: 0.1, condition_on: unlabelled, last_matrix: default}",)),
    Arm("no_parrot", LANGUAGES, "no such module",
        ("stages.instruct.parrot=false",
         "stages.instruct.learning_rates={projector: 3e-4, lora: 1e-3}")),
    Arm("even_languages", LANGUAGES, "Parrot, a sixth of the questions in each language",
        ("data.language_weights={en: 1, zh: 1, pt: 1, tr: 1, ru: 1, ar: 1}",)),
)  # fmt: skip


def built(arm: Arm) -> tuple[Any, Any, dict[str, float]]:
    """Model and processor as in stage `instruct`, and that stage's rates."""
    from llava_mole.building import build_model
    from llava_mole.training.run import add_parrot
    from llava_mole.training.schema import load_recipe

    recipe = load_recipe(ROOT / arm.base, (*STARTER, *arm.overrides))
    stage = next(stage for stage in recipe.stages if stage.name == "instruct")
    model, processor = build_model(dataclasses.replace(recipe.model, parrot=None))
    if stage.parrot:
        add_parrot(model, processor, recipe)
    return model, processor, stage.learning_rates


def count(arm: Arm) -> dict[str, int]:
    """Part -> trained parameters, once a step has gone through.

    Raises:
        RuntimeError: the loss is no number, or a part gets no gradient.
    """
    import torch
    from PIL import Image

    from llava_mole.training.parts import count_parameters, parameters_by_part, set_trainable

    torch.manual_seed(0)
    model, processor, rates = built(arm)
    set_trainable(model, rates)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not bool(parameter.any()):
                parameter.normal_(std=0.02)
    turns = [
        {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (64, 64), "red")},
                                     {"type": "text", "text": "What colour is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ]  # fmt: skip
    images = [Image.new("RGB", (64, 64), "red")]
    batch = processor.batch([processor.encode(turns)], images, labels=True)
    model.train()
    loss = model(**batch).loss
    loss.backward()
    if not math.isfinite(loss.item()):
        raise RuntimeError(f"{arm.name}: the loss is {loss.item()}")
    for part, parameters in parameters_by_part(model).items():
        got = [p.grad for p in parameters.values() if p.requires_grad and p.grad is not None]
        if part in rates and not any(bool(gradient.any()) for gradient in got):
            raise RuntimeError(f"{arm.name}: {part} is trained and gets no gradient")
    return {part: trained for part, _, trained in count_parameters(model) if trained}


PARTS = ("projector", "lora", "experts", "routers", "parrot")
HEAD = """\
# Arms of the two experiments

Written by `python benchmarks/arms.py --out configs/experiments/arms.md`; do not edit. Each arm is
its base recipe with these overrides (`llava-mole train --config BASE OVERRIDE …`). Every one was
built on the parts that it starts from, Gemma 3 270M and EfficientNet-Lite0, and went forward and
backward once, and each part that it trains got a gradient; none of this says how well it learns.
Numbers are trained parameters.

To put experts in place takes three overrides (where they go, what they are, their learning
rates); a part that a recipe names a rate for and a model lacks is refused. AM-LoRA is no arm: it
grows task by task.
"""
FOOT = """\

`rank` has the experts' parameters in one LoRA. `lora_alpha` is such that each arm scales its
experts' output by 2, as the base its LoRA's. Arms of experts are within 3 % of it, routers
counted: `hydralora` and `malora` have ranks at which shared matrices come out as large as 4 × 16,
`smora` and `conditional_mixlora`, whose routers are as large as their experts or larger, fewer
units. `conditional_mixlora` chooses for a whole question, so its questions cannot share a
picture, and its `gate: scaled` is ours: as published its routers never learn. `parrot_picture`
and `parrot_nothing` are as large as `parrot` to the last parameter; `parrot_released` has three
matrices an expert, so a hidden size of 2/3 × 320, and no class token among its visual tokens, for
the starter's tower has none.
"""


def table(counts: dict[str, dict[str, int]], base: str) -> str:
    """Markdown: a line an arm of a base, then what to type for each."""
    arms = [arm for arm in ARMS if arm.base == base and arm.name in counts]
    heads = " | ".join(PARTS)
    lines = [f"\n## `{base}`\n", f"| arm | what | {heads} | together |", "|---|---|" + "---:|" * 6]
    for arm in arms:
        own = counts[arm.name]
        cells = " | ".join(f"{own[part]:,}" if part in own else "" for part in PARTS)
        lines.append(f"| `{arm.name}` | {arm.what} | {cells} | {sum(own.values()):,} |")
    lines += ["", "```bash"]
    lines += [
        f"# {arm.name}\n" + " \\\n".join(shlex.quote(override) for override in arm.overrides)
        for arm in arms
        if arm.overrides
    ]
    return "\n".join([*lines, "```"])


def page(counts: dict[str, dict[str, int]]) -> str:
    return HEAD + "\n".join(table(counts, base) for base in (DOMAINS, LANGUAGES)) + "\n" + FOOT


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [arm.name for arm in ARMS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="ARM")
    parser.add_argument("--out", type=Path, help="file for the page (all arms)")
    args = parser.parse_args(argv)
    if args.out and args.only != names:
        parser.error("--out writes all arms; leave --only out")
    counts = {}
    for arm in ARMS:
        if arm.name in args.only:
            started = time.monotonic()
            counts[arm.name] = count(arm)
            seconds = time.monotonic() - started
            print(f"{arm.name:<20}{sum(counts[arm.name].values()):>12,}   {seconds:.0f} s")
    if args.out:
        args.out.write_text(page(counts), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
