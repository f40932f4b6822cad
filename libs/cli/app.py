"""The verbs of `almoner` and their options; what they do is in the other modules, loaded when a verb needs it."""

import os
import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from libs.cli.context import CliError, Usage

app = typer.Typer(
    name="almoner",
    help="Deliver benefits: submit, watch, explain, retry, prove.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
statements = typer.Typer(help="Bank statements.", no_args_is_help=True)
app.add_typer(statements, name="statement")
letters = typer.Typer(help="Dead letters: messages a service could not read or handle.", no_args_is_help=True)
app.add_typer(letters, name="dlq")


class Output(StrEnum):
    text = "text"
    json = "json"


class Call(StrEnum):
    block = "block"
    dispatch = "dispatch"
    release = "release"


Out = Annotated[Output, typer.Option("-o", "--output", help="text, or json for programs")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="don't ask")]
Who = Annotated[str | None, typer.Option(help="on whose behalf; you, by default")]
Why = Annotated[str, typer.Option(help="the reason; it is kept")]
EnvelopeName = Annotated[str, typer.Argument(metavar="ENVELOPE", help="the publisher's id, or Almoner's UUID")]
Service = Annotated[str, typer.Argument(help="ingestion, resolution, funds or scheduler")]
MaybeService = Annotated[str | None, typer.Argument(metavar="[SERVICE]", help="one service; else all")]
LetterIds = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="as `dlq list` names them")]
MaybeEnvelope = Annotated[str | None, typer.Argument(metavar="[ENVELOPE]", help="the publisher's id or the UUID; else all")]


# --- The stack --------------------------------------------------------------------------------------------------------


@app.command()
def up(
    stack_only: Annotated[bool, typer.Option("--stack-only", help="broker, database and simulators, no services")] = False,
    replicas: Annotated[int, typer.Option(min=1, max=8, help="of ingestion, resolution and funds")] = 1,
) -> None:
    """Start broker, database, simulated bank and mapper, and all services; they run until `down`."""
    from libs.cli.context import home
    from libs.local import services, stack

    try:
        running = stack.up(home())
        if not stack_only:
            services.start(running, replicas=replicas, say=_progress)
    except stack.StackError as error:
        raise CliError(f"{error}\nThe logs are in {home() / 'logs'}") from error
    addresses = running.addresses
    print(f"kafka     {addresses.kafka}\ndatabase  {addresses.database_url}")
    print(f"bank      {addresses.bank_url}\nmapper    {addresses.mapper_url}")
    print("Up. Next: `./almoner submit FILE`, `./almoner watch`; `./almoner down` stops everything, the data stays.")


@app.command()
def down() -> None:
    """Stop what `up` started. The data stays."""
    from libs.cli.context import home
    from libs.local import stack

    stack.down(home())
    print("Down.")


@app.command()
def demo(
    disbursements: Annotated[int, typer.Option(min=100, max=1_000_000)] = 10_000,
) -> None:
    """Pay 10,000 people on a stack of its own, with everything that goes wrong in life; ends with one line of JSON."""
    from libs.cli.demo import main as run

    run(disbursements)


@app.command()
def bench(
    disbursements: Annotated[int, typer.Argument(metavar="N", min=1000, max=10_000_000)] = 100_000,
    replicas: Annotated[bool, typer.Option("--replicas", help="two replicas against one, with slow simulators")] = False,
) -> None:
    """Measure on a stack of its own; the last line is JSON."""
    if replicas:
        from libs.cli.bench_replicas import compare_replicas as run
    else:
        from libs.cli.bench import measure_all as run
    run(disbursements)


