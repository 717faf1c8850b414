#!/usr/bin/env python3
"""Checks what the compiler does not: doors between rooms, registered tests,
file lengths, words that promise work not done. Prints each breach; exits 1 if
there is one."""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CODE = (".h", ".cc", ".cu", ".cuh")
MAX_LINES = 700
# Of production code: from here on the first comment says "Long, because ...".
REASON_LINES = 500
PRODUCTION = ("engine/", "cachestore/", "server/", "client/")
TOP_LEVEL = {"CMakeLists.txt", "CMakePresets.json", "LICENSE", "README.md",
             "proto", "server", "engine", "cachestore", "client", "deploy",
             "tests"}

# What files under a folder must not include (first match of the folder wins).
OUTSIDE_ENGINE = r"cachestore/|server/|client/|grpc|rocksdb|prometheus|xcache/v1/"
OUTSIDE_STORE = (r"engine/(?!base/)|server/|client/|grpc|prometheus|"
                 r"xcache/v1/")
OUTSIDE_CORE = r"client/|grpc|prometheus|rocksdb|xcache/v1/"
CORE_GROUND = r"(core_metrics|core_options|reason|request)\.h"
DOORS = [
    # A room of engine/, and which of engine's parts it may include.
    *((f"engine/{room}/", rf"engine/(?!{own})|{OUTSIDE_ENGINE}")
      for room, own in [
        ("base", r"base/"),
        ("kernels", r"(base|kernels)/"),
        ("model", r"(base|model)/|(pooling|types)\.h"),
        ("grammar", r"(base|model|grammar)/|types\.h"),
        ("xcache", r"(base|kernels|model|xcache)/|types\.h"),
        ("common", r"(base|kernels|model|xcache|common)/|(engine|types)\.h"),
        ("cpu", r"(base|kernels|model|xcache|common|cpu)/|(engine|types)\.h"),
        ("device/kernels",
         r"(base|kernels|device/kernels)/|device/ops\.h|types\.h"),
        ("device",
         r"(base|kernels|model|xcache|common|device)/|(engine|types)\.h"),
        ("calibration",
         r"(base|kernels|model|xcache|common|calibration)/|"
         r"(engine|engine_factory|philox|types)\.h"),
        ("cuda", r"(cuda|device/kernels)/|device/ops\.h"),
        ("emulation", r"(emulation|device/kernels)/|device/ops\.h")]),
    ("engine/", OUTSIDE_ENGINE),
    ("cachestore/tiers/", rf"{OUTSIDE_STORE}|rocksdb/|"
                          r"cachestore/(rocksdb|sessions)/"),
    ("cachestore/rocksdb/", rf"{OUTSIDE_STORE}|cachestore/sessions/"),
    ("cachestore/shared/", rf"{OUTSIDE_STORE}|rocksdb/|"
                           r"cachestore/(rocksdb|sessions|tiers)/"),
    ("cachestore/", OUTSIDE_STORE),
    # A room of the core, which of the others it stands on, and their ground.
    *((f"server/core/{room}/",
       rf"server/(?!core/(({under})/|{CORE_GROUND}))|{OUTSIDE_CORE}")
      for room, under in [("cache", "cache"), ("sessions", "sessions"),
                          ("tenants", "tenants"),
                          ("scheduler", "cache|sessions|tenants|scheduler")]),
    ("server/core/", rf"server/(?!core/)|{OUTSIDE_CORE}"),
    ("server/frontend/", r"server/(?!frontend/|core/|metrics/)|client/|grpc|"
                         r"google/protobuf|prometheus|rocksdb|xcache/v1/"),
    ("server/grpc/", r"client/|rocksdb|prometheus|server/server_app|"
                     r"server/http/"),
    ("server/http/", r"server/(?!http/|frontend/|core/|metrics/)|client/|grpc|"
                     r"google/protobuf|prometheus|rocksdb|xcache/v1/"),
    ("server/metrics/", r"client/|grpc|rocksdb|xcache/v1/"),
    # Generated proto types stop at server/grpc.
    ("server/", r"client/|grpc|google/protobuf|rocksdb|xcache/v1/"),
    ("client/", r"cachestore/|server/|rocksdb|prometheus|"
                r"engine/(?!base/)"),
]
CUDA = re.compile(r"^(cuda|cublas|curand|mma\.h)")


