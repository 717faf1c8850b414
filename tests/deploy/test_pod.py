"""What the manifests say is what programs do: the server starts with the
settings of each combination, its probes tell its states, the model's script
fetches, and Envoy keeps a session with its server."""

import contextlib
import json
import hashlib
import http.server
import os
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time

import grpc
import pytest
from xcache.v1 import inference_pb2
from xcache.v1 import sessions_pb2

import harness
import manifests


def make_certificate(folder):
    """An authority's certificate for `xcache`, in the folder of a secret: as
    the kubelet does it, all files change at once, by one symbolic link."""
    new = folder / f"..{time.time_ns()}"
    new.mkdir(parents=True)

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=new, check=True,
                       capture_output=True)

    key = [
        "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"
    ]
    authority = folder.parent / "authority"
    if not authority.exists():
        authority.mkdir()
        openssl("req", "-x509", *key, "-keyout", authority / "ca.key", "-out",
                authority / "ca.crt", "-days", "2", "-subj", "/CN=authority")
    openssl("req", *key, "-keyout", "tls.key", "-out", authority / "tls.csr",
            "-subj", "/CN=xcache", "-addext", "subjectAltName=DNS:xcache")
    openssl("x509", "-req", "-in", authority / "tls.csr", "-CA",
            authority / "ca.crt", "-CAkey", authority / "ca.key",
            "-CAcreateserial", "-copy_extensions", "copy", "-days", "2",
            "-out", "tls.crt")
    (new / "tls.key").chmod(0o440)
    shutil.copy(authority / "ca.crt", new)
    (folder / "..data_tmp").symlink_to(new.name)
    (folder / "..data_tmp").rename(folder / "..data")
    for path in new.iterdir():
        if not (folder / path.name).is_symlink():
            (folder / path.name).symlink_to(f"..data/{path.name}")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """/etc/xcache of a pod: the folders of the secrets."""
    folder = tmp_path_factory.mktemp("etc")
    make_certificate(folder / "tls")
    for path, text in (
            ("auth/tokens", "a-token-of-some-length-0123456789 tenant-1\n"),
            ("s3/credentials", "[default]\naws_access_key_id = somebody\n"
                               "aws_secret_access_key = a-secret\n")):
        (folder / path).parent.mkdir()
        (folder / path).write_text(text)
        (folder / path).chmod(0o440)
    return folder


def environment(resources, model, secrets, folder):
    """The settings, with this machine's paths and ports."""
    settings = dict(resources.config_map("xcache-settings"))
    settings = {name: value.replace("/etc/xcache", str(secrets))
                for name, value in settings.items()}
    return {**settings, "XCACHE_MODEL": str(model),
            "XCACHE_STORE_DIR": str(folder / "store"),
            "XCACHE_LISTEN": re.sub(r":\d+$", ":0", settings["XCACHE_LISTEN"]),
            "XCACHE_HTTP_LISTEN": re.sub(r":\d+$", ":0",
                                         settings["XCACHE_HTTP_LISTEN"]),
            "XCACHE_METRICS_LISTEN": "127.0.0.1:0",
            # A test's folder has too long a name for a socket.
            "XCACHE_OPERATOR_SOCKET": "none",
            "XCACHE_READY_FILE": str(folder / "ready.json")}


@contextlib.contextmanager
def server(resources, model, secrets, folder):
    """The pod's program in its environment; (port, process, file of the
    log)."""
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    _, container = resources.server()
    program, = container["command"]
    process = subprocess.Popen(
        [harness.BUILD / "bin" / program], stderr=open(log, "wb"),
        env={"PATH": os.environ["PATH"],
             **environment(resources, model, secrets, folder)})
    try:
        harness.wait_until(lambda: (folder / "ready.json").exists() or
                           process.poll() is not None, 60, "the server")
        assert process.poll() is None, log.read_text()
        address = manifests.yaml.safe_load(
            (folder / "ready.json").read_text())["listen"]
        yield address.rpartition(":")[2], process, log
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "components",
    [c for c in [(), *manifests.combinations()] if "gpu" not in c],
    ids=lambda names: "+".join(names) or "base")
def test_the_server_takes_the_settings(render, tiny_model, secrets, tmp_path,
                                       components):
    with server(render(*components), tiny_model, secrets, tmp_path) as (
            _, process, log):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    # Nor does it warn, of a setting that it does not know for one.
    told = [json.loads(line) for line in log.open()]
    assert "serving" in [line["event"] for line in told]
    # No bucket is within reach here, which is another test's matter.
    away = ({"store away", "shared pages not swept"}
            if "shared-s3" in components else set())
    warnings = [line for line in told
                if line["level"] in ("warning", "error", "critical") and
                line["event"] not in away]
    assert not warnings, warnings


