r"""The README's pictures of the demo: a real page, a real model, a real browser.

    pip install playwright && apt install chromium
    python benchmarks/demo_screenshots.py --model runs/quickstart/model \
        --pictures runs/quickstart/data/images --out docs/images
    python benchmarks/demo_screenshots.py --model runs/mole/model --compare runs/lora/model \
        --pictures runs/quickstart/data/images --name compare --out docs/images

Starts `app.py`, asks one of its examples, waits for the answer and its explanation, and saves what
a visitor sees. Prints how long the page took to its first token, from the start of the command.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

APP = Path(__file__).resolve().parents[1] / "app.py"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model folder")
    add("--compare", type=Path, help="a second one")
    add("--pictures", type=Path, required=True, help="folder of the examples' pictures")
    add("--question", default="Что это?", help="of one of the examples (default: the Russian one)")
    add("--then", nargs="*", default=(), help="further questions about the same picture")
    add("--layer", type=int, help="of the expert map (default: the middle one)")
    add("--width", type=int, default=1280)
    add("--name", default="demo", help="of the file (default demo)")
    add("--out", type=Path, default=Path("docs/images"), help="folder (default docs/images)")
    add("--port", type=int, default=7990)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("no chromium on the PATH: apt install chromium", file=sys.stderr)
        return 2
    command = [sys.executable, str(APP), "--model", str(args.model), "--port", str(args.port)]
    command += ["--pictures", str(args.pictures)]
    command += ["--compare", str(args.compare)] if args.compare else []
    with sync_playwright() as playwright:
        # Before the clock starts: somebody's browser is there already.
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--lang=en"]
        )
        page = browser.new_page(viewport={"width": args.width, "height": 900})
        started = time.monotonic()
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            for line in server.stdout:
                print(line, end="")
                if line.startswith("ready"):
                    break
            else:
                return server.wait() or 1
            page.goto(f"http://127.0.0.1:{args.port}")
            converse(page, [args.question, *args.then], started)
            if args.layer:
                field = page.locator("#why-layer input[type=number]")
                field.fill(str(args.layer))
                field.press("Tab")
            page.mouse.click(1, 1)
            page.wait_for_timeout(3000)
            shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        finally:
            browser.close()
            server.terminate()
            server.wait(20)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.name}.png"
    shot.quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {shot.width} x {shot.height}, {path.stat().st_size / 1024:.0f} KiB")
    return 0


def converse(page: Page, questions: Sequence[str], started: float) -> None:
    """The first question with its example's picture, then the others; waits for the explanation."""
    page.locator("#examples").get_by_text(questions[0], exact=True).first.click()
    page.locator("#question img").wait_for()
    for number, question in enumerate(questions):
        asked = time.monotonic()
        page.fill("#question textarea", question)
        page.press("#question textarea", "Enter")
        page.locator("#chat-0 .bot.message").nth(number).wait_for()
        page.wait_for_function(
            "n => { const one = document.querySelectorAll('#chat-0 .bot.message')[n];"
            "return one && one.innerText && !one.innerText.startsWith('…') }",
            arg=number,
        )
        print(f"first words {time.monotonic() - asked:.2f} s after the question", end="")
        print(f", {time.monotonic() - started:.1f} s after the command" * (number == 0))
        page.locator("#question .submit-button").wait_for()
    page.locator("#why-maps img").first.wait_for()
    page.locator("#why-gates, #why-legend").first.wait_for()


if __name__ == "__main__":
    raise SystemExit(main())
