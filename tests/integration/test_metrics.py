"""A metric that never moves is worse than none. Every metric of METRICS.md
moves in what is done here, or the test that moves it is named here, and names
it."""

import os
import pathlib
import re
import subprocess

import grpc
from xcache.v1 import inference_pb2 as pb
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import fails_with, params, user, wait_until

TESTS = pathlib.Path(os.environ["XCACHE_SOURCE_DIR"]) / "tests"
PAGE = TESTS.parent / "server/metrics/METRICS.md"

# Faults and floods have tests of their own. Where such a test sees the metric
# under another name (a counter of the core, a field of the store's), that name
# is given after a colon.
MOVED_ELSEWHERE = {
    "xcache_connections_refused_total": "integration/test_floods.py",
    "xcache_credential_reloads_total": "integration/test_operation.py",
    "xcache_model_file_changed": "integration/test_model_file.py",
    "xcache_corrupt_pages_total":
        "unit/server/core/scheduler/restorer_test.cc:kPagesCorrupt",
    "xcache_tier_corrupt_pages_total":
        "unit/cachestore/store_corruption_test.cc:.corrupt, 1)",
    "xcache_corrupt_sessions_total": "integration/test_corruption.py",
    "xcache_disk_degraded": "integration/test_bad_input.py",
    "xcache_disk_degradations_total": "integration/test_bad_input.py",
    "xcache_undurable_sessions": "integration/test_bad_input.py",
    "xcache_spill_dropped_pages_total":
        "unit/cachestore/tiered_page_store_test.cc:put_failures, 5",
    "xcache_spill_queue_bytes":
        "unit/cachestore/tiered_page_store_test.cc:queued_bytes, 0",
    # Of a tier that is no part of this server.
    "xcache_shared_breaker_state":
        "unit/cachestore/shared/circuit_breaker_test.cc:State::kHalfOpen",
    "xcache_shared_breaker_opened_total":
        "unit/cachestore/shared/shared_page_store_test.cc:breaker_opened, 1",
    "xcache_shared_ahead_sessions":
        "unit/cachestore/sessions/shared_session_store_test.cc:num_ahead, 2",
    "xcache_shared_conflicts_total":
        "unit/cachestore/sessions/shared_session_store_test.cc:.conflicts",
    "xcache_shared_branches_total":
        "unit/cachestore/sessions/shared_session_store_test.cc:.branches, 1",
    "xcache_shared_requests_total":
        "unit/cachestore/shared/s3_object_store_test.cc:.requests",
    "xcache_shared_failures_total":
        "unit/cachestore/shared/s3_object_store_test.cc:.failures, 1",
    "xcache_shared_retries_total":
        "unit/cachestore/shared/s3_object_store_test.cc:.retries",
    "xcache_shared_throttled_total":
        "unit/cachestore/shared/s3_object_store_test.cc:.throttled",
    "xcache_shared_bytes_total":
        "unit/server/core/core_shared_test.cc:.received_bytes",
    "xcache_shared_page_bytes_total":
        "unit/server/core/core_shared_test.cc:.get_bytes",
    "xcache_shared_queue_bytes":
        "unit/cachestore/remote_tier_test.cc:.queued_bytes",
    "xcache_shared_dropped_pages_total":
        "unit/cachestore/remote_tier_test.cc:.put_failures, 25",
    "xcache_shared_owed_pages":
        "unit/cachestore/remote_tier_test.cc:num_owed(), 25",
    "xcache_shared_negative_hits_total":
        "unit/cachestore/shared/shared_page_store_test.cc:negative_hits, 4",
    "xcache_shared_refreshed_pages_total":
        "unit/cachestore/shared/shared_page_store_test.cc:refreshed, 1",
    "xcache_shared_swept_folders_total":
        "unit/cachestore/shared/shared_page_store_test.cc:.folders_swept",
    "xcache_shared_swept_pages_total":
        "unit/cachestore/shared/shared_page_store_test.cc:pages_swept, 20",
    "xcache_shared_wait_seconds":
        "unit/server/core/core_shared_test.cc:kRemoteWait), 1u",
    "xcache_not_fetched_blocks_total":
        "unit/server/core/core_shared_test.cc:kNotFetchedByCost), 3u",
    # Equal keys have equal bytes on every machine of ours.
    "xcache_mismatched_pages_total":
        "unit/cachestore/page_store_conformance_test.cc:key_conflicts",
    "xcache_demoted_sessions_total":
        "unit/cachestore/store_space_test.cc:num_demoted",
    "xcache_clock_jump_seconds":
        "unit/server/core/core_expiry_test.cc:clock_jump_seconds",
    # What little memory does depends on how much of it a machine's threads and
    # RocksDB take.
    "xcache_preemptions_total":
        "unit/server/core/core_memory_test.cc:kPreemptions",
    "xcache_evictions_total":
        "unit/server/core/cache/blocks_test.cc:kWorkingSetEvictions",
    "xcache_sequence_evictions_total":
        "unit/server/core/scheduler/working_sets_test.cc:kSequenceEvictions",
    "xcache_memory_refusals_total":
        "unit/base/memory_budget_test.cc:num_refused",
    "xcache_single_flight_waits_total":
        "unit/server/core/scheduler/restorer_test.cc:kSingleFlightWaits",
    # So does what is cheaper, restoring or computing.
    "xcache_recomputed_blocks_total":
        "unit/server/core/scheduler/restorer_test.cc:kRecomputedByCost",
}


