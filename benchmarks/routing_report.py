"""Who uses which expert: heat maps, information and maps, from a model and held-out files.

    python benchmarks/routing_report.py --model runs/mix/model --out runs/mix/routing \\
        --data charts=datasets/charts/eval_test.tsv flags=datasets/flags/eval_test.tsv

Writes OUT/index.html with its pictures, routing.json and shares.safetensors: use of experts by
layer, domain and language; what the choice of expert tells about either, in bits, against shuffled
labels; Parrot's gate by language; and a few questions token by token, picture and words. A model
without experts or without Parrot gets the rest, and a sentence about what it lacks.
docs/routing.md defines every figure. --summary ARM-seed-N.json keeps what a comparison of several
models needs (benchmarks/results.py), --token-map FILE.png the same questions token by token as one
picture, for a document.

Files are TSVs as data/*.py and MMBench write them, or whatever a recipe's source takes;
NAME:LANGUAGE=FILE for one that does not say its language.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.evaluation.probes import Probe, read_probes
from llava_mole.evaluation.routing import Routing, look
from llava_mole.evaluation.routing_pictures import router_names
from llava_mole.evaluation.routing_report import write_report
from llava_mole.evaluation.routing_summary import check_name, write_summary
from llava_mole.processing import images_of
from llava_mole.serving.token_map import Example, draw_token_map


def read(named: Sequence[str], per_language: int) -> list[Probe]:
    """Probes of NAME=FILE and NAME:LANGUAGE=FILE."""
    probes: list[Probe] = []
    for entry in named:
        name, equals, path = entry.partition("=")
        domain, _, language = name.partition(":")
        if not (equals and domain and path):
            raise ConfigError(
                f"--data {entry}: say NAME=FILE, as in charts=datasets/charts/eval_test.tsv"
            )
        probes += read_probes(domain, path, language or None, per_language)
    return probes


def examples_of(probes: Sequence[Probe], count: int) -> list[int]:
    """Places of one question a domain, then a second, …, in languages that take turns."""
    turns: dict[str, list[int]] = {}
    for place, probe in enumerate(probes):
        turns.setdefault(probe.domain, []).append(place)
    languages = list(dict.fromkeys(probe.language for probe in probes))
    chosen: list[int] = []
    for turn in range(count):
        own = turns[list(turns)[turn % len(turns)]]
        wanted = languages[turn % len(languages)]
        free = [place for place in own if place not in chosen]
        chosen += [place for place in free if probes[place].language == wanted][:1] or free[:1]
    return chosen


def routers_to_show(found: dict[str, Any]) -> list[int]:
    """First, last, and the one that tells most about the domain."""
    count = len(found["routers"])
    known = found["information"].get("all", {}).get("domain", [])
    best = max(range(count), key=lambda i: known[i]["corrected"]) if known else 0
    return sorted({0, best, count - 1}) if count else []


def explained(model: Any, processor: Any, probes: Sequence[Probe], count: int) -> list[Example]:
    """A few questions, with what was on for each of their tokens."""
    from llava_mole.serving.why import explain, seen

    found = []
    for place in examples_of(probes, count):
        probe = probes[place]
        answer = probe.messages[-1]["content"]
        said = answer if isinstance(answer, str) else "".join(part["text"] for part in answer)
        why = explain(model, processor, probe.messages[:-1], said)
        pictures = images_of(probe.messages)
        pixels = processor.image_processor(pictures)["pixel_values"] if pictures else ()
        shown = tuple(seen(processor, one) for one in pixels)
        found.append(Example(f"{probe.domain}, {probe.language}", probe.language, shown, why))
    return found


def maps(examples: Sequence[Example], routing: Routing, found: dict[str, Any], out: Path) -> str:
    """HTML of the questions, each visual token and each word on the colour of its expert."""
    from llava_mole.serving import why_shown

    parts = [f"<style>{why_shown.CSS}</style>"] if examples else []
    usual = {label: mean.tolist() for label, (mean, _, _) in routing.gate_means("language").items()}
    names = router_names(routing.routers)
    for number, example in enumerate(examples):
        why = example.why
        parts.append(f"<h3>{html.escape(example.title)}</h3>")
        parts.append(f"<p>{html.escape(why.sentence(example.language, usual))}</p>")
        for router in routers_to_show(found) or [-1]:
            shown = []
            for index, plain in enumerate(example.pictures):
                rows = why.overlay(index, router) if why.routers else None
                file = f"example-{number}-{index}-{router}.png"
                (why_shown.overlay(plain, rows) if rows else plain).save(out / file)
                shown.append(f'<img src="{file}" alt="">')
            label = f"layer {names[router]}" if why.routers else ""
            words = why_shown.words(why, max(router, 0))
            parts.append(f'<h4>{html.escape(label)}</h4><div class="example">{"".join(shown)}'
                         f"<div>{words}</div></div>")  # fmt: skip
        parts.append(why_shown.legend(why))
        for gate in why.gates:
            parts.append(why_shown.gate_bars(gate, example.language, usual))
    return "\n".join(parts)


def run_of(model: Path) -> dict[str, str]:
    """Digest of the sweep's run that left the model; empty for other models."""
    done = model.resolve().parent / "done.json"
    return {"run": json.loads(done.read_text("utf-8"))["digest"]} if done.is_file() else {}


