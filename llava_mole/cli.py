"""llava-mole: the commands, each a few lines over the library."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_mole import environment
from llava_mole.environment import command as environment_command
from llava_mole.errors import CheckpointError, ConfigError, DataError, TrainingError

EPILOG = """\
examples:
  llava-mole quickstart --minutes 9 --out runs/quickstart
  llava-mole train --config configs/starter.yaml --dry-run
  llava-mole train --config configs/starter.yaml stages.instruct.steps=300 seed=1
  llava-mole inspect my.json --against benchmark.tsv
  llava-mole mix configs/starter.yaml --show 5
  llava-mole sweep configs/experiments/example-sweep.yaml --dry-run
  llava-mole chat --model runs/quickstart/model --image cat.png "What is this?"
  llava-mole convert llava-hf/llava-1.5-7b-hf --out models/llava-1.5-7b
"""

MERGE_EPILOG = """\
Sums are taken in float32 and rounded to the weights' dtype: in bfloat16, logits move by about as
much as that rounding does. Experts that are chosen token by token cannot be merged.

example:
  llava-mole merge runs/domain-mix/model --out models/mix    then  model.start_from: models/mix
"""


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole parser, or one whose commands beside `only` know no options: what a command's own
    module says about its options takes seconds to import, and --help shows no other's."""
    parser = argparse.ArgumentParser(
        prog="llava-mole",
        description="Instruction-tune one vision-language model on many kinds of data, in many "
        "languages.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--verbose", action="store_true", help="log what happens underneath")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    quick = commands.add_parser(
        "quickstart",
        help="build data, train the starter, score it before and after",
        description="From nothing to a fine-tuned multilingual model that answers about a "
        "picture: builds the OpenMoji data, trains configs/starter.yaml, scores before and after, "
        "writes report.json, contact_sheet.png and a model folder.",
    )
    quick.add_argument("--minutes", type=float, default=9, help="bound on training (default 9)")
    quick.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder to write")
    quick.add_argument("--config", type=Path, help="another recipe (default configs/starter.yaml)")
    quick.add_argument(
        "--seed", type=int, default=0, help="of data, training and scoring (default 0)"
    )
    quick.add_argument(
        "--items", type=int, default=100, help="scored items per language and kind (default 100)"
    )
    quick.add_argument(
        "--variants",
        type=int,
        default=3,
        help="re-drawings of each trained picture (default 3; data that OUT holds stay)",
    )
    quick.add_argument("--no-resume", action="store_true", help="train anew in the same folder")
    quick.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, dotted"
    )

    train = commands.add_parser(
        "train",
        help="run a recipe",
        description="Run a recipe's stages. A run that was stopped goes on where it was.",
        epilog="Any key of the recipe can be changed: stages.instruct.steps=300 (or --seed 1).",
    )
    train.add_argument("--config", type=Path, required=True, help="recipe, see configs/")
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="print resolved recipe, parameters by part, mixture and one decoded sample",
    )
    train.add_argument(
        "--resume",
        default="auto",
        metavar="auto|none|CHECKPOINT",
        help="auto: go on where a stopped run was (default); none: start anew in the same folder; "
        "OUT/stages/N-NAME/checkpoint-STEP: go back to it, what came after is put aside",
    )
    train.add_argument(
        "--no-resume", dest="resume", action="store_const", const="none", help="--resume none"
    )
    train.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, dotted"
    )

    one = commands.add_parser(
        "inspect",
        help="check a source line by line, and look for benchmarks in it",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if only in (None, "inspect"):
        from llava_mole.inspection import command as inspection

        one.description = inspection.DESCRIPTION
        inspection.add_arguments(one)

    mix = commands.add_parser(
        "mix",
        help="print and draw a mixture before it is trained on",
        description="Plan a recipe's mixture and print it: requested against realised share by "
        "source, domain, language and kind, passes over each source, tokens; warns where a small "
        "source is repeated too often. Nothing is trained.",
        epilog="examples:\n  llava-mole mix configs/starter.yaml --show 5\n"
        "  llava-mole mix my-mixture.yaml data.temperature=2 --picture mix.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mix.add_argument("config", type=Path, help="recipe, or a file with a recipe's data: section")
    mix.add_argument("--stage", help="of the recipe (default: the one that draws most rows)")
    mix.add_argument(
        "--questions",
        type=at_least_one,
        default=1,
        help="samples of a picture that share a row, for a mixture file (default 1)",
    )
    mix.add_argument(
        "--show", type=at_least_one, default=0, metavar="N", help="print N rows of the order"
    )
    mix.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="where the picture of the mix goes: PNG, PDF or SVG (default: mix.png in the "
        "recipe's output_dir; NAME.mix.png beside a mixture file)",
    )
    mix.add_argument("--no-picture", action="store_true", help="draw none")
    mix.add_argument("--json", type=Path, help="file for the whole report")
    mix.add_argument("--no-tokens", action="store_true", help="do not count tokens")
    mix.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, dotted"
    )

    cache = commands.add_parser(
        "cache",
        help="compute a frozen tower's features ahead, or list and clear them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if only in (None, "cache"):
        from llava_mole import caching

        cache.description = caching.__doc__
        caching.add_arguments(cache)

    sweep = commands.add_parser(
        "sweep",
        help="train arms of a recipe with several seeds, score them, and decide claims",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if only in (None, "sweep"):
        from llava_mole.sweeping import command as sweeping

        sweep.description, sweep.epilog = sweeping.DESCRIPTION, sweeping.EPILOG
        sweeping.add_arguments(sweep)

    convert = commands.add_parser(
        "convert",
        help="import a LLaVA model, or export one to Hugging Face's LLaVA",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if only in (None, "convert"):
        from llava_mole.conversion import command as conversion

        convert.description, convert.epilog = conversion.DESCRIPTION, conversion.EPILOG
        conversion.add_arguments(convert)

    merge = commands.add_parser(
        "merge",
        help="add a model's LoRA to its language model's weights",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Add a model's plain LoRA, and experts whose route is constant, to the\n"
        "language model's weights: a folder to start another run from, or to serve as it is.",
        epilog=MERGE_EPILOG,
    )
    merge.add_argument("model", type=Path, metavar="MODEL", help="folder, such as OUT/model")
    merge.add_argument("--out", type=Path, required=True, help="folder to write")
    merge.add_argument("--force", action="store_true", help="replace OUT if it holds a model")

    chat = commands.add_parser(
        "chat",
        help="ask about a picture",
        description="Answer one question about a picture, or without a question talk about it in "
        "a loop (an empty line ends it).",
    )
    chat.add_argument("--model", type=Path, required=True, help="model folder")
    chat.add_argument("--image", type=Path, action="append", default=[], help="may be repeated")
    chat.add_argument(
        "--max-new-tokens", type=at_least_one, default=64, help="bound on an answer (default 64)"
    )
    chat.add_argument("question", nargs="?", help="in any language the model was trained on")

    environment_command.add_arguments(
        commands.add_parser(
            "env",
            help="what this installation is and what is wrong with it, for a bug report",
            description=environment_command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    return parser


def at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


FLAGS = {"--help", "-h", "--verbose", "--dry-run", "--no-resume"}
FLAGS |= {"--no-tokens", "--no-picture", "--list"}
OPTIONS = {
    "train": {"--config", "--resume"},
    "quickstart": {"--config", "--minutes", "--out", "--seed", "--items", "--variants"},
    "mix": {"--stage", "--questions", "--show", "--picture", "--json"},
    "cache": {"--config", "--folder", "--max-gib", "--json", "--clear"},
}
"""Of the commands that take overrides; all with one value."""


def as_overrides(argv: Sequence[str]) -> list[str]:
    """Recipe keys in the shape of options (`--seed 1`, `--stages.instruct.steps=5`) as KEY=VALUE,
    and after all options, wherever they were written.

    Only for the commands that take overrides; options of those commands stay as they are.
    """
    words = list(argv)
    command = next((word for word in words if not word.startswith("-")), None)
    if command not in OPTIONS:
        return words
    first = words.index(command) + 1
    options, plain, words = words[:first], [], words[first:]
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if not word.startswith("-") or word == "--":
            plain.append(word)
        elif key in FLAGS or len(word) == 2:
            options.append(word)
        elif key in OPTIONS[command]:
            options.append(word)
            if not equals and words and (not words[0].startswith("--") or key != "--clear"):
                options.append(words.pop(0))
        elif equals:
            plain.append(f"{key[2:]}={value}")
        elif words and not words[0].startswith("--"):
            plain.append(f"{key[2:]}={words.pop(0)}")
        else:
            options.append(word)  # argparse says what is wrong with it
    return options + plain


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Errors of ours end with one message and exit code 2, not with a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    first = environment.first_word(words)
    if first == "env":
        return environment_command.main([word for word in words if word != "env"])
    args = build_parser(only=first or "").parse_args(as_overrides(words))
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        force=True,
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if args.command in ("train", "quickstart", "mix") and args.config is not None:
            check_readable(args.config)  # before seconds of imports
        if args.command == "sweep":
            check_readable(args.file, "sweep file")
        with environment.pointed_to():
            from llava_mole.registration import register

            register()
        trains = args.command in ("train", "quickstart", "sweep")
        if trains and os.environ.get("WORLD_SIZE", "1") == "1":
            workers = wanted_workers(args)
            if workers > 1:
                from llava_mole import ranks

                return ranks.launch(words, workers)
        if trains:
            from llava_mole.training.memory import keep_freed_memory

            keep_freed_memory()
        commands = {
            "quickstart": quickstart,
            "train": train,
            "inspect": inspect,
            "mix": mix,
            "cache": cache,
            "sweep": sweep,
            "convert": convert,
            "merge": merge,
            "chat": chat,
        }
        code = commands[args.command](args)
        if code == 0 and trains:
            from llava_mole import ranks

            ranks.leave()
        return code
    except (ConfigError, DataError, CheckpointError, TrainingError) as error:
        print(f"llava-mole {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no room, no permission, a file where a folder should be
        from llava_mole.folders import NO_ROOM

        logging.getLogger(__name__).info("the system refused", exc_info=True)
        if error.filename is None and error.errno not in NO_ROOM:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"llava-mole {args.command}: {where}{error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except RuntimeError as error:
        from llava_mole import ranks

        if not ranks.lost_another(error):
            raise
        logging.getLogger(__name__).info("lost another process", exc_info=True)
        print(f"process {ranks.rank()}: ended, for another one did", file=sys.stderr)
        return 1


def check_readable(config: Path, what: str = "recipe") -> None:
    """Raises ConfigError for a file that is missing, or no YAML mapping."""
    from llava_mole.training.reading import read_mapping

    read_mapping(config, what)


def wanted_workers(args: argparse.Namespace) -> int:
    """Processes to start for a command that trains; the recipe is checked on the way."""
    from llava_mole.clone import repository_file
    from llava_mole.training.schema import load_recipe
    from llava_mole.training.sharing import workers_of

    if args.command == "sweep":
        from llava_mole.sweeping import command

        return command.wanted_workers(args)
    if args.command == "train":
        from llava_mole.sweeping.watching import watch_sweep

        watch_sweep()  # that this trains a start for, if any
    path = args.config or repository_file("configs/starter.yaml")
    wanted = workers_of(load_recipe(path, args.overrides))
    return 1 if args.command == "train" and args.dry_run else wanted


def quickstart(args: argparse.Namespace) -> int:
    from llava_mole import ranks
    from llava_mole.quickstart import run_quickstart

    ranks.join()
    run_quickstart(
        args.out,
        minutes=args.minutes,
        config=args.config,
        seed=args.seed,
        items=args.items,
        variants=args.variants,
        overrides=args.overrides,
        resume=not args.no_resume,
    )
    return 0


def train(args: argparse.Namespace) -> int:
    from rich.console import Console

    from llava_mole import ranks
    from llava_mole.training.dry_run import dry_run
    from llava_mole.training.result import summary
    from llava_mole.training.run import run_recipe
    from llava_mole.training.schema import load_recipe

    recipe = load_recipe(args.config, args.overrides)
    if args.dry_run:
        dry_run(recipe, Console())
        return 0
    ranks.join()
    result = run_recipe(recipe, resume=args.resume)
    if ranks.is_main():
        print(summary(recipe, result))
    return 0


def mix(args: argparse.Namespace) -> int:
    from llava_mole.training.mix import mix

    mix(
        args.config,
        args.overrides,
        stage=args.stage,
        questions=args.questions,
        show=args.show,
        picture=not args.no_picture if args.picture is None else args.picture,
        json_file=args.json,
        tokens=not args.no_tokens,
    )
    return 0


def inspect(args: argparse.Namespace) -> int:
    from llava_mole.inspection import command

    return command.run(args)


def cache(args: argparse.Namespace) -> int:
    from llava_mole.caching import cache_command

    return cache_command(args)


def sweep(args: argparse.Namespace) -> int:
    from llava_mole.sweeping import command

    return command.run(args)


def convert(args: argparse.Namespace) -> int:
    from llava_mole.conversion import command

    return command.run(args)


def merge(args: argparse.Namespace) -> int:
    from llava_mole.conversion.writing import check_target
    from llava_mole.merging import merge_folder

    check_target(args.out, str(args.model), args.force)
    for note in merge_folder(args.model, args.out):
        print(f"- {note}", file=sys.stderr)
    print(f"model: {args.out}", file=sys.stderr)
    return 0


def chat(args: argparse.Namespace) -> int:
    from llava_mole.data.images import load_image
    from llava_mole.serving.chat import ChatEngine

    pictures = [load_image(path) for path in args.image]
    engine = ChatEngine.from_folder(args.model)
    messages: list[dict[str, object]] = []
    question = args.question
    while True:
        if question is None:
            try:
                question = input("> ").strip()
            except EOFError:
                return 0
            if not question:
                return 0
        # Pictures belong to the first turn.
        text = "<image>" * len(pictures) * (not messages) + question
        messages.append({"role": "user", "content": text})
        reply = ""
        for piece in engine.stream(messages, pictures, max_new_tokens=args.max_new_tokens):
            reply += piece
            print(piece, end="", flush=True)
        print()
        if args.question is not None:
            return 0
        messages.append({"role": "assistant", "content": reply})
        question = None


if __name__ == "__main__":
    from llava_mole.exiting import run_to_end

    raise SystemExit(run_to_end(main))