def test_a_gpu_that_is_missing_is_an_error(render, tiny_model, secrets,
                                           tmp_path):
    """Not a server on the CPU, thought to be on the GPU."""
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(AssertionError, match="(?i)cuda"):
        with server(render("gpu"), tiny_model, secrets, tmp_path):
            pass


def secure_channel(port, ca):
    return grpc.secure_channel(
        f"localhost:{port}", grpc.ssl_channel_credentials(ca.read_bytes()),
        [("grpc.ssl_target_name_override", "xcache"),
         ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)])


def run_probe(probe, secrets, port):
    words = [word.replace("/etc/xcache", str(secrets))
             .replace("localhost:50051", f"localhost:{port}")
             for word in probe["exec"]["command"]]
    path = f"{harness.BUILD / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(words, env={"PATH": path}, capture_output=True,
                          timeout=probe["timeoutSeconds"]).returncode


@pytest.mark.parametrize("components", [("tls",), ("tls", "auth")],
                         ids=lambda names: "+".join(names))
def test_the_probe_over_tls_tells_the_states(render, slow_model, secrets,
                                             tmp_path, components):
    resources = render(*components)
    _, container = resources.server()
    probe = container["readinessProbe"]
    assert probe["exec"] == container["startupProbe"]["exec"]
    with server(resources, slow_model, secrets,
                tmp_path) as (port, process, _):
        assert run_probe(probe, secrets, port) == 0
        # Another authority's server is not ours.
        elsewhere = tmp_path / "etc"
        make_certificate(elsewhere / "tls")
        assert run_probe(probe, elsewhere, port) != 0
        # It drains: a turn holds it up.
        with secure_channel(port, secrets / "tls/ca.crt") as channel:
            turn = harness.inference_pb2_grpc.InferenceStub(channel).Generate(
                inference_pb2.GenerateRequest(
                    text="on and on", params=harness.params(
                        max_tokens=8000, ignore_eos=True)),
                metadata=[("authorization",
                           "Bearer a-token-of-some-length-0123456789")])
            next(iter(turn))
            process.send_signal(signal.SIGTERM)
            harness.wait_until(
                lambda: run_probe(probe, secrets, port) != 0, 10, "the drain")
            assert process.poll() is None
            turn.cancel()
        assert process.wait(timeout=30) == 0
        assert run_probe(probe, secrets, port) != 0


