"""The `xcache` command against a real server, as scripts and people use it."""

import json
import os
import pty
import re
import select
import subprocess
import time

import pytest

import harness


@pytest.fixture
def environment(server, tmp_path):
    return {**os.environ, "XCACHE_ADDRESS": server.address,
            "XCACHE_METRICS_ADDRESS": server.metrics_address,
            "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "NO_COLOR": "",
            "LC_ALL": "C.UTF-8"}


@pytest.fixture
def xcache(environment):

    def run(*words, stdin="", code=0):
        done = subprocess.run([harness.COMMAND, *words], input=stdin,
                              env=environment, capture_output=True, text=True,
                              timeout=120)
        assert done.returncode == code, done.stderr
        return done

    return run


GREEDY = ("--temperature", "0", "--seed", "1")


def test_ask(xcache, client):
    plain = xcache("ask", *GREEDY, "-n", "12", "hello", "there")
    wanted = client.chat(messages="hello there",
                         params=harness.params(max_tokens=12))
    assert plain.stdout == wanted.text + "\n"
    assert plain.stderr == ""
    answer = json.loads(xcache("ask", "--json", *GREEDY, "-n", "12",
                               "--logprobs", "1", "-",
                               stdin="hello there").stdout)
    assert answer["text"] == wanted.text
    assert answer["prompt_tokens"] == wanted.final.prompt_tokens
    assert len(answer["tokens"]) >= answer["generated_tokens"] - 1
    assert answer["reused_tokens"] + answer["prefilled_tokens"] == answer[
        "prompt_tokens"]


def test_sessions(xcache):
    first = xcache("chat", "--session", "cmd", "--title", "a title", *GREEDY,
                   "-n", "8", stdin="one\ntwo\n")
    assert first.stdout
    listed = json.loads(xcache("sessions", "list", "--json").stdout)
    mine = [s for s in listed["sessions"] if s["id"] == "cmd"][0]
    assert (mine["turn"], mine["title"]) == (2, "a title")
    shown = json.loads(xcache("sessions", "show", "cmd", "--json").stdout)
    assert [m["content"] for m in shown["messages"]
            if m["role"] == "user"] == ["one", "two"]
    fork = json.loads(xcache("sessions", "fork", "cmd", "cmd2", "--json").stdout)
    assert fork["turn"] == 2
    assert json.loads(xcache("sessions", "pin", "cmd2",
                             "--json").stdout)["pinned"] is True
    xcache("sessions", "unpin", "cmd2")
    xcache("sessions", "flush", "cmd2")
    last = json.loads(xcache("sessions", "fork", "cmd", "cmd3", "--keep-last",
                             "2", "--json").stdout)
    assert (last["num_messages"], last["turn"]) == (2, 1)
    named = json.loads(xcache("sessions", "set", "cmd3", "--title", "last",
                              "--ttl", "0", "--json").stdout)
    assert (named["title"], named["expire_time"]) == ("last", None)
    assert named["durability"] == "local" and not named["needs_migration"]
    xcache("sessions", "set", "cmd3", code=2)
    document = xcache("sessions", "export", "cmd3").stdout
    assert json.loads(document)["title"] == "last"
    xcache("sessions", "import", stdin=document, code=7)
    xcache("sessions", "rm", "cmd3")
    assert "imported cmd3: 2 messages" in xcache("sessions", "import",
                                                 stdin=document).stdout
    text = xcache("sessions", "export", "cmd3", "--text-only").stdout
    assert "tokenized anew" in xcache("sessions", "import", "--id", "cmd4", "-",
                                      stdin=text).stdout
    xcache("sessions", "import", stdin="{", code=2)
    moved = json.loads(xcache("sessions", "migrate", "cmd4", "--codec",
                              "kv-fp16", "--json").stdout)
    assert moved["session"]["codec"] == "kv-fp16"
    assert (moved["retokenized"], moved["messages_dropped"]) == (False, 0)
    xcache("sessions", "rm", "cmd3", "cmd4")
    assert "cmd2" in xcache("sessions", "list").stdout
    xcache("sessions", "rm", "cmd2")
    assert xcache("sessions", "show", "cmd2",
                  code=4).stderr.startswith("error: ")


