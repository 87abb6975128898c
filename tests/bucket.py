"""A bucket on this machine: Google Cloud Storage emulated in memory, in a process of its own.

`from tests.bucket import bucket_fixture` gives the tests of a module the fixture `bucket`. What makes each of the three clients talk to the emulator,
and none of them look for credentials or for the metadata server of a cloud machine (which takes seconds where there is
none):

| who | place | credentials |
|---|---|---|
| gcsfs (epath) | `STORAGE_EMULATOR_HOST` | `FSSPEC_GCS='{"token": "anon"}'`; `GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false`, or it asks over gRPC what kind of bucket it is, which no emulator knows |
| tensorstore (orbax, the lock) | `TENSORSTORE_GCS_HTTP_URL` | `GOOGLE_AUTH_TOKEN_FOR_TESTING`, any text |
| google-cloud-storage (orbax) | `STORAGE_EMULATOR_HOST` | anonymous by itself, once that is set |
"""  # noqa: E501

import atexit
import functools
import json
import os
import subprocess
import sys
import uuid

import pytest

BUCKET = "runs"


@functools.cache
def emulator() -> tuple[subprocess.Popen, dict[str, str]]:
    """Starts the emulator, once in a test process; it ends with that process.

    Returns:
      The process, and the environment that leads all clients to it.
    """
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    atexit.register(process.communicate)  # ends its input, and with that the emulator
    assert process.stdout
    port = int(process.stdout.readline())
    place = f"http://127.0.0.1:{port}"
    return process, {
        "STORAGE_EMULATOR_HOST": place,
        "FSSPEC_GCS": json.dumps({"token": "anon"}),
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "TENSORSTORE_GCS_HTTP_URL": place,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    }


@pytest.fixture(name="bucket")
def bucket_fixture() -> str:
    """A fresh folder in a bucket, as `gs://…`, that this process and those that it starts can use."""
    environment = emulator()[1]
    os.environ.update(environment)
    import fsspec.config

    # fsspec reads its environment when it is imported, which another test may have done.
    fsspec.config.set_conf_env(fsspec.config.conf, environment)
    return f"gs://{BUCKET}/{uuid.uuid4().hex[:8]}"


def _serve() -> None:
    """Runs the emulator until standard input ends, and prints its port."""
    import http.server

    from gcp_storage_emulator import server

    http.server.HTTPServer.request_queue_size = 128  # tensorstore opens many connections at once
    parse = server.RequestHandler.parse_request

    def parse_and_continue(self) -> bool:
        parsed = parse(self)
        if parsed and self.headers.get("Expect") == "100-continue":  # or the client waits a second
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return parsed

    server.RequestHandler.parse_request = parse_and_continue
    _add_generations(server.HANDLERS)
    running = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    running.start()
    print(running._api._httpd.server_address[1], flush=True)
    sys.stdin.read()
    os._exit(0)


def _add_generations(routes) -> None:
    """Adds what the emulator lacks of generations: writes under a condition, and the header that names one.

    Locks and OCDBT manifests rest on them: https://cloud.google.com/storage/docs/request-preconditions.
    """
    from http import HTTPStatus

    from gcp_storage_emulator.handlers import objects

    def generation(storage, request, name):
        return storage.objects.get(request.params["bucket_name"], {}).get(name, {}).get("generation", "0")

    def conditional(handle):
        def handler(request, response, storage):
            wanted = request.query.get("ifGenerationMatch")
            content = request.data  # read in any case, or a refusal cuts off the client that is still sending
            name = request.params.get("object_id") or request.query.get("name", [None])[0]
            if wanted and generation(storage, request, name or content["meta"]["name"]) != wanted[0]:
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
            handle(request, response, storage)

        return handler

    def named(handle):
        def handler(request, response, storage):
            handle(request, response, storage)
            response["x-goog-generation"] = generation(storage, request, request.params["object_id"])

        return handler

    wrappers = {objects.insert: conditional, objects.delete: conditional, objects.get: named, objects.download: named}
    for _, methods in routes:
        for method, handle in methods.items():
            methods[method] = wrappers.get(handle, lambda same: same)(handle)


if __name__ == "__main__":
    _serve()
