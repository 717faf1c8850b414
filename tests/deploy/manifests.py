"""What kustomize makes of deploy/kubernetes. No tests here."""

import os
import re
import subprocess

import yaml

import harness

DEPLOY = harness.SOURCE / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
README = (KUBERNETES / "README.md").read_text()
COMPONENTS = sorted(path.name
                    for path in (KUBERNETES / "components").iterdir())

# What whoever deploys brings for a component: a config map.
BROUGHT = {
    "model-download": {"name": "xcache-model", "literals": [
        "MODEL_URL=https://models.example.com/model.gguf",
        "MODEL_SHA256=" + "0" * 64]},
    "shared-s3": {"name": "xcache-settings", "behavior": "merge", "literals": [
        "XCACHE_SHARED=s3://conversations/xcache",
        "XCACHE_SHARED_ENDPOINT=https://s3.example.com",
        "XCACHE_SHARED_REGION=eu-central-1"]}}


def combinations():
    """README's table of what is tested: lists of components."""
    table = README[README.index("\n| for | components |"):]
    table = table[:table.index("\n\n")].splitlines()[3:]
    found = [tuple(re.findall(r"`([\w-]+)`", line.split("|")[2]))
             for line in table]
    assert len(found) >= 6
    return found


def build(folder, kustomization):
    """The text that `kubectl kustomize` prints."""
    (folder / "kustomization.yaml").write_text(kustomization)
    done = subprocess.run(["kubectl", "kustomize", folder],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # "deprecated", and the like
    return done.stdout


def render(folder, components):
    above = os.path.relpath(KUBERNETES, folder)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization", "namespace": "xcache",
        "resources": [f"{above}/base"],
        "components": [f"{above}/components/{name}" for name in components],
        "configMapGenerator": [BROUGHT[name] for name in components
                               if name in BROUGHT]}
    return Resources(build(folder, yaml.safe_dump(kustomization)))


class Resources(list):
    """The documents, in order; `text` is what they were read from."""

    def __init__(self, text):
        super().__init__(yaml.safe_load_all(text))
        self.text = text

    def of(self, kind):
        return [r for r in self if r["kind"] == kind]

    def one(self, kind, name):
        found = [r for r in self.of(kind) if r["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} of {kind} {name}"
        return found[0]

    def config_map(self, name):
        """By its name without the hash that kustomize appends."""
        found = [
            r for r in self.of("ConfigMap")
            if re.sub(r"-[a-z0-9]{10}$", "", r["metadata"]["name"]) == name
        ]
        assert len(found) == 1, f"{len(found)} config maps {name}"
        return found[0]["data"]

    def pods(self):
        """(name, pod spec) of what makes pods."""
        return [(r["metadata"]["name"], r["spec"]["template"]["spec"])
                for r in self if r["kind"] in ("StatefulSet", "Deployment")]

    def server(self):
        """The pod of the server, and its container."""
        pod = self.one("StatefulSet", "xcache")["spec"]["template"]["spec"]
        return pod, pod["containers"][0]


def quantity(text):
    """A Kubernetes quantity, or a size or duration of ours, as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()
    return float(number) * {
        "": 1, "m": 1e-3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30,
        "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "s": 1}[unit]


def sleeps(container):
    """Seconds of a preStop that is a sleep."""
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    return int(seconds)
