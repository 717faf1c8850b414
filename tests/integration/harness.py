"""A server under test, its stubs and its metrics. No tests here."""

import collections
import contextlib
import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import time
import urllib.request

import grpc
from xcache.v1 import common_pb2
from xcache.v1 import inference_pb2
from xcache.v1 import inference_pb2_grpc
from xcache.v1 import sessions_pb2_grpc

BUILD = pathlib.Path(os.environ["XCACHE_BUILD"])
SOURCE = pathlib.Path(os.environ["XCACHE_SOURCE_DIR"])
SERVER = BUILD / "bin/xcache-server"
COMMAND = BUILD / "bin/xcache"
START_SECONDS = 300
# How long a campaign is. Taken out of the environment: a server refuses what it
# does not know.
CAMPAIGN = {name: os.environ.pop(name) for name in list(os.environ)
            if re.fullmatch(r"XCACHE_(SCHEMAS|\w+_(SECONDS|ROUNDS|EVENTS))", name)}
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

METHODS = {
    "Inference": ["Chat", "Generate", "Tokenize", "Detokenize", "Score",
                  "GetModelInfo"],
    "Sessions": ["CreateSession", "GetSession", "ListSessions",
                 "DeleteSession", "ForkSession", "MigrateSession",
                 "ExportSession", "ImportSession", "UpdateSession",
                 "PinSession", "UnpinSession", "FlushSession"],
}


def user(text):
    return common_pb2.Message(role=common_pb2.ROLE_USER, content=text)


def system(text):
    return common_pb2.Message(role=common_pb2.ROLE_SYSTEM, content=text)


def params(max_tokens=16, temperature=0.0, seed=1, **more):
    out = inference_pb2.GenerationParams(max_tokens=max_tokens, **more)
    out.sampling.temperature = temperature
    out.sampling.seed = seed
    return out


class Answer:
    """A whole stream of Chat or Generate."""

    def __init__(self, responses):
        self.deltas = []
        self.tokens = []
        self.final = None
        for response in responses:
            if response.delta:
                self.deltas.append(response.delta)
            self.tokens.extend(response.logprobs)
            if response.HasField("final"):
                assert self.final is None, "two final messages"
                self.final = response.final
        assert self.final is not None, "no final message"
        self.text = "".join(self.deltas)

    @property
    def bits(self):
        """Token ids with the exact log-probabilities."""
        return [(t.token_id, t.logprob) for t in self.tokens]

    @property
    def reused(self):
        r = self.final.reused
        return r.device + r.host + r.disk + r.remote


class Metrics:
    """One scrape of a metrics page."""

    LINE = re.compile(r'^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$')
    LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

    def __init__(self, text):
        self.samples = collections.defaultdict(list)
        for line in text.splitlines():
            if not line or line.startswith("#"):
                continue
            match = self.LINE.match(line)
            assert match, f"not a sample: {line!r}"
            labels = dict(self.LABEL.findall(match[2] or ""))
            self.samples[match[1]].append((labels, float(match[3])))

    def sum(self, name, **labels):
        """Over all samples that have these labels. The metric must exist."""
        assert name in self.samples, f"no metric {name}"
        return sum(value for have, value in self.samples[name]
                   if all(have.get(k) == v for k, v in labels.items()))

    def requests(self):
        """How often each (method, code) occurred."""
        return collections.Counter({
            (labels["method"], labels["code"]): int(value)
            for labels, value in self.samples["xcache_requests_total"]})

    def corrupt_pages(self):
        return (self.sum("xcache_corrupt_pages_total") +
                self.sum("xcache_tier_corrupt_pages_total") +
                self.sum("xcache_pages_set_aside_total"))


def campaign(name, usual):
    """XCACHE_<name> of the environment, or what every run takes."""
    return float(CAMPAIGN.get(f"XCACHE_{name}") or usual)


def sanitized():
    """Whether the build has sanitizers: what it takes, in memory and in flags,
    is not what users get."""
    cache = (BUILD / "CMakeCache.txt").read_text()
    return re.search(r"^XCACHE_SANITIZE:\w+=.+$", cache, re.M) is not None


class StartError(Exception):

    def __init__(self, code, log):
        super().__init__(f"exit code {code}\n{log}")
        self.code = code
        self.log = log


