"""A queued resource of Cloud TPU: what `gcloud compute tpus queued-resources` does with it, and what it says.

Commands and flags: https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create, and so on for
delete, describe, scp and ssh. States: https://cloud.google.com/tpu/docs/queued-resources. Exit statuses, and the words
for machines that are gone: command_lib/compute/tpus/tpu_vm/ssh.py and exceptions.py, and
surface/compute/tpus/queued_resources/ssh.py of the Cloud SDK, whose version 528 takes all commands as they are here.
"""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from effnet_jax.errors import EffnetError, RunError

QUEUED = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
# A preempted slice is SUSPENDING, then SUSPENDED. It does not start again, but is made anew (…/tpu/docs/spot).
GONE = ("SUSPENDING", "SUSPENDED", "DELETING", "FAILED")
SECONDS_BETWEEN_LOOKS = 30.0

BUSY, NO_RUN = "a run goes on here already", "no run was started here"
PREEMPTED = "terminal state"  # what ssh says, also while the queued resource is still called ACTIVE
_LEFT_OUT = "Could not prepare all"  # what ssh and scp say of slices that they go on without, with exit status 0

# What is said → what to do; the first that fits. The first table: by the hosts, or of the way to them.
_HOST_CURES = (
    (BUSY, "`watch` it; `resume` when it has ended"),
    (NO_RUN, "`start` it first"),
    (PREEMPTED, "the slice was preempted: `resume` makes it anew, and the run goes on from its last checkpoint"),
    (_LEFT_OUT, "a slice cannot be reached, perhaps because it is being repaired: try again in some minutes"),
    ("ssh-add", 'add your key to the agent: eval "$(ssh-agent)"; ssh-add ~/.ssh/google_compute_engine'),
    (
        "Connection (closed|refused|reset|timed out)|Broken pipe",
        "what was started there goes on: try again; hosts without an address need --connect-flag=--tunnel-through-iap",
    ),
    (r"\(gcloud\.storage", "give the hosts' service account the role Storage Object Admin on the bucket"),
)
_CURES = (
    ("active account|auth login|Reauth|UNAUTHENTICATED|invalid_grant", "log in: gcloud auth login"),
    ("SERVICE_DISABLED|has not been used in project", "switch it on: gcloud services enable tpu.googleapis.com"),
    (
        "(?i)quota|RESOURCE_EXHAUSTED",
        "ask for more at https://console.cloud.google.com/iam-admin/quotas, or take a smaller --topology or another "
        "--zone; --spot has a quota of its own",
    ),
    (r"(property|attribute) \[project\]|\[core/project\]", "give --project=ID, or say gcloud config set project ID"),
    (
        r"(?i)\bzone\b|zonal|locations/\S+ \(or it may not exist\)",
        "give as --zone one that has this type: https://cloud.google.com/tpu/docs/regions-zones",
    ),
    ("(?i)already.exists", "`delete` it first or take another name; `resume` goes on with what is there"),
    ("(?i)not.found", "check the name, --zone and --project, or `create` it first"),
    ("(?i)permission|forbidden", "ask for the roles TPU Admin and Service Account User on the project"),
    ("Invalid choice|unrecognized arguments", "correct --create-flag or --connect-flag, or gcloud components update"),
)


