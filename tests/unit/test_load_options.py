"""The command line of the load tests."""

from __future__ import annotations

import argparse
import importlib

import load_options
from workload import Workload


def plan(*said: str) -> load_options.Plan:
    """Read a command line."""
    parser = argparse.ArgumentParser()
    load_options.add_common(parser)
    return load_options.plan_of(parser.parse_args(said), "http://localhost:3000")


def test_each_run_asks_for_new_texts_and_says_how_to_ask_for_them_again() -> None:
    """Or a server that has answered one run would know the next one's; within a run, all servers are asked the same."""
    first = plan().workload
    assert plan().workload == first
    importlib.reload(load_options)  # as in the next run
    second = plan().workload
    assert Workload(first).take() != Workload(second).take()
    assert f"seed {first.seed})" in load_options.described(first)
    assert Workload(plan("--seed", str(first.seed)).workload).take() == Workload(first).take()


def test_a_file_s_queries_have_the_same_documents_in_each_run() -> None:
    """So that a second replay repeats the first one."""
    assert plan("--queries", "queries.txt").workload.seed == 1
    assert plan("--queries", "queries.txt", "--seed", "7").workload.seed == 7
