"""Does a server with slots generate more tokens per second for 32 clients than for one?

    python -m experiments.benchmarks.serve.run --model DIR [--seconds 60]

Starts `python -m lm_research.serve`, lets one client send requests in a loop, then 32 at once, for the same time. Every answer is
greedy and compared with the server's earlier answer to that prompt as its only request. Prints a JSON object; needs a quiet machine.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import time

import httpx

CLIENTS = 32
PROMPTS = [f"In the days of king number {number} the people said" for number in range(CLIENTS)]


def complete(client: httpx.Client, prompt: str, tokens: int) -> tuple[str, int]:
    """Return the completion of a prompt and its number of tokens."""
    answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": tokens, "temperature": 0})
    answer.raise_for_status()
    found = answer.json()
    return found["choices"][0]["text"], found["usage"]["completion_tokens"]


def load(url: str, clients: int, seconds: float, tokens: int, expected: dict[str, str]) -> dict[str, float]:
    """Return the total tokens per second of `clients` clients, and the numbers of mixed-up answers and errors."""
    start = time.perf_counter()

    def client(number: int) -> tuple[int, int, int]:
        generated = wrong = errors = 0
        with httpx.Client(base_url=url, timeout=120) as connection:
            while time.perf_counter() - start < seconds:
                prompt = PROMPTS[number]
                try:
                    text, count = complete(connection, prompt, tokens)
                except httpx.HTTPError:
                    errors += 1
                    continue
                generated += count
                wrong += text != expected[prompt]
        return generated, wrong, errors

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        rows = list(pool.map(client, range(clients)))
    spent = time.perf_counter() - start
    generated, wrong, errors = map(sum, zip(*rows, strict=True))
    return {"clients": clients, "tokens_per_second": round(generated / spent, 1), "mixed_up": wrong, "errors": errors}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "lm_research.serve", "--model", args.model, "--port", str(port), "--length", "128"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=url, timeout=120) as connection:
            for _ in range(600):
                try:
                    connection.get("/healthz")
                    break
                except httpx.TransportError:
                    if server.poll() is not None:
                        raise SystemExit("The server ended; run its command to see why.") from None
                    time.sleep(0.2)
            expected = {prompt: complete(connection, prompt, args.tokens)[0] for prompt in PROMPTS}
        before = os.getloadavg()[0]
        one, many = (load(url, clients, args.seconds, args.tokens, expected) for clients in (1, CLIENTS))
    finally:
        server.terminate()
        server.wait()
    ratio = many["tokens_per_second"] / one["tokens_per_second"]
    print(json.dumps({"one": one, "many": many, "ratio": round(ratio, 2), "load_before": before}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
