"""`pleura`: the entry point, and the commands that run, look at or repair a node.

Each command imports what it needs inside itself: the receive role stays without torch, and
`pleura status` is quick. model_commands.py has the commands about models.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence

from daemon import (
    garbage,
    installed,
    model_commands,
    opening,
    predict_command,
    review_commands,
    torch_process,
)
from daemon.exits import (
    EXIT_CANNOT_START,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOT_READ,
    CannotStartError,
)
from daemon.invoker import user
from daemon.parser import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns the exit status: 0 done, 1 failed, 2 wrong call, settings or installation.
    """
    # What the node writes belongs to patients (docs/rules.md, "Privacy").
    os.umask(0o077)
    options = parse(arguments)

    if conflict := installed.conflicting_distribution():
        print(f"pleura: {conflict}", file=sys.stderr)
        return EXIT_CANNOT_START

    from daemon import log, output

    log.start()
    try:
        status = _COMMANDS[options.command](options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        output.discard()
        return EXIT_NOT_READ
    except CannotStartError as error:
        # Its log lines come first.
        log.flush()
        print(error, file=sys.stderr)
        return EXIT_CANNOT_START
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        trouble = _ledger_trouble(error)
        if not trouble:
            raise
        print(trouble, file=sys.stderr)
        return EXIT_FAILED
    finally:
        log.flush()


def _ledger_trouble(error: Exception) -> str:
    """One line about an error of the ledger's database; "" for every other error."""
    # Only a command that has used the ledger has loaded its library.
    if "sqlalchemy" not in sys.modules:
        return ""
    from sqlalchemy.exc import SQLAlchemyError

    from daemon.ledger import describe

    return f"ledger: {describe(error)}" if isinstance(error, SQLAlchemyError) else ""


def _serve(options: argparse.Namespace) -> int:
    from daemon import supervisor

    return supervisor.serve(options.config)


def _role(options: argparse.Namespace) -> int:
    # Until it is READY
    garbage.seldom()
    from daemon import service

    return service.run_role(options.command, options.config, getattr(options, "device", None))


def _web(options: argparse.Namespace) -> int:
    if options.action == "run":
        return _role(options)

    import getpass

    from daemon.web import passwords

    # From a pipe it is read without a prompt, so that a script can make a hash.
    is_asked = sys.stdin.isatty()
    try:
        password = getpass.getpass() if is_asked else sys.stdin.readline().rstrip("\n")
    except EOFError:
        # Ctrl-D at the prompt
        password = ""
    if not 8 <= len(password) <= passwords.MOST_CHARACTERS:
        raise CannotStartError(
            f"password: found {len(password)} characters; allowed: from 8 to "
            f"{passwords.MOST_CHARACTERS}"
        )
    print(passwords.hashed(password))
    return EXIT_DONE


def _status(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.commands import status

    settings = config.load(options.config)
    with opening.answer_in_time():
        if options.uid:
            histories = status.histories(opening.inspection(settings), options.uid)
            print(json.dumps(histories, indent=None if options.json else 2))
            return EXIT_DONE if all(histories.values()) else EXIT_FAILED

        inspect = opening.overview(settings)
        configured = [each.name for each in settings.destinations]
        if options.json:
            print(json.dumps(status.summary(inspect, configured, settings.spool)))
        elif options.failed:
            print(*status.failure_lines(inspect), sep="\n")
        else:
            print(*status.lines(inspect, configured, settings.spool), sep="\n")
    return EXIT_DONE


def _trace(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.commands import trace

    with opening.answer_in_time():
        traces = trace.found(opening.view(config.load(options.config)), options.uid)
    if options.json:
        print(json.dumps(traces))
    else:
        print(*trace.lines(traces), sep="\n")
    return EXIT_DONE if all(traces.values()) else EXIT_FAILED


def _retry(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.commands import retry

    settings = config.load(options.config)
    configured = settings.owed()
    if options.to:
        _require_destination(options.to, configured)
    if options.to and options.state == "failed":
        raise CannotStartError("--to: a failed image has no destination yet; leave out one of both")
    if options.old and (options.old in configured or not options.to):
        raise CannotStartError(
            f"--from: found {options.old!r}; allowed: a name that has left the settings, with --to"
        )

    states = [options.state] if options.state else ["failed", "refused"]
    wanted = retry.Wanted(states, options.uid, options.to, options.now, user(), options.old)
    retried = retry.retry(opening.ledger(settings), wanted, configured)
    print(retried)
    return EXIT_DONE if retried.count or not options.uid else EXIT_FAILED


def _require_destination(name: str, configured: Collection[str]) -> None:
    if name not in configured:
        raise CannotStartError(
            f"--to: found {name!r}; allowed: {', '.join(configured) or 'no destination is named'}"
        )


def _resend(options: argparse.Namespace) -> int:
    from daemon import config

    if options.since is None and not options.uid:
        raise CannotStartError(
            "resend: say which: --since TIME, or UIDs of studies, images, results"
        )

    settings = config.load(options.config)
    _require_destination(options.to, settings.owed())
    since = options.since.timestamp() if options.since else None
    count, gone = opening.ledger(settings).resend(options.to, since, options.uid, user())
    print(f"{count} owed again to {options.to}; {gone} cannot be, retention removed their bytes")
    return EXIT_DONE if count else EXIT_FAILED


def _verify(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.commands.verify import verify
    from daemon.spool import Spool, SpoolError

    settings = config.load(options.config)
    inspect = opening.inspection(settings)
    try:
        report = verify(inspect, Spool.existing(settings.spool, inspect.spool_identity()))
    except SpoolError as error:
        raise CannotStartError(str(error)) from error
    except OSError as error:
        raise CannotStartError(f"spool: {error}") from error

    for fault in report.faults:
        print(fault)
    print(
        f"{report.files} files known, {len(report.faults)} faults; "
        f"{report.unowned} files are given up (they are removed when they are an hour old), "
        f"{report.unknown} files are not in the ledger (they are adopted when they are an hour old)"
    )
    return EXIT_DONE if report.clean else EXIT_FAILED


def _backup(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.commands.backup import BackupError, back_up
    from daemon.ledger import LedgerError
    from daemon.spool import SpoolError

    settings = config.load(options.config)
    try:
        backup = back_up(settings.ledger, settings.spool, options.out)
    except (BackupError, LedgerError, SpoolError) as error:
        raise CannotStartError(str(error)) from error
    except OSError as error:
        print(f"{options.out}: {error}", file=sys.stderr)
        return EXIT_FAILED

    for fault in backup.faults:
        print(fault)
    print(
        f"{backup.ledger}: {backup.files} spool files known, {backup.copied} copied, "
        f"{backup.missing} missing, {backup.removed} removed from the backup"
    )
    return EXIT_FAILED if backup.missing else EXIT_DONE


def _doctor(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.commands import doctor
    from inference.container import PackageError
    from inference.package_files import folder_of, read
    from inference.results.kinds import KINDS

    settings = config.load(options.config)
    kinds = {
        kind.name: (str(kind.sop_class_uid), str(kind.transfer_syntax_uid))
        for kind in KINDS.values()
    }

    def model() -> str:
        try:
            found = read(folder_of(settings.model))
            name = f"{found.manifest.id} {found.manifest.version}"
            if device := doctor.analysing_device(settings, found.digest):
                return f"{name} on {device}, as the analyse role that runs here has loaded it"

            torch_process.prepare()
            from inference import package
            from inference.engine import choose_device

            package.load(found.path)
            return f"{name} on {choose_device(settings.device)}"
        except (PackageError, ValueError) as error:
            raise doctor.Trouble(str(error)) from error

    status = EXIT_DONE
    for finding in doctor.examine(settings, model, kinds):
        print(finding, flush=True)
        if finding.trouble:
            status = EXIT_FAILED
    return status


def _send(options: argparse.Namespace) -> int:
    from daemon.commands.send import send

    host, port = options.to
    status = EXIT_DONE
    for answer in send(options.file, (host, port), options.called, options.calling):
        print(answer)
        if not answer.ok:
            status = EXIT_FAILED
    return status


def _config(options: argparse.Namespace) -> int:
    from daemon import config

    if options.file and options.action != "diff":
        # Without this, another file than the named one would be checked.
        raise CannotStartError(
            f"config {options.action}: {options.file[0]} found; name the settings with -c: "
            f"pleura config {options.action} -c {options.file[0]}"
        )

    if options.action == "init":
        print(config.begin(options.config))
        return EXIT_DONE

    if options.action == "schema":
        print(config.json_schema())
        return EXIT_DONE
    if options.action == "diff":
        return _config_diff(options)

    settings = config.load(options.config)
    if options.action == "show":
        print(config.show(settings))
        return EXIT_DONE

    from daemon import tls
    from daemon.alerts.files import wrong_files

    # Only here and where a role starts: other commands need not be able to read a key.
    faults = [words for _, words in tls.faults(settings)]
    if troubles := [*config.missing_extras(settings), *faults, *wrong_files(settings)]:
        raise CannotStartError("\n".join(f"{options.config}: {each}" for each in troubles))
    print(f"{options.config}: ok")
    return EXIT_DONE


def _config_diff(options: argparse.Namespace) -> int:
    """As diff(1): 0 where nothing differs, 1 where something does."""
    from daemon import config
    from daemon.commands.reload import running_settings

    if len(options.file) > 2:
        raise CannotStartError("config diff: one file or two")

    files = options.file or [options.config]
    after = config.public(config.load(files[-1]))
    if len(files) == 2:
        lines = config.difference(config.public(config.load(files[0])), after)
    else:
        inspect = opening.inspection(config.load(options.config))
        lines = config.difference(running_settings(inspect), after)
    print("\n".join(lines) or "no difference")
    return EXIT_FAILED if lines else EXIT_DONE


def _reload(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.commands.reload import reload

    settings = config.load(options.config)
    outcome = reload(opening.ledger(settings), settings, f"{user()}: pleura reload")
    print(outcome.words, file=sys.stdout if outcome.is_taken else sys.stderr)
    return EXIT_DONE if outcome.is_taken else EXIT_FAILED


def _demo(options: argparse.Namespace) -> int:
    from daemon.commands import demo
    from training import phantom

    files = options.file or phantom.demo_samples(options.out / "samples")
    return demo.run(files, options.out)


def _alerts(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.alerts.routes import routes_of
    from daemon.alerts.sender import send_trial

    settings = config.load(options.config)
    if options.action == "list":
        troubles = opening.ledger(settings).alarms.lasting()
        for each in troubles:
            print(f"{each['kind']} {each['subject']}: {each['words']}")
        return EXIT_DONE

    routes = routes_of(settings)
    if not routes:
        raise CannotStartError("alerts: found null; allowed: with `mail`, `webhook`, or both")
    said = send_trial(routes, time.time())
    for route, trouble in said.items():
        print(f"{route}: {trouble or 'took the trial message'}")
    return EXIT_FAILED if any(said.values()) else EXIT_DONE


def _metrics(options: argparse.Namespace) -> int:
    from daemon import config
    from daemon.metrics.exposition import exposition

    settings = config.load(options.config)
    print(exposition(settings, opening.inspection(settings)).decode(), end="")
    return EXIT_DONE


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "receive": _role,
    "analyse": _role,
    "deliver": _role,
    "reload": _reload,
    "web": _web,
    "shadow": _role,
    "status": _status,
    "trace": _trace,
    "retry": _retry,
    "resend": _resend,
    "verify": _verify,
    "backup": _backup,
    "doctor": _doctor,
    "alerts": _alerts,
    "metrics": _metrics,
    "config": _config,
    "drift": review_commands.drift,
    "report": review_commands.report,
    "send": _send,
    "demo": _demo,
    "predict": predict_command.predict,
    "model": model_commands.model,
    "train": model_commands.train,
    "evaluate": model_commands.evaluate,
    "compare": model_commands.compare,
    "ensemble": model_commands.ensemble,
    "explore": model_commands.explore,
}


if __name__ == "__main__":
    sys.exit(main())
