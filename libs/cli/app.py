"""The verbs of `almoner` and their options; what they do is in the other modules, loaded when a verb needs it."""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from libs.cli.context import SERVICES, CliError, Usage

app = typer.Typer(
    name="almoner",
    help="Deliver benefits: submit, watch, explain, retry, prove.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
statements = typer.Typer(help="Bank statements.", no_args_is_help=True)
app.add_typer(statements, name="statement")
letters = typer.Typer(help="Dead letters: messages a service could not read or handle.", no_args_is_help=True)
app.add_typer(letters, name="dlq")
notices_of = typer.Typer(help="What warehouses, agencies and people were told.", no_args_is_help=True)
app.add_typer(notices_of, name="notice")
simulated = typer.Typer(help="What life does to the systems around that `up` starts.", no_args_is_help=True)
app.add_typer(simulated, name="simulate")


class Output(StrEnum):
    text = "text"
    json = "json"


class BenchKind(StrEnum):
    cash = "cash"
    goods = "goods"


class PlaceKind(StrEnum):
    warehouse = "warehouse"
    agency = "agency"


class SubjectKind(StrEnum):
    warehouse = "WAREHOUSE"
    agency = "AGENCY"
    beneficiary = "BENEFICIARY"


class BankName(StrEnum):
    full = "full"
    example = "example"


class BankVerb(StrEnum):
    block_funds = "block_funds"
    initiate_payment = "initiate_payment"


class Call(StrEnum):
    block = "block"
    dispatch = "dispatch"
    release = "release"


def examples(*lines: str) -> str:
    """What a verb's help ends with. A test parses each."""
    return "\b\nExamples:\n" + "\n".join(f"  almoner {line}" for line in lines)


# What a shell completes, known without asking anybody.
STAGES = (
    "consume", "resolve", "locate", "allocate", "announce", "check", "block", "dispatch", "release", "order", "query", "read-statement",
)  # fmt: skip


def _among(names: Sequence[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


Declared = Annotated[int | None, typer.Option(min=1, max=100_000_000, help="so many are declared from now on")]
Out = Annotated[Output, typer.Option("-o", "--output", help="text, or json for programs")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="don't ask")]
Who = Annotated[str | None, typer.Option(help="on whose behalf; you, by default")]
Why = Annotated[str, typer.Option(help="the reason; it is kept")]
EnvelopeName = Annotated[str, typer.Argument(metavar="ENVELOPE", help="the publisher's id, or Almoner's UUID")]
Service = Annotated[str, typer.Argument(help=", ".join(SERVICES), autocompletion=_among(SERVICES))]
MaybeService = Annotated[
    str | None, typer.Argument(metavar="[SERVICE]", help="one service; else all", autocompletion=_among(SERVICES))
]
NoticeIds = Annotated[list[str], typer.Argument(metavar="ID...", help="as `notices` lists them")]
LetterIds = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="as `dlq list` names them")]
MaybeEnvelope = Annotated[str | None, typer.Argument(metavar="[ENVELOPE]", help="the publisher's id or the UUID; else all")]


# --- The stack --------------------------------------------------------------------------------------------------------


@app.command(epilog=examples("up", "up --stack-only"))
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


@app.command(epilog=examples("down"))
def down() -> None:
    """Stop what `up` started. The data stays."""
    from libs.cli.context import home
    from libs.local import stack

    stack.down(home())
    print("Down.")


@app.command("demo-goods", epilog=examples("demo-goods", "demo-goods --people 1000"))
def demo_goods(
    people: Annotated[int, typer.Option(min=400, max=100_000, help="of each of the two envelopes")] = 10_000,
) -> None:
    """Rice, and cash through agencies, for 10,000 people each, on a stack of its own; ends with one line of JSON."""
    from libs.cli.demo_goods import main as run

    run(people)


@app.command(epilog=examples("demo", "demo --disbursements 1000"))
def demo(
    disbursements: Annotated[int, typer.Option(min=100, max=1_000_000)] = 10_000,
) -> None:
    """Pay 10,000 people on a stack of its own, with everything that goes wrong in life; ends with one line of JSON."""
    from libs.cli.demo import main as run

    run(disbursements)


