"""Train LLaVA-MoLE's experts on a vision-language model with TRL's SFTTrainer.

    pip install -e ".[examples]"
    python examples/trl_sft.py                             # a tiny model, offline, about a minute
    python examples/trl_sft.py --model Qwen/Qwen2.5-VL-3B-Instruct --batch-size 4 --accumulate 4

The pictures are drawn here: shapes in colours, with a question and an answer each. Without --model
the model is a random LLaVA of 0.2 M parameters; its experts alone learn to answer more than half of
the questions about new pictures, where guessing gives 29 %. Exchange `drawn_questions` for your own
rows (`images`, `prompt`, `completion`: TRL's format) and the rest stays as it is.

What makes a trainer train experts is one line, `class MoleSFTTrainer(AuxiliaryLossMixin,
SFTTrainer)`: it adds the balance loss, tells routers about each optimizer step, and saves and
resumes adapters.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from llava_mole.mole import (
    METHODS,
    AuxiliaryLossMixin,
    MoleConfig,
    add_experts,
    auxiliary_losses,
    expert_parameters,
    load,
    mark_trainable,
    route_statistics,
    router_parameters,
)

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")


OF_UNITS = ("smora", "conditional_mixlora")
"""Methods that choose among many single rank units, not among a few experts."""
FEW = "4 of rank 8; the method's own where experts are single rank units"


class MoleSFTTrainer(AuxiliaryLossMixin, SFTTrainer):
    """TRL's trainer with auxiliary losses, `router_step` and adapters in its checkpoints."""


# ---------------------------------------------------------------------- data