class GcloudError(EffnetError):
    """`gcloud` is missing, or refused a command. `said` is all that it wrote to stderr."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


class Pod:
    """A queued resource: one slice or several. Its methods run gcloud, or in a dry run print what they would run.

    Attributes:
      name: of the queued resource.
    """

    def __init__(self, name: str, place: Sequence[str], connect: Sequence[str], *, dry_run: bool) -> None:
        """Names the queued resource.

        Args:
          name: of the queued resource.
          place: flags of every command: --zone and --project.
          connect: flags of ssh and scp.
          dry_run: whether commands are printed and not run.
        """
        self.name = name
        self._dry_run = dry_run
        self._connect = connect
        self._always = ["--quiet", *place]  # quiet, since a question would be asked where nobody sees it

    def gcloud(self, verb: str, *flags: str, quietly: bool = False) -> str:
        """Runs a command. What it writes is shown, or with `quietly` returned.

        Raises:
          GcloudError: gcloud is missing or refuses.
        """
        command = ["gcloud", "compute", "tpus", "queued-resources", verb, *flags, *self._always]
        if self._dry_run:
            print(shlex.join(command))
            return ""
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                command, stdin=nothing, stdout=pipe if quietly else None, stderr=pipe, text=True, errors="replace"
            )
        except FileNotFoundError:
            raise GcloudError(
                "gcloud is not on PATH: install it (https://cloud.google.com/sdk/docs/install), then gcloud auth login"
            ) from None
        said = []
        with process:
            assert process.stderr
            for line in process.stderr:
                said.append(line.rstrip())
                if not quietly:
                    print(line, end="", file=sys.stderr, flush=True)
            written = process.stdout.read() if process.stdout else ""
        if process.returncode:
            raise _refusal(f"gcloud {verb} {self.name} ended with status {process.returncode}", said)
        if any(_LEFT_OUT in line for line in said):
            raise _refusal(f"gcloud {verb} {self.name} left hosts out", said)
        return written.strip()

    def ssh(self, script: str, *, hosts: str = "all") -> None:
        """Runs a script in the home folder of hosts. Fails where it fails on one of them."""
        self.gcloud("ssh", self.name, f"--node={hosts}", f"--worker={hosts}", f"--command={script}", *self._connect)

    def upload(self, files: Sequence[str]) -> None:
        """Copies files of this machine into the home folder of every host."""
        self.gcloud("scp", *files, f"{self.name}:", "--node=all", "--worker=all", *self._connect)

    def state(self, *, supposed: str) -> str:
        """Returns the state, "" where there is no such queued resource, and in a dry run what is supposed."""
        try:
            state = self.gcloud("describe", self.name, "--format=value(state.state)", quietly=True)
        except GcloudError as error:
            if re.search("NOT_FOUND|not found", error.said):
                return ""
            raise
        return supposed if self._dry_run else state

    def wait(self, until: Sequence[str], *, supposed: str) -> str:
        """Waits for one of some states, and tells what it waits in."""
        told = ""
        while (state := self.state(supposed=supposed)) not in until:
            if state != told:
                self.tell(f"{self.name} is {state} at {time.strftime('%H:%M')}: waiting (Ctrl-C changes nothing there)")
                told = state
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return state

    def wait_until_ready(self) -> None:
        """Waits until the hosts can be used. Raises RunError where they never will."""
        state = self.wait(("ACTIVE", *GONE, ""), supposed="ACTIVE")
        if not state:
            raise RunError(f"there is no {self.name}: `create` it first, or check the name, --zone and --project")
        if state != "ACTIVE":
            raise RunError(
                f"{self.name} is {state}: `resume` makes it anew, and the run goes on from its last checkpoint"
            )

    def tell(self, words: str) -> None:
        """Prints words, in a dry run not: that prints commands and nothing else."""
        if not self._dry_run:
            print(words, flush=True)


def _refusal(what: str, said: Sequence[str]) -> GcloudError:
    """Returns the error that quotes gcloud and names the cure."""
    text = "\n".join(said)
    # Hosts may say anything, so that most cures look only at gcloud's own complaint.
    own = re.search(r"ERROR: \(gcloud\.(\w+\.)?compute.*", text, re.DOTALL)
    cures = [(pattern, cure, text) for pattern, cure in _HOST_CURES]
    cures += [(pattern, cure, own[0]) for pattern, cure in _CURES if own]
    cure = next((cure for pattern, cure, words in cures if re.search(pattern, words)), "its own words say why")
    lines = [line for line in said if line.strip()][-12:]
    return GcloudError("\n".join([f"{what}:", *(f"  {line}" for line in lines), cure]), text)