@app.command(epilog=examples("bench 100000", "bench 100000 --kind goods", "bench 4000 --replicas"))
def bench(
    disbursements: Annotated[int, typer.Argument(metavar="N", min=100, max=10_000_000)] = 100_000,
    replicas: Annotated[bool, typer.Option("--replicas", help="two replicas against one, with slow simulators")] = False,
    kind: Annotated[
        BenchKind, typer.Option(help="cash: until the last confirmation; goods: until all are allocated")
    ] = BenchKind.cash,
) -> None:
    """Measure on a stack of its own; the last line is JSON."""
    if kind is BenchKind.goods:
        from libs.cli.bench_goods import measure_goods as run
    elif replicas:
        from libs.cli.bench_replicas import compare_replicas as run
    else:
        from libs.cli.bench import measure_all as run
    run(disbursements)


@simulated.command("people", epilog=examples("simulate people docs/samples/drought-relief.csv --without 2"))
def simulate_people(
    file: Annotated[Path, typer.Argument(help="CSV with a column beneficiary_id")],
    without: Annotated[int, typer.Option(min=0, help="but not so many, the last ones")] = 0,
) -> None:
    """Give the mapper the addresses of the people in a file."""
    from libs.cli.simulate import people as run

    run(file, without)


@simulated.command("places", epilog=examples("simulate places docs/samples/drought-relief-rice.csv --without 1"))
def simulate_places(
    file: Annotated[Path, typer.Argument(help="CSV with a column beneficiary_id")],
    without: Annotated[int, typer.Option(min=0, help="but not so many agencies, the last ones")] = 0,
) -> None:
    """Give the registry the zones of the people in a file, and PBMS warehouses and agencies."""
    from libs.cli.simulate import places as run

    run(file, without)


@simulated.command("reverse", epilog=examples('simulate reverse RUN-1 DR26-11-0000001 --reason "ACCOUNT CLOSED"'))
def simulate_reverse(
    envelope: EnvelopeName,
    disbursements: Annotated[list[str], typer.Argument(metavar="DISBURSEMENT", help="the ids")],
    reason: Annotated[str, typer.Option(help="what the statement says")] = "ACCOUNT CLOSED",
) -> None:
    """Have the bank give payments back."""
    from libs.cli.simulate import reverse as run

    run(envelope, disbursements, reason)


@simulated.command(
    "lost-answer", epilog=examples("simulate lost-answer", "simulate lost-answer --bank full --verb initiate_payment")
)
def simulate_lost_answer(
    bank: Annotated[BankName, typer.Option(help="full can be asked afterwards; example cannot")] = BankName.example,
    verb: Annotated[BankVerb, typer.Option(help="of the bank's")] = BankVerb.block_funds,
) -> None:
    """Have a bank do what it is asked next, and lose its answer."""
    from libs.cli.simulate import lost_answer as run

    run(bank.value, verb.value)


