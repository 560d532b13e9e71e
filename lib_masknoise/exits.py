"""How commands end: their exit codes, and what they say of what went wrong."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable

from lib_masknoise.scene import SceneError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

Command = Callable[[argparse.Namespace], int]


def said(run: Command) -> Command:
    """A command that says what is wrong with its input, or with the machine, in a line. It raises what a
    scene has wrong."""

    @functools.wraps(run)
    def command(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except SceneError:
            raise
        except (FileNotFoundError, ValueError, ImportError) as error:
            print(error, file=sys.stderr)
            return EXIT_BAD_INPUT
        except OSError as error:
            print(error, file=sys.stderr)
            return EXIT_FAILED

    return command