class Server:
    """An xcache-server process. Use as a context manager."""

    def __init__(self, model, folder, *flags, store="store", env=None,
                 tls_ca=None, wait=True, descriptors=None, restore="always"):
        self.folder = pathlib.Path(folder)
        self.ready_file = self.folder / "ready.json"
        self.log_file = self.folder / "server.log"
        self.ready_file.unlink(missing_ok=True)
        self.tls_ca = tls_ca
        words = [str(SERVER), "--model", str(model), "--ready-file",
                 str(self.ready_file)]
        if store is not None:
            store = self.folder / store
        words += ["--store-dir", str(store) if store is not None else "none"]
        # What is faster is not for a test to depend on.
        words += ["--restore", restore]
        for flag in ("--listen", "--metrics-listen"):
            if flag not in flags:
                words += [flag, "127.0.0.1:0"]
        words += [str(flag) for flag in flags]
        self.log_start = (self.log_file.stat().st_size
                          if self.log_file.exists() else 0)
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=open(self.log_file, "ab"), cwd=self.folder,
            env={**os.environ, "HOME": str(self.folder), **(env or {})},
            # (soft, hard)
            preexec_fn=None if descriptors is None else lambda: (
                resource.setrlimit(resource.RLIMIT_NOFILE, descriptors)))
        self.channels = []
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close_channels()
        self.kill()

    def log(self):
        with open(self.log_file, "rb") as f:
            f.seek(self.log_start)
            return f.read().decode(errors="replace")

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while not self.ready_file.exists():
            if self.process.poll() is not None:
                raise StartError(self.process.returncode, self.log())
            assert time.monotonic() < deadline, "not ready:\n" + self.log()
            time.sleep(0.005)
        ready = json.loads(self.ready_file.read_text())
        self.address = ready["listen"]
        self.metrics_address = ready["metrics"]
        self.http_address = ready["http"]
        assert ready["pid"] == self.process.pid

    def channel(self, token=None):
        # A connection of its own: a test's channel must not share the backoff
        # of another test's. And no proxy: the server is on this machine.
        options = [("grpc.use_local_subchannel_pool", 1),
                   ("grpc.enable_http_proxy", 0)]
        if self.tls_ca is not None:
            credentials = grpc.ssl_channel_credentials(self.tls_ca)
            if token is not None:
                credentials = grpc.composite_channel_credentials(
                    credentials, grpc.access_token_call_credentials(token))
            channel = grpc.secure_channel(self.address, credentials, options)
        else:
            channel = grpc.insecure_channel(self.address, options)
            if token is not None:
                channel = grpc.intercept_channel(channel, BearerToken(token))
        self.channels.append(channel)
        return channel

    def client(self, token=None):
        return Client(self.channel(token))

    def close_channels(self):
        for channel in self.channels:
            channel.close()
        self.channels = []

    def metrics(self):
        with NO_PROXY.open(
                f"http://{self.metrics_address}/metrics", timeout=20) as page:
            return Metrics(page.read().decode())

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) << 10

    def kill(self):
        """kill -9, and waits."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self, code=0):
        """SIGTERM; the server must end by itself with this exit code."""
        self.close_channels()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == code, self.log()


class Client:
    """Both stubs on a channel, and whole answers."""

    def __init__(self, channel):
        self.channel = channel
        self.inference = inference_pb2_grpc.InferenceStub(channel)
        self.sessions = sessions_pb2_grpc.SessionsStub(channel)

    def chat(self, session_id="", messages=(), timeout=120, **more):
        more.setdefault("params", params())
        if isinstance(messages, str):
            messages = [user(messages)]
        return Answer(self.inference.Chat(
            inference_pb2.ChatRequest(session_id=session_id,
                                      messages=messages, **more),
            timeout=timeout))

    def count_tokens(self, messages, add_generation_prompt=True):
        return len(self.inference.Tokenize(inference_pb2.TokenizeRequest(
            messages=inference_pb2.Messages(
                messages=messages,
                add_generation_prompt=add_generation_prompt))).token_ids)


class BearerToken(grpc.UnaryUnaryClientInterceptor,
             grpc.UnaryStreamClientInterceptor):
    """Adds the bearer token, as a plaintext client does it."""

    def __init__(self, token):
        self.header = ("authorization", f"Bearer {token}")

    def _details(self, details):
        return details._replace(
            metadata=list(details.metadata or []) + [self.header])

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(self._details(details), request)

    def intercept_unary_stream(self, continuation, details, request):
        return continuation(self._details(details), request)


@contextlib.contextmanager
def fails_with(code, *texts):
    """The call in the block must end with this code and these words."""
    caught = FailedCall()
    try:
        yield caught
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()}: {error.details()}"
        for text in texts:
            assert text in error.details(), error.details()
        caught.error = error
    else:
        raise AssertionError(f"the call succeeded; expected {code}")


class FailedCall:
    error = None

    def trailer(self, name):
        for key, value in self.error.trailing_metadata() or ():
            if key == name:
                return value
        return None


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(condition, seconds=20, what="condition"):
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