# --- Submitting -------------------------------------------------------------------------------------------------------


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="CSV with a header, or JSON Lines; see docs/schemas")],
    envelope: Annotated[Path | None, typer.Option(help="JSON file with the envelope's fields")] = None,
    envelope_id: Annotated[str | None, typer.Option(help="your id of the envelope")] = None,
    programme: Annotated[str | None, typer.Option(help="the programme's id")] = None,
    benefit_code: Annotated[str | None, typer.Option(help="the benefit code's id")] = None,
    benefit_type: Annotated[str, typer.Option(help="of the benefit code")] = "CASH_DIGITAL",
    cycle: Annotated[str | None, typer.Option(help="the cycle's id")] = None,
    currency: Annotated[str | None, typer.Option(help="ISO 4217, such as EUR")] = None,
    schedule_date: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="not paid before; today")] = None,
    time_zone: Annotated[str | None, typer.Option(help="of the schedule date, such as Africa/Nairobi; UTC")] = None,
    source: Annotated[str, typer.Option(help="who publishes; ids are unique within it")] = "almoner/cli",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would happen, submit nothing")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="don't wait for the answers")] = False,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Submit an envelope with its disbursements; every fault of the file is named before anything is sent."""
    from libs.cli.submit import submit as run

    fields = _envelope_file(envelope)
    for name, value in (("programme", programme), ("cycle", cycle)):
        if value:
            fields[name] = {"id": value}
    if benefit_code:
        fields["benefit_code"] = {"id": benefit_code, "type": benefit_type}
    if schedule_date:
        fields["schedule_date"] = schedule_date.date().isoformat()
    given = {"envelope_id": envelope_id, "currency": currency, "time_zone": time_zone}
    fields |= {name: value for name, value in given.items() if value}
    run(file, fields, source, dry_run, not no_wait, yes, output is Output.json)


def _envelope_file(path: Path | None) -> dict[str, Any]:
    import json

    if path is None:
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Usage(f"--envelope {path}: {error}") from error
    if not isinstance(fields, dict):
        raise Usage(f"--envelope {path}: a JSON object is expected")
    return dict(fields)


@statements.command("submit")
def statement_submit(
    file: Annotated[Path, typer.Argument(help="MT940")],
    url: Annotated[str | None, typer.Option(help="of ingestion's door for statements")] = None,
    token: Annotated[str | None, typer.Option(help="the bank's token")] = None,
) -> None:
    """Hand a bank's statement to ingestion."""
    from libs.cli.act import submit_statement

    submit_statement(file, url, token)


# --- Looking ----------------------------------------------------------------------------------------------------------


@app.command()
def watch(
    envelope: MaybeEnvelope = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until Ctrl-C")] = False,
    output: Out = Output.text,
) -> None:
    """Live progress over all stages, until nothing moves by itself any more."""
    from libs.cli.watch import watch as run

    run(envelope, follow, output is Output.json)


@app.command()
def status(envelope: MaybeEnvelope = None, output: Out = Output.text) -> None:
    """Where envelopes stand, and what needs you; or where one envelope's money is."""
    from libs.cli.watch import status as run

    run(envelope, output is Output.json)


@app.command()
def timeline(
    name: Annotated[str, typer.Argument(metavar="ID", help="an envelope, a batch's UUID, or a disbursement's id")],
    output: Out = Output.text,
) -> None:
    """What happened, in order."""
    from libs.cli.story import timeline as run

    run(name, output is Output.json)


@app.command()
def held(envelope: MaybeEnvelope = None, output: Out = Output.text) -> None:
    """Who is not paid, why, and what can be done."""
    from libs.cli.story import held as run

    run(envelope, output is Output.json)


@app.command()
def books(envelope: MaybeEnvelope = None, output: Out = Output.text) -> None:
    """Prove that every unit of money is somewhere: from rows, from the bank's lines, from events."""
    from libs.cli.books import books as run

    run(envelope, output is Output.json)


# --- Acting -----------------------------------------------------------------------------------------------------------


@app.command()
def retry(
    envelope: MaybeEnvelope = None,
    kind: Annotated[str | None, typer.Option(help="of outside call: resolve, check, block, dispatch, release …")] = None,
    held: Annotated[bool, typer.Option("--held", help="people who are held, instead of calls in ERROR")] = False,
    who: Who = None,
    why: Why = "retried by an operator",
    yes: Yes = False,
) -> None:
    """Try again what ended in ERROR, or those who are held."""
    from libs.cli.act import retry as run

    run(envelope, kind, held, who, why, yes)


@app.command("settle-unknown")
def settle_unknown(
    kind: Annotated[Call, typer.Argument(help="of call")],
    subject: Annotated[str, typer.Argument(help="as `almoner status` lists it")],
    evidence: Annotated[str, typer.Option(help="how you know; it is kept")],
    happened: Annotated[str | None, typer.Option(metavar="REFERENCE", help="the bank did it, with this reference")] = None,
    did_not_happen: Annotated[bool, typer.Option("--did-not-happen", help="the bank did not do it")] = False,
    who: Who = None,
    yes: Yes = False,
) -> None:
    """Say, with evidence, what became of a call to the bank whose answer was lost."""
    from libs.cli.act import settle_unknown as run

    if (happened is not None) == did_not_happen:
        raise Usage("say either --happened REFERENCE or --did-not-happen")
    run(kind.value, subject, happened, evidence, who, yes)


