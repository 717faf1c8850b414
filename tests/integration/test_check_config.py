"""`xcache-server --check-config`: what would be used, what is wrong, and that
nothing comes of asking."""

import os
import pathlib
import subprocess

import harness
from test_operation import make_certificate


def check(*words, env=None, code=0):
    done = subprocess.run(
        [harness.SERVER, "--check-config", *map(str, words)],
        env={**os.environ, **(env or {})}, capture_output=True, text=True,
        timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def faults(done):
    prefix = "xcache-server: fault: "
    return [line[len(prefix):] for line in done.stderr.splitlines()
            if line.startswith(prefix)]


def everything_in(folder):
    return sorted((str(p), p.lstat().st_mtime_ns)
                  for p in pathlib.Path(folder).rglob("*"))


def test_good_settings(tiny_model, tmp_path):
    make_certificate(tmp_path / "tls")
    (tmp_path / "tokens").write_text("one alpha\ntwo beta\n")
    (tmp_path / "tokens").chmod(0o600)
    (tmp_path / "server.toml").write_text(
        f'tls-cert = "{tmp_path}/tls/cert.pem"\n'
        f'tls-key = "{tmp_path}/tls/key.pem"\nthreads = 3\n')
    before = everything_in(tmp_path)
    done = check("--model", tiny_model, "--config", tmp_path / "server.toml",
                 "--store-dir", tmp_path / "new/store", "--log-level=warn",
                 env={"XCACHE_TOKEN_FILE": str(tmp_path / "tokens"),
                      "XCACHE_DISK_BYTES": "64MiB"})
    assert done.stderr == ""
    settings = {line.split()[0]: line.split()[1:]
                for line in done.stdout.splitlines() if line.startswith("--")}
    assert settings["--model"] == ["flag", str(tiny_model)]
    assert settings["--log-level"] == ["flag", "warn"]
    assert settings["--threads"] == ["file", "3"]
    assert settings["--disk-bytes"] == ["variable", "64MiB"]
    assert settings["--listen"] == ["default", "127.0.0.1:50051"]
    assert settings["--profile-dir"] == [
        "default", f"{tmp_path}/new/store/profiles"]
    for said in ("model: ", "store: would be made", "tokens: 2",
                 "TLS: the certificate", "no fault found"):
        assert said in done.stdout
    assert everything_in(tmp_path) == before


def test_every_fault_is_told(tiny_model, tmp_path):
    make_certificate(tmp_path / "tls")
    make_certificate(tmp_path / "other")
    (tmp_path / "tokens").write_text("a line of more words\n")
    (tmp_path / "tokens").chmod(0o600)
    (tmp_path / "bad.gguf").write_text("no model")
    (tmp_path / "file").write_text("")
    (tmp_path / "server.toml").write_text("thraeds = 3\nmodle = 1\n")
    found = faults(check(
        "--config", tmp_path / "server.toml", "--model", tmp_path / "bad.gguf",
        "--codec", "xqant", "--token-file", tmp_path / "tokens", "--tls-cert",
        tmp_path / "tls/cert.pem", "--tls-key", tmp_path / "other/key.pem",
        "--listen", "no-such-host.invalid:1", "--metrics-listen", "nonsense",
        "--store-dir", tmp_path / "file/store", "--memory-bytes", "1MiB",
        "--disk-bytes", "1MiB", "--drain-seconds", "2d", "--session-ttl", "x",
        "--ready-file", tmp_path / "nowhere/ready.json", code=1))
    for said in ("thraeds", "modle", "bad.gguf", "xqant", "token file",
                 "is not the key of", "no-such-host.invalid",
                 "--metrics-listen", "--store-dir", "--memory-bytes",
                 "--disk-bytes", "--drain-seconds", "--session-ttl",
                 "--ready-file"):
        assert any(said in fault for fault in found), (said, found)
    assert everything_in(tmp_path / "other")  # nothing was taken away


def test_a_command_line_that_does_not_parse(tiny_model):
    done = check("--model", tiny_model, "--threads", "many", code=1)
    assert len(faults(done)) == 1 and "--threads" in faults(done)[0]
    assert "--model is missing" in "".join(faults(check(code=1)))


def test_beside_a_server(tiny_model, tmp_path):
    with harness.Server(tiny_model, tmp_path) as server:
        before = {p for p, _ in everything_in(tmp_path)}
        done = check("--model", tiny_model, "--store-dir", tmp_path / "store",
                     "--listen", server.address)
        assert f"in use by process {server.process.pid}" in done.stderr
        assert {p for p, _ in everything_in(tmp_path)} == before
        server.client().chat(messages="still there")
        server.stop()
    done = check("--model", tiny_model, "--store-dir", tmp_path / "store")
    assert "with conversations" in done.stdout and "in use" not in done.stderr


def test_a_models_description_is_read(tiny_model, tmp_path):
    cut = tmp_path / "cut.gguf"
    whole = pathlib.Path(tiny_model).read_bytes()
    cut.write_bytes(whole[:len(whole) // 2])
    assert "cut.gguf" in faults(check("--model", cut, code=1))[0]
    done = check("--model", tiny_model, "--chat-template", "nonsense", code=1)
    assert "nonsense" in faults(done)[0]
