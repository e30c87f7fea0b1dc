"""Give a built data set another style of answer: a sentence, capitals, or JSON.

    python data/answer_styles.py --data datasets/flags --style json --out datasets/flags-json

Domains whose answers look different, with nothing in the question that says so, pull one set of
weights in different directions; this makes that a choice instead of an accident. The same answers,
questions and pictures: train.json's answers and the options of every evaluation file are
rewritten, so a domain is scored in the style that it was trained in, and the two folders compare
item by item.
"""

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

if __package__:
    from data import common
else:  # run as a script: Python put this folder on the path
    import common

from llava_mole.errors import ConfigError

SENTENCES = {
    "en": "The answer is {}.",
    "zh": "答案是{}。",
    "pt": "A resposta é {}.",
    "ar": "الإجابة هي {}.",
    "tr": "Cevap: {}.",
    "ru": "Ответ: {}.",
}
"""A colon where the noun would have to agree with the answer."""
LETTERED = "choice"
"""The kind that is answered by a letter (openmoji's): it stays as it is."""


def as_sentence(text: str, language: str) -> str:
    return SENTENCES[language].format(text)


def in_capitals(text: str, language: str) -> str:
    """Chinese and Arabic have no capitals and stay as they are."""
    return text.replace("i", "İ").upper() if language == "tr" else text.upper()


def as_json(text: str, language: str) -> str:
    return json.dumps({"answer": text}, ensure_ascii=False)


STYLES: dict[str, Callable[[str, str], str]] = {
    "sentence": as_sentence,
    "capitals": in_capitals,
    "json": as_json,
}


def restyle(data: str | Path, out: str | Path, style: str) -> dict:
    """Write ``out`` from the built folder ``data``; returns its manifest.

    Pictures are linked, not copied, where the file system can.

    Raises:
        ConfigError: ``data`` is no built data set or has been restyled already, or ``out`` holds
            something else.
    """
    data = Path(data)
    manifest = common.manifest_of(data)
    if not manifest or not (data / "train.json").is_file():
        raise ConfigError(f"'{data}' is no folder of a builder in data/: expected its dataset.json")
    if "answer_style" in manifest:
        raise ConfigError(
            f"'{data}' has answers in the style {manifest['answer_style']!r} already: start from "
            f"the data set that it was made of ({manifest['made_of']})"
        )

    def write(work: Path) -> dict:
        tables = [*data.glob("eval_*.tsv"), *data.glob("benchmark/*.tsv")]
        rewritten = {data / "train.json", data / "dataset.json", *tables}
        for file in sorted(data.rglob("*")):
            if file.is_file() and file not in rewritten:
                link(file, work / file.relative_to(data))
        items = json.loads((data / "train.json").read_text("utf-8"))
        styled = [styled_item(item, style) for item in items]
        common.write_json(work / "train.json", styled, one_a_line=True)
        for table in tables:
            target = work / table.relative_to(data)
            target.parent.mkdir(exist_ok=True)
            restyle_table(table, target, style)
        return {
            **{key: value for key, value in manifest.items() if key != "dataset"},
            "answer_style": style,
            "made_of": manifest["dataset"],
        }

    return common.publish(out, f"{manifest['dataset']}, answers as {style}", write)


def link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


def styled_item(item: dict, style: str) -> dict:
    """An item of train.json with its last answer restyled."""
    if item["kind"] == LETTERED:
        return item
    *before, answer = item["conversations"]
    text = STYLES[style](answer["value"], item["language"])
    return {**item, "conversations": [*before, {**answer, "value": text}], "answer_style": style}


def restyle_table(table: Path, target: Path, style: str) -> None:
    """An evaluation file with its options restyled. benchmark/ has a file a language, which its
    name ends with."""
    csv.field_size_limit(sys.maxsize)  # a cell holds a picture
    of_file = table.stem.rpartition("_")[2]
    of_file = {"cn": "zh"}.get(of_file, of_file)
    with (
        table.open(encoding="utf-8", newline="") as source,
        target.open("w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.DictReader(source, delimiter="\t")
        assert rows.fieldnames is not None
        written = csv.DictWriter(file, rows.fieldnames, delimiter="\t", lineterminator="\n")
        written.writeheader()
        for row in rows:
            language = row.get("language") or of_file
            if row["category"] != LETTERED:
                for letter in common.LETTERS:
                    if row[letter]:
                        row[letter] = STYLES[style](row[letter], language)
            written.writerow(row)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="a folder that a builder wrote"
    )
    parser.add_argument("--style", required=True, choices=tuple(STYLES))
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    args = parser.parse_args(arguments)
    try:
        manifest = restyle(args.data, args.out, args.style)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {manifest['train_items']} training questions, answers as {args.style}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
