"""deploy/kubernetes: what kustomize makes of base, of each component and of
every combination that README names is valid for each version of Kubernetes, and
hangs together: names that refer to something, times and sizes that agree."""

import json
import os
import re
import subprocess
import textwrap

import jsonschema
import kubernetes_validate
import pytest
import yaml

import harness
import manifests
from manifests import quantity

VERSIONS = ["1.29", "1.30", "1.31", "1.32", "1.33"]
# What a component needs, beside the oldest version.
SINCE = {"model-image": "1.31"}
CRDS = json.loads(
    (harness.SOURCE / "tests/deploy/crd_schemas.json").read_text())

# envoy-tls stands on two others.
ALONE = [(name,) if name != "envoy-tls" else ("tls", "envoy", "envoy-tls")
         for name in manifests.COMPONENTS]
ALL = list(dict.fromkeys([(), *ALONE, *manifests.combinations()]))
each = pytest.mark.parametrize("components", ALL,
                               ids=lambda names: "+".join(names) or "base")


def validate(resource, version):
    own = CRDS.get(f"{resource['apiVersion']}/{resource['kind']}")
    if own is None:
        kubernetes_validate.validate(resource, version, strict=True)
    else:
        jsonschema.validate(resource, {"$defs": CRDS["$defs"], **own})


def test_readme_names_every_component():
    table = re.findall(r"^\| `([a-z0-9-]+)` \|", manifests.README, re.M)
    assert sorted(table) == manifests.COMPONENTS
    used = {name for names in manifests.combinations() for name in names}
    assert used == set(manifests.COMPONENTS)


@each
def test_is_valid_for_every_version(render, components):
    since = max(
        [VERSIONS[0], *(SINCE.get(c, VERSIONS[0]) for c in components)])
    for version in VERSIONS[VERSIONS.index(since):]:
        for resource in render(*components):
            validate(resource, version)


def test_what_needs_a_newer_version_is_known(render):
    for component, since in SINCE.items():
        server = render(component).one("StatefulSet", "xcache")
        validate(server, since)
        with pytest.raises(kubernetes_validate.ValidationError):
            validate(server, VERSIONS[VERSIONS.index(since) - 1])


def test_a_misspelt_field_is_found(render):
    for kind, name in (("StatefulSet", "xcache"), ("ServiceMonitor", "xcache"),
                       ("ScaledObject", "xcache")):
        resource = json.loads(json.dumps(
            render("monitoring", "keda").one(kind, name)))
        resource["spec"]["replica"] = 3
        with pytest.raises((kubernetes_validate.ValidationError,
                            jsonschema.ValidationError)):
            validate(resource, "1.33")


def examples():
    """(page, kustomization) of each that a page shows."""
    for page in ("README.md", "deploy/kubernetes/README.md"):
        text = (harness.SOURCE / page).read_text()
        for found in re.findall(r"^ *```yaml\n(.*?)^ *```", text, re.M | re.S):
            yield page, textwrap.dedent(found)


EXAMPLES = list(examples())


@pytest.mark.parametrize("page, text", EXAMPLES, ids=[
    f"{page}-{i}" for i, (page, _) in enumerate(EXAMPLES)])
def test_the_example(page, text, tmp_path):
    """A page's kustomization, in a folder beside deploy/."""
    folder = os.path.relpath(manifests.DEPLOY, tmp_path)
    resources = manifests.Resources(manifests.build(
        tmp_path, text.replace("../deploy", folder)))
    for resource in resources:
        assert resource["metadata"]["namespace"] == "xcache"
        for version in VERSIONS:
            validate(resource, version)
    assert set(resources.config_map("xcache-model")) == {
        "MODEL_URL", "MODEL_SHA256"}
    _, container = resources.server()
    assert container["image"].startswith("registry.example.com/xcache:")
    settings = resources.config_map("xcache-settings")
    assert ("XCACHE_SHARED" in settings) == ("components/shared-s3" in text)


def test_pages_show_one_server_and_a_fleet():
    for page in ("README.md", "deploy/kubernetes/README.md"):
        assert [where for where, _ in EXAMPLES].count(page) == 2


