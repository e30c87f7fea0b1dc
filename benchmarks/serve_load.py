r"""Many clients at once against one server, over HTTP, with the answers checked.

    python benchmarks/serve_load.py --model runs/quickstart/model \
        --pictures runs/quickstart/data/images --clients 32 --minutes 3

First every question (each about a picture of its own) is asked alone, one after the other: the
answers that are right for this server, and the rate of one at a time. Then the clients ask at once,
in turns, for the given minutes. Reported: requests per second against one at a time, time to the
first token, answers that differ from the one asked alone (a mix-up would show here; in bfloat16
near ties may fall the other way, so run it with `--dtype float32` too), errors, and the server's
memory along the way.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import psutil
import torch
import uvicorn
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor

import llava_mole  # noqa: F401
from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.limits import Limits
from llava_mole.serving.openai_api import make_api

QUESTIONS = (
    "What is in the picture?", "图片里是什么？", "O que há na imagem?", "ماذا يوجد في الصورة؟",
    "Resimde ne var?", "Что изображено на картинке?",
)  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model folder")
    add("--pictures", type=Path, required=True, help="folder of pictures")
    add("--clients", type=int, default=32)
    add("--minutes", type=float, default=3.0)
    add("--tokens", type=int, default=24, help="written for every answer (default 24)")
    add("--rows", type=int, default=16, help="conversations written together (default 16)")
    add("--dtype", default="auto", help="of the model (default: as saved)")
    add("--json", type=Path, help="file for all figures")
    return parser.parse_args(argv)


class Client:
    """Asks one question about one picture, over and over."""

    def __init__(self, url: str, number: int, picture: Path, tokens: int) -> None:
        self.api = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
        kind = picture.suffix.lstrip(".").lower().replace("jpg", "jpeg")
        data = base64.b64encode(picture.read_bytes()).decode()
        self.content: list[Any] = [
            {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}},
            {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]},
        ]
        self.tokens = tokens

    def ask(self) -> tuple[str, float, float]:
        """(answer, seconds to its first piece, seconds to its end)."""
        started = time.perf_counter()
        first, text = 0.0, ""
        for chunk in self.api.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": self.content}],
            max_tokens=self.tokens,
            stream=True,
        ):
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                first = first or time.perf_counter() - started
                text += piece
        return text, first, time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    dtype = "auto" if args.dtype == "auto" else args.dtype
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=dtype)
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    # Every answer as long as asked for: rates compare equal work.
    model.generation_config.eos_token_id = [model.config.image_token_id]
    engine = ChatEngine(
        model, AutoProcessor.from_pretrained(args.model),
        max_rows=args.rows, max_waiting=args.clients,
    )  # fmt: skip
    app = make_api({"model": engine}, limits=Limits(seconds=600))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    pictures = sorted(p for p in args.pictures.iterdir() if p.suffix in (".png", ".jpg", ".jpeg"))
    pictures = pictures[:: max(1, len(pictures) // args.clients)][: args.clients]
    clients = [Client(url, number, path, args.tokens) for number, path in enumerate(pictures)]

    clients[0].ask()
    alone = [client.ask() for client in clients]
    rate_alone = len(alone) / sum(took for _, _, took in alone)
    memory = [psutil.Process().memory_info().rss / 2**30]
    done: list[tuple[str, float, float]] = []
    kinds: Counter[str] = Counter()
    finish = time.monotonic() + 60 * args.minutes

    def work(number: int) -> None:
        while time.monotonic() < finish:
            try:
                found = clients[number].ask()
            except openai.RateLimitError:
                kinds["queue full"] += 1
                time.sleep(0.2)
                continue
            except openai.OpenAIError as error:
                kinds[type(error).__name__] += 1
                continue
            kinds["same" if found[0] == alone[number][0] else "other answer"] += 1
            done.append(found)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(clients))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for part in range(1, 11):
        time.sleep(max(0.0, finish - time.monotonic() - 6 * args.minutes * (10 - part)))
        memory.append(psutil.Process().memory_info().rss / 2**30)
    for thread in threads:
        thread.join()
    rate = len(done) / (time.perf_counter() - started)
    result = {
        "clients": len(clients), "minutes": args.minutes, "rows": args.rows, "tokens": args.tokens,
        "dtype": str(next(model.language_model.parameters()).dtype),
        "threads": torch.get_num_threads(), "device": model.device.type,
        "alone_per_second": rate_alone, "together_per_second": rate, "times": rate / rate_alone,
        "requests": len(done), "outcomes": dict(kinds),
        "distinct_answers": len({text for text, _, _ in alone}),
        "first_token_alone": statistics.median(first for _, first, _ in alone),
        "first_token_together": statistics.median(first for _, first, _ in done),
        "memory_gib": memory,
    }  # fmt: skip
    table = Table(title=f"{len(clients)} clients, {args.minutes:g} minutes, {result['dtype']}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in result.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        if name == "memory_gib":
            shown = " ".join(f"{one:.2f}" for one in memory)
        table.add_row(name, shown)
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    server.should_exit = True
    engine.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
