"""The ``cosmos3`` command. Every subcommand ends with exit code 0 or 1, an error is one line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from cosmos3_ros.command_line import Parser

# Subcommand: the module with its add_arguments(parser) and main(args), and its help. A module is
# imported when its command is asked for: an export needs torch, a robot does not.
COMMANDS = {
    "export": ("cosmos3_ros.export_command", "make a bundle from a recipe"),
    "synthetic-checkpoint": (
        "cosmos3_ros.synthetic_checkpoint_command",
        "write a checkpoint of a recipe's size whose weights mean nothing",
    ),
    "compile": ("cosmos3_ros.compile_command", "compile a bundle's graphs for the robot's GPU"),
    "inspect": ("cosmos3_ros.inspect_command", "print what is in a bundle and what it costs"),
    "verify": ("cosmos3_ros.verify_command", "check a bundle: hashes, shapes, a whole plan"),
    "twin": (
        "cosmos3_ros.twin_command",
        "write a reduced bundle as a CPU can run it, rounded and quantised as it is",
    ),
    "make-episodes": (
        "cosmos3_ros.training.episodes",
        "demonstrations of the simulated arm as a LeRobot v3 data set",
    ),
    "train": ("cosmos3_ros.train_command", "train a small policy on demonstrations"),
    "open-loop": (
        "cosmos3_ros.open_loop_command",
        "what a checkpoint predicts of recorded episodes, beside what came",
    ),
    "bag-from-lerobot": ("cosmos3_ros.replay.lerobot", "turn a LeRobot v3 episode into a bag"),
    "replay": ("cosmos3_ros.replay.play", "play a bag into the nodes, record what they say"),
    "doctor": ("cosmos3_ros.doctor", "say what works on this machine and what to install"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    listing = "\n".join(f"  {name:18}{text}" for name, (_, text) in COMMANDS.items())
    parser = Parser(
        prog="cosmos3",
        description="Cosmos 3 policies on ROS 2.",
        epilog=f"commands:\n{listing}\n\n'cosmos3 COMMAND --help' says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    command = parser.parse_args(arguments[:1]).command
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in its background with SIGINT ignored: it has to clean up too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    module_name, text = COMMANDS[command]
    try:
        module = import_module(module_name)
        command_parser = Parser(prog=f"cosmos3 {command}", description=text)
        module.add_arguments(command_parser)
        return int(module.main(command_parser.parse_args(arguments[1:])))
    except ModuleNotFoundError as error:
        return _refuse(command, f"Python package '{error.name}' is missing; see 'cosmos3 doctor'")
    except (ValueError, OSError) as error:
        # Our own errors speak for themselves; another ValueError is a fault and keeps its trace.
        ours = isinstance(error, OSError) or type(error).__module__.startswith("cosmos3_ros")
        if not ours or os.environ.get("COSMOS3_TRACEBACK"):
            raise
        return _refuse(command, str(error))
    except KeyboardInterrupt:
        return _refuse(command, "interrupted; nothing was left half written")


def _refuse(command: str, message: str) -> int:
    print(f"cosmos3 {command}: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
