"""deploy/Dockerfile and the systemd unit. No engine for images runs here, so
what an image rests on is tested: that the packages of the section "run" are
those that the programs need, and that the server serves in a root with nothing
but them."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess

import grpc
import pytest
from xcache.v1 import sessions_pb2

import harness
import manifests

DOCKERFILE = (manifests.DEPLOY / "Dockerfile").read_text()
UNIT = manifests.DEPLOY / "systemd/xcache.service"
PROGRAMS = [harness.SERVER, harness.COMMAND]
# Not for a library: the authorities that `xcache --tls` trusts.
NOT_LINKED = {"ca-certificates"}


def run(*words, **more):
    done = subprocess.run([str(w) for w in words],
                          capture_output=True,
                          text=True,
                          **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def section(name):
    text = (manifests.DEPLOY / "packages.txt").read_text()
    lines = re.findall(rf"^{name}: *(.*)$", text, re.M)
    return [package for line in lines for package in line.split()]


def needed_directly(program):
    return set(
        re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", program)))


def libraries(program):
    """Name -> file, of all that the loader loads for it."""
    found = re.findall(r"^\s*(\S+) => (\S+)", run("ldd", program), re.M)
    assert "not" not in [path for _, path in found], found
    return dict(found)


def packages_of(paths):
    """The installed packages of files. Debian's merged /usr has two names for
    some, and its list knows one of them."""
    names = {}
    for path in paths:
        real = os.path.realpath(path)
        for name in (path, real, real.removeprefix("/usr"), "/usr" + real):
            names[name] = path
    out = subprocess.run(["dpkg", "-S", *names], capture_output=True,
                         text=True).stdout
    found = {names[name]: package.partition(":")[0] for package, name in
             (line.split(": ") for line in out.splitlines())}
    assert set(found) == set(paths), set(paths) - set(found)
    return set(found.values())


def closure(packages):
    """These and all that they depend on, as installed here."""
    out = run("dpkg-query", "-W", "-f",
              "${Package}\t${Provides}\t${Pre-Depends}, ${Depends}\n")
    depends, provides = {}, {}
    for line in out.splitlines():
        name, provided, wanted = line.split("\t")
        depends[name] = [
            [re.match(r"[^ :(]+", choice.strip())[0]
             for choice in one.split("|")]
            for one in wanted.split(",") if one.strip()]
        for other in provided.split(","):
            provides.setdefault(other.split("(")[0].strip(), name)
    known, todo = set(), list(packages)
    while todo:
        package = todo.pop()
        package = package if package in depends else provides.get(package)
        if package is None or package in known:
            continue
        known.add(package)
        for choices in depends[package]:
            todo += [c for c in choices if c in depends or c in provides][:1]
    return known


@pytest.mark.skipif(harness.sanitized(), reason="a build with sanitizers")
def test_the_run_packages_are_what_the_programs_link():
    linked, everything = set(), set()
    for program in PROGRAMS:
        paths = libraries(program)
        everything |= set(paths.values())
        # The loader itself is named by its path, and of libc's package.
        linked |= {paths[name] for name in needed_directly(program)
                   if not name.startswith("ld-linux")}
    assert packages_of(linked) == set(section("run")) - NOT_LINKED
    # And what these load is of packages that they depend on.
    assert packages_of(everything) <= closure(section("run"))


def test_the_dockerfile_copies_what_there_is():
    ignored = (manifests.DEPLOY / "Dockerfile.dockerignore").read_text()
    kept = re.findall(r"^!(\S+)$", ignored, re.M)
    for name in kept:
        assert (harness.SOURCE / name).exists(), name
    for words in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M):
        for source in words.split()[:-1]:
            assert source == "." or source in kept, source
            assert (harness.SOURCE / source).exists(), source
    # What the build reads of the root of the tree.
    cmake = (harness.SOURCE / "CMakeLists.txt").read_text()
    for folder in re.findall(r"add_subdirectory\((\w+)", cmake):
        assert folder in kept, folder
    installed = re.search(r"install\(FILES (.*) DESTINATION", cmake)[1].split()
    assert set(installed) <= set(kept)
    # Each section that is installed exists.
    for name in re.findall(r"^RUN \S*install_packages.sh (\w+)", DOCKERFILE,
                           re.M):
        assert section(name), name


def test_the_image_and_the_manifests_agree(render):
    pod, container = render().server()
    user = pod["securityContext"]
    # However each of the images came about, whose it is in the end.
    for stage in ("cpu", "cuda"):
        text = re.search(rf"^FROM \S+ AS {stage}$(.*?)^FROM ", DOCKERFILE,
                         re.M | re.S)[1]
        assert re.findall(r"^USER (\S+)$", text, re.M)[-1] == (
            f"{user['runAsUser']}:{user['runAsGroup']}")
    entry = re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[1]
    assert json.loads(entry) == container["command"]
    ports = {str(p["containerPort"]) for p in container["ports"]}
    exposed = re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.M)[1]
    assert set(exposed.split()) == ports
    # The version of the label, and of the tags that the comment shows.
    version = container["image"].partition(":")[2]
    assert re.search(r"^ARG VERSION=(.*)$", DOCKERFILE, re.M)[1] == version
    assert set(re.findall(r"-t xcache:([\d.]+)", DOCKERFILE)) == {version}
    # One probe over the command, in both.
    health = re.search(r"CMD (xcache .*)$", DOCKERFILE, re.M)[1]
    _, secure = render("tls").server()
    end = "info >/dev/null; case $? in 0|5) ;; *) exit 1;; esac"
    assert health.endswith(end)
    assert secure["readinessProbe"]["exec"]["command"][-1].endswith(end)


def test_checkov_finds_nothing_in_the_dockerfile():
    done = subprocess.run(
        ["checkov", "--file", manifests.DEPLOY / "Dockerfile", "--framework",
         "dockerfile", "--skip-download", "--output", "json"],
        capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert not report["results"]["failed_checks"], done.stdout
    assert len(report["results"]["passed_checks"]) >= 10
    assert len(report["results"]["skipped_checks"]) == 1


@pytest.fixture
def root(tmp_path):
    """A root with the files of the run packages, of what these depend on, and
    of what the probes and hooks run; and the programs, where the image has
    them."""
    if os.geteuid() != 0:
        pytest.skip("chroot is for root")
    root = tmp_path / "root"
    for folder in ("usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "tmp",
                   "models", "usr/local/bin", "var/lib/xcache"):
        (root / folder).mkdir(parents=True)
    for link in ("bin", "lib", "lib64", "sbin"):
        (root / link).symlink_to(f"usr/{link}")
    packages = closure(section("run") + ["coreutils", "dash"])
    architecture = run("dpkg", "--print-architecture").strip()
    for package in packages:
        listed = subprocess.run(["dpkg", "-L", f"{package}:{architecture}"],
                                capture_output=True, text=True).stdout
        listed = listed or run("dpkg", "-L", package)
        for name in listed.splitlines():
            source = pathlib.Path(name)
            target = root / name.lstrip("/")
            if re.match(r"/usr/share/(?!zoneinfo)", name) or (
                    os.path.lexists(target)):
                continue
            if source.is_symlink() or source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
    for program in PROGRAMS:
        shutil.copy2(program, root / "usr/local/bin")
    (root / "dev").mkdir()
    os.mknod(root / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "dev/null").chmod(0o666)
    user = re.search(r"^USER (\d+):", DOCKERFILE, re.M)[1]
    os.chown(root / "var/lib/xcache", int(user), int(user))
    return root


@pytest.mark.skipif(harness.sanitized(), reason="a build with sanitizers")
def test_the_server_serves_in_a_root_of_run_packages(root, render, tiny_model):
    pod, container = render().server()
    shutil.copy2(tiny_model, root / "models/model.gguf")
    (root / "models/model.gguf").chmod(0o444)
    settings = {**render().config_map("xcache-settings"),
                "PATH": "/usr/local/bin:/bin",
                "XCACHE_LISTEN": "127.0.0.1:0",
                "XCACHE_METRICS_LISTEN": "none",
                "XCACHE_READY_FILE": "/var/lib/xcache/ready.json"}
    user = pod["securityContext"]["runAsUser"]
    inside = [
        "chroot", f"--userspec={user}:{user}", root, "/usr/bin/env", "-i",
        *(f"{k}={v}" for k, v in settings.items())
    ]
    ready = root / "var/lib/xcache/ready.json"

    def start(stack):
        process = subprocess.Popen(inside + container["command"],
                                   stderr=open(root.parent / "log", "wb"))
        stack.callback(process.wait)
        stack.callback(process.kill)
        harness.wait_until(
            lambda: ready.exists() or process.poll() is not None, 60,
            "the server")
        assert process.poll() is None, (root.parent / "log").read_text()
        address = json.loads(ready.read_text())["listen"]
        channel = stack.enter_context(grpc.insecure_channel(
            address, [("grpc.enable_http_proxy", 0),
                      ("grpc.use_local_subchannel_pool", 1)]))
        return process, address, harness.Client(channel)

    def healthy(address):
        """What the image's probe says, by the same user in the same root."""
        health = re.search(r"CMD (xcache .*)$", DOCKERFILE, re.M)[1]
        health = health.replace("xcache", f"xcache --address {address}", 1)
        return subprocess.run(inside + ["sh", "-c", health],
                              capture_output=True).returncode == 0

    with contextlib.ExitStack() as stack:
        process, address, client = start(stack)
        client.sessions.CreateSession(
            sessions_pb2.CreateSessionRequest(id="s"))
        assert client.chat("s", "hello").final.turn == 1
        assert healthy(address)
        # The hook of the pod's end; and nothing is written elsewhere.
        assert subprocess.run(inside + ["sleep", "0"]).returncode == 0
        assert subprocess.run(inside + ["touch", "/models/x"],
                              capture_output=True).returncode != 0
        # kill -9, and the conversation goes on.
        process.kill()
        process.wait()
        assert not healthy(address)
        ready.unlink()
        process, address, client = start(stack)
        assert client.chat("s", "go on").final.turn == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_the_unit_is_right(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.fail("Debian's package systemd is not installed")
    text = UNIT.read_text()
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/usr/local/bin/xcache-server",
                                 str(harness.SERVER)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit],
                          capture_output=True, text=True)
    about_us = [line for line in done.stderr.splitlines() if unit.name in line]
    assert done.returncode == 0 and not about_us, done.stderr
    # 0 is closed to all, 10 open; few services of Debian are under 5.
    run("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit)
    keys = dict(re.findall(r"^(\w+)=(.*)$", text, re.M))
    defaults = subprocess.run([harness.SERVER, "--help"], capture_output=True,
                              text=True, check=True).stdout
    drain = int(re.search(r"--drain-seconds \w+=(\d+)s ", defaults)[1])
    source = (harness.SOURCE / "server/server_app.cc").read_text()
    last_words = int(re.search(r"kLastWords\((\d+)\)", source)[1])
    assert int(keys["TimeoutStopSec"]) >= drain + last_words + 10
    assert int(keys["LimitNOFILE"]) >= 704 + 1024
    assert "MemoryDenyWriteExecute" not in keys
