"""``python -m fedlearn.flower demo``: a deployment on this machine; ``keys``: for real ones."""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from ..checks import check
from .keys import HERE, make_keys
from .local import Local

APP = Path(__file__).parents[2] / "examples" / "flower"


def demo(args: argparse.Namespace) -> None:
    """Start a deployment, run the example on it, and compare with a run in one process."""
    app, began = Path(args.app).resolve(), time.monotonic()
    rule = "the folder of the example app, which a clone of fedlearn has in examples/flower"
    check("demo", "app", str(app), (app / "prepare.py").is_file(), rule, "'examples/flower'")

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    with tempfile.TemporaryDirectory(prefix="fedlearn-data-") as data:
        _python(app, "prepare.py", data, str(args.clients))
        say(f"{args.clients} clients with a file each, a test set for the server")
        own: list[dict[str, Any]] = [
            {"data": f"{data}/client-{k}.npz", "keep": data} for k in range(args.clients)
        ]
        with Local(own, folder=args.folder, say=say) as local:
            config = {"folder": data, "clients": args.clients, "minimum": args.clients}
            config |= {"method": args.method, "rounds": args.rounds}
            config |= {"directory": str(local.keys / "directory.json")}
            run = local.run(app, config)
            say(f"run {run} of {args.method} started; its ServerApp says:")
            digests = []
            for line in local.lines(run):
                if line.startswith(("found", "round", "digest")) or "rror" in line:
                    say(f"  {line}")
                digests += [line.split()[-1]] * line.startswith("digest")
            here = _python(app, "here.py", data, args.method, str(args.rounds)).split()[-1]
            say(f"the same run in one process: digest {here}")
            if digests != [here]:
                raise SystemExit("demo: the two runs differ, or the deployed one did not end")
            say("the same bits. Ending all processes")
    say("done: nothing is left running")


def _python(app: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=app, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"demo: {words[0]} failed: {done.stderr[-600:]}")
    return done.stdout


def _stopped(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(words: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fedlearn.flower", description=__doc__)
    commands = parser.add_subparsers(required=True)
    own = commands.add_parser("demo", help="SuperLink and SuperNodes on 127.0.0.1, and a run")
    own.add_argument("--clients", type=int, default=3)
    own.add_argument("--rounds", type=int, default=3)
    own.add_argument("--method", default="fedavg", help="fedavg, scaffold, fedadam or secure")
    own.add_argument("--app", default=str(APP), help="the folder of the app")
    own.add_argument("--folder", help="an empty folder that keeps the logs; else a temporary one")
    own.set_defaults(act=demo)
    keys = commands.add_parser("keys", help="an authority, TLS and node keys, into a folder")
    keys.add_argument("folder")
    keys.add_argument("--clients", type=int, default=3)
    keys.add_argument("--host", nargs="+", default=list(HERE), help="as nodes reach the SuperLink")
    keys.set_defaults(act=lambda a: print(make_keys(a.folder, a.clients, a.host)))
    args = parser.parse_args(words)
    numbers = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    before = {number: signal.signal(number, _stopped) for number in numbers}
    try:
        args.act(args)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, RuntimeError, OSError) as e:
        raise SystemExit(f"{parser.prog}: {e}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
