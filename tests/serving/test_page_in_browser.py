"""The page in a real browser: what a visitor sees and does. Needs Debian's `chromium`."""

from __future__ import annotations

import base64
import io
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_mole.languages import LANGUAGE_NAMES, LANGUAGES
from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.generation import Sampling
from llava_mole.serving.limits import Limits
from llava_mole.serving.room import Room
from llava_mole.serving.talk import WHAT_IS_THIS
from tests.serving.browser import CHROMIUM, Tab, served

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package) on the PATH"),
    pytest.mark.xdist_group("browser"),
]
WHILE_WRITING = pytest.mark.thorough
"""Tests that do something while an answer is being written: they need a core for the browser."""
TOKENS = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        colour = (40 * number, 255 - 40 * number, 90)
        Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def room(tiny_model: Any) -> Iterator[Room]:
    """Two models whose answers are TOKENS long."""
    engines = []
    for seed in (0, 1):
        model, processor = tiny_model("llama", mole=True, parrot=True, dtype="float32", seed=seed)
        model.generation_config.eos_token_id = [model.config.image_token_id]  # never ends by itself
        engines.append(ChatEngine(model, processor, max_rows=4, max_waiting=4))
    yield Room(engines, Limits(tokens=TOKENS))
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def long_room(tiny_model: Any, tiny_parts: Any) -> Iterator[Room]:
    """Two models of many layers: 256 tokens take them seconds, in which they can be stopped."""
    engines = []
    deep = tiny_parts.language_model("llama", num_hidden_layers=24)
    for seed in (0, 1):
        model, processor = tiny_model(
            "llama", language_model=deep, parrot=True, dtype="float32", seed=seed
        )
        model.generation_config.eos_token_id = [model.config.image_token_id]
        engines.append(ChatEngine(model, processor, max_rows=4, max_waiting=4))
    yield Room(engines, Limits(tokens=1000))
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def address(room: Room, pictures: list[Path]) -> Iterator[str]:
    with served(room, ["mole", "lora"], pictures) as url:
        yield url


@pytest.fixture(scope="module")
def long_address(long_room: Room) -> Iterator[str]:
    with served(long_room, ["mole", "lora"]) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # CI containers run as root, where Chromium's sandbox does not start.
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    yield from clean(Tab(browser, address))


@pytest.fixture
def long_tab(browser: Any, long_address: str) -> Iterator[Tab]:
    yield from clean(Tab(browser, long_address))


def clean(tab: Tab) -> Iterator[Tab]:
    """Nothing may have gone wrong in it by the end."""
    yield tab
    wrong = list(tab.wrong)
    tab.close()
    assert wrong == []


def expected(room: Room, question: str, picture: Path, model: int = 0, tokens: int = TOKENS) -> str:
    asked = [{"role": "user", "content": f"<image>{question}"}]
    return room.engines[model].answer(asked, [picture], max_new_tokens=tokens)


def plain(text: str) -> str:
    """Without white space and what Markdown may take away."""
    return re.sub(r"[\s\\*_`#~<>&-]+", "", text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_question_in_each_language(
    tab: Tab, room: Room, pictures: list[Path], language: str
) -> None:
    question = WHAT_IS_THIS[language]
    tab.ask(question, [pictures[0]])
    said = tab.wait_for_answer()
    assert plain(said) == plain(expected(room, question, pictures[0]))
    assert plain(tab.answers(1)[0]) == plain(expected(room, question, pictures[0], 1))
    assert f"{LANGUAGE_NAMES[language]} (detected)" in tab.page.locator("#language").inner_text()
    direction = tab.page.evaluate(
        "getComputedStyle(document.querySelector('#chat-0 .user p')).unicodeBidi"
    )
    assert direction == "plaintext"


def image_of(tab: Tab, selector: str) -> np.ndarray:
    """Pixels of a picture that stands in the page itself."""
    _, data = tab.page.locator(selector).first.get_attribute("src").split(",", 1)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=int)


@WHILE_WRITING
def test_an_answer_comes_in_pieces(long_tab: Tab, pictures: list[Path]) -> None:
    tab = long_tab
    tab.page.evaluate(
        """window.seen = [];
        new MutationObserver(() => {
            const said = document.querySelector('#chat-0 .bot.message');
            if (said && said.innerText.trim()) seen.push(said.innerText.trim());
        }).observe(document.body, {subtree: true, childList: true, characterData: true})"""
    )
    tab.page.get_by_text("Settings", exact=True).first.click()
    field = tab.page.get_by_label("number input for Longest answer, in tokens")
    slider = tab.page.get_by_label("range slider for Longest answer, in tokens")
    for _ in range(10):  # the fold may still be opening
        field.fill("100")
        field.press("Tab")
        tab.page.wait_for_timeout(200)
        if slider.input_value() == "100":
            break
    tab.ask("What is this?", [pictures[1]])
    tab.wait_for_answer(seconds=60)
    said = [text for text in tab.page.evaluate("seen") if not text.startswith("…")]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(said))
    assert len(set(said)) > 3
    assert "100 tokens in" in tab.page.locator("#status").inner_text()
    assert "cut at the longest answer" in tab.page.locator("#status").inner_text()


