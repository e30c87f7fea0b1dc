"""The demo: ask a model about pictures in the browser, and see why it answers so.

    python app.py --model runs/quickstart/model
    python app.py --model runs/mole/model --compare runs/lora/model

The page is in llava_mole/serving/page.py. The same process answers programs: OpenAI's chat
completions under /v1 (docs/serving.md).
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing leaves this machine

try:
    import uvicorn

    from llava_mole.serving.page import build_page, with_api
except ImportError as error:
    if error.name not in ("gradio", "uvicorn", "fastapi"):
        raise
    sys.exit('app.py needs Gradio: run `make demo`, or pip install -e ".[starter,demo]"')

from llava_mole.errors import CheckpointError
from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.limits import Limits
from llava_mole.serving.room import Room

DEFAULT_MODEL = Path("runs/quickstart/model")
FAVOURITES = ("1F34E", "1F431", "1F3B8", "1F98B", "1F697", "1F33B")
"""Of the quickstart's drawings: apple, cat, guitar, butterfly, car, sunflower."""


def example_pictures(folder: Path, count: int = 6) -> list[Path]:
    """Pictures of a folder for the examples; none if it is not there.

    The quickstart's favourites where they are, else evenly spaced ones, in the order of names.
    """
    favourites = [folder / f"{name}.png" for name in FAVOURITES]
    if all(path.is_file() for path in favourites):
        return favourites[:count]
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    return found[:: max(1, len(found) // count)][:count]


def free_port(host: str, first: int = 7860, tries: int = 100) -> int:
    """The first port from `first` that nobody listens on.

    Raises:
        OSError: none.
    """
    for port in range(first, first + tries):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {first} to {first + tries - 1}; name one with --port")


def names_of(folders: Sequence[Path]) -> list[str]:
    """What models are called: their folder, or the run that a folder called `model` belongs to."""
    names: list[str] = []
    for folder in folders:
        path = folder.resolve()
        name = path.parent.name if path.name == "model" else path.name
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names


def offer_quickstart(folder: Path) -> bool:
    """Where the quickstart's model is missing and somebody sits there: make it, if they like."""
    if folder != DEFAULT_MODEL or folder.exists() or not sys.stdin.isatty():
        return False
    print(f"There is no model in {folder} yet. `make quickstart` trains one in about 20 minutes.")
    if input("Do that now? [y/N] ").strip().lower() not in ("y", "yes"):
        return False
    from llava_mole.cli import main as llava_mole

    return llava_mole(["quickstart", "--out", str(folder.parent)]) == 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, default=DEFAULT_MODEL, help=f"a model folder ({DEFAULT_MODEL})")
    add("--compare", type=Path, metavar="DIR", help="a second one, asked the same beside it")
    add(
        "--pictures",
        type=Path,
        help="folder of pictures offered as examples; the quickstart's own if it is there",
    )
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (127.0.0.1)")
    add("--port", type=int, help="port; the first free one from 7860 if not given")
    add("--device", help="cpu, cuda, cuda:1 …; the first GPU if there is one")
    add("--rows", type=int, default=16, help="conversations written together (16)")
    add("--waiting", type=int, default=64, help="conversations that may wait beside them (64)")
    add("--max-tokens", type=int, default=2048, help="bound on an answer's length (2048)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the models and serve the page until interrupted."""
    started = time.monotonic()
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    offer_quickstart(options.model)
    folders = [options.model] + ([options.compare] if options.compare else [])
    try:
        engines = [
            ChatEngine.from_folder(
                folder, device=options.device, max_rows=options.rows, max_waiting=options.waiting
            )
            for folder in folders
        ]
        port = options.port or free_port(options.host)
    except (CheckpointError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    room = Room(engines, Limits(tokens=options.max_tokens))
    names = names_of(folders)
    pictures = options.pictures or options.model.parent / "data" / "images"
    with tempfile.TemporaryDirectory(prefix="llava-mole-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # gone when the demo ends
        page = build_page(room, names=names, pictures=example_pictures(pictures))
        app = with_api(room, page, names=names)
        address = f"http://{'localhost' if options.host == '127.0.0.1' else options.host}:{port}"
        print(
            f"page: {address}\nfor programs: {address}/v1\n"
            f"ready after {time.monotonic() - started:.1f} s; Ctrl-C ends it",
            flush=True,
        )
        uvicorn.run(app, host=options.host, port=port, log_level="warning")
    room.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