def test_info_and_stats(xcache, client):
    client.chat(messages="hi")
    info = json.loads(xcache("info", "--json").stdout)
    assert info["architecture"] == "llama"
    assert "xquant-gqa" in xcache("info").stdout
    stats = json.loads(xcache("stats", "--once", "--json").stdout)
    assert stats["requests_total"] > 0 and stats["generated_tokens_total"] > 0
    text = xcache("stats", "--once").stdout
    assert re.search(r"^server .*ready$", text, re.M)
    assert re.search(r"^tokens +[\d,]+ in prompts", text, re.M)


@pytest.mark.parametrize("line, complete", [
    ("xcache ses", "sessions"), ("xcache sessions for", "fork"),
    ("xcache --address h:1 sessions li", "list"),
    ("xcache completion --ti", "--timeout"), ("xcache ask --max", None)])
def test_bash_completes(xcache, tmp_path, line, complete):
    script = tmp_path / "completion.bash"
    script.write_text(xcache("completion", "bash").stdout)
    words = line.split()
    found = subprocess.run(
        ["bash", "-c", f"""set -eu; source {script}
         COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
         _xcache xcache {words[-1]}; echo "${{COMPREPLY[@]}}" """],
        capture_output=True, text=True, check=True).stdout.split()
    if complete is None:
        assert found and all(w.startswith(words[-1]) for w in found), found
    else:
        assert found == [complete]


def test_errors(xcache):
    assert "context" in xcache("ask", "-", stdin="word " * 8000,
                               code=2).stderr
    assert json.loads(xcache("--json", "sessions", "show", "nobody",
                             code=4).stdout)["error"]["code"] == "NOT_FOUND"
    assert "no server" in xcache("-a", f"127.0.0.1:{harness.free_port()}",
                                 "info", code=3).stderr
    xcache("frobnicate", code=2)


def test_what_is_wrong_with_the_server_is_said(xcache, server, environment):
    # The server's other port.
    assert "--metrics-listen" in xcache("-a", server.metrics_address, "info",
                                        code=3).stderr
    assert "does not speak TLS" in xcache("--tls", "info", code=3).stderr
    environment["XCACHE_METRICS_ADDRESS"] = server.address
    assert "--metrics-address" in xcache("stats", "--once", code=3).stderr


def make_certificate(folder, name, *more):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
         f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"],
        check=True, capture_output=True)
    (folder / f"{name}.key").chmod(0o600)
    return folder / f"{name}.pem", folder / f"{name}.key"


def test_tls_that_does_not_fit_is_said(tiny_model, environment, tmp_path,
                                       xcache):
    cert, key = make_certificate(tmp_path, "server")
    other, _ = make_certificate(tmp_path, "other")
    mine, my_key = make_certificate(tmp_path, "client")
    with harness.Server(tiny_model, tmp_path, "--tls-cert", cert, "--tls-key",
                        key) as server:
        environment["XCACHE_ADDRESS"] = server.address
        assert "(a server with TLS needs --tls or --ca" in xcache(
            "info", code=3).stderr
        for untrusted in (["--tls"], ["--ca", str(other)]):
            assert "give its authority's file as --ca" in xcache(
                *untrusted, "info", code=3).stderr
        assert "--server-name" in xcache("--ca", str(cert), "--server-name",
                                         "example.org", "info", code=3).stderr
        assert "tiny" in xcache("--ca", str(cert), "info").stdout
    # Where clients must show a certificate, the command can.
    with harness.Server(tiny_model, tmp_path, "--tls-cert", cert, "--tls-key",
                        key, "--tls-client-ca", mine) as server:
        environment["XCACHE_ADDRESS"] = server.address
        assert "--cert and --key" in xcache("--ca", str(cert), "info",
                                            code=3).stderr
        xcache("--ca", str(cert), "--cert", str(mine), "--key", str(my_key),
               "info")


