# SPDX-License-Identifier: Apache-2.0
"""The command line. Each command imports what it needs when it runs: from start to registration every module counts."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import deviceplugin

if TYPE_CHECKING:
    from deviceplugin.configfile import Configuration
    from deviceplugin.daemon import Plan
    from deviceplugin.observe.survey import Survey
    from deviceplugin.plugin import Plugin

USAGE = 2
"""Exit status of a mistake of the user's."""


class _Parser(argparse.ArgumentParser):
    """Mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; try {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The ``deviceplugin`` command. Returns the exit status: 0 well, 1 a check that failed, 2 a mistake of the user's."""
    parser = _Parser(prog="deviceplugin", description="Offers a node's devices to Kubernetes.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="serve devices to the kubelet until SIGTERM", allow_abbrev=False)
    _add_run_flags(run)

    devices = commands.add_parser("devices", help="show the devices of this node and who holds them", allow_abbrev=False)
    _add_source_flags(devices)
    _add_output(devices)

    forgive = commands.add_parser("forgive", help="forget the fault of a unit that is well again, which no rule would believe", allow_abbrev=False)
    forgive.add_argument("unit", metavar="UNIT", help="as `deviceplugin devices` names it, or a device of it")
    forgive.add_argument("--root", metavar="DIR", default="/", help="use the tree below DIR instead of /")
    _add_output(forgive)

    check = commands.add_parser("check", help="check a configuration: what would be advertised, and what not and why", allow_abbrev=False)
    check.add_argument("config", metavar="FILE")
    check.add_argument("--root", metavar="DIR", default="/", help="look at the tree below DIR instead of /")
    check.add_argument("--node", metavar="NAME", dest="node_name", help="what the node of this name would run, with the devices that are here")
    check.set_defaults(plugin=[])
    _add_output(check)

    demo = commands.add_parser("demo", help="watch simulated devices being served, broken and repaired (no root, no cluster)", allow_abbrev=False)
    demo.add_argument("--machine", choices=("gpus", "cameras"), default="gpus", help="a node with 8 GPUs (the default), or one with 4 USB cameras")
    demo.add_argument("--log", action="store_true", help="show the daemon's own log too")

    convert = commands.add_parser("convert", help="turn another plugin's configuration into ours, and say what was left out", allow_abbrev=False)
    convert.add_argument("file", metavar="FILE")
    convert.add_argument("--from", metavar="PEER", dest="peer", default="nvidia", help="whose it is (nvidia)")

    uninstall = commands.add_parser("uninstall", help="remove what was left on this node, once nothing serves any more", allow_abbrev=False)
    uninstall.add_argument("--dry-run", action="store_true", help="only list it")
    _add_source_flags(uninstall)
    _add_output(uninstall)

    commands.add_parser("version", help="print the version")

    args = parser.parse_args(argv)
    functions = {
        "run": _run,
        "devices": _devices,
        "forgive": _forgive,
        "check": _check,
        "demo": _demo,
        "convert": _convert,
        "uninstall": _uninstall,
        "version": _version,
    }
    return _guarded(parser.prog, functions[args.command], args)


def run_plugins(plugins: Sequence[type[Plugin]], argv: Sequence[str] | None) -> int:
    """A vendor's ``main``: the flags of ``deviceplugin run`` for the given plugins, which a configuration file may name by their class names."""
    parser = _Parser(description="Offers this node's devices to Kubernetes.", allow_abbrev=False)
    _add_run_flags(parser)
    args = parser.parse_args(argv)
    return _guarded(parser.prog, lambda given: _run(given, plugins), args)


def _add_source_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="configuration file")
    parser.add_argument(
        "--plugin", metavar="SPEC", action="append", default=[], help="also this plugin: an installed one's name, module:Class, or file.py:Class"
    )
    parser.add_argument("--root", metavar="DIR", default="/", help="use the tree below DIR instead of /")


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    _add_source_flags(parser)
    parser.add_argument("--listen", metavar="ADDR", help="host:port of /metrics, /healthz and /readyz, empty for none (127.0.0.1:9808)")
    parser.add_argument("--log-format", metavar="text|json")
    parser.add_argument("--log-level", metavar="debug|info|warning|error")
    parser.add_argument("--registration", metavar="socket|watcher", help="how the kubelet hears of us")
    parser.add_argument("--node-name", metavar="NAME")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")


