"""How the processes of a run come together, and learn of each other."""

import os
import socket
import threading
import time
from typing import Any

import jax

from effnet_jax.errors import ConfigError, HostsError
from effnet_jax.hosts import names
from effnet_jax.hosts.agreeing import Waiting, exchange, gather
from effnet_jax.hosts.ending import leave_soon, prepare
from effnet_jax.hosts.names import here, state


def join(coordinator: str = "", processes: int = 0, process: int = -1, *, timeout: int = 300) -> None:
    """Joins the hosts of a run, before JAX touches a device: by flags, or by itself where the environment has several.

    That is what JAX detects: a Cloud TPU slice, SLURM, an indexed job of Kubernetes, Open MPI. On one host, which
    `processes=1` asserts, nothing happens.

    Args:
      coordinator: `HOST:PORT` of process 0, which all can reach.
      processes: how many there are.
      process: which this is, from 0.
      timeout: seconds to wait for the others.

    Raises:
      ConfigError: flags that are missing or cannot be.
      HostsError: no coordinator answers, or not all processes came.
    """
    if processes == 1 or state().client:
        return
    local_devices = None
    if coordinator or processes or process != -1:
        _check_flags(coordinator, processes, process)
    elif found := _detect(timeout):
        coordinator, processes, process, local_devices = found
    else:
        return
    prepare()
    try:
        _connect(coordinator, processes, process, local_devices, timeout)
        # With another number than the others' a process would wait for ever when the devices are counted.
        said = exchange("join/", process, processes, "number of processes", processes)
        if len(set(said)) > 1:
            raise HostsError(f"the processes were told of {', '.join(map(str, said))} processes: give all one number")
        if jax.process_count() != processes:
            raise HostsError(
                f"{processes} processes came, but JAX counts {jax.process_count()}: have all use the same kind of "
                "device (JAX_PLATFORMS), or start one with --processes=1"
            )
        meet()
    except BaseException as error:
        if here.connecting or state().client:  # jaxlib would wait for the others, and abort
            leave_soon(error)
        raise


def _check_flags(coordinator: str, processes: int, process: int) -> None:
    if not coordinator or not processes or process == -1:
        raise ConfigError(f"several processes need all of {names.FLAGS}: the address of process 0, how many, and which")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--coordinator={coordinator}: write HOST:PORT, process 0's host and a free port there")
    if not 0 <= process < processes:
        raise ConfigError(f"--process={process}: of {processes} processes, the first is 0 and the last {processes - 1}")


def _detect(timeout: int) -> Any:
    """Returns coordinator, processes, process and local devices, where an environment runs several processes."""
    from jax._src import cloud_tpu_init, clusters

    # Only hints of one's own environment are followed: asking a server that is not there would take minutes.
    hints = {"SLURM_JOB_ID", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX"} & os.environ.keys()
    if not hints and not (cloud_tpu_init.running_in_cloud_tpu_vm and _tpu_has_peers()):
        return None
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    try:
        # The address comes last, since it waits for a name server.
        processes = detect("unasked", None, None, (), None, timeout)[1]
        if processes and processes > 1:
            return detect(os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, timeout)
    except Exception as error:
        raise HostsError(f"the hosts of this run are unknown ({error}): add {names.FLAGS}, or --processes=1") from error
    if not processes and (int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1 or "JOB_COMPLETION_INDEX" in hints):
        raise ConfigError(
            f"started as one of several, but JAX cannot find the others: add {names.FLAGS}, or --processes=1"
        )
    return None


def _tpu_has_peers() -> bool:
    """Says whether a TPU machine's environment or metadata server may know of others."""
    if {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH"} & os.environ.keys():
        return True
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        return False
    address = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    try:
        socket.create_connection((address, 80), timeout=3).close()
    except OSError:
        return False
    return True


def _connect(coordinator: str, processes: int, process: int, local_devices: Any, timeout: int) -> None:
    """Starts JAX's coordination service and client. What jaxlib would abort the process for raises `HostsError`."""
    until = time.monotonic() + timeout
    host, _, port = coordinator.rpartition(":")
    if process == 0:
        _check_port(int(port))
    else:
        _await_port(host.strip("[]"), int(port), until, timeout)
    if getattr(jax.config, "jax_cpu_collectives_implementation", None) is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    failed: list[BaseException] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                local_devices,
                "deactivate",
                initialization_timeout=2 * timeout + 60,  # longer than we wait, since jaxlib ends by abort()
                heartbeat_timeout_seconds=names.HEARTBEAT,
            )
        except BaseException as error:
            failed.append(error)

    here.connecting = True
    # In a thread, so that Ctrl-C and the deadline are heard.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    waiting = Waiting()
    while thread.is_alive():
        thread.join(0.05)
        waiting.say(lambda: f"{processes} processes to meet at {coordinator}")
        if here.refused.is_set() or time.monotonic() > until:
            late = f"not all {processes} processes came to {coordinator} in {timeout} s"
            refused = f"{coordinator} refuses process {process} (its reason is above)"
            raise HostsError(
                f"{refused if here.refused.is_set() else late}: start each of 0 to {processes - 1} once, all with the "
                "same --coordinator and --processes"
            )
    here.connecting = False
    if failed:
        raise failed[0]
    here.greet()


def _check_port(port: int) -> None:
    """Makes sure that nobody listens there: gRPC would share the port with another run, or end in SIGSEGV."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise HostsError(f"port {port} of --coordinator is not free ({error.strerror}): choose another") from error


def _await_port(host: str, port: int, until: float, timeout: int) -> None:
    while True:
        try:
            socket.create_connection((host, port), timeout=min(5, timeout)).close()
            return
        except OSError as error:  # not started yet, or a name that is not known yet
            if time.monotonic() > until:
                raise HostsError(
                    f"no coordinator answers at {host}:{port} in {timeout} s ({error.strerror or error}): start "
                    "process 0 there, and let the network pass this port"
                ) from error
        time.sleep(0.2)


def meet() -> None:
    """Learns the hosts' names, and which of them has the store."""
    here.greet()
    rows = gather("meeting", [socket.gethostname(), state().service is not None])
    here.names, here.first = [name for name, _ in rows], [store for _, store in rows].index(True)
