"""README's examples, as they stand there: the package is installed and found,
the programs built and run against a server."""

import os
import re
import subprocess
import sys

import pytest

import harness

README = (harness.SOURCE / "README.md").read_text()


def example(language):
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)
    assert len(blocks) == 1, f"README has {len(blocks)} examples in {language}"
    return blocks[0]


def at(address, code):
    """The example with the address of the server under test."""
    assert code.count("127.0.0.1:50051") == 1
    return code.replace("127.0.0.1:50051", address)


def run(*words, **more):
    done = subprocess.run([str(w) for w in words], capture_output=True,
                          text=True, timeout=1800, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", harness.BUILD, "--prefix", folder)
    return folder


def test_the_installed_programs_run(prefix):
    version = run(prefix / "bin/xcache", "--version").split()[1]
    assert run(prefix / "bin/xcache-server", "--version").split()[1] == version
    assert list(prefix.glob("share/doc/xcache/LICENSE"))
    assert list(prefix.glob("share/xcache/proto/xcache/v1/*.proto"))


@pytest.mark.skipif(harness.sanitized(), reason="a build with sanitizers")
def test_the_cpp_example(server, prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(example("cmake"))
    (tmp_path / "example.cc").write_text(at(server.address, example("cpp")))
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja",
        f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")
    run("cmake", "--build", tmp_path / "build")
    # The second time the session is there.
    for _ in range(2):
        said = run(tmp_path / "build/example")
        assert re.search(r"\n\d+ tokens reused\n$", said), said


@pytest.mark.skipif(harness.sanitized(), reason="a build with sanitizers")
def test_pkg_config_finds_the_client(server, prefix, tmp_path):
    source = tmp_path / "example.cc"
    source.write_text(at(server.address, example("cpp")))
    pc, = prefix.rglob("xcache.pc")
    flags = run("pkg-config", "--cflags", "--libs", "xcache",
                env={**os.environ, "PKG_CONFIG_PATH": str(pc.parent)})
    run("c++", source, "-o", tmp_path / "example", *flags.split())
    assert "tokens reused" in run(tmp_path / "example")


def test_the_package_knows_its_version(prefix, tmp_path):
    for version, found in (("0.1", True), ("9.0", False)):
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\n"
            "project(example LANGUAGES CXX)\n"
            f"find_package(xcache {version} REQUIRED)\n")
        done = subprocess.run(
            ["cmake", "-S", tmp_path, "-B", tmp_path / version,
             f"-DCMAKE_PREFIX_PATH={prefix}"], capture_output=True, text=True)
        assert (done.returncode == 0) == found, done.stderr


def test_the_python_example(server, tmp_path):
    code = at(server.address, example("python"))
    (tmp_path / "example.py").write_text(code)
    for _ in range(2):
        run(sys.executable, tmp_path / "example.py",
            env={**os.environ, "PYTHONIOENCODING": "utf-8:replace"})
