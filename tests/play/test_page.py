"""The page of ``scoreopt play`` in a browser."""

from __future__ import annotations

import re
import threading
from queue import Queue

import numpy as np
import pytest
from html_pages import CHROMIUM
from picture_files import announced, file_of

pytest.importorskip("fastapi")
pytest.importorskip("playwright")

import uvicorn
from playwright.sync_api import expect, sync_playwright

from scoreopt_defense.play.choices import domains
from scoreopt_defense.play.server import serve

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
WAIT = 60_000  # milliseconds, of a busy machine
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address():
    servers, said = [], Queue()

    class Kept(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Server", Kept)
        given = {"host": "127.0.0.1", "port": 0, "say": said.put}
        thread = threading.Thread(target=serve, args=(domains(),), kwargs=given)
        thread.start()
        yield said.get(timeout=60).split()[0]
        servers[0].should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[DESK], ids=["desk"])
def page(request, browser, address):
    """The page, loaded; nothing may be said on its console, and nothing asked of another server."""
    context = browser.new_context(viewport=request.param)
    context.set_default_timeout(WAIT)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    has(page, "Ready.")
    yield page
    context.close()
    refused = "the server responded with a status of 422"  # which a bad upload is
    assert [text for text in said if refused not in text] == []
    here = (address.partition("#")[0], "data:")
    assert [url for url in asked if not url.startswith(here)] == []


def has(page, status):
    expect(page.locator("#status")).to_have_text(status, timeout=WAIT)


def field(page, name):
    return page.get_by_role("combobox", name=name, exact=True)


def choose(page, attack="transfer-pgd-linf", attack_steps=2, steps=2):
    page.get_by_label("3, sample 4").check()
    field(page, "Attack").select_option(attack)
    field(page, "Purifier").select_option("ScoreOpt mnist-tiny/N")
    page.locator("[name=attack_steps]").fill(str(attack_steps))
    page.locator("[name=steps]").fill(str(steps))


def width_needed(page):
    return page.evaluate("document.documentElement.scrollWidth")


@pytest.mark.parametrize("page", [DESK, PHONE], indirect=True, ids=["desk", "phone"])
def test_an_image_is_attacked_and_purified_step_by_step(page):
    assert width_needed(page) == page.viewport_size["width"]
    choose(page)
    page.get_by_role("button", name="Attack and purify").click()
    has(page, "Done.")
    names = page.locator("#pictures b").all_inner_texts()
    assert names == ["Clean", "Attacked", "Difference", "Purified"]
    expect(page.locator("#of-clean .right")).to_have_text(re.compile(r"✓ 3, \d"))
    steps = page.locator("#strip b").all_inner_texts()
    assert steps == ["attacked", "step 1", "step 2", "purified"]
    lines = page.locator("#chart polyline").all()
    drawn = [line.get_attribute("points").split(" ") for line in lines]
    assert drawn
    assert all(len(points) == len(steps) for points in drawn)
    expect(page.locator("#agree")).to_have_text(re.compile(r"^\d+ of 16 fresh purifications"))
    assert page.locator("#votes span").count() == 16
    assert all(page.locator("img").evaluate_all("all => all.map((one) => one.naturalWidth > 0)"))
    assert width_needed(page) == page.viewport_size["width"]


def test_stop_ends_it_and_another_can_begin(page):
    choose(page, "momentum-pgd-linf", attack_steps=1000, steps=5)
    page.get_by_role("button", name="Attack and purify").click()
    expect(page.locator("#status")).to_have_text(re.compile("Attacking: .* of 1,000"), timeout=WAIT)
    page.get_by_role("button", name="Stop").click()
    has(page, "Stopped.")
    expect(page.locator("#pictures b")).to_have_text(["Clean"])
    choose(page)
    page.get_by_role("button", name="Attack and purify").click()
    has(page, "Done.")


def test_a_bad_upload_gets_a_sentence_and_a_good_one_is_taken(page, tmp_path):
    files = {
        "notes.png": (b"no image", "no image of a kind among PNG"),
        "large.png": (announced(8000, 8000), "has 8,000 x 8,000"),
        "good.png": (file_of(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))), None),
    }
    for name, (content, said) in files.items():
        (tmp_path / name).write_bytes(content)
        page.locator("#file").set_input_files(tmp_path / name)
        if said:
            expect(page.get_by_role("alert")).to_contain_text(said)
    has(page, "good.png is the image now.")
    expect(page.get_by_role("alert")).to_be_hidden()
    field(page, "Attack").select_option("none")
    field(page, "Purifier").select_option("none")
    page.get_by_role("button", name="Attack and purify").click()
    has(page, "Done.")
    expect(page.locator("#purification")).to_be_hidden()


def test_what_cannot_be_done_is_said(page):
    field(page, "Attack").select_option("pgd-eot-linf")
    field(page, "Purifier").select_option("JPEG")
    expect(page.locator("[name=lr]")).to_be_disabled()
    page.get_by_role("button", name="Attack and purify").click()
    expect(page.locator("#status")).to_contain_text("it can be attacked in the modes", timeout=WAIT)
    field(page, "Classifier").select_option("cifar10-tiny")
    page.get_by_role("button", name="Attack and purify").click()
    has(page, "Pick an image first, or drop one of your own.")


def test_the_keyboard_is_enough_and_every_field_has_a_name(page):
    choose(page)
    page.get_by_label("3, sample 4").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("4, sample 5")).to_be_checked()
    page.keyboard.press("Enter")
    has(page, "Done.")
    expect(page.locator("#of-clean")).to_contain_text("4, ")
    nameless = page.locator("input, select").evaluate_all(
        "all => all.filter((one) => !one.labels.length && !one.ariaLabel).map((one) => one.name)"
    )
    assert nameless == []


def test_without_the_key_the_page_says_what_to_open(browser, address):
    page = browser.new_page()
    page.goto(address.partition("#")[0])
    expect(page.locator("#status")).to_contain_text("open the whole address", timeout=WAIT)
    page.close()
