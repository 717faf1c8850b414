"""The S3 server of a fleet: SeaweedFS, with one bucket. It is looked into with
boto3, which shares no code with ours. No tests here."""

import json
import pathlib
import signal
import subprocess

import boto3
import botocore.config
import botocore.exceptions

from programs import VENV, Program, free_ports

BUCKET = "fleet"
REGION = "us-east-1"
OPERATOR = ("operator", "operators-secret")
START_SECONDS = 60


class ObjectServer(Program):
    """Started as it is made. Its data outlive kill() and start()."""

    def __init__(self, folder):
        super().__init__(folder)
        self.ports = free_ports(9)
        self.port = self.ports[0]
        self.url = f"http://127.0.0.1:{self.port}"
        (self.folder / "s3.json").write_text(json.dumps({"identities": [{
            "name": "operator", "credentials": [{
                "accessKey": OPERATOR[0], "secretKey": OPERATOR[1]}],
            "actions": ["Admin", "Read", "Write", "List"]}]}))
        self.start()

    def let_in(self, key_id, secret):
        """From now on, also after a start."""
        self._shell(f"s3.configure -user={key_id} -access_key={key_id} "
                    f"-secret_key={secret} -actions=Read,Write,List -apply")

    def shut_out(self, key_id):
        self._shell(f"s3.configure -user={key_id} -delete -apply")

    def _shell(self, command):
        ports = self.ports
        done = subprocess.run(
            [VENV / "weed", "shell", f"-master=127.0.0.1:{ports[2]}.{ports[3]}",
             f"-filer=127.0.0.1:{ports[6]}.{ports[7]}"],
            input=command + "\n", text=True, timeout=60, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, cwd=self.folder)
        assert done.returncode == 0 and "error" not in done.stdout.lower(), (
            done.stdout)

    def start(self):
        (self.folder / "data").mkdir(exist_ok=True)
        names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc",
                 "volume.port", "volume.port.grpc", "filer.port",
                 "filer.port.grpc"]
        self.run([
            "weed", "server", f"-dir={self.folder}/data", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", "-master.telemetry=false",
            # Of one; it is waited for after a kill.
            "-master.electionTimeout=1s", "-volume.max=50",
            "-master.volumeSizeLimitMB=64", "-s3",
            f"-s3.config={self.folder}/s3.json",
            # What else it would listen on.
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false",
            # In a short folder: a socket's path has 107 bytes at most.
            f"-s3.localSocket={self._socket('s3', 0)}",
            f"-filer.localSocket={self._socket('filer', 6)}",
            *(f"-{name}={port}" for name, port in zip(names, self.ports))])
        self.wait_for(self._is_ready, START_SECONDS, "SeaweedFS")

    def kill(self):
        super().kill()
        for name, i in (("s3", 0), ("filer", 6), ("s3-grpc", 1),
                        ("master-grpc", 3), ("volume-grpc", 5),
                        ("filer-grpc", 7)):
            self._socket(name, i).unlink(missing_ok=True)

    def _socket(self, name, i):
        return pathlib.Path(f"/tmp/seaweedfs-{name}-{self.ports[i]}.sock")

    def suspend(self):
        """Its connections stay, and nobody answers on them."""
        self.signal(signal.SIGSTOP)

    def resume(self):
        self.signal(signal.SIGCONT)

    def client(self):
        return boto3.client(
            "s3", endpoint_url=self.url, region_name=REGION,
            aws_access_key_id=OPERATOR[0], aws_secret_access_key=OPERATOR[1],
            config=botocore.config.Config(
                s3={"addressing_style": "path"}, proxies={},
                retries={"total_max_attempts": 1}, connect_timeout=2,
                read_timeout=15, request_checksum_calculation="when_required",
                response_checksum_validation="when_required"))

    def _is_ready(self):
        """It listens before it takes an object, which takes it seconds."""
        s3 = self.client()
        try:
            try:
                s3.create_bucket(Bucket=BUCKET)
            except s3.exceptions.BucketAlreadyExists:
                pass
            except s3.exceptions.BucketAlreadyOwnedByYou:
                pass
            s3.put_object(Bucket=BUCKET, Key="ready", Body=b"x")
            return True
        except (botocore.exceptions.ClientError,
                botocore.exceptions.HTTPClientError,
                botocore.exceptions.EndpointConnectionError):
            return False

    def objects(self, prefix=""):
        """Key -> bytes of each object."""
        pages = self.client().get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=prefix)
        return {found["Key"]: found["Size"] for page in pages
                for found in page.get("Contents", ())}
