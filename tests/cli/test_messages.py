"""Messages name parameters, and a command prints them as its own options."""

import click
import pytest

from ddpmbench.cli.launch import with_options
from ddpmbench.cli.main import ddpmbench
from ddpmbench.errors import command

NLL = ddpmbench.commands["nll"]


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("`num_images=0`: give a number from 1", "--num-images 0: give a number from 1"),
        ("`seed` and `half_width`", "--seed and --half-width"),
        ("leave out `clip=False`", "leave out --no-clip"),
        ("`clip=True` or `clip`", "--clip or --clip"),
        ("`data=a b=c.npz`: no images", "--data a b=c.npz: no images"),
        ("`net.conv` and `betas` of the file", "`net.conv` and `betas` of the file"),
    ],
)
def test_what_is_an_option_of_the_command_is_printed_as_one(line, printed):
    assert with_options(line, NLL) == printed


def test_without_a_command_parameters_stay():
    assert with_options("`seed=1`", None) == "`seed=1`"


def test_an_argument_is_printed_by_its_name_or_its_value():
    convert = ddpmbench.commands["convert"]
    argument = next(p for p in convert.params if isinstance(p, click.Argument))
    assert with_options(f"`{argument.name}`", convert) == argument.human_readable_name
    assert with_options(f"`{argument.name}=nope`: none", convert) == "nope: none"


def test_commands_to_type_are_understood_as_they_were_meant():
    line = command("nll", ckpt="my model.pt", clip=False, data_range="-0.5,0.5", seed=None)
    assert line == "ddpmbench nll --ckpt 'my model.pt' --no-clip --data-range=-0.5,0.5"
    context = NLL.make_context("nll", ["--no-clip", "--data-range=-0.5,0.5"])
    assert context.params["clip"] is False
    assert context.params["data_range"] == (-0.5, 0.5)