def draw(colour: str, shape: str, side: int, place: random.Random) -> Image.Image:
    """A filled shape somewhere on white."""
    picture = Image.new("RGB", (side, side), "white")
    size = place.randint(side // 3, side // 2)
    left, top = place.randint(0, side - size), place.randint(0, side - size)
    box = (left, top, left + size, top + size)
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        corners = [(left, top + size), (left + size, top + size), (left + size // 2, top)]
        pen.polygon(corners, fill=colour)
    return picture


def drawn_questions(count: int, side: int, seed: int) -> Dataset:
    """Rows as TRL wants them: `images`, and a conversation cut into `prompt` and `completion`."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        colour, shape = chance.choice(COLOURS), chance.choice(SHAPES)
        asked, answer = chance.choice([("colour", colour), ("shape", shape)])
        rows.append(
            {
                "images": [draw(colour, shape, side, chance)],
                "prompt": [{"role": "user", "content": f"Which {asked}?"}],
                "completion": [{"role": "assistant", "content": answer}],
            }
        )
    return Dataset.from_list(rows)


# ---------------------------------------------------------------------- model

SPECIAL = ("<pad>", "<bos>", "<eos>", "<image>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ eos_token if message['role'] == 'assistant' else '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def tiny_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A random LLaVA with a byte tokenizer, so that this runs without a download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy drops again
        chat_template=TEMPLATE,
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.2,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=3)
    return LlavaForConditionalGeneration(config), processor


def model_and_processor(name: str | None) -> tuple[Any, Any]:
    if name is None:
        return tiny_llava()
    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
    return model, AutoProcessor.from_pretrained(name)


@torch.no_grad()
def accuracy(model: Any, processor: Any, rows: Dataset) -> float:
    """Share of rows whose answer the model gives, word for word."""
    right = 0
    for row in rows:
        content = [{"type": "image"}, {"type": "text", "text": row["prompt"][0]["content"]}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(images=row["images"], text=text, return_tensors="pt").to(model.device)
        said = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        answer = processor.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += answer.strip().lower().startswith(row["completion"][0]["content"])
    return right / len(rows)


# ---------------------------------------------------------------------- the run


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(flag: str, default: Any, text: str, **options: Any) -> None:
        options.setdefault("type", type(default) if default is not None else str)
        shown = options.pop("shown", "a tiny random LLaVA" if default is None else default)
        parser.add_argument(flag, default=default, help=f"{text} (default: {shown})", **options)

    add("--model", None, "a vision-language model: folder or name on the hub")
    add("--out", Path("runs/trl_sft"), "where checkpoints and the adapter go", type=Path)
    add("--method", "llava_mole", "how tokens choose experts", choices=sorted(METHODS))
    add(
        "--experts",
        None,
        "experts per linear; a good start is one per kind of data",
        type=int,
        shown=FEW,
    )
    add(
        "--rank", None, "of each expert; the adapter grows with experts x rank", type=int, shown=FEW
    )
    parser.add_argument(
        "--balance", type=float, metavar="WEIGHT",
        help="of the balance loss; too low: one expert takes every token (default: the method's)",
    )  # fmt: skip
    add("--steps", 150, "optimizer steps")
    add("--batch-size", 8, "rows per forward pass and device")
    add("--accumulate", 2, "forward passes per optimizer step; changes memory, not the gradient")
    add("--learning-rate", 1e-2, "1e-2 suits the tiny model; about 2e-4 a real one")
    add("--rows", 512, "pictures to draw")
    add("--seed", 0, "of weights, pictures and order")
    parser.add_argument(
        "--lora", action="store_true", help="also train PEFT's plain LoRA on attention, as usual"
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    set_seed(options.seed)
    model, processor = model_and_processor(options.model)
    side = 32 if options.model is None else 224
    rows = drawn_questions(options.rows, side, options.seed)

    # 1. Experts go into the language model's MLPs, in place. Nothing else learns.
    given = {"num_experts": options.experts, "r": options.rank, "balance_coef": options.balance}
    values: dict[str, Any] = {} if options.method in OF_UNITS else {"num_experts": 4, "r": 8}
    values |= {key: value for key, value in given.items() if value is not None}
    if options.method not in OF_UNITS:
        values["lora_alpha"] = 2.0 * values["r"]
    config = MoleConfig(method=options.method, **values)
    add_experts(model, config)
    mark_trainable(model)
    count = sum(p.numel() for p in expert_parameters(model).values())
    routers = sum(p.numel() for p in router_parameters(model).values())
    print(f"{type(model).__name__}: {count:,} parameters in experts, {routers:,} in routers")

    # 2. TRL's own arguments, TRL's own dataset format.
    on_gpu = torch.cuda.is_available()
    lora = LoraConfig(r=8, target_modules=r".*language_model.*\.(q|k|v|o)_proj")
    trainer = MoleSFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(options.out),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulate,
            learning_rate=options.learning_rate,
            max_length=None,  # a cut inside a picture's tokens would be an error
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            logging_steps=max(1, options.steps // 8),
            save_steps=options.steps,
            report_to="none",
            seed=options.seed,
        ),
        train_dataset=rows,
        processing_class=processor,
        peft_config=lora if options.lora else None,
    )
    trainer.train()

    # 3. What happened: each loss by name, and who uses which expert.
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = sorted({key for entry in history for key in entry if key.startswith("loss")})
    print("\nstep  " + "  ".join(f"{name:>12}" for name in names))
    for entry in history:
        values = "  ".join(f"{entry.get(name, float('nan')):12.4f}" for name in names)
        print(f"{entry['step']:4}  {values}")
    batch = trainer.data_collator([rows[index] for index in range(8)]).to(trainer.model.device)
    with torch.no_grad():
        trainer.model.eval()(**batch)
    print("\nshare of tokens by expert (entropy 1: all alike, 0: one takes all)")
    for use in route_statistics(trainer.model):
        shares = " ".join(f"{share:.2f}" for share in use.load.tolist()[:12])
        print(f"{use.name:24} {shares}   entropy {use.entropy:.2f}")
    losses = {name: round(float(loss), 4) for name, loss in auxiliary_losses(trainer.model).items()}
    print(f"auxiliary losses on these rows: {losses}")

    right = accuracy(trainer.model, processor, drawn_questions(48, side, options.seed + 1))
    print(f"answers on 48 new pictures: {right:.0%} right")

    # 4. The base is untouched; the adapter is a small folder that loads onto it.
    trainer.save_model(str(options.out))
    folder = options.out / "adapters" / "default"
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"\nadapter: {folder} ({size / 1e6:.1f} MB). To load it again:\n")
    if options.lora:
        print(f"    model = peft.PeftModel.from_pretrained(model, {str(options.out)!r})")
    print(f"    llava_mole.mole.load(model, {str(folder)!r})\n")
    set_seed(options.seed)
    again, _ = model_and_processor(options.model)
    if options.lora:
        again = PeftModel.from_pretrained(again, options.out)
    load(again, folder)
    with torch.no_grad():
        loaded = again.to(trainer.model.device).eval()(**batch).loss
        trained = trainer.model(**batch).loss
    print(f"loss of the loaded model {loaded:.6f}, of the trained one {trained:.6f}")


if __name__ == "__main__":
    main()