# --- Submitting -------------------------------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "submit docs/samples/drought-relief.csv --envelope-id RUN-1 --programme DROUGHT-RELIEF --benefit-code CASH-2026 "
        "--cycle 2026-11 --currency KES --dry-run",
        "submit seed-rice.csv --envelope-id RUN-2 --programme RICE --benefit-code SEED-01 --benefit-type COMMODITY "
        "--cycle 2026-11 --unit kg --unit-scale 3",
        "submit people.jsonl --envelope envelope.json --yes",
    )
)
def submit(
    file: Annotated[Path, typer.Argument(help="CSV with a header, or JSON Lines; see docs/schemas")],
    envelope: Annotated[Path | None, typer.Option(help="JSON file with the envelope's fields")] = None,
    envelope_id: Annotated[str | None, typer.Option(help="your id of the envelope")] = None,
    programme: Annotated[str | None, typer.Option(help="the programme's id")] = None,
    benefit_code: Annotated[str | None, typer.Option(help="the benefit code's id")] = None,
    benefit_type: Annotated[str, typer.Option(help="of the benefit code")] = "CASH_DIGITAL",
    cycle: Annotated[str | None, typer.Option(help="the cycle's id")] = None,
    currency: Annotated[str | None, typer.Option(help="of cash: ISO 4217, such as EUR")] = None,
    unit: Annotated[str | None, typer.Option(help="of goods and services, such as kg")] = None,
    unit_scale: Annotated[int, typer.Option(min=0, max=6, help="decimals of the unit; 3: amounts may have grams")] = 0,
    schedule_date: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="not paid before; today")] = None,
    time_zone: Annotated[str | None, typer.Option(help="of the schedule date, such as Africa/Nairobi; UTC")] = None,
    source: Annotated[str, typer.Option(help="who publishes; ids are unique within it")] = "almoner/cli",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would happen, submit nothing")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="don't wait for the answers")] = False,
    follow: Annotated[bool, typer.Option("--watch", help="then show progress, as `watch` does")] = False,
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
    if unit:
        fields |= {"measurement_unit": unit, "unit_scale": unit_scale}
    given = {"envelope_id": envelope_id, "currency": currency, "time_zone": time_zone}
    fields |= {name: value for name, value in given.items() if value}
    if follow and (dry_run or no_wait):
        raise Usage("--watch needs what is submitted and answered: leave --dry-run and --no-wait away")
    name = run(file, fields, source, dry_run, not no_wait, yes, output is Output.json)
    if follow:
        from libs.cli.watch import watch

        watch(name, False, output is Output.json)


def _envelope_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from libs.cli.sheet import parse_json

    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Usage(f"--envelope {path}: {error}") from error
    if not isinstance(fields, dict):
        raise Usage(f"--envelope {path}: a JSON object is expected")
    return dict(fields)


@statements.command(
    "submit",
    epilog=examples(
        "statement submit statement.sta",
        'statement submit statement.sta --why "their call-back was down on Friday" --yes',
        "statement submit statement.sta --url https://almoner.example/statements --token TOKEN --yes",
    ),
)
def statement_submit(
    file: Annotated[Path, typer.Argument(help="MT940")],
    url: Annotated[str | None, typer.Option(help="of ingestion's door for statements")] = None,
    token: Annotated[str | None, typer.Option(help="the bank's token")] = None,
    why: Why = "handed in by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Hand a bank's statement to ingestion."""
    from libs.cli.act import submit_statement

    submit_statement(file, url, token, who, why, yes, output is Output.json)


@statements.command(
    "request", epilog=examples("statement request", 'statement request default --why "nothing since Friday" --yes')
)
def statement_request(
    sponsor: Annotated[str | None, typer.Argument(metavar="[SPONSOR]", help="as funds' settings name it; else all")] = None,
    why: Why = "requested by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Have the bank send a statement of a sponsor's account now; it comes by the bank's call-back."""
    from libs.cli.act import request_statement

    request_statement(sponsor or "", who, why, yes, output is Output.json)


@statements.command("list", epilog=examples("statement list", "statement list --flagged --limit 100 -o json"))
def statement_list(
    flagged: Annotated[bool, typer.Option("--flagged", help="only those that are strange beside others")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="the newest so many")] = 20,
    output: Out = Output.text,
) -> None:
    """What statements have come, what is strange about them and what to do, and what came of their lines."""
    from libs.cli.statements import listing

    listing(flagged, limit, output is Output.json)


# --- Looking ----------------------------------------------------------------------------------------------------------


@app.command(epilog=examples("watch RUN-1", "watch --follow", "watch RUN-1 -o json"))
def watch(
    envelope: MaybeEnvelope = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until Ctrl-C")] = False,
    output: Out = Output.text,
) -> None:
    """Live progress over all stages, until nothing moves by itself any more."""
    from libs.cli.watch import watch as run

    run(envelope, follow, output is Output.json)


@app.command(epilog=examples("status", "status RUN-1"))
def status(envelope: MaybeEnvelope = None, output: Out = Output.text) -> None:
    """Where envelopes stand, and what needs you; or where one envelope's money is."""
    from libs.cli.watch import status as run

    run(envelope, output is Output.json)


@app.command(epilog=examples("timeline RUN-1", "timeline D-0001"))
def timeline(
    name: Annotated[str, typer.Argument(metavar="ID", help="an envelope, a batch's UUID, or a disbursement's id")],
    output: Out = Output.text,
) -> None:
    """What happened, in order."""
    from libs.cli.story import timeline as run

    run(name, output is Output.json)


@app.command(epilog=examples("held", "held RUN-1 -o json"))
def held(envelope: MaybeEnvelope = None, output: Out = Output.text) -> None:
    """Who is not paid, why, and what can be done."""
    from libs.cli.story import held as run

    run(envelope, output is Output.json)


@app.command(epilog=examples("books", "books RUN-1"))
def books(envelope: MaybeEnvelope = None, output: Out = Output.text) -> None:
    """Prove that every unit of money is somewhere: from rows, from the bank's lines, from events."""
    from libs.cli.books import books as run

    run(envelope, output is Output.json)


@app.command(epilog=examples("zones RUN-2", "zones RUN-2 -o json"))
def zones(envelope: EnvelopeName, output: Out = Output.text) -> None:
    """Which warehouse and agency serve each zone of an envelope, who is held there, and why."""
    from libs.cli.places import zones as run

    run(envelope, output is Output.json)


@app.command(epilog=examples("allocations RUN-2"))
def allocations(envelope: EnvelopeName, output: Out = Output.text) -> None:
    """What each warehouse and each agency hands out for an envelope."""
    from libs.cli.places import allocations as run

    run(envelope, output is Output.json)


@app.command(epilog=examples("notices", "notices RUN-2 --state failed", "notices RUN-2 -o json"))
def notices(
    envelope: MaybeEnvelope = None,
    state: Annotated[str | None, typer.Option(help="only these: sent, failed, suppressed, unknown, pending")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="the newest so many")] = 20,
    output: Out = Output.text,
) -> None:
    """Who was told, who was not, and why."""
    from libs.cli.places import notices as run

    run(envelope, state, limit, output is Output.json)


