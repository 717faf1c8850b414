"""The quickstart's job, on a model for which none of its figures are good."""

import json
import subprocess

import harness


def test_figures_are_told_and_answers_are_promised(tiny_model, tmp_path):
    # A history so short that its tail is a tenth of it, pages of a model so
    # narrow that they save little: what a slow or busy day does to figures.
    done = subprocess.run(
        [harness.BUILD / "bin/xcache-quickstart", "--server", harness.SERVER,
         "--model", tiny_model, "--root", harness.SOURCE, "--work-dir",
         tmp_path, "--history", "600"], capture_output=True, text=True,
        timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISS" not in done.stdout
    assert "sooner" in done.stdout
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["identical"] is True
    reused = figures["reused_tokens"] / figures["prompt_tokens"]
    ratio = figures["kv_fp16_bytes_per_token"] / figures["page_bytes_per_token"]
    # Otherwise this would show nothing.
    assert reused < 0.97 or ratio < 3.5, figures
