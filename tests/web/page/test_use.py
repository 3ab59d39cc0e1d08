"""The page in use: by keyboard, in the dark, on a phone, behind a prefix and a password, and without a connection."""

import re
from collections.abc import Awaitable, Callable

import pytest
from fastapi import Depends
from playwright.async_api import Page, expect

from tests.web.page.shop import Shop, anybody, with_cookie, with_password

pytestmark = pytest.mark.chromium

Open = Callable[..., Awaitable[Page]]

CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = colour => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const part = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].map(part);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ground = node => {
        for (let at = node; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (!/, 0\\)$|\\/ 0\\)$/.test(colour)) return colour;
        }
        return "white";
    };
    const told = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some(one => one.nodeType === Node.TEXT_NODE && one.textContent.trim());
        const elsewhere = ":disabled, option, .skip, .unseen, caption, noscript, svg";
        if (!own || !node.checkVisibility() || node.closest(elsewhere)) continue;
        const [one, other] = [luminance(getComputedStyle(node).color), luminance(ground(node))].sort((a, b) => b - a);
        const contrast = (one + 0.05) / (other + 0.05);
        const name = `${node.tagName}.${node.className} ${node.textContent.slice(0, 30)}`;
        if (contrast < 4.5) told.push(`${name}: ${contrast.toFixed(2)}`);
    }
    return told;
}"""


async def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element with this name has the focus, as somebody without a mouse does."""
    wanted = re.compile(name)
    for _ in range(60):
        await page.keyboard.press("Tab")
        told = await page.evaluate(
            "() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
        )
        if wanted.search(told.strip()):
            return
    raise AssertionError(f"the focus never came to {name!r}")


async def test_everything_is_done_with_the_keyboard_alone(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", "order-2")
    shop.bank.works = True

    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    await page.keyboard.press("Shift+Tab")
    await expect(page.get_by_role("link", name="Message flow")).to_be_focused()
    for _ in range(4):
        await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Dead letters", level=1)).to_be_focused()

    await tab_to(page, "^Replay all 2")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="Replay all 2")).to_be_focused()
    await tab_to(page, "^Select .+-")
    await page.keyboard.press("Space")
    await tab_to(page, "^ChargeCard|^Message$")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_be_focused()
    await tab_to(page, "^Replay$")
    await page.keyboard.press("Enter")

    await expect(page.locator("#dead-letter-count")).to_have_text("1 message")
    await expect(page.get_by_role("status").filter(has_text="1 dead letter")).to_have_count(1)
    await expect(page.get_by_role("heading", level=1)).to_be_focused()


async def test_where_the_focus_is_can_be_seen(page: Page) -> None:
    await tab_to(page, "^Channels$")

    assert await page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"