@each
def test_names_refer_to_something(render, components):
    resources = render(*components)
    known = {(r["kind"], r["metadata"]["name"]) for r in resources}
    # Of base and of components: a claim of whoever deploys, and their secrets.
    known |= {("Secret", "xcache-tls"), ("Secret", "xcache-tokens"),
              ("Secret", "xcache-s3"), ("PersistentVolumeClaim", "xcache-model")}
    for name, pod in resources.pods():
        volumes = {v["name"] for v in pod.get("volumes", ())}
        assert ("ServiceAccount", pod["serviceAccountName"]) in known
        if name == "xcache":
            volumes.add("store")  # the claim template
        used = set()
        for container in pod.get("initContainers", []) + pod["containers"]:
            mounts = [m["mountPath"] for m in container["volumeMounts"]]
            assert len(mounts) == len(set(mounts)), mounts
            used |= {m["name"] for m in container["volumeMounts"]}
            for source in container.get("envFrom", ()):
                assert ("ConfigMap",
                        source["configMapRef"]["name"]) in known, source
        assert used == volumes, name
        for volume in pod.get("volumes", ()):
            for kind, field, key in (
                    ("ConfigMap", "configMap", "name"),
                    ("Secret", "secret", "secretName"),
                    ("PersistentVolumeClaim", "persistentVolumeClaim",
                     "claimName")):
                if field in volume:
                    assert (kind, volume[field][key]) in known, volume
    templates = [r["spec"]["template"] for r in resources
                 if r["kind"] in ("StatefulSet", "Deployment")]

    def chosen(labels):
        return [t for t in templates
                if labels.items() <= t["metadata"]["labels"].items()]

    for service in resources.of("Service"):
        pods = chosen(service["spec"]["selector"])
        assert len(pods) == 1, service["metadata"]["name"]
        ports = {p["name"] for c in pods[0]["spec"]["containers"]
                 for p in c["ports"]}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports
    for policy in resources.of("NetworkPolicy"):
        assert chosen(policy["spec"]["podSelector"]["matchLabels"])
    for budget in resources.of("PodDisruptionBudget"):
        assert chosen(budget["spec"]["selector"]["matchLabels"])
    for monitor in resources.of("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        services = [s for s in resources.of("Service")
                    if wanted <= s["metadata"]["labels"].items()]
        assert [s["metadata"]["name"] for s in services] == ["xcache-replicas"]
        # The rules and the boards say job="xcache".
        label = monitor["spec"]["jobLabel"]
        assert services[0]["metadata"]["labels"][label] == "xcache"
    for scaler in (resources.of("HorizontalPodAutoscaler") +
                   resources.of("ScaledObject")):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in known
        assert "replicas" not in resources.one("StatefulSet", "xcache")["spec"]
    assert len(known) >= len(resources)


@each
def test_pods_are_confined(render, components):
    """What Pod Security's `restricted` asks, and more."""
    for _, pod in render(*components).pods():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] >= 10000
        assert security["fsGroup"] == security["runAsGroup"] >= 10000
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for container in pod.get("initContainers", []) + pod["containers"]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        # Followed when they change, which a subPath is not; and readable by
        # the server's group alone, as the server demands.
        for volume in pod["volumes"]:
            if "secret" not in volume:
                continue
            assert volume["secret"]["defaultMode"] == 0o440
            mounts = [m for c in pod["containers"] for m in c["volumeMounts"]
                      if m["name"] == volume["name"]]
            assert all("subPath" not in m and m["readOnly"] for m in mounts)


def help_text():
    return subprocess.run([harness.SERVER, "--help"], capture_output=True,
                          text=True, check=True).stdout


def setting(resources, flag):
    """Of the config map, or else the server's default."""
    found = re.search(rf"^  --{flag} (.*) \(Env:(\w+)\)$", help_text(), re.M)
    assert found, f"--help has no --{flag}"
    return resources.config_map("xcache-settings").get(
        found[2], found[1].partition("=")[2])


def last_words():
    """Seconds that the server gives answers after its drain."""
    source = (harness.SOURCE / "server/server_app.cc").read_text()
    return int(re.search(r"seconds kLastWords\((\d+)\)", source)[1])


@each
def test_a_drain_has_the_time_it_takes(render, components):
    resources = render(*components)
    pod, container = resources.server()
    drain = quantity(setting(resources, "drain-seconds"))
    takes = manifests.sleeps(container) + drain + last_words()
    # And some seconds to close the store.
    assert pod["terminationGracePeriodSeconds"] >= takes + 10
    # What makes endpoints forget a pod takes a few seconds.
    assert manifests.sleeps(container) >= 5
    for name, pod in resources.pods():
        if name != "xcache-envoy":
            continue
        proxy = pod["containers"][0]
        assert manifests.sleeps(proxy) >= takes
        assert (pod["terminationGracePeriodSeconds"] >=
                manifests.sleeps(proxy) + 5)