@notices_of.command("show", epilog=examples("notice show 5f3c2a1e-0000-5000-8000-000000000001 --html"))
def notice_show(
    notice: Annotated[str, typer.Argument(metavar="ID", help="as `notices` lists it")],
    html: Annotated[bool, typer.Option("--html", help="as the mail's HTML")] = False,
) -> None:
    """A notice as the person sees it."""
    from libs.cli.places import show_notice

    show_notice(notice, html)


@notices_of.command("send", epilog=examples('notice send 5f3c2a1e-0000-5000-8000-000000000001 --why "a new number" --yes'))
def notice_send(
    notices: NoticeIds, why: Why = "sent again by an operator", who: Who = None, yes: Yes = False, output: Out = Output.text
) -> None:
    """Send notices once more: those that failed, were suppressed, or did not arrive."""
    from libs.cli.places import send_again

    send_again(notices, who, why, yes, output is Output.json)


@notices_of.command(
    "settle", epilog=examples('notice settle 5f3c2a1e-0000-5000-8000-000000000001 --sent --evidence "the relay\'s log" --yes')
)
def notice_settle(
    notices: NoticeIds,
    evidence: Annotated[str, typer.Option(help="how you know; it is kept")],
    sent: Annotated[bool, typer.Option("--sent/--not-sent", help="whether it was sent")],
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Say, with evidence, what became of notices whose outcome is unknown."""
    from libs.cli.places import settle_notices

    settle_notices(notices, sent, evidence, who, yes, output is Output.json)


@notices_of.command(
    "suppress", epilog=examples("notice suppress BENEFICIARY FARMER-17 --yes", "notice suppress AGENCY A-31 --lift")
)
def notice_suppress(
    kind: Annotated[SubjectKind, typer.Argument()],
    subject: Annotated[str, typer.Argument(help="the warehouse's, agency's or person's id")],
    lift: Annotated[bool, typer.Option("--lift", help="tell them again from now on")] = False,
    why: Why = "asked for by the one concerned",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Tell somebody nothing any more."""
    from libs.cli.places import suppress as run

    run(kind.value, subject, lift, who, why, yes, output is Output.json)


# --- Acting -----------------------------------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "retry --kind dispatch --dry-run",
        "retry --kind resolve --code NOT_REACHED --rate 5 --yes",
        "retry 17 18 --kind dispatch",
        "retry RUN-1 --held --yes",
        "retry RUN-1 --held --disbursement D-0001 --disbursement D-0002",
        "retry --held --code NOT_LINKED --rate 50 --dry-run",
    )
)
def retry(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="subjects as `failures` names them; with --held an envelope; else all"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="of outside call: resolve, check, block, dispatch, release …", autocompletion=_among(STAGES[1:])),
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="only what failed with this code, as `failures` shows it; of the held: with this reason")
    ] = None,
    disbursement: Annotated[list[str] | None, typer.Option(help="of the held only this one; may be repeated")] = None,
    held: Annotated[bool, typer.Option("--held", help="people who are held, instead of calls in ERROR")] = False,
    rate: Annotated[float | None, typer.Option(min=0.01, help="calls or people a second, at most; sent in portions")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say how many, send nothing")] = False,
    who: Who = None,
    why: Why = "retried by an operator",
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Try again what ended in ERROR, or those who are held."""
    from libs.cli.context import who_am_i

    if not held:
        if disbursement:
            raise Usage("--disbursement goes with --held")
        from libs.cli.failures import retry_work

        retry_work(names or [], kind, code, rate, who, why, dry_run, yes, output is Output.json)
        return
    if kind or len(names or []) > 1:
        raise Usage("--held takes one envelope, or none for all, and no --kind")
    from libs.cli.act import retry_held

    envelope = names[0] if names else None
    retry_held(envelope, disbursement or [], code, rate, who_am_i(who), why, dry_run, yes, output is Output.json)


@app.command(epilog=examples('resolve RUN-1 D-0001 D-0002 --why "they have new accounts" --yes'))
def resolve(
    envelope: EnvelopeName,
    disbursements: Annotated[list[str], typer.Argument(metavar="DISBURSEMENT...", help="the ids, at most 1,000")],
    why: Why = "asked again by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Ask the mapper or the registry again about people, also about those who have an address: a corrected one counts from then on."""
    from libs.cli.act import resolve as run

    run(envelope, disbursements, who, why, yes, output is Output.json)


@app.command(
    "settle-unknown",
    epilog=examples(
        'settle-unknown dispatch 17 --evidence "statement of 2 November, line 4" --happened 20261102-0099',
        'settle-unknown block 0197aa4e-0000-7000-8000-000000000001/1 --evidence "the bank says so" --did-not-happen',
    ),
)
def settle_unknown(
    kind: Annotated[Call, typer.Argument(help="of call")],
    subject: Annotated[str, typer.Argument(help="as `almoner status` lists it")],
    evidence: Annotated[str, typer.Option(help="how you know; it is kept")],
    happened: Annotated[str | None, typer.Option(metavar="REFERENCE", help="the bank did it, with this reference")] = None,
    did_not_happen: Annotated[bool, typer.Option("--did-not-happen", help="the bank did not do it")] = False,
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Say, with evidence, what became of a call to the bank whose answer was lost."""
    from libs.cli.act import settle_unknown as run

    if (happened is not None) == did_not_happen:
        raise Usage("say either --happened REFERENCE or --did-not-happen")
    run(kind.value, subject, happened, evidence, who, yes, output is Output.json)


@app.command(
    epilog=examples(
        'reassign RUN-2 ISA-014 A-31 --why "the other store was flooded"', "reassign RUN-2 PH-ISA W-8 --kind warehouse --yes"
    )
)
def reassign(
    envelope: EnvelopeName,
    zone: Annotated[str, typer.Argument(help="a small zone for an agency, a large one for a warehouse")],
    place: Annotated[str, typer.Argument(help="the agency or warehouse")],
    kind: Annotated[PlaceKind, typer.Option(help="of place")] = PlaceKind.agency,
    why: Why = "reassigned by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Give a zone to another agency or warehouse, before anybody is told."""
    from libs.cli.places import reassign as run

    run(envelope, kind.value, zone, place, who, why, yes, output is Output.json)


@app.command(epilog=examples("refresh", 'refresh --why "a cooperative has opened in Jones" --yes'))
def refresh(why: Why = "refreshed by an operator", who: Who = None, yes: Yes = False, output: Out = Output.text) -> None:
    """Have allocation read warehouses and agencies again now, and try whoever is held for want of them once more."""
    from libs.cli.places import refresh as run

    run(who, why, yes, output is Output.json)


@app.command(epilog=examples('release RUN-1 --why "programme ends" --yes'))
def release(
    envelope: EnvelopeName, why: Why = "released by an operator", who: Who = None, yes: Yes = False, output: Out = Output.text
) -> None:
    """Give the held money of an envelope back to the sponsor."""
    from libs.cli.act import release as run

    run(envelope, who, why, yes, output is Output.json)


@app.command(
    epilog=examples(
        'repay RUN-1 D-0001 D-0002 --why "the account was closed; they have new ones"',
        'repay RUN-1 --reversed --why "they have new accounts"',
    )
)
def repay(
    envelope: EnvelopeName,
    why: Why,
    disbursements: Annotated[list[str] | None, typer.Argument(metavar="DISBURSEMENT", help="the ids, at most 1,000")] = None,
    reversed_ones: Annotated[bool, typer.Option("--reversed", help="everybody whose payment came back")] = False,
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Pay again what the bank gave back or refused, or who was found after the money had been released."""
    from libs.cli.act import repay as run

    if bool(disbursements) == reversed_ones:
        raise Usage("say either which disbursements, or --reversed")
    run(envelope, disbursements or [], reversed_ones, who, why, yes, output is Output.json)


@app.command(epilog=examples('settle 3 4 --evidence "letter of the bank of 2 November" --why "its own charges" --yes'))
def settle(
    exceptions: Annotated[list[int], typer.Argument(metavar="ID", help="as `exceptions` names them")],
    evidence: Annotated[str, typer.Option(help="how you know; it is kept")],
    why: Why = "settled by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Close exceptions that somebody has dealt with. No money moves by that."""
    from libs.cli.act import settle as run

    run(exceptions, evidence, who, why, yes, output is Output.json)


@app.command(epilog=examples("cancel RUN-1", "cancel RUN-1 --disbursement D-0001 --disbursement D-0002 --yes"))
def cancel(
    envelope: EnvelopeName,
    disbursement: Annotated[list[str] | None, typer.Option(help="only this one; may be repeated")] = None,
    why: Why = "cancelled by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Cancel what is unpaid of an envelope, or single disbursements."""
    from libs.cli.act import cancel as run

    run(envelope, disbursement or [], who, why, yes, output is Output.json)


@app.command(
    epilog=examples(
        'amend RUN-1 --disbursements 18 --people 18 --total 61425.62 --why "two have left the programme"',
        'amend RUN-1 --schedule-date 2026-12-01 --why "the sponsor pays later" --yes',
    )
)
def amend(
    envelope: EnvelopeName,
    disbursements: Declared = None,
    people: Declared = None,
    total: Annotated[str | None, typer.Option(help="in major units, such as 1250.50")] = None,
    schedule_date: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="not paid before")] = None,
    why: Why = "amended by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Declare other counts, another total or date of an envelope, before all of it has come and before its date. The date alone of cash
    that is paid to people themselves may change until their funds are being checked."""
    from libs.cli.act import amend as run

    if not (disbursements or people or total or schedule_date):
        raise Usage("say what changes: --disbursements, --people, --total or --schedule-date")
    day = schedule_date.date() if schedule_date else None
    run(envelope, people, disbursements, total, day, who, why, yes, output is Output.json)


@app.command(epilog=examples('pause funds dispatch --why "the bank has called" --yes', "pause resolution consume"))
def pause(
    service: Service,
    stage: Annotated[
        str,
        typer.Argument(
            help="consume, or a kind of call: resolve, check, block, dispatch, release, order, query",
            autocompletion=_among(STAGES),
        ),
    ],
    why: Why = "paused by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Stop one stage of a service until `resume`."""
    from libs.cli.act import pause as run

    run(service, stage, True, who, why, yes, output is Output.json)


@app.command(epilog=examples("resume funds dispatch --yes"))
def resume(
    service: Service,
    stage: Annotated[str, typer.Argument(help="as it was paused", autocompletion=_among(STAGES))],
    why: Why = "resumed by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Let a stage go on."""
    from libs.cli.act import pause as run

    run(service, stage, False, who, why, yes, output is Output.json)


# --- Keeping it going -------------------------------------------------------------------------------------------------


@app.command(epilog=examples("lag", "lag --watch"))
def lag(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="again every two seconds, until Ctrl-C")] = False,
    output: Out = Output.text,
) -> None:
    """How many messages each service has not consumed yet."""
    from libs.cli.operate import lag as run

    run(watch, output is Output.json)


@app.command(epilog=examples("failures", "failures -o json"))
def failures(output: Out = Output.text) -> None:
    """What failed and will not mend itself, by cause, each with the command that deals with it."""
    from libs.cli.failures import failures as run

    run(output is Output.json)


@app.command(epilog=examples("exceptions", "exceptions RUN-1 --reason AMOUNT_MISMATCH --all -o json"))
def exceptions(
    envelope: MaybeEnvelope = None,
    reason: Annotated[str | None, typer.Option(help="only these, such as UNKNOWN_REFERENCE")] = None,
    everything: Annotated[bool, typer.Option("--all", help="also those that are closed")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="the first so many")] = 1000,
    output: Out = Output.text,
) -> None:
    """What the bank's statements say that agrees with no payment."""
    from libs.cli.failures import exceptions as run

    run(envelope, reason, everything, limit, output is Output.json)


@app.command(epilog=examples("config funds", "config resolution -o json"))
def config(service: Service, output: Out = Output.text) -> None:
    """What a service is told: every setting, its value, and where that comes from; secrets are masked."""
    from libs.cli.settings import config as run

    run(service, output is Output.json)


@letters.command("list", epilog=examples("dlq list", "dlq list funds --all"))
def dlq_list(
    service: MaybeService = None,
    everything: Annotated[bool, typer.Option("--all", help="also those that are handled or given up")] = False,
    output: Out = Output.text,
) -> None:
    """What could not be read or handled, and why."""
    from libs.cli.operate import dlq_list as run

    run(service, everything, output is Output.json)


@letters.command("show", epilog=examples("dlq show funds 7"))
def dlq_show(service: Service, letter: Annotated[int, typer.Argument(metavar="ID")], output: Out = Output.text) -> None:
    """One dead letter, with its message as Kafka has it."""
    from libs.cli.operate import dlq_show as run

    run(service, letter, output is Output.json)


@letters.command(
    "redrive",
    epilog=examples(
        "dlq redrive funds 7 8 --yes", "dlq redrive funds --dry-run", "dlq redrive funds --code INVALID_DATA --rate 50 --yes"
    ),
)
def dlq_redrive(
    service: Service,
    letters: LetterIds = None,
    code: Annotated[str | None, typer.Option(help="only those with this code, as `dlq list` shows it")] = None,
    rate: Annotated[float | None, typer.Option(min=0.01, help="messages a second, at most; sent in portions")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say how many, send nothing")] = False,
    why: Why = "redriven by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Publish dead letters again once their cause is gone; all open ones if none is named."""
    from libs.cli.operate import dlq_redrive as run

    run(service, letters or [], code, rate, who, why, dry_run, yes, output is Output.json)


@letters.command("discard", epilog=examples('dlq discard funds 7 --why "sent twice by a test" --yes'))
def dlq_discard(
    service: Service,
    letters: LetterIds = None,
    why: Why = "given up by an operator",
    who: Who = None,
    yes: Yes = False,
    output: Out = Output.text,
) -> None:
    """Give dead letters up, for good: whatever they said does not happen."""
    from libs.cli.operate import dlq_discard as run

    run(service, letters or [], who, why, yes, output is Output.json)


@app.command(epilog=examples("tick", 'tick funds-due --why "the account is funded" --yes'))
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


@app.command(epilog=examples("audit", "audit funds --limit 10 -o json"))
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
        return int(app(argv, prog_name="almoner", standalone_mode=False) or 0)
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