def documented():
    """(name, kind) of each row."""
    return re.findall(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|",
                      PAGE.read_text(), re.MULTILINE)


class Moved:
    """Which metrics had another value than 0 in any scrape."""

    def __init__(self):
        self.names = set()

    def scrape(self, server):
        metrics = server.metrics()
        for name, kind in documented():
            sample = name + "_count" if kind == "histogram" else name
            if any(value != 0 for _, value in metrics.samples[sample]):
                self.names.add(name)
        return metrics


def test_every_metric_moves(tiny_model, tmp_path):
    moved = Moved()
    sessions = [f"s{i}" for i in range(6)]
    words = " ".join(f"word{i}" for i in range(150))

    with harness.Server(tiny_model, tmp_path,
                        "--max-queue-requests", "2") as server:
        client = server.client()
        for name in sessions:
            client.sessions.CreateSession(spb.CreateSessionRequest(id=name))
            client.chat(name, f"{words} of {name}")
        client.chat(sessions[0], "And then?")
        client.inference.Score(pb.ScoreRequest(text="one two three"))
        client.chat(messages="go", params=harness.params(
            response_format=pb.ResponseFormat(regex="[ab]{3}")))
        # A queue, and what it refuses.
        running = []

        def crowd():
            """Over soon on a fast machine, so it comes until it is seen."""
            running.extend(client.inference.Chat(pb.ChatRequest(
                messages=[user(words)], params=params(1500, ignore_eos=True)))
                for _ in range(80))
            moved.scrape(server)
            return moved.names >= {
                "xcache_requests_running", "xcache_requests_waiting",
                "xcache_waiting_tokens", "xcache_queue_rejections_total"}

        wait_until(crowd, 60, "a queue")
        for call in running:
            call.cancel()
        wait_until(lambda: moved.scrape(server).sum(
            "xcache_requests_running") == 0, 60, "the end of it")
        soon_over = spb.CreateSessionRequest(id="soon-over")
        soon_over.ttl.seconds = 1
        client.sessions.CreateSession(soon_over)
        for name in sessions[:3]:
            client.sessions.FlushSession(spb.FlushSessionRequest(id=name))
        subprocess.run(
            [harness.COMMAND, "store", "backup", tmp_path / "backup",
             "--sessions-only", "--store-dir", tmp_path / "store"], check=True,
            stdout=subprocess.DEVNULL, timeout=60)
        moved.scrape(server)
        # The next start sweeps it.
        wait_until(lambda: "soon-over" not in [s.id for s in
                   client.sessions.ListSessions(
                       spb.ListSessionsRequest()).sessions], 20, "its time")
        server.kill()

    # A record that a power loss left incomplete: its length and type, but other
    # bytes than those of its checksum.
    logs = sorted((tmp_path / "store/sessions").glob("*.log"))
    with open(logs[-1], "ab") as log:
        log.write(b"\x17" * 4 + (50).to_bytes(2, "little") + b"\x01" +
                  b"\x17" * 50)
    # With a tenant at its limit, whose sessions are those made without tokens.
    tokens = tmp_path / "tokens"
    tokens.write_text("secret default\ntenant default sessions=1\n")
    tokens.chmod(0o600)
    with harness.Server(tiny_model, tmp_path, "--token-file",
                        tokens) as server:
        client = server.client("secret")
        for name in sessions:
            client.chat(name, "Go on.")
        with fails_with(grpc.StatusCode.RESOURCE_EXHAUSTED, "sessions=1"):
            client.sessions.CreateSession(spb.CreateSessionRequest(id="more"))
        moved.scrape(server)
        server.stop()

    # Pages are a cache: a database of them that does not open is begun anew,
    # and conversations go on without theirs.
    (tmp_path / "store/pages/CURRENT").write_bytes(b"rubbish")
    with harness.Server(tiny_model, tmp_path) as server:
        server.client().chat(sessions[0], "And on.")
        metrics = moved.scrape(server)
        assert metrics.sum("xcache_pages_set_aside_total") == 1
        assert metrics.sum("xcache_missing_pages_total") > 0
        server.stop()

    still = {name for name, _ in documented()} - moved.names
    for name in still & set(MOVED_ELSEWHERE):
        path, _, word = MOVED_ELSEWHERE[name].partition(":")
        assert (word or name) in (TESTS / path).read_text(), (name, path)
    still -= set(MOVED_ELSEWHERE)
    assert not still, f"never moved: {sorted(still)}"
