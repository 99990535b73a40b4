"""Commands to type: the only spelling of options outside the command line itself."""

import shlex


def options(**parameters: object) -> list[str]:
    """Parameters as the options of a command, as words; those that are None are left out.

    `num_images=8` becomes --num-images 8, True --clip and False --no-clip.
    """
    words = []
    for name, value in parameters.items():
        option = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif str(value).startswith("-"):
            words.append(f"--{option}={value}")
        else:
            words += [f"--{option}", str(value)]
    return words


def command(name: str, *arguments: str, **parameters: object) -> str:
    """A command to type, quoted for a shell."""
    return shlex.join(["ddpmbench", name, *arguments, *options(**parameters)])
