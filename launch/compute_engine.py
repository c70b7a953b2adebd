"""`python -m launch.compute_engine --name=bert --accelerator=tpu7x:2x2x2 ... -- TRAIN ARGS > bert.sh`.

Prints a bash script for one TPU slice on Compute Engine, the way to TPU7x, which the Cloud TPU API does not serve:
`bash bert.sh create` makes a workload policy, an instance template and a managed instance group, `bash bert.sh run` installs
this checkout on its machines and starts training, `bash bert.sh logs` follows it, and `bash bert.sh delete` deletes
everything. Nothing watches the run: after a pre-emption, `run` continues it.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence

from launch.description import TPU, Description, print_output
from launch.errors import LaunchError
from launch.training import check_training, extras, install

# Boot images in the project ubuntu-os-accelerator-images; managed instance groups exist for these chips
# (docs.cloud.google.com/tpu/docs/tpus-and-migs).
IMAGES = {
    "v5p": "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
    "v6e": "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
    "tpu7x": "ubuntu-accel-2404-amd64-tpu-tpu7x",
}
DISKS = {
    "v5p": "pd-balanced"
}  # later chips take hyperdisks only (docs.cloud.google.com/tpu/docs/attach-durable-block-storage)
PORT = 8476
FIELDS = (
    *(name for name in TPU if name != "slices"),
    *("network", "subnetwork", "internal_ips", "service_account", "labels"),
)
_WORKER = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-id"


def script(run: Description, reservation: str = "") -> str:
    """Return the script.

    Raises:
      LaunchError: Compute Engine does not have such slices, something is missing, or training would refuse its arguments.
    """
    _check(run, reservation)
    create, delete = _machines(run, reservation)
    slice, place = run.slice, f"--project={run.project} --zone={run.zone} --quiet"
    shell = f"{place} --strict-host-key-checking=no{' --internal-ip' if run.internal_ips else ''}"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in run.variables("tpu").items())
    config, workdir = check_training(run.train)
    train = shlex.join(["env/bin/python", "-m", "lm_research.train", "--config=config.json", *workdir])
    number = "echo 0"
    if slice.hosts > 1:
        train += f' --coordinator="$2:{PORT}" --num_processes={slice.hosts} --process_id="$1"'
        number = f"curl -sf -H Metadata-Flavor:Google {_WORKER}"
    secrets = "".join(
        f'  printf "export {name}=%q\\n" "${{{name}:?}}" >> "$folder/secrets.sh"\n' for name in run.secrets
    )
    return f"""#!/bin/bash
# {slice} on Compute Engine: {slice.hosts} x {slice.machine_type}. Not tested on a real cloud.
set -euo pipefail
machines() {{ gcloud compute instance-groups managed list-instances {run.name} --format="value(name)" {place}; }}
on() {{ gcloud compute ssh "$1" {shell} --command="$2" < /dev/null; }}

create() {{
  {create}
}}

run() {{
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" .
  cat > "$folder/config.json" <<'CONFIG'
{config}CONFIG
  cat > "$folder/install.sh" <<'INSTALL'
{install(f"$(ls lm_research-*.whl)[{extras(run.train)}]", "env")}
INSTALL
  cat > "$folder/start.sh" <<'START'
{exports}if [ -e secrets.sh ]; then . ./secrets.sh; fi
setsid nohup {train} >> log.txt 2>&1 < /dev/null &
START
  umask 077
{secrets}  coordinator=
  for machine in $(machines); do
    on "$machine" "mkdir -p -m 700 lm_research_run"
    gcloud compute scp --recurse "$folder"/* "$machine:lm_research_run/" {shell}
    on "$machine" "cd lm_research_run && bash install.sh && {number} > number"
    if [ "$(on "$machine" "cat lm_research_run/number")" = 0 ]; then
      coordinator=$(gcloud compute instances describe "$machine" --format="value(networkInterfaces[0].networkIP)" {place})
    fi
  done
  for machine in $(machines); do
    on "$machine" "cd lm_research_run && bash start.sh \$(cat number) $coordinator"
  done
}}

logs() {{ on "$(machines | head -n 1)" "tail -n 100 -F lm_research_run/log.txt"; }}

delete() {{
  {delete}
}}

case "${{1:-}}" in
  create | run | logs | delete) "$1" ;;
  *) echo "usage: bash $0 create|run|logs|delete" >&2; exit 2 ;;
esac
"""


def _machines(run: Description, reservation: str) -> tuple[str, str]:
    """Return the commands that create and delete the machines."""
    slice, region = run.slice, run.zone.rpartition("-")[0]
    place = f"--project={run.project} --zone={run.zone} --quiet"
    template = {
        "machine-type": slice.machine_type,
        "image-family": IMAGES[slice.chip],
        "image-project": "ubuntu-os-accelerator-images",
        "maintenance-policy": "TERMINATE",
        "scopes": "cloud-platform",
        "labels": ",".join(run.labels),
        "network": run.network,
        "subnet": run.subnetwork and f"projects/{run.project}/regions/{region}/subnetworks/{run.subnetwork}",
        "service-account": run.service_account,
        "boot-disk-type": DISKS.get(slice.chip, "hyperdisk-balanced"),
        "boot-disk-size": "250GB",
    }
    if run.spot or reservation:
        template["provisioning-model"] = "SPOT" if run.spot else "RESERVATION_BOUND"
        template["instance-termination-action"] = "DELETE"
    if reservation:
        template |= {"reservation-affinity": "specific", "reservation": reservation}
    flags = " ".join(f"--{name}={value}" for name, value in template.items() if value)
    flags += " --no-address" if run.internal_ips else ""
    create = [f"gcloud compute instance-templates create {run.name} {flags} --project={run.project} --quiet"]
    group = f"--template={run.name} --size={slice.hosts} --default-action-on-vm-failure=do-nothing"
    delete = [
        f"gcloud compute instance-groups managed delete {run.name} {place}",
        f"gcloud compute instance-templates delete {run.name} --project={run.project} --quiet",
    ]
    if slice.hosts > 1:
        regional = f"--project={run.project} --region={region} --quiet"
        create.insert(
            0,
            f"gcloud compute resource-policies create workload-policy {run.name} --type=HIGH_THROUGHPUT "
            f"--accelerator-topology={slice.topology} {regional}",
        )
        group += f" --workload-policy=projects/{run.project}/regions/{region}/resourcePolicies/{run.name}"
        delete.append(f"gcloud compute resource-policies delete {run.name} {regional}")
    create.append(f"gcloud compute instance-groups managed create {run.name} {group} {place}")
    return "\n  ".join(create), "\n  ".join(
        ["failed=0", *(f"{line} || failed=1" for line in delete), 'return "$failed"']
    )


def _check(run: Description, reservation: str) -> None:
    slice = run.slice
    if slice.chip not in IMAGES:
        raise LaunchError(
            f"--accelerator={run.accelerator}: Compute Engine has groups of {', '.join(IMAGES)}. Use `python -m launch.tpu_vm` for {slice.chip}."
        )
    if not run.project or not run.zone:
        raise LaunchError("--project and --zone are needed, for example --project=my-project --zone=us-central1-c.")
    if run.spot and reservation:
        raise LaunchError("--spot and --reservation exclude each other.")
    if not re.fullmatch(r"[\w./:-]*", reservation):
        raise LaunchError(f"--reservation={reservation} is not the name of a reservation.")


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch.compute_engine", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reservation", default="", help="name of a reservation to use")
    return print_output(argv, parser, FIELDS, lambda run, flags: script(run, flags.reservation))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
