"""``manage.py demo``: a shop survives two kills, and its account says whether it did."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection, transaction

from django_jobs.models import Job
from testproject.shop import provider, sabotage
from testproject.shop.account import Account, draw_up, read_expected, write_rejected
from testproject.shop.importing import BadFile, Imported, import_file, read_rows
from testproject.shop.ledger import Kill, read_ledger
from testproject.shop.models import Order, Rejection
from testproject.shop.processes import ProcessFailed, ProviderService
from testproject.shop.progress import Progress
from testproject.shop.running import Run, count_jobs, finished, worker_service
from testproject.shop.workflows import SLUG

SHIPPED = Path(__file__).resolve().parents[2] / "data"
USER = PASSWORD = "demo"


@dataclasses.dataclass
class State:
    """What a later run must know of the earlier ones: a file in the data folder."""

    orders: str = ""
    seed: int = 1
    sabotage: str = ""
    kills: list[Kill] = dataclasses.field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> State | None:
        if not path.exists():
            return None
        stored = json.loads(path.read_text())
        return cls(**{**stored, "kills": [Kill(**kill) for kill in stored["kills"]]})

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        part.replace(path)


class Command(BaseCommand):
    help = (
        "Imports an order file, processes every order as a durable workflow in real worker"
        " processes, kills them with SIGKILL on the way, and checks the provider's ledger"
        " against the expected account. Exit code 1 on any difference."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--orders",
            type=Path,
            default=SHIPPED / "orders.csv",
            metavar="FILE",
            help="your own order file; the shipped one has its expected account",
        )
        parser.add_argument("--fresh", action="store_true", help="forget earlier runs of the demo")
        parser.add_argument("--seed", type=int, help="who fails when (1 when not given)")
        parser.add_argument(
            "--sabotage",
            choices=sabotage.MODES,
            default="",
            help="break the shop on purpose; starts over, and must not balance",
        )
        parser.add_argument(
            "--data",
            type=Path,
            metavar="DIR",
            help="folder of ledger, mails and logs (demo-data/<database>)",
        )
        parser.add_argument("--processes", type=int, default=2)
        parser.add_argument("--threads", type=int, default=4)

    def handle(self, *args: Any, **options: Any) -> None:
        self.options = options
        self.data: Path = (options["data"] or _default_folder()).resolve()
        self.orders: Path = options["orders"].resolve()
        # `kill` and `timeout` end it like Ctrl-C does, so that no process of it is left behind.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self._run()
        except (BadFile, ProcessFailed) as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted. Run the demo again to go on.", returncode=130
            ) from None

    def _run(self) -> None:
        expected = read_expected(self._expected_file())
        self._prepare()
        known = _charges(self.data)
        imported = self._import()
        run = self._work()
        account = draw_up(expected, self.data, self.state.kills)
        rejected = write_rejected(self.data / "rejected.csv")
        self._report(account, run, imported, rejected, known)
        self._tell_the_way()
        if account.differences:
            raise CommandError("The account does not balance.", returncode=1)

    # Before

    def _expected_file(self) -> Path:
        """The committed account, or one that the same script makes of the user's own file."""
        next(read_rows(self.orders), None)
        if self.orders == SHIPPED / "orders.csv":
            return SHIPPED / "expected.csv"
        self.data.mkdir(parents=True, exist_ok=True)
        target = self.data / "expected.csv"
        with target.open("wb") as file:
            command = [sys.executable, str(SHIPPED / "make_expected.py"), str(self.orders)]
            subprocess.run(command, stdout=file, check=True)
        return target

    def _prepare(self) -> None:
        self._say(f"Database: {_database_name()}")
        if self.options["sabotage"]:
            self._say(f"Sabotage: {sabotage.MODES[self.options['sabotage']]}.")
        call_command("migrate", verbosity=0)
        self.data.mkdir(parents=True, exist_ok=True)
        path = self.data / "state.json"
        asked = State(
            orders=hashlib.sha256(self.orders.read_bytes()).hexdigest(),
            seed=1 if self.options["seed"] is None else self.options["seed"],
            sabotage=self.options["sabotage"],
        )
        kept = State.load(path)
        if self._starts_over(kept, asked):
            self._start_over()
            kept = None
        self._refuse_foreign_state(kept, asked)
        self.state = kept or asked
        self.state.save(path)
        (self.data / "mails").mkdir(exist_ok=True)
        self.ready_user = _ensure_user()

    def _starts_over(self, kept: State | None, asked: State) -> bool:
        sabotaged = asked.sabotage or (kept and kept.sabotage)
        if sabotaged and kept and not self.options["fresh"]:
            self._say("A sabotaged run and a sound one do not mix: starting over.")
        emptied = (self.data / "ledger.sqlite3").exists() and not Order.objects.exists()
        if emptied and not self.options["fresh"]:
            self._say(f"{_short(self.data)} is of a database that is gone: starting over.")
        return bool(self.options["fresh"] or sabotaged or emptied)

    def _start_over(self) -> None:
        """Forget the shop's rows, its jobs and the data folder; nothing else of the database."""
        with transaction.atomic():
            Job.objects.filter(slug=SLUG).delete()
            Order.objects.all().delete()
            Rejection.objects.all().delete()
        for name in (
            "ledger.sqlite3",
            "ledger.sqlite3-wal",
            "ledger.sqlite3-shm",
            "rejected.csv",
            "state.json",
            "worker.log",
            "provider.log",
        ):
            (self.data / name).unlink(missing_ok=True)
        shutil.rmtree(self.data / "mails", ignore_errors=True)

    def _refuse_foreign_state(self, kept: State | None, asked: State) -> None:
        """Rows of one run beside the ledger of another could only end in nonsense."""
        if kept and kept.orders != asked.orders:
            raise CommandError("An earlier run imported another order file: add --fresh.")
        if kept and self.options["seed"] not in (None, kept.seed):
            raise CommandError(f"An earlier run had --seed {kept.seed}: add --fresh.")
        if kept is None and Order.objects.exists():
            raise CommandError(
                f"The database has orders, but {self.data} knows nothing of them: add --fresh."
            )

    # Meanwhile

    def _import(self) -> Imported:
        rows = sum(1 for _ in read_rows(self.orders))
        bar = Progress(self.stdout, "import", rows)
        imported = import_file(self.orders, bar.show)
        bar.finish(imported.rows)
        self._say(
            f"  {imported.new_orders} new orders, {imported.new_jobs} jobs enqueued,"
            f" {imported.known_jobs} known by their idempotency key,"
            f" {imported.rejected} rows refused at once"
        )
        return imported

    def _work(self) -> Run:
        """Provider and worker as processes until every job is finished."""
        env = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": os.environ["DJANGO_SETTINGS_MODULE"],
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(settings.BASE_DIR), os.environ.get("PYTHONPATH")])
            ),
            "PYTHONUNBUFFERED": "1",
            "SHOP_DATA": str(self.data),
            "SHOP_SEED": str(self.state.seed),
            "SHOP_SABOTAGE": self.state.sabotage,
        }
        threads, processes = self.options["threads"], self.options["processes"]
        counts = count_jobs()
        idle = finished(counts) == counts.total()
        ledger = self.data / "ledger.sqlite3"
        with ProviderService(ledger, self.state.seed, self.data / "provider.log", env) as payments:
            env["SHOP_PROVIDER_URL"] = payments.url
            log = self.data / "worker.log"
            worker = worker_service(log, env, threads, processes, once=idle)
            self._say(
                f"Payment provider: pid {payments.pid}, {payments.url}, seed {self.state.seed}"
            )
            earlier = list(self.state.kills)
            run = Run(
                worker,
                threads * processes,
                Progress(self.stdout, "orders", counts.total()),
                lambda kills: self._remember(earlier + kills),
            )
            with worker:
                self._say(f"Worker: pid {worker.pid}, {processes} processes of {threads} threads")
                if idle:
                    self._wait_for_once(worker)
                run.until_finished()
        return run

    def _wait_for_once(self, worker: Any) -> None:
        """There is nothing to do; a worker that looks for itself confirms it."""
        code = worker.process.wait()
        if code:
            raise ProcessFailed(f"runjobs --once ended with code {code}. {worker.last_lines()}")

    def _remember(self, kills: list[Kill]) -> None:
        self.state.kills = kills
        self.state.save(self.data / "state.json")

    # After

    def _report(
        self, account: Account, run: Run, imported: Imported, rejected: int, known: int
    ) -> None:
        expected = account.expected
        self._say("")
        self._say(f"{'The account':<30}{'expected':>14}{'actual':>14}")
        for label, should, has in [
            ("charges in the ledger", len(expected.charges), len(account.charges)),
            ("charged in all, EUR", f"{expected.amount:,.2f}", f"{account.amount:,.2f}"),
            ("mails", len(expected.charges), account.mails.total()),
            ("parcels", len(expected.charges), len(account.parcels)),
            ("rejected rows", len(expected.rejections), rejected),
        ]:
            self._say(f"  {label:<28}{should:>14}{has:>14}")
        self._say(f"  new charges in this run: {len(account.charges) - known}")
        self._say(f"  jobs: {_counted(account.jobs)}")
        self._report_faults(account, run)
        if run.done:
            self._say(
                f"Speed: {run.done} jobs in {run.seconds:.1f} s,"
                f" {run.done / run.seconds:.0f} jobs/s, kills and recoveries included"
            )
        self._say(f"Files: {_short(self.data)} has the ledger, mails, rejected.csv and logs")
        self._say("")
        for line in account.differences:
            self._say(f"DIFFERENCE  {line}" if not line.startswith(" ") else f"          {line}")
        if not account.differences:
            self._say("The account balances: every order was charged exactly once.")

    def _report_faults(self, account: Account, run: Run) -> None:
        self._say("")
        self._say("Faults")
        for kill in run.kills:
            pids = ", ".join(str(pid) for pid in kill.pids)
            self._say(f"  kill -9 of {kill.what}, pid {pids}: {kill.in_flight} orders in flight;")
            self._say(
                f"    next order finished after {_seconds(kill.progress)},"
                f" the last of those in flight resumed after {_seconds(kill.resumed)}"
            )
        if run.done and len(run.kills) < 2:
            self._say(f"  only {len(run.kills)} of 2 kills: the orders were finished too soon")
        repeats = account.repeats
        self._say(
            f"  provider: {len(account.requests)} requests,"
            f" {account.outcome(provider.UNAVAILABLE)} turned away (503),"
            f" {account.outcome(provider.LOST)} charged with the answer lost"
        )
        self._say(
            f"  repeated requests refused by their idempotency key: {repeats.total}"
            f" ({repeats.after_lost_answer} after a lost answer, {repeats.after_kill} after a kill"
            + (f", {len(repeats.unexplained)} unexplained)" if repeats.unexplained else ")")
        )
        self._say(
            f"  mails: {account.mails_greylisted} greylisted at first, {account.mails_repeated}"
            " sent again after a kill and recognised by their key"
        )
        self._say("")

    def _tell_the_way(self) -> None:
        self._say("")
        self._say("Look around in the admin:")
        self._say(f"  {_short(Path(sys.executable), resolve=False)} manage.py runserver")
        who = f"user {USER}, password {PASSWORD}" if self.ready_user else "with a user of your own"
        self._say(f"  http://127.0.0.1:8000/admin/  {who}")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def _default_folder() -> Path:
    """One folder per database, so that SQLite's ledger is not PostgreSQL's."""
    name = connection.vendor
    if connection.vendor != "sqlite":
        name += f"-{Path(str(connection.settings_dict['NAME'])).name}"
    return Path(settings.BASE_DIR) / "demo-data" / name


def _database_name() -> str:
    place = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"SQLite, {_short(Path(str(place['NAME'])))}"
    return f"{connection.display_name}, {place['NAME']} on {place['HOST'] or 'this machine'}"


def _charges(data: Path) -> int:
    return sum(request.charged for request in read_ledger(data / "ledger.sqlite3"))


def _ensure_user() -> bool:
    """Make the ready user, but never in a database that has users of its own."""
    users = get_user_model().objects
    if users.filter(username=USER).exists():
        return True
    if users.exists():
        return False
    users.create_superuser(USER, f"{USER}@example.com", PASSWORD)
    return True


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "none"


def _seconds(value: float | None) -> str:
    return "(not seen)" if value is None else f"{value:.1f} s"


def _short(path: Path, *, resolve: bool = True) -> str:
    """``path`` as seen from here, where that is shorter."""
    path = path.resolve() if resolve else path
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
