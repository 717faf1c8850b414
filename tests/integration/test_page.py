"""The page at /, in a real browser."""

import json
import os

import pytest
import requests

import harness
from browser import Browser
from harness import campaign
from openai_fixtures import HTTP
from xcache.v1 import sessions_pb2

EVIL = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
DARK = {"name": "prefers-color-scheme", "value": "dark"}


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path) as running:
        yield running


@pytest.fixture
def server(tiny_model, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("sesame alice\nother bob\n")
    tokens.chmod(0o600)
    with harness.Server(tiny_model, tmp_path, *HTTP, "--token-file",
                        tokens) as running:
        yield running


def turn(browser, text, number):
    browser.type("#text", text)
    browser.press_enter()
    browser.until(f"document.querySelectorAll('#turns > li').length === {number}"
                  " && !document.querySelector('[aria-busy]')"
                  " && !document.querySelector('#send').disabled")


def listed(browser):
    return browser.run("[...document.querySelectorAll('#list button')]"
                       ".map((b) => b.textContent)")


def said(browser):
    return browser.run("[...document.querySelectorAll('article p')]"
                       ".map((p) => p.textContent)")


def test_chat_on_the_page(browser, server):
    """Sign in, chat, see what was reused, fork, pin, delete."""
    address = f"http://{server.http_address}/"
    client = server.client("sesame")
    browser.open(address)
    browser.until("document.querySelector('#problem').textContent"
                  ".includes('token')")
    browser.type("#token", "sesame")
    browser.press_enter()
    browser.until("document.querySelector('#model').textContent"
                  ".startsWith('tiny')")
    assert browser.run("document.querySelector('#problem').textContent") == ""

    # A stream: the answer's text comes in parts, fewer where the page is slow.
    # What this model says is as long as chance has it; what it is asked is longer
    # than a block.
    browser.run("""
        window.parts = 0;
        new MutationObserver((changes) => {
          for (const c of changes) {
            if (c.target.closest('article.assistant p')) ++window.parts;
          }
        }).observe(document.querySelector('#log'),
                   {childList: true, subtree: true}); 0""")
    turn(browser, "Tell me of the sea. " + EVIL + " the sea," * 40, 1)
    assert browser.run("window.parts") > 1 or len(said(browser)[1]) < 2
    turn(browser, "And of " + "the land, " * 20, 2)
    figures = browser.run("document.querySelector('#turns').innerText")
    first, second = (browser.run(
        f"Number(document.querySelectorAll('#turns > li')[{i}].dataset.reused)")
        for i in (1, 0))
    assert first == 0 and second > 64
    assert f"Turn 2: {second} tokens reused" in figures
    assert "Reused: working set" in figures and "Restored in" in figures
    state = browser.run("document.querySelector('#session').innerText")
    assert "Stored pages" in state and " times" in state

    # What is shown is what is stored, as text.
    (info,) = client.sessions.ListSessions(
        sessions_pb2.ListSessionsRequest()).sessions
    stored = client.sessions.GetSession(sessions_pb2.GetSessionRequest(
        id=info.id, with_messages=True))
    shown = said(browser)
    assert shown == [m.content for m in stored.messages]
    assert EVIL in shown[0] and info.title in listed(browser)[0]
    assert EVIL[:10] in info.title
    assert browser.run("document.querySelectorAll('img, b').length") == 0
    assert browser.run("document.title") == "XCache"

    # A fork of all, and one of the first two messages.
    browser.click("#fork")
    browser.until("document.querySelector('#title').textContent"
                  ".startsWith('Fork: ')")
    browser.until("document.querySelectorAll('article').length === 4")
    assert said(browser) == shown
    browser.click("article.assistant button")
    browser.until("document.querySelectorAll('#list li').length === 3")
    assert said(browser) == shown[:2]
    turn(browser, "Go on.", 1)
    reused = browser.run("Number(document.querySelector('#turns > li')"
                         ".dataset.reused)")
    assert reused >= 64  # pages are shared

    # Pins stay, also for the next visit.
    browser.click("#pin")
    browser.until("document.querySelector('#pin').textContent === 'Unpin'")
    (pinned,) = [s for s in client.sessions.ListSessions(
        sessions_pb2.ListSessionsRequest()).sessions if s.pinned]
    browser.open(address + "?again")
    browser.until("document.querySelectorAll('#list li').length === 3")
    browser.click(f"#list button[data-id='{pinned.id}']")
    browser.until("document.querySelectorAll('article').length === 4")
    assert browser.run(
        "document.querySelector('#pin').getAttribute('aria-pressed')") == "true"

    # Deleting is asked about once more.
    browser.click("#delete")
    assert len(listed(browser)) == 3
    browser.until("document.querySelector('#delete').textContent"
                  " === 'Delete for good?'")
    browser.click("#delete")
    browser.until("document.querySelectorAll('#list li').length === 2")
    with harness.fails_with(harness.grpc.StatusCode.NOT_FOUND):
        client.sessions.GetSession(sessions_pb2.GetSessionRequest(id=pinned.id))

    # Another tenant sees nothing of it.
    browser.type("#token", "other")
    browser.press_enter()
    browser.until("document.querySelectorAll('#list li').length === 0")

    # Nothing was asked of anybody else, and nothing was forbidden, but for what
    # was asked before the token was there.
    assert all(url.startswith((address, "data:", "about:"))
               for url in browser.asked_for())
    assert all("401" in text for text in browser.complaints())


def test_a_first_turn_that_is_stopped_leaves_nothing(browser, slow_model,
                                                     tmp_path):
    with harness.Server(slow_model, tmp_path, *HTTP) as server:
        client = server.client()
        browser.open(f"http://{server.http_address}/")
        browser.until("document.querySelector('#model').textContent")
        browser.type("#text", "How are you?")
        browser.press_enter()
        browser.until("document.querySelectorAll('article').length === 2")
        sessions = client.sessions.ListSessions(sessions_pb2.ListSessionsRequest())
        assert [s.title for s in sessions.sessions] == ["How are you?"]
        browser.click("#stop")
        browser.until("!document.querySelector('#send').disabled")
        assert said(browser) == []
        assert browser.run("document.querySelector('#title').textContent") == (
            "New chat")
        assert browser.run("document.querySelector('#text').value") == (
            "How are you?")
        assert not client.sessions.ListSessions(
            sessions_pb2.ListSessionsRequest()).sessions
        assert not browser.complaints()
        # And it is asked again.
        browser.click("#send")
        browser.until("document.querySelectorAll('article').length === 2")


def test_hostile_answers_are_text(browser, server):
    """Of a conversation that somebody made so; and in the dark."""
    url = f"http://{server.http_address}"
    headers = {"Authorization": "Bearer sesame"}
    made = requests.post(url + "/v1/conversations", headers=headers, json={
        "items": [{"role": "user", "content": "</p><script>x()</script>"},
                  {"role": "assistant", "content": EVIL}]}).json()
    requests.post(f"{url}/v1/xcache/sessions/{made['id']}", headers=headers,
                  json={"title": EVIL}).raise_for_status()
    browser.call("Emulation.setEmulatedMedia", features=[DARK])
    browser.open(url + "/")
    light_or_dark = browser.run(
        "getComputedStyle(document.body).backgroundColor")
    assert light_or_dark == "rgb(21, 24, 28)"
    browser.type("#token", "sesame")
    browser.press_enter()
    browser.until("document.querySelectorAll('#list li').length === 1")
    browser.click("#list button")
    browser.until("document.querySelectorAll('article').length === 2")
    assert said(browser) == ["</p><script>x()</script>", EVIL]
    assert listed(browser) == [EVIL]
    assert browser.run("document.querySelectorAll('img, b').length") == 0
    assert browser.run("document.scripts.length") == 1
    assert browser.run("document.title") == "XCache"
    # Nor would it run if it were markup.
    browser.run(f"document.body.insertAdjacentHTML('beforeend', "
                f"{json.dumps(EVIL)})")
    browser.until("performance.now() > 0")
    assert browser.run("document.title") == "XCache"
    assert any("Content Security Policy" in text
               for text in browser.complaints())


def test_everything_has_a_name(browser, server):
    """For who hears the page: controls, and the conversation."""
    browser.open(f"http://{server.http_address}/")
    found = browser.named({"button", "textbox", "spinbutton", "log", "main",
                           "navigation", "complementary"})
    assert {"button", "textbox", "spinbutton", "log", "navigation",
            "complementary"} <= {role for role, _ in found}
    assert all(name for role, name in found if role != "main")


def test_the_page_needs_no_token_and_allows_nothing(server):
    """Its headers; and how it is asked for."""
    url = f"http://{server.http_address}/"
    page = requests.get(url)
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    for word in ("innerHTML", "http-equiv", "src=", "@import", "url("):
        assert word not in page.text, word
    assert requests.head(url).headers["Content-Length"] == str(
        len(page.content))
    assert requests.post(url, json={}).status_code == 405
    assert requests.get(url + "v1/xcache/sessions").status_code == 401


@pytest.mark.skipif(not campaign("PAGE_PICTURE_ROUNDS", 0),
                    reason="XCACHE_PAGE_PICTURE_ROUNDS is not set: it draws the "
                           "page, after so many turns")
def test_picture(browser, real_model, tmp_path):
    path = harness.BUILD / "page.png"
    questions = ["What is a cache, in two sentences?",
                 "And what is a prefix of a conversation?",
                 "Why would one keep it?", "Thank you!"]
    with harness.Server(real_model, tmp_path, *HTTP, "--model-name",
                        "SmolLM2-135M-Instruct") as server:
        browser.open(f"http://{server.http_address}/")
        browser.run("document.querySelector('#limit').value = 80")
        for i in range(int(campaign("PAGE_PICTURE_ROUNDS", 0))):
            turn(browser, questions[i % len(questions)], i + 1)
        path.write_bytes(browser.picture())
    assert os.path.getsize(path) < 150_000
