"""A model's weights in memory, and their packed copy (--weights-cache)."""

import pytest

import harness
from conftest import make_model
from harness import params

MIB = 1 << 20
Q4_K, Q6_K = 12, 14  # as GGUF files number types


@pytest.fixture(scope="module")
def heavy_model(models):
    """36 MB of Q4_K, of which little is computed with."""
    return make_model(models / "heavy.gguf", "layers=6", "d_model=1024",
                      "n_heads=8", "n_kv_heads=2", "head_dim=64", "d_ff=3072",
                      f"type={Q4_K}", f"embedding={Q6_K}")


@pytest.fixture(scope="module")
def light_model(models):
    return make_model(models / "light.gguf", "layers=6", "d_model=256",
                      "n_heads=8", "n_kv_heads=2", "head_dim=64", "d_ff=256",
                      f"type={Q4_K}", f"embedding={Q6_K}")


def peak_bytes(server):
    """Most memory that was ever resident, of /proc/PID/status."""
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


def answer(server):
    return server.client().chat("", "What is on the shelf?", params=params(
        max_tokens=12, ignore_eos=True, logprobs=1)).bits


@pytest.mark.skipif(harness.sanitized(),
                    reason="sanitizers have memory of their own")
@pytest.mark.parametrize("start", ["packed", "read"])
def test_weights_are_in_memory_once(heavy_model, light_model, tmp_path, start):
    """From the first byte read to the end: a file's bytes go as they are
    packed. What the program has without weights is taken off. Each thread has
    a part of them at hand."""
    peaks, sizes = [], []
    for name, model in ("heavy", heavy_model), ("light", light_model):
        folder = tmp_path / name
        folder.mkdir()
        flags = ("--weights-cache", folder / "weights", "--threads", "2")
        if start == "read":
            with harness.Server(model, folder, *flags) as server:
                server.stop()
        with harness.Server(model, folder, *flags) as server:
            peaks.append(peak_bytes(server))
            sizes.append(model.stat().st_size)
    weights, file = peaks[0] - peaks[1], sizes[0] - sizes[1]
    print(f"{weights / MIB:.1f} MiB at most for {file / MIB:.1f} MiB")
    assert file > 30 * MIB
    assert weights <= 1.15 * file


def test_packed_weights_are_read_at_the_next_start(heavy_model, tmp_path):
    folder = tmp_path / "weights"
    flags = ("--weights-cache", folder)
    with harness.Server(heavy_model, tmp_path, store=None) as server:
        want = answer(server)
    with harness.Server(heavy_model, tmp_path, *flags, store=None) as server:
        assert "packed weights kept" in server.log()
        assert answer(server) == want
    [path] = folder.iterdir()
    assert path.stat().st_mode & 0o077 == 0
    kept = path.read_bytes()
    with harness.Server(heavy_model, tmp_path, *flags, store=None) as server:
        assert "packed weights read" in server.log()
        assert answer(server) == want
    damaged = bytearray(kept)
    damaged[len(kept) // 2] ^= 1
    path.write_bytes(damaged)
    with harness.Server(heavy_model, tmp_path, *flags, store=None) as server:
        assert "packed weights made anew" in server.log()
        assert answer(server) == want
    assert path.read_bytes() == kept