def run(args: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import llava_mole  # noqa: F401  registers the model
    from llava_mole.configuration import LlavaMoleConfig
    from llava_mole.evaluation.loading import check_device, model_type

    check_device(args.device, "auto")
    if not (args.model / "config.json").is_file() or (
        model_type(args.model) != LlavaMoleConfig.model_type
    ):
        raise CheckpointError(f"--model {args.model}: no model folder of this project")
    least = {"items": 1, "examples": 0, "shuffles": 1, "rows": 1}
    wrong = [f"--{key} {getattr(args, key)}: at least {low}" for key, low in least.items()
             if getattr(args, key) < low]  # fmt: skip
    wrong += [f"--data {one}: stands there twice" for one in sorted(set(args.data))
              if args.data.count(one) > 1]  # fmt: skip
    if wrong:
        raise ConfigError("; ".join(wrong))
    if args.summary is not None:
        check_name(args.summary)
    files = [path for path in (args.summary, args.token_map) if path is not None]
    for path in files:
        if path.is_dir():
            raise ConfigError(f"{path}: a folder; name a file")
    for folder in (args.out, *(path.parent for path in files)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ConfigError(f"{folder}: {error.strerror}; choose another place") from error
    probes = read(args.data, args.items)
    model = AutoModelForImageTextToText.from_pretrained(args.model).to(args.device)
    processor = AutoProcessor.from_pretrained(args.model)
    if args.token_map is not None and (model.mole is None or not args.examples):
        lack = "no question (--examples 0)" if model.mole else f"no experts in {args.model}"
        raise ConfigError(f"--token-map {args.token_map}: nothing to draw, {lack}")
    routing = look(model, processor, probes, rows_per_batch=args.rows, progress=not args.quiet)
    if args.token_map is not None and not routing.routers:
        raise ConfigError(f"--token-map {args.token_map}: no token of this model chooses an expert")
    examples = explained(model, processor, probes, args.examples)
    found = write_report(
        routing,
        args.out,
        title=f"Routing of {args.model}",
        about={"model": str(args.model), "data": ", ".join(args.data), **run_of(args.model)},
        shuffles=args.shuffles,
        seed=args.seed,
        examples=lambda found: maps(examples, routing, found, args.out),
    )
    if args.summary is not None:
        write_summary(found, args.summary)
    if args.token_map is not None:
        shown = routers_to_show(found)
        names = router_names(routing.routers)
        draw_token_map(examples, shown, [f"layer {names[n]}" for n in shown], args.token_map)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder of this project")
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=FILE",
                        help="a domain and its file of questions; NAME:LANGUAGE=FILE")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--summary",
        type=Path,
        help="a small file besides, for tables of several models: ARM-seed-N.json",
    )
    parser.add_argument(
        "--token-map",
        type=Path,
        metavar="FILE.png",
        help="the examples as one picture: a row a question, columns for the first layer, the "
        "one that tells most about the domain, and the last",
    )
    parser.add_argument("--items", type=int, default=25, help="a domain and language (default 25)")
    parser.add_argument(
        "--examples", type=int, default=5, help="questions shown token by token (default 5)"
    )
    parser.add_argument("--shuffles", type=int, default=200, help="of the control (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffles")
    parser.add_argument("--rows", type=int, default=16, help="of one pass (default 16)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default cpu)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    try:
        found = run(args)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for sentence in found["missing"]:
        print(sentence)
    for label in ("domain", "language"):
        known = [one["corrected"] for one in found["information"].get("all", {}).get(label, [])]
        if known:
            print(f"information about {label}: {min(known):.3f} to {max(known):.3f} bits a layer")
    print(f"{args.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