@WHILE_WRITING
def test_stop_ends_it_and_a_second_question_follows(
    long_tab: Tab, long_room: Room, pictures: list[Path]
) -> None:
    tab = long_tab
    tab.ask("What is this?", [pictures[1]])
    tab.stop()
    first = tab.wait_for_answer()
    assert "stopped" in tab.page.locator("#status").inner_text()
    assert all(engine.batcher.load() == (0, 0) for engine in long_room.engines)
    whole = expected(long_room, "What is this?", pictures[1], tokens=256)
    assert plain(whole).startswith(plain(first))
    assert len(first) < len(whole)
    tab.ask("And why?")
    tab.page.locator("#chat-0 .bot.message").nth(1).wait_for()
    tab.stop()
    assert len(tab.answers()) == 2


@WHILE_WRITING
def test_a_new_conversation_ends_the_answer_that_is_being_written(
    long_tab: Tab, long_room: Room, pictures: list[Path]
) -> None:
    tab = long_tab
    tab.ask("What is this?", [pictures[1]])
    tab.page.locator("#question .stop-button").wait_for()
    tab.page.locator("#new").click()
    tab.page.locator("#question .submit-button").wait_for()
    tab.page.wait_for_timeout(500)
    assert tab.answers() == []
    assert long_room.answering() == 0
    tab.ask("And now?")
    tab.stop()
    tab.wait_for_answer()
    assert tab.page.locator("#chat-0 .user.message").count() == 1


@WHILE_WRITING
def test_another_language_takes_the_place_of_the_answer_that_is_being_written(
    long_tab: Tab, long_room: Room, pictures: list[Path]
) -> None:
    tab = long_tab
    tab.ask("What is this?", [pictures[1]])
    tab.page.locator("#question .stop-button").wait_for()
    tab.page.locator("#same-ru").click()
    tab.page.locator("#chat-0").get_by_text("Что это?").wait_for()
    tab.page.wait_for_timeout(300)
    assert tab.page.locator("#question .stop-button").is_visible() or not long_room.answering()
    tab.wait_for_answer()
    whole = expected(long_room, "Что это?", pictures[1], tokens=256)
    assert plain(tab.answers()[0]) == plain(whole)


def test_why_draws_experts_words_and_gate(tab: Tab, pictures: list[Path]) -> None:
    tab.ask("Что это?", [pictures[2], pictures[3]])
    tab.wait_for_answer()
    tab.page.locator("#why-maps img").nth(1).wait_for()
    why = tab.page.locator("#why-sentence").inner_text()
    assert "experts" in why
    assert "Russian" in why
    assert tab.page.locator("#why-words span").count() >= TOKENS
    assert tab.page.locator("#why-gates .why-gate").count() == 3
    assert tab.page.locator("#why-gates .why-gate i").count() == 3  # the language's average
    assert tab.page.locator("#why-gates .why-languages tr").count() == 6
    first = image_of(tab, "#why-maps img")
    assert first.std(axis=(0, 1)).max() > 3  # one colour came in: patches are tinted apart
    source = tab.page.locator("#why-maps img").first.get_attribute("src")
    slider = tab.page.get_by_label("number input for Layer, 1 to 2")
    slider.fill("2")
    slider.press("Tab")
    tab.page.wait_for_function(
        "before => document.querySelector('#why-maps img').src != before", arg=source
    )
    assert (image_of(tab, "#why-maps img") != first).any()


def test_another_language_moves_the_gate(tab: Tab, pictures: list[Path]) -> None:
    tab.ask("What is this?", [pictures[2]])
    tab.wait_for_answer()
    tab.page.locator("#why-gates .why-gate").first.wait_for()
    before = tab.page.locator("#why-gates").inner_html()
    tab.page.locator("#same-ar").click()
    tab.page.get_by_text(WHAT_IS_THIS["ar"]).first.wait_for()
    tab.wait_for_answer()
    tab.page.wait_for_function(
        "before => document.querySelector('#why-gates').innerHTML != before", arg=before
    )
    tab.page.locator("#why-sentence").get_by_text("Arabic").wait_for()
    assert tab.page.locator("#chat-0 .user img").count() == 1  # the same picture, asked anew


