"""Flags of the gcloud commands that the launchers call, by docs.cloud.google.com/sdk/gcloud/reference (read in 2026)."""

from __future__ import annotations

WIDE = {"project", "quiet", "format", "verbosity", "account"}
_LIST = {"filter", "limit", "page-size", "sort-by", "uri"}
_CREATE = {
    *(
        "zone",
        "runtime-version",
        "accelerator-type",
        "topology",
        "type",
        "node-id",
        "node-count",
        "node-prefix",
        "async",
    ),
    *(
        "boot-disk",
        "data-disk",
        "description",
        "guaranteed",
        "internal-ips",
        "labels",
        "metadata",
        "metadata-from-file",
    ),
    *(
        "network",
        "range",
        "reserved",
        "scopes",
        "service-account",
        "shielded-secure-boot",
        "spot",
        "subnetwork",
        "tags",
    ),
    *("valid-after-duration", "valid-after-time", "valid-until-duration", "valid-until-time"),
    *("reservation-host-folder", "reservation-host-organization", "reservation-host-project"),
}
_SSH = {
    *(
        "dry-run",
        "force-key-file-overwrite",
        "internal-ip",
        "plain",
        "ssh-key-file",
        "strict-host-key-checking",
        "worker",
    ),
    *("zone", "ssh-key-expiration", "ssh-key-expire-after"),
}
TPUS = "compute tpus"
FLAGS = {
    f"{TPUS} queued-resources create": _CREATE,
    f"alpha {TPUS} queued-resources create": {
        *_CREATE,
        *(
            "autocheckpoint-enabled",
            "best-effort",
            "max-run-duration",
            "provisioning-model",
            "network-config",
            "reservation",
        ),
        "workload-type",
    },
    f"{TPUS} queued-resources delete": {"zone", "async", "force"},
    f"{TPUS} queued-resources list": {"zone", *_LIST},
    f"{TPUS} tpu-vm list": {"zone", *_LIST},
    f"{TPUS} tpu-vm ssh": {*_SSH, "ssh-flag", "command", "output-directory"},
    f"{TPUS} tpu-vm scp": {*_SSH, "scp-flag", "compress", "recurse"},
    f"{TPUS} tpu-vm accelerator-types list": {"zone", *_LIST},
    f"{TPUS} tpu-vm versions list": {"zone", *_LIST},
    f"{TPUS} locations list": _LIST,
    "auth list": {"filter-account", *_LIST},
    "auth login": set(),
    "services enable": {"async"},
    "storage buckets create": {"location", "default-storage-class", "uniform-bucket-level-access"},
    "projects describe": set(),
    "projects get-iam-policy": {"flatten", *_LIST},
    "services list": {"available", "enabled", *_LIST},
    "beta quotas info list": {"service", "folder", "organization", *_LIST},
    "storage buckets describe": {"additional-headers", "raw", "soft-deleted"},
    "compute networks describe": set(),
    "compute networks subnets describe": {"region"},
    "compute disks describe": {"region", "zone"},
    "iam service-accounts describe": set(),
}


def parse(arguments: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """Split arguments into the command, its operands and its flags.

    Raises:
      AssertionError: gcloud has no such command, or the command no such flag.
    """
    words = [word for word in arguments if not word.startswith("--")]
    command = next((" ".join(words[:n]) for n in range(len(words), 0, -1) if " ".join(words[:n]) in FLAGS), None)
    assert command, f"gcloud has no command {' '.join(words)}"
    flags: dict[str, str] = {}
    for word in arguments:
        if word.startswith("--"):  # a repeated flag has all its values
            name, _, value = word[2:].partition("=")
            flags[name] = f"{flags[name]} {value}" if name in flags else value
    unknown = flags.keys() - FLAGS[command] - WIDE
    assert not unknown, f"gcloud {command} has no flag {unknown}"
    return command, words[len(command.split()) :], flags
