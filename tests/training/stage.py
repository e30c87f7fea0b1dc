"""A small training stage, for the tests of the trainer and, as a program, for one of its processes.

    python -m tests.training.stage OUT '{"language_model": …, "runs": {"name": {…}, …}}'

trains each run on the same parts, or goes on with one ("resume": true, or another run's checkpoint:
"NAME/checkpoint-2"), and writes OUT/NAME/weights.safetensors, log.json and model/.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainingArguments

from llava_mole import ranks
from llava_mole.building import ModelRecipe, build_model
from llava_mole.configuration import ParrotConfig
from llava_mole.data.collator import Collator
from llava_mole.data.mixture import Mixture
from llava_mole.data.pool import ListedSamples, Pool
from llava_mole.data.rows import MixtureRows
from llava_mole.data.sample import Sample, Turn
from llava_mole.exiting import run_to_end
from llava_mole.mole import MoleConfig
from llava_mole.training.log import gathered
from llava_mole.training.parallel import Placed
from llava_mole.training.parts import set_trainable
from llava_mole.training.resume import latest_checkpoint
from llava_mole.training.trainer import StageTrainer
from tests.helpers import awaken, picture

RATES = {"projector": 0.02, "experts": 0.05, "routers": 0.03, "lora": 0.04}
WORDS = ("a", "cat", "a long answer", "yes", "no, it is not")


def write_pictures(folder: Path, count: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture(index).save(folder / f"{index}.png")


def samples(folder: Path, count: int = 6, texts: int = 0) -> list[Sample]:
    """One to three questions per picture, answers of different lengths, two languages; then
    `texts` conversations without a picture."""
    made = []
    for index in range(count):
        for question in range(1 + index % 3):
            answer = WORDS[(index + 2 * question) % len(WORDS)]
            turns = (Turn("user", f"<image>\nQuestion {question}?"), Turn("assistant", answer))
            made.append(
                Sample(
                    turns=turns,
                    images=(folder / f"{index}.png",),
                    domain="tiny",
                    language=("en", "tr")[question % 2],
                    source=f"tiny.json:{index}",
                    metadata={"kind": "naming" if question == 0 else "other"},
                )
            )
    for index in range(texts):
        turns = (Turn("user", f"Say {index}" * (1 + index % 2)), Turn("assistant", WORDS[index]))
        made.append(
            Sample(
                turns=turns, images=(), domain="text", language="en",
                source=f"text.json:{index}", metadata={"kind": "text"},
            )
        )  # fmt: skip
    return made


def stage(
    out: Path,
    *,
    language_model: Path,
    tower: Path,
    pictures: Path,
    rows_per_step: int = 4,
    share_prefix: bool = True,
    dropout: float = 0.0,
    parrot: bool = False,
    rates: dict[str, float] | None = None,
    trainer: dict[str, Any] | None = None,
    texts: int = 0,
    packing: int | None = None,
    dtype: str = "float32",
    experts: MoleConfig | None = None,
    seed: int = 0,
    **arguments: Any,
) -> StageTrainer:
    """A trainer that is ready to run; TrainingArguments by their own names."""
    torch.manual_seed(0)
    model, processor = build_model(
        ModelRecipe(
            language_model=str(language_model),
            vision_model=f"local-dir:{tower}",
            experts=experts
            or MoleConfig(num_experts=3, r=2, lora_dropout=dropout, balance_coef=0.5),
            lora={"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "o_proj"]},
            parrot=ParrotConfig(num_experts=2, hidden_size=8) if parrot else None,
            dtype=dtype,
        )
    )
    awaken(model)
    chosen = rates or RATES
    set_trainable(model, chosen)
    out.mkdir(parents=True, exist_ok=True)
    start = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    save_file(start, out / "start.safetensors")
    options: dict[str, Any] = {
        "max_steps": 3,
        "optim": "sgd",
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "ddp_find_unused_parameters": False,
        "use_cpu": True,
        **arguments,
    }
    args = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=rows_per_step,
        report_to="none",
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        disable_tqdm=True,
        **options,
    )
    pools = [Pool(ListedSamples(samples(pictures, texts=texts)))]
    rows = MixtureRows(
        pools,
        Mixture([pool.planned for pool in pools], questions=3),
        lambda s: processor.encode(s.messages()),
        rows=1000,
        questions=3,
        seed=seed,
    )
    collator = Collator(
        processor,
        share_prefix=share_prefix and not parrot,
        parrot=parrot,
        max_length=512,
        packing=packing,
        note_sources=True,
        load_pixels=lambda paths: processor.image_processor(list(paths))["pixel_values"],
    )
    placed = Placed(model, args)
    made = StageTrainer(
        rates=chosen,
        model=placed.model,
        args=args,
        train_dataset=rows,
        data_collator=collator,
        processing_class=processor,
        **(trainer or {}),
    )
    made.placed = placed
    return made


def weights(trainer: StageTrainer) -> dict[str, Tensor]:
    """Everything that was trained. A collective."""
    trainer.placed.bring_home()
    model = trainer.placed.home
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


class Poison(TrainerCallback):
    """Makes a number of the run one no longer.

    Args:
        step: of the optimizer, from 1.
        where: "weight": the projector's, before the step, so large that the loss is none;
            "gradient": into one of LoRA's
            gradients of the step; "after": into the projector, when the step is done.
        rank: on which it happens.
    """

    def __init__(self, trainer: StageTrainer, *, step: int, where: str, rank: int = 0) -> None:
        self.trainer, self.step, self.where, self.rank = trainer, step, where, rank

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.trainer.accelerator.unwrap_model(self.trainer.model).named_parameters())

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 != self.step or ranks.rank() != self.rank:
            return
        if self.where == "weight":
            self._spoil(3e38)
        elif self.where == "gradient":
            name = next(name for name in self._weights() if "lora_B" in name)
            self._weights()[name].register_hook(lambda gradient: gradient * float("nan"))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.where == "after" and state.global_step + 1 == self.step:
            self._spoil(float("nan"))

    def _spoil(self, value: float) -> None:
        name = next(name for name in self._weights() if name.endswith("projector.layers.0.weight"))
        with torch.no_grad():
            self._weights()[name].fill_(value)


def main(out: str, options: str) -> int:
    torch.set_num_threads(1)
    parts = json.loads(options)
    paths = {key: Path(parts.pop(key)) for key in ("language_model", "tower", "pictures")}
    for name, run in parts["runs"].items():
        folder = Path(out) / name
        resume, poison = run.pop("resume", False), run.pop("poison", None)
        own = {key: Path(run.pop(key)) for key in list(paths) if key in run}
        trainer = stage(folder, **{**paths, **own}, **run)
        if poison:
            trainer.add_callback(Poison(trainer, **poison))
        if isinstance(resume, str) and ranks.is_main():
            shutil.copytree(Path(out) / resume, folder / Path(resume).name)
        found = ranks.from_main(latest_checkpoint(folder)) if resume else None
        trainer.train(resume_from_checkpoint=str(found) if found else None)
        pieces = {
            n: [p.numel(), p.to_local().numel() if isinstance(p, DTensor) else p.numel()]
            for n, p in trainer.placed.model.named_parameters()
        }
        trainer.save_model(str(folder / "model"))
        trained = weights(trainer)
        (folder / f"pieces-{ranks.rank()}.json").write_text(json.dumps(pieces))
        if trainer.is_world_process_zero():
            save_file(trained, folder / "weights.safetensors")
            history = [gathered(entry) for entry in trainer.state.log_history if "loss" in entry]
            (folder / "log.json").write_text(json.dumps(history))
        del trainer
        gc.collect()
    ranks.leave()
    return 0


if __name__ == "__main__":
    run_to_end(lambda: main(*sys.argv[1:]))
