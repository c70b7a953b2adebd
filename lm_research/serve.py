"""`python -m lm_research.serve --model PATH`: serve a model over HTTP with an OpenAI-compatible API and a demo page at /.

    ... --model runs/chat/model --port 8000
    ... --host 0.0.0.0 --token_env SERVE_TOKEN     accept remote clients that send the token in that variable

Generative models have /v1/completions and /v1/chat/completions (streamed or not), for up to --slots texts at a time. All models have
/v1/embeddings, and /v1/predict for the non-generative tasks of lm_research.pipeline. See also /healthz and /metrics. Requires the extra
[serve].

In addition to OpenAI's fields, requests accept these arguments of `generate`: top_k, min_p, typical_p, epsilon_cutoff,
repetition_penalty and min_tokens, which are batched with other requests; and num_beams (temperature then defaults to 0),
num_beam_groups, diversity_penalty, length_penalty, early_stopping, force_words_ids, bad_words_ids and no_repeat_ngram_size. A request
with one of the latter runs separately, a few tokens at a time between the steps of the others, and is not streamed. Unsupported
features are refused with the reason: tools, JSON grammars, suffix, contrastive search, draft models.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import socket
from collections.abc import Sequence
from typing import Any

from lm_research import cli
from lm_research.common import interrupts
from lm_research.common.flags import Parser, bounded
from lm_research.common.paths import as_path, is_remote
from lm_research.errors import DONE, STOPPED_BY_SIGNAL, UserError

LOCAL = ("127.0.0.1", "::1", "localhost")
_DAY = 86400


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = Parser(
        prog="python -m lm_research.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        help="model directory (in the Hugging Face format, in the native format, or of a run), or a .gguf file",
    )
    parser.add_argument("--name", help="name of the model in requests (the directory's name)")
    parser.add_argument("--head", help="head of the model (that of its directory)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="type of parameters")
    parser.add_argument("--mesh", help="mesh to divide the model over, such as fsdp=4,tensor=2 (one device)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=bounded(int, 0, 65535), default=8000, help="port to listen at (8000)")
    parser.add_argument("--token_env", help="environment variable with the bearer token that requests must have")
    parser.add_argument("--token_file", help="file with the bearer token")
    parser.add_argument("--allowed_hosts", help="additional Host headers to accept, separated by commas; * accepts all")
    parser.add_argument("--slots", type=bounded(int, 1, 4096), default=32, help="texts to generate at a time (32)")
    parser.add_argument(
        "--length", type=bounded(int, 2, 2**20), default=1024, help="maximum tokens of prompt and completion (1024)"
    )
    parser.add_argument(
        "--max_tokens", type=bounded(int, 1, 2**20), default=512, help="maximum new tokens of a request (512)"
    )
    parser.add_argument("--max_queue", type=bounded(int, 0, 2**16), default=128, help="maximum waiting texts (128)")
    parser.add_argument(
        "--max_seconds",
        type=bounded(float, 1, _DAY),
        default=120.0,
        help="time limit of a request, including waiting (120)",
    )
    parser.add_argument(
        "--max_body_bytes", type=bounded(int, 1, 2**30), default=1 << 20, help="maximum request size (1048576)"
    )
    parser.add_argument(
        "--max_connections", type=bounded(int, 1, 2**16), default=512, help="maximum open connections (512)"
    )
    parser.add_argument(
        "--read_seconds",
        type=bounded(float, 0.1, _DAY),
        default=30.0,
        help="time limit for receiving a request's headers, and its body (30)",
    )
    parser.add_argument(
        "--drain_seconds",
        type=bounded(float, 1, _DAY),
        default=30.0,
        help="time to finish requests after SIGTERM or Ctrl-C (30)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return cli.parsed(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    """Serve until stopped, and return the exit code.

    Raises:
      UserError: the model cannot be loaded, or the address cannot be used.
    """
    token = read_token(args)
    if args.host not in LOCAL and token is None:
        raise UserError(f"--host={args.host} accepts remote connections, which require --token_env or --token_file.")
    _check_address(args.host, args.port)
    with interrupts.watching("before it served"):
        config, server = _application(args, token)
    from lm_research.serving.connections import Listener, exit_now

    listener = Listener(config, server, args.drain_seconds)
    try:
        listener.run()
    except SystemExit as failed:  # by uvicorn, which has logged the reason
        raise UserError(
            f"The server cannot listen at --host={args.host} --port={args.port}. Choose another address."
        ) from failed
    code = STOPPED_BY_SIGNAL if listener.interrupted else DONE
    if not server.close(0.0):
        exit_now(code)
    return code


def _application(args: argparse.Namespace, token: str | None) -> tuple[Any, Any]:
    """Make the uvicorn config of the application, and its Server."""
    try:
        import uvicorn

        from lm_research.serving.app import Limits, make_app
        from lm_research.serving.connections import connection_class
    except ImportError as error:
        raise UserError(f"Serving needs {error.name}: pip install 'lm_research[serve]'.") from error
    from lm_research.pretrained import from_pretrained
    from lm_research.run.compile_cache import use_compile_cache

    use_compile_cache()
    lm = from_pretrained(args.model, head=args.head, dtype=args.dtype, mesh=args.mesh)
    if lm.tokenizer is None:
        raise UserError(
            f"{args.model} has no tokenizer, so it cannot read texts. Add the tokenizer's files to the directory."
        )
    limits = Limits(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Limits)})
    name = args.name or (as_path(args.model) if is_remote(args.model) else pathlib.Path(args.model).resolve()).name
    more = [host.strip() for host in (args.allowed_hosts or "").split(",") if host.strip()]
    # Without a token, checking the Host header keeps web pages from reaching a local server (DNS rebinding).
    hosts = None if token is not None and not more else [args.host, *more]
    app = make_app(lm, name, limits, token, hosts)
    watched = connection_class(args.max_connections, args.read_seconds, args.max_seconds + 2 * args.read_seconds)
    config = uvicorn.Config(
        app, host=args.host, port=args.port, http=watched, ws="none", log_level="info", server_header=False
    )
    return config, app.state.server


def _check_address(host: str, port: int) -> None:
    """Raise a UserError for an address that cannot be listened at, before a model is loaded."""
    try:
        for family, kind, number, _, place in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with contextlib.closing(socket.socket(family, kind, number)) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(place)
    except (OSError, UnicodeError, ValueError) as error:
        raise UserError(
            f"--host={host} --port={port}: cannot listen at this address ({error}). Choose another one."
        ) from error


def read_token(args: argparse.Namespace) -> str | None:
    """Read the bearer token; None without one. Raise a UserError if the variable or file of the arguments has none."""
    if args.token_env and args.token_file:
        raise UserError("--token_env and --token_file are both given. Keep one of them.")
    if args.token_env:
        token, where = os.environ.get(args.token_env, ""), f"The environment variable {args.token_env}"
    elif args.token_file:
        try:
            token, where = pathlib.Path(args.token_file).read_text(encoding="utf-8"), args.token_file
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--token_file={args.token_file} cannot be read: {error}.") from error
    else:
        return None
    if not token.strip():
        raise UserError(f"{where} has no token. Set it to a long random string.")
    return token.strip()


if __name__ == "__main__":
    cli.start(main)
