"""`python -m lm_research.serve --model PATH`: a model behind HTTP, in OpenAI's format, with a page to try it at /.

    ... --model runs/chat/model --port 8000
    ... --host 0.0.0.0 --token_env SERVE_TOKEN     others may connect who send the token in that variable

Models that write answer /v1/completions and /v1/chat/completions (streamed or whole), up to --slots texts at a time; all have
/v1/embeddings, and /v1/predict for reading tasks of lm_research.pipeline. See /healthz and /metrics. Needs the extra [serve].

Beside OpenAI's fields requests take, under the names of `generate`: top_k, min_p, typical_p, epsilon_cutoff, repetition_penalty and
min_tokens, which rows of one step do; num_beams (then temperature is 0 unless given), num_beam_groups, diversity_penalty,
length_penalty, early_stopping, force_words_ids, bad_words_ids and no_repeat_ngram_size, for which a request runs by itself, a few tokens
at a time between the steps of the others, and comes whole. What is not served is refused with the reason: tools, JSON grammars,
suffix, contrastive search, a draft model.
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
from lm_research.errors import DONE, STOPPED_BY_SIGNAL, UserError

LOCAL = ("127.0.0.1", "::1", "localhost")
_DAY = 86400


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    parser = Parser(
        prog="python -m lm_research.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a Hugging Face directory, a native one, or a run directory")
    parser.add_argument("--name", help="the model's name in requests (the directory's)")
    parser.add_argument("--head", help="what it shall predict, if not what its directory says")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="type of parameters")
    parser.add_argument("--mesh", help="devices to divide the model over, such as fsdp=4,tensor=2 (one device)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=bounded(int, 0, 65535), default=8000, help="port to listen at (8000)")
    parser.add_argument("--token_env", help="environment variable with the token that requests must bear")
    parser.add_argument("--token_file", help="file with that token")
    parser.add_argument("--allowed_hosts", help="more names that requests may ask by, a list with commas; * is all")
    parser.add_argument("--slots", type=bounded(int, 1, 4096), default=32, help="texts at a time (32)")
    parser.add_argument(
        "--length", type=bounded(int, 2, 2**20), default=1024, help="tokens of a prompt and its text (1024)"
    )
    parser.add_argument(
        "--max_tokens", type=bounded(int, 1, 2**20), default=512, help="new tokens that a request may ask for (512)"
    )
    parser.add_argument("--max_queue", type=bounded(int, 0, 2**16), default=128, help="texts that may wait (128)")
    parser.add_argument(
        "--max_seconds", type=bounded(float, 1, _DAY), default=120.0, help="for a request, waiting included (120)"
    )
    parser.add_argument("--max_body_bytes", type=bounded(int, 1, 2**30), default=1 << 20, help="of a request (1048576)")
    parser.add_argument("--max_connections", type=bounded(int, 1, 2**16), default=512, help="open at a time (512)")
    parser.add_argument(
        "--read_seconds",
        type=bounded(float, 0.1, _DAY),
        default=30.0,
        help="for the head of a request, and its body (30)",
    )
    parser.add_argument(
        "--drain_seconds", type=bounded(float, 1, _DAY), default=30.0, help="from SIGTERM or Ctrl-C to the end (30)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    return cli.parsed(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    """Serves until it is stopped; returns the exit code.

    Raises:
      UserError: see the message.
    """
    token = read_token(args)
    if args.host not in LOCAL and token is None:
        raise UserError(f"--host={args.host} lets others connect: give --token_env or --token_file.")
    _check_address(args.host, args.port)
    with interrupts.watching("before it served"):
        config, server = _application(args, token)
    from lm_research.serving.connections import Listener, leave

    listener = Listener(config, server, args.drain_seconds)
    try:
        listener.run()
    except SystemExit as failed:  # uvicorn's, who has said why
        raise UserError(f"The server can't listen at --host={args.host} --port={args.port}. Choose others.") from failed
    code = STOPPED_BY_SIGNAL if listener.cut else DONE
    if not server.close(0.0):
        leave(code)
    return code


def _application(args: argparse.Namespace, token: str | None) -> tuple[Any, Any]:
    """The uvicorn config of the application, and its Server."""
    try:
        import uvicorn

        from lm_research.serving.app import Limits, make_app
        from lm_research.serving.connections import connection_class
    except ImportError as error:
        raise UserError(f"Serving needs {error.name}: pip install 'lm_research[serve]'.") from error
    from lm_research.pretrained import from_pretrained

    lm = from_pretrained(args.model, head=args.head, dtype=args.dtype, mesh=args.mesh)
    if lm.tokenizer is None:
        raise UserError(f"{args.model} holds no tokenizer, so it can't read texts. Put its files beside the model's.")
    limits = Limits(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Limits)})
    name = args.name or pathlib.Path(args.model).resolve().name
    more = [host.strip() for host in (args.allowed_hosts or "").split(",") if host.strip()]
    hosts = None if token is not None and not more else [args.host, *more]  # strangers' pages don't know a token
    app = make_app(lm, name, limits, token, hosts)
    watched = connection_class(args.max_connections, args.read_seconds, args.max_seconds + 2 * args.read_seconds)
    config = uvicorn.Config(
        app, host=args.host, port=args.port, http=watched, ws="none", log_level="info", server_header=False
    )
    return config, app.state.server


def _check_address(host: str, port: int) -> None:
    """Raises a UserError for an address that can't be listened at, before a model is read for nothing."""
    try:
        for family, kind, number, _, place in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with contextlib.closing(socket.socket(family, kind, number)) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(place)
    except (OSError, UnicodeError, ValueError) as error:
        raise UserError(f"--host={host} --port={port}: nothing can listen there ({error}). Choose others.") from error


def read_token(args: argparse.Namespace) -> str | None:
    """The token, None without one; raises a UserError if it is not where the arguments say."""
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
        raise UserError(f"{where} holds no token. Put a long random text there.")
    return token.strip()


if __name__ == "__main__":
    cli.start(main)
