"""Headless Chromium, driven by its DevTools protocol over a pair of pipes."""

import base64
import fcntl
import json
import os
import subprocess

import harness


class Browser:
    """One page. Use as a context manager."""

    def __init__(self, folder, width=1280, height=800):
        self.events = []
        self.number = 0
        self.rest = b""
        read, theirs_out = os.pipe()
        theirs_in, write = os.pipe()
        # Chromium has them as 3 and 4, which must not be in use meanwhile.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10)
                  for fd in (theirs_in, theirs_out)]
        os.close(theirs_in)
        os.close(theirs_out)
        self.read, self.write = open(read, "rb", 0), open(write, "wb", 0)
        self.process = subprocess.Popen(
            ["bash", "-c", 'exec "$0" "$@" 3<&%d 4>&%d' % tuple(theirs),
             "chromium", "--headless=new", "--remote-debugging-pipe",
             # Tests run as root, in containers with a small /dev/shm, and speak
             # to this machine alone.
             "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server",
             "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", f"--user-data-dir={folder}/profile",
             f"--window-size={width},{height}", "about:blank"],
            pass_fds=theirs, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=open(f"{folder}/chromium.log", "w"),
            env={**os.environ, "HOME": str(folder)}, start_new_session=True)
        for fd in theirs:
            os.close(fd)
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target,
                                 flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.read.close()
        self.write.close()

    def call(self, method, **params):
        """A command's result; what comes before it is kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.write.write(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                piece = self.read.read(1 << 20)
                assert piece, f"the browser has ended ({self.process.poll()})"
                self.rest += piece
            line, self.rest = self.rest.split(b"\0", 1)
            message = json.loads(line)
            if message.get("id") == self.number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self.events.append(message)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && "
                   f"location.href.startsWith({json.dumps(url)})")

    def run(self, script):
        """The value of a script, which may be a promise."""
        out = self.call("Runtime.evaluate", expression=script,
                        returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in out, (script, out["exceptionDetails"])
        return out["result"].get("value")

    def until(self, script, seconds=60):
        try:
            return harness.wait_until(lambda: self.run(script), seconds, script)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n{self.run('document.body.innerText')}") from None

    def type(self, selector, text):
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def press_enter(self):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter",
                      code="Enter", windowsVirtualKeyCode=13, text="\r")

    def click(self, selector):
        """With the mouse, where the element is."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'});"
            "const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y,
                      button="left", clickCount=1)

    def named(self, roles):
        """(role, name) of what a screen reader finds of these roles."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [(node["role"]["value"], node["name"]["value"]) for node in nodes
                if not node["ignored"] and node["role"]["value"] in roles]

    def complaints(self):
        """What the console has said of errors and of what was not allowed."""
        self.run("0")
        said = [e["params"]["entry"]["text"] for e in self.events
                if e["method"] == "Log.entryAdded"]
        said += [str(e["params"]["exceptionDetails"]) for e in self.events
                 if e["method"] == "Runtime.exceptionThrown"]
        return said

    def asked_for(self):
        """The addresses of all requests."""
        return [e["params"]["request"]["url"] for e in self.events
                if e["method"] == "Network.requestWillBeSent"]

    def picture(self):
        return base64.b64decode(
            self.call("Page.captureScreenshot", format="png")["data"])