async def test_the_focus_survives_the_news(shop: Shop, page: Page) -> None:
    await page.goto(f"{shop.address}#/channels")
    await page.get_by_role("button", name="Pause payments").focus()

    await shop.charge("order-1")

    await expect(page.get_by_role("row").filter(has_text="payments").locator("[data-label=Failed]")).to_have_text("1")
    await expect(page.get_by_role("button", name="Pause payments")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_is_legible_in_light_and_dark(shop: Shop, opening: Open, scheme: str) -> None:
    await shop.charge("order-1")
    await shop.ecotone.consumers.pause("mails", reason="moves")
    page = await opening(shop.address, color_scheme=scheme)
    await expect(page.locator(".concerns li")).to_have_count(2)

    ground = await page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(18, 21, 27)") is (scheme == "dark")
    assert await page.evaluate(CONTRAST) == []
    for section in ("channels", "dead-letters"):
        await page.goto(f"{shop.address}#/{section}")
        await expect(page.locator("main tbody tr").first).to_be_visible()
        assert await page.evaluate(CONTRAST) == []
    await page.locator("main tbody a").click()
    await expect(page.locator(".failure")).to_be_visible()
    assert await page.evaluate(CONTRAST) == []


async def test_a_theme_that_was_chosen_is_kept(page: Page) -> None:
    await page.get_by_label("Theme").select_option("Dark")
    await page.reload()

    await expect(page.get_by_label("Theme")).to_have_value("dark")
    assert await page.evaluate("() => getComputedStyle(document.documentElement).colorScheme") == "dark"
    await page.get_by_label("Theme").select_option("System")
    assert await page.evaluate("() => getComputedStyle(document.documentElement).colorScheme") == "light dark"


async def test_nothing_is_cut_off_on_a_narrow_screen(shop: Shop, opening: Open) -> None:
    await shop.charge("order-1", note="x" * 500, headers={"long": "y" * 500})
    page = await opening(shop.address, viewport={"width": 400, "height": 800})
    [parked] = await shop.ecotone.dead_letters.list()

    for section in ("overview", "channels", "dead-letters", f"dead-letters/{parked.id}", "handlers", "flow"):
        await page.goto(f"{shop.address}#/{section}")
        await expect(page.locator("main .table, main .drawing").first).to_be_visible()
        assert await page.evaluate("() => document.documentElement.scrollWidth") == 400, section


async def test_the_page_works_behind_a_prefix_and_a_proxy(sqlite_url: str, opening: Open) -> None:
    async with Shop(sqlite_url, prefix="/deep/down", operations=[Depends(anybody)]).served() as shop:
        await shop.charge("order-1")
        page = await opening(shop.address)

        await expect(page.locator(".badge:visible")).to_have_text(["1"])
        await page.goto(shop.address.replace("?", "/?"))
        await expect(page.locator(".badge:visible")).to_have_text(["1"])


async def test_the_page_works_behind_a_password(sqlite_url: str, opening: Open) -> None:
    async with Shop(sqlite_url, operations=[Depends(with_password)]).served() as shop:
        await shop.charge("order-1")
        shop.bank.works = True
        page = await opening(shop.address, http_credentials={"username": "ada", "password": "secret"})

        await expect(page.locator("#connection-text")).to_have_text("Live")
        await page.goto(f"{shop.address}#/dead-letters")
        await page.get_by_role("checkbox", name=re.compile("^Select .+-")).check()
        await page.get_by_role("button", name="Replay selected (1)").click()
        await expect(page.locator("#dead-letter-count")).to_have_text("0 messages")


async def test_the_page_says_when_somebody_may_not_operate_any_more(sqlite_url: str, opening: Open) -> None:
    async with Shop(sqlite_url, operations=[Depends(with_cookie)]).served() as shop:
        await shop.charge("order-1")
        session = {"name": "session", "value": "ada", "url": f"http://127.0.0.1:{shop.port}"}
        page = await opening(shop.address, storage_state={"cookies": [{**session}], "origins": []})
        await expect(page.locator("#connection-text")).to_have_text("Live")

        await page.context.clear_cookies()
        await page.get_by_role("link", name="Dead letters").first.click()

        alert = page.get_by_role("alert").filter(has_text="403")
        await expect(alert).to_contain_text("You may not see this (403). Sign in first, as somebody who may operate.")
        assert await shop.parked() == 1


async def test_a_lost_connection_is_told_and_comes_back_by_itself(sqlite_url: str, opening: Open) -> None:
    shop = Shop(sqlite_url, operations=[Depends(anybody)])
    async with shop.ecotone.running():
        async with shop.listening():
            page = await opening(shop.address)
            await expect(page.locator("#connection-text")).to_have_text("Live")
        await expect(page.locator("#connection-text")).to_contain_text("Connection lost, last news")

        await shop.charge("order-1")
        async with shop.listening():
            await expect(page.locator("#connection-text")).to_have_text("Live")
            await expect(page.locator(".badge:visible")).to_have_text(["1"])
    await shop.database.engine.dispose()
