"""python -m jaxbptt: the version, and an overview of the modules."""

import sys

from jaxbptt import __doc__ as overview
from jaxbptt import __version__

USAGE = "usage: python -m jaxbptt [--help | --version]"


def main(arguments: list[str] | None = None) -> int:
    """Print the version, or the overview of the modules.

    Args:
      arguments: the words of the command line; None: those of this process.

    Returns:
      The exit code: 0, or 2 for unknown arguments.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--version"]:
        sys.stdout.write(f"jaxbptt {__version__}\n")
        return 0
    if given not in ([], ["-h"], ["--help"]):
        sys.stderr.write(f"jaxbptt: got {' '.join(given)!r}, expected --help or --version\n")
        return 2
    sys.stdout.write(f"{USAGE}\n\n{overview}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
