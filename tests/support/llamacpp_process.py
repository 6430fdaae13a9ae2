"""The process behind `support.llamacpp`: llama.cpp's own HTTP server, on 127.0.0.1, until SIGTERM or its parent dies.

Prints `READY <url>` when it listens. The server lives in C++ threads of this process, which is why it has one of its
own, and why it ends without their leave: they finish what they compute, and join one another, before they would let
Python end, which takes as long as the machine is busy. One compute thread: with two, the spinning barriers cost five
times the throughput on a busy 2-core machine. Every form of prefix cache is off, else repeated prompts measure the
cache.
"""

from __future__ import annotations

import argparse
import os
import sys

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--ctx-per-slot", type=int, required=True)
    parser.add_argument("--api-key")
    args = parser.parse_args()

    server = xllamacpp.Server(_params(args))
    sys.stdout.write(f"READY {server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()  # the parent holds the other end of this pipe: it ends when the parent does
    os._exit(0)


def _params(args: argparse.Namespace) -> xllamacpp.CommonParams:
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.model_alias = {"tiny"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = args.slots
    params.n_ctx = args.slots * args.ctx_per_slot  # the total; the server divides it by the slots
    params.fit_params = False  # else it resizes the context
    params.cont_batching = True
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.endpoint_metrics = True
    params.endpoint_props = True
    params.ui = False
    params.verbosity = 2
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    if args.api_key:
        params.api_keys = [args.api_key]
    return params


if __name__ == "__main__":
    main()