def test_a_full_context_says_how_to_go_on(xcache):
    xcache("chat", "--session", "full", *GREEDY, "-n", "4", stdin="hi\n")
    refused = xcache("chat", "--session", "full", "-n", "4",
                     stdin="word " * 8000 + "\n", code=2)
    assert "xcache sessions fork full" in refused.stderr
    cut = xcache("chat", "--session", "full", "--temperature", "1", "--seed",
                 "5", "-n", "100000", stdin="word " * 1200 + "\n")
    # The random model may end by itself, which is no fault.
    if "the context is full" in cut.stderr:
        assert "xcache sessions fork full" in cut.stderr
    fork = json.loads(xcache("sessions", "fork", "full", "full2", "-m", "2",
                             "--json").stdout)
    assert fork["num_messages"] == 2
    xcache("chat", "--session", "full2", "-n", "4", stdin="hi again\n")


class Terminal:
    """The command on a pseudo-terminal."""

    def __init__(self, words, environment):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(words[0], [str(w) for w in words], environment)
        self.seen = ""
        self.all = ""

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def expect(self, pattern, seconds=60):
        deadline = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.seen)
            if found:
                self.seen = self.seen[found.end():]
                return found
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.all!r}"
            if select.select([self.fd], [], [], left)[0]:
                try:
                    got = os.read(self.fd, 4096).decode(errors="replace")
                except OSError:
                    got = ""
                assert got, f"it ended without {pattern!r}: {self.all!r}"
                self.seen += got
                self.all += got

    def wait(self):
        while True:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


PROMPT = r"\x1b\[1m>\x1b\[0m "


def test_chat_on_a_terminal(slow_model, environment, tmp_path):
    with harness.Server(slow_model, tmp_path) as server:
        environment["XCACHE_ADDRESS"] = server.address
        terminal = Terminal([harness.COMMAND, "chat", "--session", "tty", "-n",
                             "4000", "--temperature", "1", "--seed", "3"],
                            environment)
        terminal.expect("new session tty")
        # Ctrl-C while an answer is written: it ends, the chat does not. The
        # model is random and may end its answer by itself, so try a few.
        for attempt in range(10):
            terminal.expect(PROMPT)
            terminal.type(f"go on {attempt}\n")
            time.sleep(0.4)
            terminal.type("\x03")
            if terminal.expect("(cancelled; the session stays at turn "
                               "|Ctrl-C again)")[1].startswith("cancelled;"):
                break
        else:
            raise AssertionError("no answer was long enough to be cancelled")
        terminal.expect(PROMPT)
        terminal.type("/session\n")
        terminal.expect("tty: turn")
        terminal.expect(PROMPT)
        terminal.type("\x03")
        terminal.expect("Ctrl-C again")
        terminal.expect(PROMPT)
        terminal.type("\x03")
        terminal.expect("session kept: xcache chat --session tty")
        assert terminal.wait() == 0


def test_chat_goes_on_after_the_server_was_killed(tiny_model, environment,
                                                  tmp_path):
    port = harness.free_port()
    metrics = harness.free_port()
    flags = ["--listen", f"127.0.0.1:{port}", "--metrics-listen",
             f"127.0.0.1:{metrics}"]
    # The last of two equal flags would be an error: start it by hand.
    def start():
        ready = tmp_path / "ready"
        ready.unlink(missing_ok=True)
        process = subprocess.Popen(
            [harness.SERVER, "--model", tiny_model, *flags, "--store-dir",
             tmp_path / "store", "--ready-file", ready],
            stderr=subprocess.DEVNULL)
        harness.wait_until(ready.exists, 60, "the server")
        return process

    environment["XCACHE_ADDRESS"] = f"127.0.0.1:{port}"
    process = start()
    try:
        terminal = Terminal([harness.COMMAND, "--wait", "60", "chat",
                             "--session", "k", "-n", "8"], environment)
        terminal.expect(PROMPT)
        terminal.type("first\n")
        terminal.expect("first after")
        terminal.expect(PROMPT)
        process.kill()
        process.wait()
        terminal.type("second\n")
        terminal.expect("error: ")
        terminal.expect("waiting for a server")
        process = start()
        terminal.expect("the server is back; the session is at turn 1")
        terminal.expect(PROMPT)
        terminal.type("second\n")
        terminal.expect("first after")
        terminal.expect(PROMPT)
        terminal.type("/session\n")
        terminal.expect("k: turn 2")
        terminal.type("/quit\n")
        assert terminal.wait() == 0
    finally:
        process.kill()
        process.wait()