@pytest.fixture
def web(tmp_path):
    """A web server with a model, that counts what it is asked for."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web/model.gguf").write_bytes(os.urandom(1 << 16))

    class Handler(http.server.SimpleHTTPRequestHandler):
        asked = []

        def __init__(self, *words):
            super().__init__(*words, directory=tmp_path / "web")

        def log_message(self, *_):
            Handler.asked.append(self.path)

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    yield site, tmp_path / "web/model.gguf", Handler.asked
    site.shutdown()
    thread.join()
    site.server_close()


def test_the_model_is_fetched_once_and_checked(render, web, tmp_path):
    site, source, asked = web
    script = render("model-download").config_map(
        "xcache-model-fetch")["fetch.sh"]
    (tmp_path / "fetch.sh").write_text(script)
    place = tmp_path / "models"
    place.mkdir()

    def fetch(sha256):
        return subprocess.run(
            ["sh", tmp_path / "fetch.sh"], capture_output=True, text=True,
            env={"PATH": os.environ["PATH"], "MODEL_DIR": str(place),
                 "no_proxy": "*", "MODEL_SHA256": sha256, "MODEL_URL":
                 f"http://127.0.0.1:{site.server_address[1]}/model.gguf"})

    good = hashlib.sha256(source.read_bytes()).hexdigest()
    failed = fetch("0" * 64)
    assert failed.returncode == 1
    assert f"expected SHA-256 {'0' * 64}, found {good}" in failed.stderr
    assert not list(place.iterdir())
    # What an interrupted try left is rubbish, here.
    (place / "model.gguf.part").write_bytes(b"rubbish")
    assert fetch(good).returncode == 1
    assert not list(place.iterdir())
    assert fetch(good).returncode == 0
    assert (place / "model.gguf").read_bytes() == source.read_bytes()
    before = len(asked)
    assert fetch(good).returncode == 0
    assert len(asked) == before
    # One that changed on disk is got again.
    (place / "model.gguf").write_bytes(b"rubbish")
    assert fetch(good).returncode == 0
    assert [p.name for p in place.iterdir()] == ["model.gguf"]


@contextlib.contextmanager
def envoy(resources, secrets, folder, ports):
    """Envoy with the config of `resources`, before servers at these ports of
    127.0.0.1; its own port."""
    own, admin, status = (harness.free_port() for _ in range(3))
    etc = folder / "envoy"
    etc.mkdir()
    endpoint = (
        "- endpoint:\n            address:\n              socket_address: "
        "{address: xcache-replicas, port_value: 50051}")
    for name, text in resources.config_map("xcache-envoy").items():
        if name == "config.yaml":
            assert text.count(endpoint) == 1
            at = "\n        ".join(
                endpoint.replace("xcache-replicas", "127.0.0.1")
                .replace("50051", port) for port in ports)
            text = (text.replace(endpoint, at)
                    .replace("0.0.0.0, port_value: 50051",
                             f"127.0.0.1, port_value: {own}")
                    .replace("0.0.0.0, port_value: 9902",
                             f"127.0.0.1, port_value: {status}")
                    .replace("port_value: 9901", f"port_value: {admin}"))
        (etc / name).write_text(text.replace("/etc/envoy", str(etc))
                                .replace("/etc/xcache", str(secrets)))
    container = resources.one(
        "Deployment",
        "xcache-envoy")["spec"]["template"]["spec"]["containers"][0]
    words = container["command"] + [
        word.replace("/etc/envoy", str(etc)) for word in container["args"]]
    process = subprocess.Popen(words, stderr=open(folder / "envoy.log", "wb"))

    def ready():
        assert process.poll() is None, (folder / "envoy.log").read_text()
        try:
            url = f"http://127.0.0.1:{status}/ready"
            return harness.NO_PROXY.open(url, timeout=2).status == 200
        except OSError:
            return False

    try:
        harness.wait_until(ready, 30, "Envoy")
        yield own, status
        log = (folder / "envoy.log").read_text()
        assert not re.search(r"\[(warning|error|critical)\]", log), log
        # Nothing but this of its administration.
        with pytest.raises(harness.urllib.request.HTTPError, match="404"):
            harness.NO_PROXY.open(
                f"http://127.0.0.1:{status}/config_dump", timeout=2)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("components", [("envoy", ),
                                        ("tls", "envoy", "envoy-tls")],
                         ids=lambda names: "+".join(names))
def test_a_session_stays_with_its_server(render, tiny_model, secrets, tmp_path,
                                         components):
    resources = render(*components)
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(server(resources, tiny_model, secrets,
                                            tmp_path / name))[0]
                 for name in ("a", "b", "c")]
        port, status = stack.enter_context(
            envoy(resources, secrets, tmp_path, ports))
        ca = secrets / "tls/ca.crt"
        secure = "tls" in components

        def channel(to):
            return secure_channel(to, ca) if secure else grpc.insecure_channel(
                f"127.0.0.1:{to}", [("grpc.enable_http_proxy", 0)])

        sessions = harness.sessions_pb2_grpc.SessionsStub(channel(port))
        inference = harness.inference_pb2_grpc.InferenceStub(channel(port))
        names = [f"session-{i}" for i in range(60)]
        # A ring of fewer, until the health checks have found all three, is
        # another ring.
        harness.wait_until(lambda: healthy(status) == 3, 20, "three servers")
        for name in names:
            sessions.CreateSession(
                sessions_pb2.CreateSessionRequest(id=name),
                metadata=[("x-session-id", name)])
        for name in names:
            answer = harness.Answer(inference.Chat(
                inference_pb2.ChatRequest(
                    session_id=name, messages=[harness.user("hello")],
                    params=harness.params(max_tokens=2)),
                metadata=[("x-session-id", name)]))
            assert answer.final.turn == 1
        held = [sum(1 for _ in harness.sessions_pb2_grpc.SessionsStub(
            channel(to)).ListSessions(sessions_pb2.ListSessionsRequest(
                page_size=100)).sessions) for to in ports]
        assert sum(held) == len(names)
        assert min(held) >= 5, held
        if secure:
            # A new certificate reaches new connections, without a restart.
            before = certificate(port)
            make_certificate(secrets / "tls")
            harness.wait_until(lambda: certificate(port) != before, 20,
                               "Envoy's new certificate")
            harness.wait_until(
                lambda: certificate(ports[0]) == certificate(port), 20,
                "the server's new certificate")
            harness.wait_until(lambda: healthy(status) == 3, 20, "the servers")
            harness.sessions_pb2_grpc.SessionsStub(channel(port)).ListSessions(
                sessions_pb2.ListSessionsRequest(), timeout=10)


def healthy(status):
    """Servers that Envoy sends calls to."""
    url = f"http://127.0.0.1:{status}/stats/prometheus"
    page = harness.NO_PROXY.open(url, timeout=5).read().decode()
    return int(
        re.search(
            r"^envoy_cluster_membership_healthy\{"
            r'envoy_cluster_name="xcache"\} (\d+)', page, re.M)[1])


def certificate(port):
    return ssl.get_server_certificate(("127.0.0.1", int(port)))
