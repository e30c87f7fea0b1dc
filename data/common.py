"""What every builder shares: a folder that appears whole, files of items and rows, even draws.

A builder writes into a folder beside its target and renames it at the end; the same arguments give
the same bytes in every text file. Training items are LLaVA JSON, one question an item; evaluation
files are TSVs with MMMB's columns and ``language``.
"""

import argparse
import base64
import csv
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

from llava_mole.errors import ConfigError

COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source",
    "l2-category", "comment", "split", "language",
)  # fmt: skip
LETTERS = ("A", "B", "C", "D")

T = TypeVar("T")


# --- a folder that appears whole ------------------------------------------------------------------


def publish(out: str | Path, name: str, write: Callable[[Path], dict]) -> dict:
    """Let ``write`` fill a folder beside ``out``, then put it in place; returns its manifest.

    Args:
        name: of the data set; an earlier build of the same name at ``out`` is replaced, any other
            folder with something in it is refused (see :func:`target_problems`).
        write: fills the folder it is given and returns the manifest, which becomes dataset.json.

    Raises:
        ConfigError: ``out`` is someone else's folder.
    """
    out = Path(out)
    problems = target_problems(out, name)
    if problems:
        raise ConfigError("; ".join(problems))
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        work.chmod(0o755)
        manifest = {"dataset": name, **write(work)}
        write_json(work / "dataset.json", manifest)
        _replace(out, work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return manifest


def check_arguments(
    out: str | Path,
    name: str,
    at_least: Mapping[str, tuple[int | None, int]],
    kinds: Sequence[str] = (),
    known: Sequence[str] = (),
) -> None:
    """Refuse what a builder cannot build, all problems together.

    Args:
        out: where the data set ``name`` is to go.
        at_least: argument -> (value, least); None stands for a default.
        kinds: of question that were asked for, some of ``known``, each once; both empty where a
            builder has no choice.

    Raises:
        ConfigError: saying what was expected of each.
    """
    problems = [
        f"{argument} is {value}: expected {least} or more"
        for argument, (value, least) in at_least.items()
        if value is not None and value < least
    ]
    if known and (not kinds or set(kinds) - set(known) or len(set(kinds)) < len(kinds)):
        problems.append(f"kinds is {list(kinds)}: expected different ones of {', '.join(known)}")
    problems += target_problems(Path(out), name)
    if problems:
        raise ConfigError("; ".join(problems))


def target_problems(out: Path, name: str) -> list[str]:
    """Why a build of ``name`` must not be put at ``out``."""
    if out.exists() and not out.is_dir():
        return [f"'{out}' is a file: expected a folder, new, empty or an earlier {name} data set"]
    if out.is_dir() and any(out.iterdir()) and manifest_of(out).get("dataset") != name:
        return [
            f"'{out}' holds files that are not an earlier build of the data set {name!r} (no "
            "dataset.json that says so): choose another --out or empty it yourself"
        ]
    return []


def manifest_of(folder: str | Path) -> dict:
    """dataset.json of a built folder; empty where there is none that can be read."""
    try:
        found = json.loads((Path(folder) / "dataset.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _replace(out: Path, work: Path) -> None:
    """Put ``work`` where ``out`` is; the old content goes only once the new one is in place."""
    old = out.with_name(f"{work.name}-old")
    if out.exists():
        os.rename(out, old)
    try:
        os.rename(work, out)
    except OSError:
        if old.exists():
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


# --- files ----------------------------------------------------------------------------------------


def write_json(path: Path, content: list | dict, *, one_a_line: bool = False) -> None:
    """Indented JSON, or one element a line: good for ``grep`` and ``head``, still one document."""
    dump = partial(json.dumps, ensure_ascii=False)
    if not one_a_line:
        text = json.dumps(content, ensure_ascii=False, indent=2)
    elif isinstance(content, dict):
        pairs = ",\n".join(f"{dump(key)}: {dump(value)}" for key, value in content.items())
        text = "{\n" + pairs + "\n}"
    else:
        text = "[\n" + ",\n".join(dump(value) for value in content) + "\n]"
    path.write_text(text + "\n", "utf-8")


def llava_item(
    *,
    image: str,
    question: str,
    answer: str,
    domain: str,
    language: str,
    kind: str,
    template: str,
    suffix: str = "",
) -> dict:
    """One question about one picture, as an item of train.json.

    Args:
        image: file name relative to the data set, ``images/KEY.png``.
        kind: of question.
        template: which of the kind's forms asked it, ``kind.3``.
        suffix: tells apart items that share all of the above.
    """
    picture = Path(image).stem
    return {
        "id": f"{picture}-{language}-{template}{suffix}",
        "image": image,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ],
        "domain": domain,
        "language": language,
        "kind": kind,
        "picture": picture,
        "template": template,
    }


def tsv_row(
    *,
    question: str,
    options: Sequence[str],
    right: int,
    kind: str,
    picture: str,
    source: str,
    group: str,
    item: int,
    template: str,
    split: str,
    language: str,
) -> dict:
    """One row of an evaluation file, without index and image.

    Args:
        options: two to four texts.
        right: place of the right one.
        picture: key of the picture, ``images/KEY.png``.
        group: a finer category, for l2-category.
        item: number that the same item has in every language.
    """
    texts = [*options, *[""] * (len(LETTERS) - len(options))]
    return {
        "question": question,
        "hint": "",
        **dict(zip(LETTERS, texts, strict=True)),
        "answer": LETTERS[right],
        "category": kind,
        "picture": picture,
        "source": source,
        "l2-category": group,
        "comment": f"picture={picture};item={item};template={template}",
        "split": split,
        "language": language,
    }


def write_tsv(path: Path, rows: Sequence[Mapping], images: Path) -> None:
    """MMMB's columns plus ``language``. Each picture once; later rows hold that row's index."""
    first: dict[str, int] = {}
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(
            file, COLUMNS, delimiter="\t", lineterminator="\n", extrasaction="ignore"
        )
        table.writeheader()
        for index, row in enumerate(rows):
            key = row["picture"]
            if key in first:
                image = str(first[key])
            else:
                first[key] = index
                image = base64.b64encode((images / f"{key}.png").read_bytes()).decode("ascii")
            table.writerow({"index": index, "image": image, **row})


def write_evaluation(work: Path, dataset: str, split: str, rows: Sequence[Mapping]) -> None:
    """eval_SPLIT.tsv of all languages, and of held-out splits a benchmark in MMMB's form.

    benchmark/DATASET_SPLIT_{ar,cn,en,pt,ru,tr}.tsv have MMMB's columns exactly. A question has the
    same index in every language, and its circular rows behind it: index + k * 10^6 is the question
    with its options moved k letters up (MMBench).
    """
    write_tsv(work / f"eval_{split}.tsv", rows, work / "images")
    if split == "train":
        return
    (work / "benchmark").mkdir(exist_ok=True)
    numbers: dict[tuple[str, str], int] = {}
    for row in rows:
        item = row["comment"].split("item=")[1].split(";")[0]
        numbers.setdefault((row["category"], item), len(numbers))
    columns = [name for name in COLUMNS if name != "language"]
    for language in dict.fromkeys(row["language"] for row in rows):
        code = {"zh": "cn"}.get(language, language)
        path = work / "benchmark" / f"{dataset}_{split}_{code}.tsv"
        first: dict[str, int] = {}
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(
                file, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore"
            )
            table.writeheader()
            for row in (row for row in rows if row["language"] == language):
                item = row["comment"].split("item=")[1].split(";")[0]
                index, key = numbers[row["category"], item], row["picture"]
                if key not in first:
                    content = (work / "images" / f"{key}.png").read_bytes()
                    image = base64.b64encode(content).decode("ascii")
                else:
                    image = str(first[key])
                first.setdefault(key, index)
                for k, turned in enumerate(circular(row)):
                    shown = image if k == 0 else str(first[key])
                    table.writerow({**turned, "index": index + k * 1_000_000, "image": shown})


def circular(row: Mapping) -> Iterator[dict]:
    """The row, then itself with its options moved 1, 2, … letters up, the last to the front."""
    letters = [letter for letter in LETTERS if row[letter]]
    texts = [row[letter] for letter in letters]
    right = letters.index(row["answer"])
    for k in range(len(letters)):
        turned = [texts[(place - k) % len(texts)] for place in range(len(texts))]
        answer = letters[(right + k) % len(letters)]
        yield {**row, **dict(zip(letters, turned, strict=True)), "answer": answer}


# --- draws ----------------------------------------------------------------------------------------


def even(values: Iterable, count: int, rng: random.Random) -> Iterator:
    """``count`` values in random order, each of them equally often (as far as ``count`` allows)."""
    lots = list(islice(cycle(values), count))
    rng.shuffle(lots)
    return iter(lots)


def round_robin(members: Iterable, rng: random.Random) -> Iterator:
    """The members in random order, for ever; none comes again before all have come."""
    order = list(members)
    rng.shuffle(order)
    while True:
        yield from order


def evenly(order: Sequence[T], count: int, rng: random.Random) -> list[T]:
    """``count`` evenly spaced elements of ``order``, from a random start."""
    start = rng.random()
    return [order[int((position + start) * len(order) / count)] for position in range(count)]


def owed_draws(
    answers: Sequence[T], count: int, options: int, rng: random.Random
) -> Iterator[tuple[T, list[T]]]:
    """``count`` pairs: the right answer, and the options it stands among, in random order.

    Options are drawn first; then that one becomes the right one which was right least often for how
    often it was offered. So every answer is right as often as chance has it, among what is offered.

    Args:
        answers: what can be right; one that is listed twice is offered about twice as often.
        options: different answers offered each time.
    """
    owed: dict[T, float] = dict.fromkeys(answers, 0.0)  # times offered / options - times right
    if len(owed) < options:
        return
    for _ in range(count):
        offered: list[T] = []
        while len(offered) < options:
            offered += [one for one in (rng.choice(answers),) if one not in offered]
        for option in offered:
            owed[option] += 1 / options
        right = max(offered, key=owed.__getitem__)  # the first of equals; their order is random
        owed[right] -= 1.0
        yield right, offered


def blocks(
    pools: Iterable[Sequence[T]], count: int, rng: random.Random
) -> Iterator[tuple[T, list[T], int]]:
    """``count`` times (the right one, four options, its place), four of one pool in turn.

    Each of the four is the right one once, at a place of its own: whoever sees options alone is at
    chance, exactly. Members that were not asked about yet come first. ``count`` should be a
    multiple of four, and each pool needs four members.
    """
    pool_of = {member: pool for pool in pools for member in pool}
    asked = dict.fromkeys(pool_of, 0)
    turns = round_robin(pool_of, rng)
    for number in range(0, count, 4):
        first = next(one for one in turns if asked[one] == min(asked.values()))
        others = [member for member in pool_of[first] if member != first]
        rng.shuffle(others)
        block = [first, *sorted(others, key=asked.__getitem__)[:3]]
        lots = zip(block, rng.sample(range(4), 4), strict=True)
        for right, place in islice(lots, count - number):
            asked[right] += 1
            yield right, block, place


def with_right_at(place: int, options: Sequence, right: object) -> list:
    """The options with the right one moved to ``place``; the others keep their order."""
    others = [option for option in options if option != right]
    return [*others[:place], right, *others[place:]]


# --- the command line -----------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser, eval_items: int = 100) -> None:
    """Options that every builder has: --out --seed --eval-items --workers --quiet."""
    add = parser.add_argument
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="folder to write (replaced if it is an earlier build)",
    )
    add("--seed", type=int, default=0, help="every draw follows from it (default 0)")
    add(
        "--eval-items",
        type=int,
        default=eval_items,
        metavar="N",
        help=f"items per language and kind in each evaluation file (default {eval_items})",
    )
    add("--workers", type=int, default=2, metavar="N", help="processes that draw (default 2)")
    add("--quiet", action="store_true", help="no progress bar")


def run(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    build: Callable[..., dict],
    drawn: str = "pictures",
) -> int:
    """Parse, build, print what was built; the exit code.

    Args:
        parser: its options are named as ``build``'s arguments, those of :func:`add_options` too.
        drawn: what the data set has so many of.
    """
    chosen = vars(parser.parse_args(arguments))
    out, progress = chosen.pop("out"), not chosen.pop("quiet")
    try:
        manifest = build(out, progress=progress, **chosen)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    pictures, rows = manifest["pictures"], manifest["eval_rows"]
    print(
        f"{out}: {pictures['train']} trained {drawn}, {pictures['dev']} dev, "
        f"{pictures['test']} test; {manifest['train_items']} training questions; "
        + ", ".join(f"eval_{name}.tsv {count} rows" for name, count in rows.items())
    )
    return 0