def _guarded(prog: str, command: Any, args: argparse.Namespace) -> int:
    from deviceplugin.config import ConfigError

    try:
        if not os.path.isdir(getattr(args, "root", "/")):
            raise ConfigError(f"--root {args.root}: there is no such directory")
        return int(command(args))
    except ConfigError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        # Whoever read our output has enough of it; Python must not complain when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _given(plugins: Sequence[type[Plugin]]) -> dict[str, type[Plugin]]:
    """Plugins that are given as classes, by the label that they have in the settings."""
    names = [one.__name__ for one in plugins]
    return {one.__name__ if names.count(one.__name__) == 1 else f"{one.__module__}.{one.__name__}": one for one in plugins}


def _configuration(args: argparse.Namespace, classes: Mapping[str, type[Plugin]], hostname: str = "") -> Configuration:
    """What the flags and the file say for this node. ``hostname`` stands in for the node's name where neither says it. Raises ConfigError."""
    import msgspec
    from msgspec.structs import replace

    from deviceplugin.config import ConfigError, PluginSettings
    from deviceplugin.configfile import load

    flags = {"listen": "listen", "log_format": "logFormat", "log_level": "logLevel", "registration": "registration", "node_name": "nodeName"}
    configuration = load(args.config, {key: getattr(args, flag, None) for flag, key in flags.items()}, hostname=hostname)
    settings = configuration.settings
    extra = [PluginSettings(plugin=spec) for spec in args.plugin]
    if not settings.plugins:
        extra += [PluginSettings(plugin=f"{one.__module__}:{one.__qualname__}", name=label) for label, one in classes.items()]
    if extra:
        try:
            settings = msgspec.structs.replace(settings, plugins=[*settings.plugins, *extra])
        except ValueError as error:
            raise ConfigError(f"--plugin: {error}") from error
    if not settings.plugins and len(configuration.variants) < 2:  # with nodes, some may have nothing
        raise ConfigError(f"{args.config} names no plugin" if args.config else f"nothing to serve: give --config FILE or --plugin SPEC{_installed()}")
    return replace(configuration, settings=settings)


def _plan(args: argparse.Namespace) -> Plan:
    """What a daemon would run here, for commands that do without one. Raises ConfigError."""
    from deviceplugin.daemon import plan_for
    from deviceplugin.model import Host

    hostname = os.uname().nodename
    configuration = _configuration(args, {}, hostname)
    return plan_for(configuration, Host(args.root, configuration.settings.node_name or hostname))


def _installed() -> str:
    import importlib.metadata

    names = sorted(entry.name for entry in importlib.metadata.entry_points(group="deviceplugin.plugins"))
    return f" (installed: {', '.join(names)})" if names else ""


def _run(args: argparse.Namespace, plugins: Sequence[type[Plugin]] = ()) -> int:
    # Before grpc is imported. Forked children of ours run other programs and never touch it; its fork handlers would stop all its threads each time.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # What imports make is no garbage. Looking for some in it takes 7 ms of the way to the first list, after which Process turns this on again.
    gc.disable()
    try:
        from deviceplugin.observe.serving import Process

        classes = _given(plugins)
        return Process(lambda: _configuration(args, classes), args.root, classes, args.config or "").run()
    finally:
        gc.enable()


def _devices(args: argparse.Namespace) -> int:
    from deviceplugin.kubelet.paths import Paths
    from deviceplugin.observe import client, report
    from deviceplugin.observe.tables import Screen

    try:
        daemons, errors = client.ask_all(Paths.below(args.root).locks)
    except client.AskError as error:
        daemons, errors = (), (str(error),)
    found: Survey | None = None
    if not daemons and not errors and (args.config or args.plugin):
        found = _survey(args)
    if args.output == "json":
        import msgspec

        _write_json(msgspec.json.encode({"version": "v1", "daemons": daemons, "errors": errors, "survey": found}))
    elif daemons:
        report.show_daemons(Screen(sys.stdout), daemons)
    elif found is not None:
        screen = Screen(sys.stdout)
        screen.line("no daemon runs here; this is what one would advertise", style="warn")
        screen.line()
        report.show_survey(screen, found)
    for text in errors:
        print(f"deviceplugin devices: {text}", file=sys.stderr)
    if not daemons and not errors and found is None:
        print("deviceplugin devices: no daemon runs here; --config FILE or --plugin SPEC shows what one would advertise", file=sys.stderr)
    return 1 if errors or (not daemons and (found is None or not found.ok)) else 0


