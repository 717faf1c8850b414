"""Envoy before the servers of a fleet: what deploy/kubernetes has, with servers
that come and go by a file. No tests here."""

import json
import os
import re

import yaml

import harness
from programs import Program, free_ports

CONFIG = harness.SOURCE / "deploy/kubernetes/components/envoy/config.yaml"
# Tells a client which server it was that answered.
UPSTREAM = "x-upstream"


class Balancer(Program):
    """Envoy at `address`, with no server yet."""

    def __init__(self, folder):
        super().__init__(folder)
        port, self.status_port, admin_port = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        self.servers = []
        self.version = 0
        config = yaml.safe_load(CONFIG.read_text())
        listeners, clusters = ({part["name"]: part for part in parts}
                               for parts in (
            config["static_resources"]["listeners"],
            config["static_resources"]["clusters"]))

        def socket(listener):
            return listener["address"]["socket_address"]

        socket(listeners["grpc"]).update(address="127.0.0.1", port_value=port)
        socket(listeners["status"]).update(
            address="127.0.0.1", port_value=self.status_port)
        socket(config["admin"])["port_value"] = admin_port
        clusters["admin"]["load_assignment"]["endpoints"][0]["lb_endpoints"][
            0]["endpoint"]["address"]["socket_address"][
                "port_value"] = admin_port

        # In place of names in DNS, a file that it watches.
        self._write_servers()
        cluster = clusters["xcache"]
        assert cluster["type"] == "STRICT_DNS"
        del cluster["load_assignment"]
        cluster["type"] = "EDS"
        cluster["eds_cluster_config"] = {"eds_config": {
            "resource_api_version": "V3",
            "path_config_source": {"path": str(self.folder / "servers.json")}}}
        # One that is taken out gets nothing from then on, healthy or not.
        cluster["ignore_health_on_host_removal"] = True
        # Nobody waits for seconds here.
        check, = cluster["health_checks"]
        check.update(interval="0.2s", no_traffic_interval="0.2s",
                     timeout="1s", no_traffic_healthy_interval="0.2s")
        connection = listeners["grpc"]["filter_chains"][0]["filters"][0]
        connection["typed_config"]["route_config"].update(
            response_headers_to_add=[{"header": {
                "key": UPSTREAM, "value": "%UPSTREAM_REMOTE_ADDRESS%"}}])
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))

        self.run(["envoy", "-c", str(self.folder / "config.yaml"),
                  "--concurrency", "1", "--disable-hot-restart",
                  "--log-level", "warning"])
        self.wait_for(lambda: self._page("ready") is not None, 30, "Envoy")

    def add(self, address):
        self.servers.append(address)
        self._write_servers()

    def remove(self, address):
        self.servers.remove(address)
        self._write_servers()

    def _write_servers(self):
        self.version += 1
        new = self.folder / "servers.new"
        new.write_text(json.dumps({"version_info": str(self.version),
                                   "resources": [{
            "@type": "type.googleapis.com/"
                     "envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": "xcache",
            "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {
                    "address": address.rpartition(":")[0],
                    "port_value": int(address.rpartition(":")[2])}}}}
                for address in self.servers]}]}]}))
        os.rename(new, self.folder / "servers.json")  # what Envoy watches for

    def _page(self, name):
        try:
            url = f"http://127.0.0.1:{self.status_port}/{name}"
            return harness.NO_PROXY.open(url, timeout=5).read().decode()
        except OSError:
            return None

    def healthy(self):
        """How many servers it sends calls to."""
        page = self._page("stats/prometheus")
        return int(re.search(
            r"^envoy_cluster_membership_healthy\{"
            r'envoy_cluster_name="xcache"\} (\d+)', page, re.M)[1])

    def wait_healthy(self, count, seconds=20):
        self.wait_for(lambda: self.healthy() == count, seconds,
                      f"{count} healthy servers, not {self.healthy()}")
