"""`llava-mole convert`: the command line of imports and exports."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from llava_mole.configuration import SELECTS
from llava_mole.conversion.pictures import ASPECTS
from llava_mole.conversion.plan import Options
from llava_mole.errors import ConfigError

DESCRIPTION = """\
Turn a LLaVA-1.5 model into a model folder of this project, and back. SOURCE is a folder or hub id:
Hugging Face's LlavaForConditionalGeneration, or one of the LLaVA authors' code; or their
mm_projector.bin, with the parts it was trained between. Logits stay the same."""
EPILOG = """\
examples:
  llava-mole convert llava-hf/llava-1.5-7b-hf --out models/llava-1.5-7b
  llava-mole convert liuhaotian/llava-v1.5-7b --out models/llava-1.5-7b \\
      --vision-tower openai/clip-vit-large-patch14-336
  llava-mole convert mm_projector.bin --out models/mine --language-model lmsys/vicuna-7b-v1.5 \\
      --vision-model ViT-L-14-336-quickgelu --vision-pretrained openai
  llava-mole convert models/mine --export hf --out models/mine-hf"""
EXPORT_ONLY = ("merge_lora",)
IMPORT_ONLY = (
    "language_model", "vision_tower", "vision_model", "vision_pretrained", "vision_layer",
    "vision_select", "image_aspect_ratio", "chat_template", "image_token", "revision",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="folder, hub id, or mm_projector.bin")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it holds a model")
    parser.add_argument(
        "--export", choices=("hf",), help="the other way: a model folder to Hugging Face's LLaVA"
    )
    parser.add_argument(
        "--merge-lora", action="store_true", help="with --export: add plain LoRA to the weights"
    )
    parser.add_argument("--chat-template", help="a name of docs/templates.md, or tokenizer")
    parser.add_argument("--image-token", help="token that pictures stand at (default: found)")
    parser.add_argument(
        "--image-aspect-ratio", choices=ASPECTS,
        help="pad to a square of the mean colour, or resize and crop (default: as the source says)",
    )  # fmt: skip
    parser.add_argument("--vision-tower", help="folder or hub id of a CLIP tower: copied")
    parser.add_argument("--vision-model", help="open_clip model: kept by reference")
    parser.add_argument("--vision-pretrained", help="open_clip tag of its weights")
    parser.add_argument(
        "--vision-layer", type=int, help="entry of hidden_states (default: the source's, or -2)"
    )
    parser.add_argument("--vision-select", choices=SELECTS, help="without or with class token")
    parser.add_argument("--language-model", help="folder or hub id, for a projector alone")
    parser.add_argument("--revision", help="of a hub id")


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError, CheckpointError: nothing was written."""
    from llava_mole.conversion.export import export_huggingface
    from llava_mole.conversion.importing import plan_import
    from llava_mole.conversion.writing import check_target, write_model

    console = Console(stderr=True)
    unused = [
        f"--{name.replace('_', '-')}"
        for name in (IMPORT_ONLY if args.export else EXPORT_ONLY)
        if getattr(args, name) not in (None, False)
    ]
    if unused:
        way = "an export" if args.export else "an import"
        raise ConfigError(f"{', '.join(unused)}: not for {way}; leave it out")
    check_target(args.out, args.source, args.force)
    if args.export:
        notes = export_huggingface(Path(args.source), args.out, merge_lora=args.merge_lora)
    else:
        plan = plan_import(args.source, Options(**{n: getattr(args, n) for n in IMPORT_ONLY}))
        write_model(plan, args.out)
        notes = list(plan.notes)
        notes.append(f"licence of the source: {plan.origin['licence'] or 'it states none'}")
        notes.append(f"chat template: {plan.origin['chat_template']}")
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False)
    console.print(f"model: {args.out}", markup=False, highlight=False)
    return 0