@app.command()
def release(envelope: EnvelopeName, why: Why = "released by an operator", who: Who = None, yes: Yes = False) -> None:
    """Give the held money of an envelope back to the sponsor."""
    from libs.cli.act import release as run

    run(envelope, who, why, yes)


@app.command()
def cancel(
    envelope: EnvelopeName,
    disbursement: Annotated[list[str] | None, typer.Option(help="only this one; may be repeated")] = None,
    why: Why = "cancelled by an operator",
    yes: Yes = False,
) -> None:
    """Cancel what is unpaid of an envelope, or single disbursements."""
    from libs.cli.act import cancel as run

    run(envelope, disbursement or [], why, yes)


@app.command()
def pause(
    service: Service,
    stage: Annotated[str, typer.Argument(help="consume, or a kind of call: resolve, check, block, dispatch, release")],
    why: Why = "paused by an operator",
    who: Who = None,
    yes: Yes = False,
) -> None:
    """Stop one stage of a service until `resume`."""
    from libs.cli.act import pause as run

    run(service, stage, True, who, why, yes)


@app.command()
def resume(
    service: Service,
    stage: Annotated[str, typer.Argument(help="as it was paused")],
    why: Why = "resumed by an operator",
    who: Who = None,
    yes: Yes = False,
) -> None:
    """Let a stage go on."""
    from libs.cli.act import pause as run

    run(service, stage, False, who, why, yes)


# --- Keeping it going -------------------------------------------------------------------------------------------------


@app.command()
def lag(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="again every two seconds, until Ctrl-C")] = False,
    output: Out = Output.text,
) -> None:
    """How many messages each service has not consumed yet."""
    from libs.cli.operate import lag as run

    run(watch, output is Output.json)


@letters.command("list")
def dlq_list(
    service: MaybeService = None,
    everything: Annotated[bool, typer.Option("--all", help="also those that are handled or given up")] = False,
    output: Out = Output.text,
) -> None:
    """What could not be read or handled, and why."""
    from libs.cli.operate import dlq_list as run

    run(service, everything, output is Output.json)


@letters.command("show")
def dlq_show(service: Service, letter: Annotated[int, typer.Argument(metavar="ID")], output: Out = Output.text) -> None:
    """One dead letter, with its message as Kafka has it."""
    from libs.cli.operate import dlq_show as run

    run(service, letter, output is Output.json)


@letters.command("redrive")
def dlq_redrive(
    service: Service, letters: LetterIds = None, why: Why = "redriven by an operator", who: Who = None, yes: Yes = False
) -> None:
    """Publish dead letters again once their cause is gone; all open ones if none is named."""
    from libs.cli.operate import dlq_redrive as run

    run(service, letters or [], who, why, yes)


@letters.command("discard")
def dlq_discard(
    service: Service, letters: LetterIds = None, why: Why = "given up by an operator", who: Who = None, yes: Yes = False
) -> None:
    """Give dead letters up, for good: whatever they said does not happen."""
    from libs.cli.operate import dlq_discard as run

    run(service, letters or [], who, why, yes)


@app.command()
def tick(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="fire it now; without: list the jobs")] = None,
    why: Why = "fired by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """When the scheduler's jobs are due, or fire one by hand."""
    from libs.cli.operate import tick as run

    run(job, who, why, yes, output is Output.json)


@app.command()
def audit(
    service: MaybeService = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="the newest so many")] = 50,
    output: Out = Output.text,
) -> None:
    """Who did what, and why."""
    from libs.cli.operate import audit as run

    run(service, limit, output is Output.json)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run a verb and end the process with its exit code."""
    sys.exit(run(argv))


def run(argv: list[str] | None = None) -> int:
    """Run a verb; returns its exit code."""
    try:
        return int(app(argv, standalone_mode=False) or 0)
    except CliError as error:
        sys.stdout.flush()
        print(f"almoner: {error}", file=sys.stderr)
        return error.code
    except (KeyboardInterrupt, typer.Abort):
        print("almoner: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has seen enough
        return 1
    except Exception as error:
        show = getattr(error, "show", None)  # click's own: wrong usage
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