def test_a_language_may_be_chosen(tab: Tab, room: Room, pictures: list[Path]) -> None:
    tab.page.locator("#language input").click()
    tab.page.get_by_role("option", name="Русский").click()
    tab.ask("What is this?", [pictures[3]])
    said = tab.wait_for_answer()
    steered = room.engines[0].submit(
        [{"role": "user", "content": "<image>What is this?"}], [pictures[3]],
        Sampling(max_new_tokens=TOKENS), steering="Что это?",
    ).text()  # fmt: skip
    assert plain(said) == plain(steered)
    assert plain(said) != plain(expected(room, "What is this?", pictures[3]))
    assert "Russian (its words: English)" in tab.page.locator("#language").inner_text()


def test_the_compared_model_is_explained_too(tab: Tab, pictures: list[Path]) -> None:
    tab.ask("What is this?", [pictures[4]])
    tab.wait_for_answer()
    tab.page.locator("#why-words span").first.wait_for()
    before = tab.page.locator("#why-words").inner_html()
    tab.page.locator("#which").get_by_text("lora").click()
    tab.page.wait_for_function(
        "before => document.querySelector('#why-words').innerHTML != before", arg=before
    )
    tab.page.locator("#chat-0 .bot.message").first.click()  # back, by selecting the other's answer
    tab.page.wait_for_function(
        "before => document.querySelector('#why-words').innerHTML == before", arg=before
    )
    assert tab.page.locator("#which input").first.is_checked()


def test_examples_undo_retry_and_a_new_conversation(
    tab: Tab, room: Room, pictures: list[Path]
) -> None:
    tab.page.locator("#examples").get_by_text("ما هذا؟").click()
    tab.page.wait_for_function("document.querySelector('#question textarea').value.length > 0")
    tab.page.locator("#question img").wait_for()
    tab.page.press("#question textarea", "Enter")
    said = tab.wait_for_answer()
    assert plain(said) == plain(expected(room, "ما هذا؟", pictures[3]))
    tab.page.locator("#chat-0").get_by_role("button", name="Retry").click()
    tab.page.wait_for_timeout(300)
    assert plain(tab.wait_for_answer()) == plain(said)
    tab.page.locator("#chat-0").get_by_role("button", name="Undo").click()
    tab.page.wait_for_function("document.querySelector('#question textarea').value == 'ما هذا؟'")
    assert tab.answers() == []
    tab.page.locator("#new").click()
    tab.page.wait_for_function("document.querySelector('#question textarea').value == ''")


def test_errors_and_html_are_shown_as_text(tab: Tab, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "<b>broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:50])
    question = "<img src=x onerror=\"document.title='taken'\"> what?"
    tab.ask(question, [broken])
    said = tab.wait_for_answer()
    assert "broken.png" in said
    shown = tab.page.locator("#chat-0 .user").first.inner_text()
    assert question in shown.replace("\u2060", "")
    assert tab.page.title() == "LLaVA-MoLE"


def test_two_visitors_do_not_meet(browser: Any, address: str, pictures: list[Path]) -> None:
    one, other = Tab(browser, address), Tab(browser, address)
    one.ask("What is this?", [pictures[5]])
    one.wait_for_answer()
    assert other.page.locator(".message").count() == 0
    assert other.answers() == []
    assert other.page.locator("#why-maps img").count() == 0
    assert one.wrong == other.wrong == []
    one.close()
    other.close()


@WHILE_WRITING
def test_a_closed_tab_frees_the_place(
    browser: Any, long_address: str, long_room: Room, pictures: list[Path]
) -> None:
    one = Tab(browser, long_address)
    one.ask("What is this?", [pictures[5]])
    one.page.locator("#question .stop-button").wait_for()
    one.close()
    for _ in range(100):
        if long_room.answering() == 0:
            break
        time.sleep(0.05)
    assert long_room.answering() == 0
    assert all(engine.batcher.load() == (0, 0) for engine in long_room.engines)


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)], ids=["phone", "desktop"])
def test_it_fits_a_phone_and_a_desk(
    browser: Any, address: str, pictures: list[Path], width: int, height: int
) -> None:
    tab = Tab(browser, address, width=width, height=height)
    tab.ask("What is this?", [pictures[0]])
    tab.wait_for_answer()
    tab.page.locator("#why-maps img").wait_for()
    shot = Image.open(io.BytesIO(tab.page.screenshot(full_page=True)))
    assert shot.width == width  # nothing sticks out to the side
    for part in ("#question", "#chat-0", "#why-maps img", "#same-ar"):
        box = tab.page.locator(part).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width + 1
        assert box["width"] >= 40
    assert tab.wrong == []
    tab.close()