def _forgive(args: argparse.Namespace) -> int:
    from deviceplugin.kubelet.paths import Paths
    from deviceplugin.observe import client, report
    from deviceplugin.observe.tables import Screen
    from deviceplugin.observe.words import one_line

    try:
        answers, errors = client.forgive_all(Paths.below(args.root).locks, args.unit)
    except client.AskError as error:
        answers, errors = (), (str(error),)
    granted = [one for answer in answers for one in answer.forgiven]
    if args.output == "json":
        import msgspec

        _write_json(msgspec.json.encode({"version": "v1", "forgiven": granted, "errors": errors}))
    else:
        report.show_pardons(Screen(sys.stdout), granted)
    for text in errors:
        print(f"deviceplugin forgive: {text}", file=sys.stderr)
    if not answers and not errors:
        print("deviceplugin forgive: no daemon runs here, and only it may forget a fault", file=sys.stderr)
    elif answers and not granted:
        known = ", ".join(dict.fromkeys(fault for answer in answers for fault in answer.faults))
        print(f"deviceplugin forgive: {one_line(args.unit)} has no fault on record; there are: {known or 'none'}", file=sys.stderr)
    return 0 if granted and not errors and all(one.health in ("healthy", "gone") for one in granted) else 1


def _survey(args: argparse.Namespace) -> Survey:
    """Lets the plugins look once, as they would in the daemon. Raises ConfigError."""
    from deviceplugin.observe import survey
    from deviceplugin.observe.tables import Screen, progress

    plan = _plan(args)
    with progress(Screen(sys.stderr)) as say:
        return survey.survey(plan, say)


def _check(args: argparse.Namespace) -> int:
    from deviceplugin.config import ConfigError
    from deviceplugin.observe import report, survey
    from deviceplugin.observe.tables import Screen

    try:
        found = _survey(args)
    except ConfigError as error:
        found = survey.refused(args.config, error)
    if args.output == "json":
        import msgspec

        _write_json(msgspec.json.encode(found))
    else:
        screen = Screen(sys.stdout)
        report.show_survey(screen, found)
        screen.line(
            f"{args.config}: {'ok' if found.ok else 'cannot be used as it is'} ({report.verdict(found)})", style="good" if found.ok else "bad"
        )
    return 0 if found.ok else 1


def _write_json(encoded: bytes) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")
    sys.stdout.flush()


def _demo(args: argparse.Namespace) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # of the kubelet's side, which has daemons die on it
    from deviceplugin import demo

    return demo.main(machine=demo.MACHINES[args.machine](), show_log=args.log)


def _convert(args: argparse.Namespace) -> int:
    """The configuration on standard output, ready for a file; each thing that was left out or means something else on standard error."""
    import importlib.metadata

    from deviceplugin.config import ConfigError

    converters = {entry.name: entry for entry in importlib.metadata.entry_points(group="deviceplugin.converters")}
    if args.peer not in converters:
        raise ConfigError(f"--from {args.peer}: no such converter; there are {', '.join(sorted(converters)) or 'none'}")
    try:
        with open(args.file, encoding="utf-8") as file:
            text = file.read()
        converted = converters[args.peer].load()(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{args.file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:
        raise ConfigError(f"{args.file}: {error}") from error
    sys.stdout.write(converted.yaml_text)
    for line in converted.ignored:
        print(f"deviceplugin convert: {line}", file=sys.stderr)
    return 0


def _uninstall(args: argparse.Namespace) -> int:
    from deviceplugin.kubelet.paths import Paths
    from deviceplugin.observe.tables import Screen, progress
    from deviceplugin.uninstall import Busy, clean

    plan = _plan(args)
    try:
        with progress(Screen(sys.stderr)) as say:
            done = clean(plan, Paths.below(args.root), remove=not args.dry_run, progress=say)
    except Busy as error:
        print(f"deviceplugin uninstall: {error}", file=sys.stderr)
        return 1
    if args.output == "json":
        import msgspec

        _write_json(msgspec.json.encode(done))
    else:
        screen = Screen(sys.stdout)
        for line in done.found:
            screen.line(line if args.dry_run else f"removed {line}")
        if not done.found and not done.errors:
            screen.line("nothing is left here")
        for text in done.errors:
            print(f"deviceplugin uninstall: {text}", file=sys.stderr)
    return 1 if done.errors else 0


def _version(_args: argparse.Namespace) -> int:
    print(f"deviceplugin {deviceplugin.__version__}")
    return 0
