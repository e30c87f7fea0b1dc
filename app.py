"""The demo: ask a model about pictures in the browser, and see why it answers so.

    python app.py --model runs/quickstart/model
    python app.py --model runs/mole/model --compare runs/lora/model

The page is in llava_mole/serving/page.py. The same process answers programs: OpenAI's chat
completions under /v1 (docs/serving.md).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing leaves this machine
# Importing and reading a vocabulary make millions of objects that stay: looking through them again
# and again for garbage took a third of the time to the first answer. On again in `main`.
if __name__ == "__main__":
    gc.disable()

try:
    import uvicorn

    from llava_mole.serving.page import build_page, with_api
except ImportError as error:
    if error.name not in ("gradio", "uvicorn", "fastapi"):
        raise
    sys.exit('app.py needs Gradio: run `make demo`, or pip install -e ".[starter,demo]"')

from llava_mole.data.images import load_image
from llava_mole.errors import CheckpointError, DataError
from llava_mole.serving.chat import ChatEngine, check_is_model
from llava_mole.serving.limits import Limits
from llava_mole.serving.room import Room

DEFAULT_MODEL = Path("runs/quickstart/model")
LOCAL = ("localhost", "127.0.0.1", "::1")
FAVOURITES = ("1F34E", "1F431", "1F98B", "1F33B", "1F697", "1F3B8")
"""Of the quickstart's drawings: apple, cat, butterfly, sunflower, car, guitar."""


def example_pictures(folder: Path, count: int = 6) -> list[Path]:
    """Pictures of a folder for the examples; none if it is not there.

    The quickstart's favourites where they are, else evenly spaced ones, in the order of names.
    """
    favourites = [folder / f"{name}.png" for name in FAVOURITES]
    if all(path.is_file() for path in favourites):
        return favourites[:count]
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    chosen = found[:: max(1, len(found) // count)][:count]
    return [path for path in chosen if is_picture(path)]


def is_picture(path: Path) -> bool:
    """Says so where it is none."""
    try:
        load_image(path)
    except DataError as error:
        print(f"app.py: left out of the examples: {error}", file=sys.stderr)
        return False
    return True


def hold_port(
    host: str, port: int | None, first: int = 7860, tries: int = 100
) -> list[socket.socket]:
    """Listen on a port, or on the first from `first` that is free, before models load for seconds:
    another demo that is started meanwhile takes another one.

    Returns:
        A socket for each of the host's addresses.

    Raises:
        OSError: it is in use, none is free, or no such host.
    """
    for one in [port] if port else range(first, first + tries):
        with contextlib.suppress(PortInUseError):
            return listening(host, one)
    if port:
        raise OSError(f"port {port} of {host} is in use; choose another with --port")
    raise OSError(f"no free port from {first} to {first + tries - 1}; name one with --port")


class PortInUseError(OSError):
    """By another program, or it is not ours to take."""


def listening(host: str, port: int) -> list[socket.socket]:
    """On each of the host's addresses that this machine has; one is enough."""
    held: list[socket.socket] = []
    failed: OSError | None = None
    try:
        for family, kind, protocol, _, address in dict.fromkeys(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        ):
            one = None
            try:
                one = socket.socket(family, kind, protocol)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind(address)
                one.listen()
            except OSError as error:
                if one is not None:
                    one.close()
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    raise PortInUseError(*error.args) from error
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                failed = error
            else:
                held.append(one)
        if not held and failed is not None:
            raise failed
    except OSError:
        for one in held:
            one.close()
        raise
    return held


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
        help="folder of pictures offered as examples: those that lie beside the model as in the "
        "quickstart's folder, or the quickstart's, if not given",
    )
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (127.0.0.1)")
    add(
        "--port",
        type=a_port,
        help="port, 1 to 65535; the first free one from 7860 if not given",
    )
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which browsers may call this machine, behind a proxy; may be repeated. "
        "Without --host only localhost is taken",
    )
    add("--device", help="cpu, cuda, cuda:1 …; the first GPU if there is one")
    add("--rows", type=at_least_one, default=16, help="conversations written together (16)")
    add(
        "--waiting",
        type=at_least_one,
        default=64,
        help="conversations that may wait beside them (64)",
    )
    add("--max-tokens", type=at_least_one, default=2048, help="bound on an answer's length (2048)")
    return parser.parse_args(arguments)


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: must be at least 1")
    return number


def a_port(text: str) -> int:
    if not 1 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError(f"{number}: ports go from 1 to 65535")
    return number


class Server(uvicorn.Server):
    """Says when it is ready, and ends on Ctrl-C or SIGTERM with its tabs still open."""

    def __init__(self, app: Any, host: str, port: int, started: float) -> None:
        super().__init__(
            uvicorn.Config(
                app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2
            )
        )
        self.since = started

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            host = "localhost" if self.config.host == "127.0.0.1" else self.config.host
            address = f"http://{f'[{host}]' if ':' in host else host}:{self.config.port}"
            print(
                f"page: {address}\nfor programs: {address}/v1\n"
                f"ready after {time.monotonic() - self.since:.1f} s; Ctrl-C ends it",
                flush=True,
            )

    async def shutdown(self, sockets: Any = None) -> None:
        # Tabs that are still open are cut off: no news to whoever ended it.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the models and serve the page until interrupted."""
    started = time.monotonic()
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    offer_quickstart(options.model)
    folders = [options.model] + ([options.compare] if options.compare else [])
    with contextlib.ExitStack() as stack:
        try:
            for folder in folders:
                check_is_model(folder)
            held = [stack.enter_context(one) for one in hold_port(options.host, options.port)]
            engines = [
                ChatEngine.from_folder(
                    folder,
                    device=options.device,
                    max_rows=options.rows,
                    max_waiting=options.waiting,
                )
                for folder in folders
            ]
        except (CheckpointError, OSError) as error:
            print(f"app.py: {error}", file=sys.stderr)
            return 2
        serve(options, engines, names_of(folders), held, started)
    return 0


def serve(
    options: argparse.Namespace, engines: Sequence[ChatEngine], names: Sequence[str],
    held: list[socket.socket], started: float,
) -> None:  # fmt: skip
    """Until interrupted."""
    gc.freeze()
    gc.enable()
    room = Room(engines, Limits(tokens=options.max_tokens))
    beside, quickstarts = (one.parent / "data" / "images" for one in (options.model, DEFAULT_MODEL))
    pictures = options.pictures or (beside if beside.is_dir() else quickstarts)
    local = options.host in LOCAL
    hosts = {*LOCAL, *options.allow_host} if local or options.allow_host else None
    # uvicorn raises the signal that ended it once more: as an exception, so that nothing is left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="llava-mole-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # gone when the demo ends
        page = build_page(room, names=names, pictures=example_pictures(pictures))
        app = with_api(room, page, names=names, hosts=hosts)
        with contextlib.suppress(KeyboardInterrupt):
            Server(app, options.host, held[0].getsockname()[1], started).run(held)
    room.close()


if __name__ == "__main__":
    sys.exit(main())