def tracked():
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"],
                         cwd=ROOT, capture_output=True, text=True)
    if out.returncode == 0:
        return [f for f in out.stdout.splitlines()
                if os.path.exists(os.path.join(ROOT, f))]
    found = []
    for folder, _, names in os.walk(ROOT):
        found += [os.path.relpath(os.path.join(folder, n), ROOT)
                  for n in names]
    return [f for f in found if not f.startswith((".git/", "build/"))]


def registered(test, cmake):
    """Whether the nearest CMakeLists.txt above a test names it."""
    folder = os.path.dirname(test)
    while folder not in cmake:
        folder = os.path.dirname(folder)
    name = re.escape(os.path.relpath(test, folder))
    return re.search(rf"(?<![\w./]){name}", cmake[folder])


def missing_in_readme():
    """What README's tables of rooms name and nobody has."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as text:
        tables = text.read().partition("\n## Rooms of the house\n")[2]
    for row in re.findall(r"^\|.*\|$", tables, re.MULTILINE):
        folders = [""]  # a name without a folder is in one named before it
        for name in re.findall(r"`([\w./-]+)`", row):
            if "/" not in name and not name.endswith((".cc", ".h", ".md")):
                continue
            found = [path for path in (os.path.join(f, name) for f in folders)
                     if os.path.exists(os.path.join(ROOT, path))]
            if not found:
                yield name
                continue
            folders.append(found[0] if os.path.isdir(
                os.path.join(ROOT, found[0])) else os.path.dirname(found[0]))


def main():
    breaches = [f"README.md: no {name}" for name in missing_in_readme()]
    files = tracked()
    cmake = {}  # text of each CMakeLists.txt, by its folder
    for f in files:
        top = f.split("/")[0]
        if not top.startswith(".") and top not in TOP_LEVEL:
            breaches.append(f"{f}: not one of the rooms")
        if f.endswith("CMakeLists.txt"):
            with open(os.path.join(ROOT, f), encoding="utf-8") as text:
                cmake[os.path.dirname(f)] = text.read()
    for f in files:
        if not f.endswith(CODE + (".py", ".sh")):
            continue
        text = open(os.path.join(ROOT, f), encoding="utf-8").read()
        lines = text.count("\n")
        if lines > MAX_LINES:
            breaches.append(f"{f}: {lines} lines, over {MAX_LINES}")
        if f != "tests/house_rules.py":
            for m in re.finditer(r"\b(TODO|FIXME)\b", text):
                line = text.count("\n", 0, m.start()) + 1
                breaches.append(f"{f}:{line}: {m.group(0)}")
        if not f.endswith(CODE):
            continue
        first = re.match(r"(//.*\n)*", text).group(0).replace("\n//", "")
        if (f.startswith(PRODUCTION) and lines > REASON_LINES and
                "Long, because" not in first):
            breaches.append(f"{f}: {lines} lines; over {REASON_LINES}, its "
                            "first comment says 'Long, because ...'")
        includes = re.findall(r'^\s*#\s*include\s+[<"]([^">]+)[">]', text,
                              re.MULTILINE)
        for folder, forbidden in DOORS:
            if f.startswith(folder):
                breaches += [f"{f}: includes {i}, a door it must not use"
                             for i in includes if re.match(forbidden, i)]
                break
        if not f.startswith("engine/cuda/"):
            breaches += [f"{f}: includes {i} outside engine/cuda"
                         for i in includes if CUDA.match(i)]
        if not f.startswith("engine/grammar/"):
            breaches += [f"{f}: includes {i} outside engine/grammar"
                         for i in includes if i.startswith("xgrammar/")]
        if f.endswith(("_test.cc", "_fuzz.cc")) and not registered(f, cmake):
            breaches.append(f"{f}: not registered in any CMakeLists.txt")
    for breach in breaches:
        print(breach)
    print(f"{len(files)} files, {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