@each
def test_probes_fit_the_server(render, components):
    resources = render(*components)
    _, container = resources.server()
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    # The ports of every document and default.
    assert ports["grpc"] == int(
        setting(resources, "listen").rpartition(":")[2])
    assert ports["grpc"] == int(re.search(r"--listen \w+=[^ ]*:(\d+)",
                                          help_text())[1])
    for name in ("http", "metrics"):
        assert ports[name] == int(
            setting(resources, f"{name}-listen").rpartition(":")[2])
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
        kinds = {"grpc", "exec", "httpGet", "tcpSocket"} & probe.keys()
        assert len(kinds) == 1, kinds
        # The kubelet's gRPC has no TLS.
        assert ("grpc" in kinds) == ("tls" not in components)
        if "grpc" in kinds:
            assert probe["grpc"]["port"] == ports["grpc"]
    window = {name: container[name]["periodSeconds"] *
              container[name]["failureThreshold"]
              for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    # A model of many GB, from a slow disk.
    assert window["startupProbe"] >= 600
    # Out of the endpoints sooner than preStop ends, where it does not answer.
    assert window["readinessProbe"] <= manifests.sleeps(container)
    # A server that is busy is not one that is stuck.
    assert window["livenessProbe"] >= 60


@each
def test_sizes_agree(render, components):
    resources = render(*components)
    server = resources.one("StatefulSet", "xcache")
    _, container = resources.server()
    limits = container["resources"]["limits"]
    assert container["resources"]["requests"] == limits
    assert (quantity(limits["memory"]) >=
            1.15 * quantity(setting(resources, "memory-bytes")) + (4 << 30))
    threads = quantity(setting(resources, "threads"))
    assert quantity(limits["cpu"]) >= threads + 1
    claim, = server["spec"]["volumeClaimTemplates"]
    assert (quantity(claim["spec"]["resources"]["requests"]["storage"]) >=
            1.2 * quantity(setting(resources, "disk-bytes")))
    keep = server["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert keep == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_both_scalers_say_the_same(render):
    hpa = render("hpa").one("HorizontalPodAutoscaler", "xcache")["spec"]
    keda = render("keda").one("ScaledObject", "xcache")["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (
        keda["minReplicaCount"], keda["maxReplicaCount"])
    assert hpa["behavior"] == (
        keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"])
    assert [quantity(m["pods"]["target"]["averageValue"])
            for m in hpa["metrics"]] == [
                float(t["metadata"]["threshold"]) for t in keda["triggers"]]
    assert keda["minReplicaCount"] == keda["fallback"]["replicas"] == (
        render("envoy").one("StatefulSet", "xcache")["spec"]["replicas"])
    # prometheus-adapter makes what the autoscaler asks for.
    rules = yaml.safe_load((manifests.KUBERNETES /
                            "components/hpa/adapter-rules.yaml").read_text())
    made = {
        r.get("name", {}).get("as") or re.match(r"\w+", r["seriesQuery"])[0]
        for r in rules["rules"]
    }
    assert made == {m["pods"]["metric"]["name"] for m in hpa["metrics"]}


def test_images_are_of_this_version(render):
    version = re.search(r"project\(xcache VERSION (\S+)",
                        (harness.SOURCE / "CMakeLists.txt").read_text())[1]
    assert render().server()[1]["image"] == f"xcache:{version}"
    assert render("gpu").server()[1]["image"] == f"xcache:{version}-cuda"


def test_no_envoy_config_differs_by_more_than_tls():
    def config(component):
        return yaml.safe_load((manifests.KUBERNETES / "components" /
                               component / "config.yaml").read_text())

    plain, tls = config("envoy"), config("envoy-tls")
    resources = tls["static_resources"]
    assert resources["listeners"][0]["filter_chains"][0].pop(
        "transport_socket")
    assert resources["clusters"][0].pop("transport_socket")
    assert tls == plain


def test_checkov_finds_nothing(render, tmp_path):
    for components in ALL:
        name = "+".join(components) or "base"
        (tmp_path / f"{name}.yaml").write_text(render(*components).text)
    done = subprocess.run(
        ["checkov", "--directory", tmp_path, "--framework", "kubernetes",
         "--skip-download", "--output", "json"],
        capture_output=True, text=True)
    report = json.loads(done.stdout)
    results = report["results"]
    assert not report["summary"]["parsing_errors"]
    assert not results["failed_checks"], [
        (c["check_id"], c["check_name"], c["resource"], c["file_path"])
        for c in results["failed_checks"]]
    assert len(results["passed_checks"]) > 100 * len(ALL)
    # What is skipped has its reason beside the resource.
    skipped = {c["check_id"] for c in results["skipped_checks"]}
    assert skipped == {"CKV_K8S_15", "CKV_K8S_43"}, skipped
    assert all(len(c["check_result"]["suppress_comment"]) > 30
               for c in results["skipped_checks"])
    assert done.returncode == 0, done.stderr
