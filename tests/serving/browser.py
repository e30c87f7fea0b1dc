"""A page served in a thread, and a headless Chromium that writes down what goes wrong in it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from llava_mole.serving.page import build_page, with_api
from llava_mole.serving.room import Room

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def served(
    room: Room, names: Sequence[str], pictures: Sequence[Path] = (), **options: Any
) -> Iterator[str]:
    """Its address. Options are those of `with_api`."""
    app = with_api(room, build_page(room, names=names, pictures=pictures), names=names, **options)
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


class Tab:
    """A tab of a browser, at the page.

    Attributes:
        page: Playwright's.
        wrong: console errors, uncaught exceptions, requests to anywhere else and failed ones.
    """

    def __init__(
        self, browser: Any, address: str, *, width: int = 1280, height: int = 1000
    ) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.wrong.append(f"exception: {error}"))
        self.page.on("request", lambda request: self._asked(request.url, address))
        self.page.on("response", self._answered)
        self.page.goto(address)
        self.page.wait_for_selector("#question textarea")
        self.page.wait_for_timeout(700)  # what is typed while the page is built may be lost

    def ask(self, text: str, pictures: Sequence[Path] = ()) -> None:
        if pictures:
            before = self.page.locator("#question img").count()
            self.page.set_input_files("#question input[type=file]", [str(p) for p in pictures])
            self.page.wait_for_function(
                f"document.querySelectorAll('#question img').length >= {before + len(pictures)}"
            )
        self.page.fill("#question textarea", text)
        for _ in range(5):  # nothing is sent while a picture is still on its way
            self.page.press("#question textarea", "Enter")
            self.page.wait_for_timeout(500)
            if self.page.input_value("#question textarea") != text:
                break

    def stop(self) -> None:
        """As soon as the button is there: a click that waits for stillness may come too late."""
        self.page.wait_for_function(
            "() => { const stop = document.querySelector('#question .stop-button');"
            "if (stop) stop.click(); return stop !== null }",
            polling=20,
        )

    def answers(self, chat: int = 0) -> list[str]:
        """Texts of the answers in a Chatbot."""
        return [
            one.strip() for one in self.page.locator(f"#chat-{chat} .bot.message").all_inner_texts()
        ]

    def wait_for_answer(self, number: int = 1, chat: int = 0, seconds: float = 30) -> str:
        """The n-th answer, once the text box is free again."""
        self.page.locator(f"#chat-{chat} .bot.message").nth(number - 1).wait_for(
            timeout=seconds * 1000
        )
        self.page.locator("#question .submit-button").wait_for(timeout=seconds * 1000)
        return self.answers(chat)[number - 1]

    def close(self) -> None:
        self.context.close()

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"{message.type}: {message.text}")

    def _asked(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.wrong.append(f"a request elsewhere: {url}")

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.wrong.append(f"{response.status}: {response.url}")
