#!/usr/bin/env python3
"""A gcloud that keeps its cloud in a JSON file: records every call, and fails as its `faults` specify.

The file has: calls (argument lists), faults (a list of [word that an argument contains, message, times]), state of the
queued resource (or null), nodes (name -> state), codes (the workers' answers to requests for their exit codes, in turn;
PREEMPT preempts the slices).
"""

import json
import os
import pathlib
import sys

PATH = pathlib.Path(os.environ["FAKE_CLOUD"])


def answer(cloud: dict, arguments: list[str]) -> str:
    kind, command = arguments[2:4]
    flags = dict(argument[2:].partition("=")[::2] for argument in arguments if argument.startswith("--"))
    if command == "create":
        if cloud["state"]:
            sys.exit("ALREADY_EXISTS: it is there")
        cloud["state"] = (cloud["states"] or ["ACTIVE"]).pop(0) if cloud["states"] else "ACTIVE"
        names = (
            [flags["node-id"]]
            if "node-id" in flags
            else [f"{flags['node-prefix']}-{i}" for i in range(int(flags["node-count"]))]
        )
        cloud["nodes"] = dict.fromkeys(names, "READY") if cloud["state"] == "ACTIVE" else {}
    elif command == "delete":
        cloud["state"], cloud["nodes"] = None, {}
    elif command == "list" and kind == "queued-resources":
        return f"run {cloud['state']}\nrunner ACTIVE\n" if cloud["state"] else "runner ACTIVE\n"
    elif command == "list":
        return "".join(f"{name} {state}\n" for name, state in cloud["nodes"].items())
    elif command == "scp":
        source = pathlib.Path(arguments[4])
        cloud["files"][source.name] = [
            source.read_bytes().decode(errors="replace")[:100_000],
            oct(source.stat().st_mode & 0o777),
        ]
    elif command == "ssh" and "cat code" in flags["command"]:
        code = cloud["codes"].pop(0)
        if code == "PREEMPT":
            cloud["state"], cloud["nodes"] = "SUSPENDED", dict.fromkeys(cloud["nodes"], "PREEMPTED")
            return "1\n1\n"
        return f"{code}\n" * 2
    return ""


cloud = json.loads(PATH.read_text())
arguments = sys.argv[1:]
cloud["calls"].append(arguments)
try:
    for fault in cloud["faults"]:
        if fault[2] > 0 and any(fault[0] in argument for argument in arguments):
            fault[2] -= 1
            sys.exit(fault[1])
    print(answer(cloud, arguments), end="")
finally:
    PATH.write_text(json.dumps(cloud))
