"""Options and shared fixtures of the benchmarks.

pytest benchmarks/ --benchmark-only [--quick | --smoke] [--device cuda] [--ckpt CKPT]
"""

import dataclasses
import os
import tempfile

import pytest
import torch
from bench import Bench
from cases import Case, one_of_each_kind

from ddpmbench.errors import InputError
from ddpmbench.execution.devices import resolve_device
from ddpmbench.execution.folder import versions
from ddpmbench.execution.timing import timer


def pytest_addoption(parser):
    group = parser.getgroup("ddpmbench")
    group.addoption("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.addoption("--ckpt", default=None, help="measure this checkpoint in the place of both")
    group.addoption("--quick", action="store_true", help="a few rows of each suite, few rounds")
    group.addoption(
        "--smoke",
        action="store_true",
        help="every test and every kind of row once, as small as they come; their times are of "
        "no use, and nothing is compiled",
    )
    group.addoption(
        "--improved-diffusion",
        default=None,
        metavar="PATH",
        help="a checkout of improved-diffusion, for the loop of its authors itself",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "cases(list): the rows of a test, as its argument `case`")
    config.addinivalue_line("markers", "full: a row that --quick leaves out")
    config.addinivalue_line("markers", "larger: a row that --smoke has at a smaller size already")
    try:
        config.bench_device = resolve_device(config.getoption("--device"))
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
    if config.getoption("--smoke"):
        # In this process and in those that rows start.
        torch._dynamo.config.disable = True
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    # With an earlier session's cache, compiling would only time reading it.
    config.bench_cache = tempfile.TemporaryDirectory(prefix="ddpmbench-inductor-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = config.bench_cache.name


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["versions"] = versions()


def pytest_unconfigure(config):
    if hasattr(config, "bench_cache"):
        config.bench_cache.cleanup()


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("cases")
    if marker is None:
        return
    config = metafunc.config
    rows = marker.args[0]
    if config.getoption("--smoke"):
        rows = one_of_each_kind(rows)
    elif config.getoption("--quick"):
        rows = [case for case in rows if case.quick]
    metafunc.parametrize("case", [_param(case, config) for case in rows])


def _param(case: Case, config):
    has_ckpt = config.getoption("--ckpt") is not None
    smoke = config.getoption("--smoke")
    reason = case.missing(config.bench_device, has_ckpt=has_ckpt, emulated=smoke)
    return pytest.param(
        case,
        marks=[] if reason is None else pytest.mark.skip(reason=reason),
        id=str(dataclasses.replace(case, model="ckpt") if has_ckpt else case),
    )


def pytest_collection_modifyitems(config, items):
    quick = config.getoption("--quick")
    if config.getoption("--smoke"):
        items[:] = [item for item in items if item.get_closest_marker("larger") is None]
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=timer(config.bench_device)))
        if quick and item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="--quick leaves it out"))


@pytest.fixture(scope="session")
def bench(request) -> Bench:
    """Shared by all rows."""
    config = request.config
    return Bench(
        config.bench_device,
        quick=config.getoption("--quick") or config.getoption("--smoke"),
        smoke=config.getoption("--smoke"),
        ckpt=config.getoption("--ckpt"),
    )
