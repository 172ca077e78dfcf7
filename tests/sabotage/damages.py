"""The damages: what is broken, by which edits, and the tests that must notice it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class DoesNotApply(Exception):
    """The text that a damage replaces is no longer there."""


@dataclass(frozen=True)
class Edit:
    """Replace every occurrence of ``old`` in one file; there must be at least one."""

    path: str
    old: str
    new: str

    def apply(self, root: Path) -> str:
        """The damaged text of the file below ``root``."""
        text = (root / self.path).read_text()
        if self.old not in text:
            raise DoesNotApply(f"{self.path} no longer contains {self.old!r}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Damage:
    """A rule of RELIABILITY whose code is taken out."""

    name: str
    rule: str
    edits: Sequence[Edit]
    tests: Sequence[str]
    database: str = "sqlite"
    #: A program without which its tests are skipped.
    needs: str = ""

    def apply(self, root: Path) -> None:
        """Break the tree below ``root``; DoesNotApply names what has changed since."""
        for edit in self.edits:
            try:
                damaged = edit.apply(root)
            except DoesNotApply as error:
                raise DoesNotApply(
                    f"{self.name}: {error}. Bring tests/sabotage up to date."
                ) from None
            (root / edit.path).write_text(damaged)


CLAIMABLE = "django_jobs/store/claimable.py"
ADMISSION = "django_jobs/store/admission.py"
FAIRNESS = "django_jobs/store/fairness.py"
RATES = "django_jobs/store/rates.py"
CLAIMS = "django_jobs/store/claims.py"
ENDINGS = "django_jobs/store/endings.py"
EVENTS = "django_jobs/store/events.py"
WAITS = "django_jobs/store/waits.py"
WAKING = "django_jobs/store/waking.py"
EXCHANGE = "django_jobs/store/exchange.py"
LEASES = "django_jobs/store/leases.py"
PERMITS = "django_jobs/store/permits.py"
LEFTOVERS = "django_jobs/store/leftovers.py"
POSTGRESQL = "django_jobs/store/dialects/postgresql.py"
RECORD = "django_jobs/store/record.py"
STEERING = "django_jobs/admin/steering.py"
SQLITE = "django_jobs/store/dialects/sqlite.py"
POOLING = "django_jobs/store/pooling.py"
SESSION = "django_jobs/store/session.py"
STEPS = "django_jobs/store/steps.py"
PEN = "django_jobs/worker/pen.py"
LONE = "django_jobs/store/lone.py"
ENQUEUEING = "django_jobs/enqueueing.py"
OUTBOX = "django_jobs/store/outbox.py"
PUBLISHING = "django_jobs/celery/publishing.py"
REPLAY = "django_jobs/workflows/replay.py"
UNITS = "django_jobs/store/units.py"
UNDO = "django_jobs/workflows/undo.py"
CODED = "django_jobs/workflows/coded.py"
COMMANDS = "django_jobs/store/commands.py"
MATCHING_TESTS = "tests/admin/test_matching.py::test_"
BULK = "django_jobs/admin/bulk.py"
INPUTFORM = "django_jobs/admin/inputform.py"
RESCHEDULING = "django_jobs/store/rescheduling.py"

SCHEDULES = "django_jobs/store/schedules.py"
SCHEDULE_SYNC = "django_jobs/store/schedule_sync.py"
TICKING = "django_jobs/scheduling/ticking.py"
TIMING = "django_jobs/definitions/timing.py"
SUPERVISOR = "django_jobs/worker/supervisor.py"

RESCHEDULE_TESTS = "tests/control/test_reschedule.py::test_"
CLAIM_TESTS = "tests/engine/test_claim.py::test_"
QUEUE_TESTS = "tests/engine/test_queue_limits.py::test_"
PERMIT_TESTS = "tests/engine/test_permits.py::test_"
TICK_TESTS = "tests/schedules/test_ticking.py::test_"
RECOVERY_TESTS = "tests/engine/test_recovery.py::test_"
WAIT_TESTS = "tests/waits/test_waits.py::test_"
OUTBOX_TESTS = "tests/celery/test_outbox.py::test_"
SUPERVISOR_TESTS = "tests/engine/test_supervisor.py::test_"
UNDO_TESTS = "tests/dag/test_undoing.py::test_"
MISBEHAVIOUR_TESTS = "tests/engine/test_misbehaviour.py::test_c6_"
ZOMBIE = "tests/engine/test_zombie.py::test_l3_a_zombie_writes_nothing"


def believed(kinds: str) -> Edit:
    """Items of these classes are written whatever the fence says."""
    return Edit(
        RECORD,
        "    status = owned[held]\n",
        f'    status = "running" if isinstance(item, {kinds}) else owned[held]\n',
    )


DAMAGES = [
    Damage(
        "an-order-on-all-is-not-checked-when-it-runs",
        "X2",
        [
            Edit(
                BULK,
                "            or not (\n                model_admin",
                "            or None is (\n                model_admin",
            )
        ],
        [f"{MATCHING_TESTS}who_gave_the_order_is_asked_again_when_it_runs[permission]"],
    ),
    Damage(
        "an-order-on-all-in-the-name-of-another",
        "X2",
        [Edit(BULK, "            or not self._is_given()\n", "")],
        [f"{MATCHING_TESTS}nobody_gives_an_order_in_the_name_of_another"],
    ),
    Damage(
        "parts-of-an-order-on-all-do-not-commit-with-their-record",
        "P3",
        [Edit(BULK, "transactional=True", "transactional=False")],
        ["tests/admin/test_matching.py::test_a_part_that_is_rolled_back_is_done_again_from_its_start"],
    ),
    Damage(
        "a-hidden-secret-is-stored-as-its-mark",
        "X4",
        [Edit(INPUTFORM, "        if lost is not None:", "        if lost == []:")],
        ["tests/admin/test_rerunning.py::test_as_json_the_mark_of_a_secret_stands_for_what_it_hides"],
    ),
    Damage(
        "rescheduled-although-started",
        "S1",
        [
            Edit(RESCHEDULING, "CASE WHEN {NEVER_STARTED} THEN 0 ELSE 1 END", "0"),
            Edit(RESCHEDULING, '"started_at IS NULL AND', '"'),
        ],
        [f"{RESCHEDULE_TESTS}a_job_that_was_started_is_refused_whatever_its_status"],
    ),
    Damage(
        "a-moved-job-keeps-its-lane",
        "S1",
        [Edit(RESCHEDULING, "            \"lane = %(lane)s\",\n", "")],
        [f"{RESCHEDULE_TESTS}a_moved_job_is_claimed_in_its_new_queue_and_only_there"],
    ),
    Damage(
        "nobody-comes-forward-when-the-first-of-a-key-is-delayed",
        "S1",
        [Edit(RESCHEDULING, "    permits.let_in_of(\n", "    (lambda *_: 0)(\n")],
        [f"{RESCHEDULE_TESTS}the_next_of_a_key_comes_forward_when_its_first_leaves"],
    ),
    Damage(
        "claim-without-lock-and-compare",
        "L1",
        [
            Edit(POSTGRESQL, 'skip_locked = "FOR UPDATE SKIP LOCKED"', 'skip_locked = ""'),
            Edit(CLAIMS, " AND {CLAIMABLE} RETURNING", " RETURNING"),
            Edit(CLAIMS, " AND {{job}}.status = 'pending'\n        RETURNING", "\n        RETURNING"),
        ],
        [
            f"{CLAIM_TESTS}four_processes_of_two_threads_execute_5000_jobs_once_each",
            f"{CLAIM_TESTS}a_claim_leaves_the_rows_of_an_uncommitted_one",
        ],
        # SQLite lets one writer in at a time, so that two claims never overlap there.
        database="postgresql",
    ),
    Damage(
        "claim-without-compare",
        "L1",
        [Edit(CLAIMS, " AND {CLAIMABLE} RETURNING", " RETURNING")],
        [f"{CLAIM_TESTS}a_job_taken_meanwhile_is_not_taken_again"],
    ),
    Damage(
        "claim-despite-a-live-lease",
        "L1",
        [
            Edit(
                CLAIMABLE,
                '"AND ({job}.lease_expires_at IS NULL OR {job}.lease_expires_at < {now}) "',
                '""',
            )
        ],
        [f"{CLAIM_TESTS}a_pending_job_under_a_live_lease_is_not_claimed"],
    ),
    Damage(
        "outcome-of-a-task-without-fence",
        "L3",
        [
            Edit(RECORD, "AND {job}.fence = v.fence AND", "AND"),
            Edit(RECORD, "id = %(id)s AND fence = %(fence)s AND status", "id = %(id)s AND status"),
        ],
        [f"{ZOMBIE}[outcome Completed-task-retaken]"],
    ),
    Damage(
        "outcome-of-a-task-without-fence-on-postgresql",
        "L3",
        [Edit(RECORD, "AND {job}.fence = v.fence AND", "AND")],
        [f"{ZOMBIE}[outcome Completed-task-retaken]"],
        # The one statement that completes a batch is another one there.
        database="postgresql",
    ),
    Damage(
        "outcome-of-a-run-without-fence",
        "L3",
        [
            believed("Finish"),
            Edit(RECORD, "id = %(id)s AND fence = %(fence)s AND status", "id = %(id)s AND status"),
            Edit(RECORD, "to=to, fence=claim.fence,", "to=to,"),
        ],
        [
            f"{ZOMBIE}[outcome Completed-workflow-retaken]",
            f"{ZOMBIE}[outcome Failed-workflow-retaken]",
            f"{ZOMBIE}[outcome TryAgain-workflow-retaken]",
        ],
    ),
    Damage(
        "step-without-fence",
        "L3",
        [
            Edit(STEPS, """ AND {{job}}.fence = {_field("fence")}\n""", "\n"),
            Edit(STEPS, "(uuid(job_id), fence): status", "(uuid(job_id), steps[0].claim.fence): status"),
        ],
        [
            f"{ZOMBIE}[start of a step-workflow-retaken]",
            f"{ZOMBIE}[result of a step-workflow-retaken]",
            f"{ZOMBIE}[failure of a step-workflow-retaken]",
        ],
    ),
    Damage(
        "log-and-progress-without-fence",
        "L3",
        [believed("LogWrite | ProgressWrite | NoteWrite")],
        [
            f"{ZOMBIE}[log line-workflow-retaken]",
            f"{ZOMBIE}[progress-workflow-retaken]",
            f"{ZOMBIE}[history entry-workflow-retaken]",
        ],
    ),
    Damage(
        "heartbeat-without-fence",
        "L3",
        [
            Edit(LEASES, " if fences[uuid(row[0])] == row[1]}", "}"),
        ],
        ["tests/engine/test_zombie.py::test_l3_a_zombie_renews_neither_lease_nor_permit"],
    ),
    Damage(
        "take-back-of-the-living",
        "L6",
        [Edit(LEASES, 'where = "" if dead else " AND lease_expires_at < {now}"', 'where = ""')],
        [f"{RECOVERY_TESTS}l6_a_lease_renewed_meanwhile_is_not_taken_back"],
    ),
    Damage(
        "hand-back-counts-as-crash",
        "L7",
        [
            Edit(
                RECORD,
                "lease_expires_at = NULL, fence = fence + 1\", detail",
                "lease_expires_at = NULL, fence = fence + 1, crashes = crashes + 1\", detail",
            )
        ],
        [
            f"{RECOVERY_TESTS}l7_a_hand_back_counts_as_nothing",
            "tests/engine/test_stop.py::test_c5_a_second_sigterm_hands_back_and_exits_within_a_second",
        ],
    ),
    Damage(
        "crash-counts-as-nothing",
        "L7",
        [Edit(LEASES, "crashes = crashes + 1, ", "")],
        [f"{RECOVERY_TESTS}l7_the_last_crash_fails_the_job_and_keeps_its_history"],
    ),
    Damage(
        "replay-ignores-stored-steps",
        "P5",
        [Edit(REPLAY, "record = self._records.get(step.key)", "record = None")],
        ["tests/engine/test_replay.py::test_p5_a_completed_step_is_answered_from_the_store"],
    ),
    Damage(
        "permit-without-count",
        "L8",
        [
            Edit(
                ADMISSION,
                "if len(self.taken) + self.without >= strictest:",
                "if strictest < 1:",
            )
        ],
        [
            f"{PERMIT_TESTS}p6_of_one_key_one_job_is_claimed_at_a_time",
            f"{PERMIT_TESTS}p6_a_key_holds_over_slugs_and_queues",
            f"{QUEUE_TESTS}no_more_than_the_limit_are_claimed_whoever_asks",
        ],
    ),
    Damage(
        "queue-limit-blind-to-those-without-a-unit",
        "P6",
        [Edit(ADMISSION, "            pools[permits.queue_hash(name)].without += 1\n", "            pass\n")],
        [f"{QUEUE_TESTS}jobs_that_began_before_their_queue_had_a_limit_count"],
    ),
    Damage(
        "direct-claim-of-a-limited-queue",
        "P6",
        [Edit(CLAIMS, "(q.paused OR q.job_limit IS NOT NULL)", "q.paused")],
        [f"{QUEUE_TESTS}a_worker_that_has_not_heard_of_the_limit_keeps_it"],
        database="postgresql",
    ),
    Damage(
        "holder-goes-on-without-its-permit",
        "P6",
        [Edit(LEASES, "if claim.held and not permits.renew(session, claim, lease) and claim.job_id in held:",
              "permits.renew(session, claim, lease)\n        if False:")],
        [f"{QUEUE_TESTS}a_holder_whose_unit_went_to_another_is_told_to_stop"],
    ),
    Damage(
        "rate-without-window",
        "P6",
        [Edit(RATES, "if self.used < self.room:", "if True:")],
        [
            "tests/engine/test_rates.py::test_a_job_over_the_rate_stays_pending_and_runs_as_soon_as_it_fits",
            "tests/engine/test_rates.py::test_the_window_slides",
        ],
    ),
    Damage(
        "turns-in-order-of-arrival",
        "P9",
        [Edit(FAIRNESS, "row.turn = first + place", "row.turn = 0")],
        ["tests/engine/test_fair_share.py::test_a_tenant_with_many_jobs_does_not_delay_one_with_few"],
    ),
    Damage(
        "release-of-somebody-elses-permit",
        "L8",
        [Edit(PERMITS, 'own = "" if fence is None else " AND fence = %(fence)s"', 'own = ""')],
        [f"{PERMIT_TESTS}l8_a_late_release_frees_nobody_elses_unit"],
    ),
    Damage(
        "admin-commands-for-every-viewer",
        "X2",
        [
            Edit(
                STEERING,
                "self.has_view_permission(request, job) and allowed(request, job)",
                "self.has_view_permission(request, job) and callable(allowed)",
            )
        ],
        [
            "tests/admin/test_steering.py::test_each_command_needs_its_own_permission_and_a_post",
            "tests/admin/test_steering.py::test_a_page_without_permission_has_no_buttons",
        ],
    ),
    Damage(
        "admin-switches-for-every-viewer",
        "X2",
        [
            Edit(
                "django_jobs/admin/acting.py",
                "self.has_view_permission(request, row) and allowed(request, row)",
                "self.has_view_permission(request, row) and callable(allowed)",
            )
        ],
        [
            "tests/admin/test_permissions.py::test_what_one_lacks_the_permission_for_is_refused",
        ],
    ),
    Damage(
        "text-of-a-job-as-markup",
        "X3",
        [
            Edit(
                "django_jobs/templates/admin/django_jobs/includes/problem.html",
                "<summary>{{ problem.line }}</summary>",
                "<summary>{{ problem.line|safe }}</summary>",
            )
        ],
        [
            "tests/admin/test_sites.py::test_no_page_lets_a_text_become_code",
        ],
    ),
    Damage(
        "job-of-a-slot-despite-its-tick",
        "P7",
        [
            Edit(
                TICKING,
                "    if not schedules.tick(session, row.id, one.slot, schedules.FIRED, one.job.row.id):\n        return\n",
                "    schedules.tick(session, row.id, one.slot, schedules.FIRED, one.job.row.id)\n",
            )
        ],
        [f"{TICK_TESTS}p7_a_slot_with_a_tick_makes_no_job_even_where_the_row_was_damaged"],
    ),
    Damage(
        "slots-without-compare-and-tick",
        "P7",
        [
            Edit(
                TICKING,
                "    if not schedules.tick(session, row.id, one.slot, schedules.FIRED, one.job.row.id):\n        return\n",
                "    schedules.tick(session, row.id, one.slot, schedules.FIRED, one.job.row.id)\n",
            ),
            Edit(SCHEDULES, "AND enabled AND NOT removed AND next_slot = %(seen)s", ""),
        ],
        ["tests/schedules/test_soak.py::test_two_schedulers_that_saw_the_same_slot_make_one_job"],
    ),
    Damage(
        "schedule-without-the-floor-of-its-last-slot",
        "I2",
        [Edit(SCHEDULES, "return max(now, self.last_slot or now)", "return now")],
        [f"{TICK_TESTS}p7_the_last_slot_is_a_floor_where_ticks_are_pruned_and_the_clock_is_set_back"],
    ),
    Damage(
        "schedule-that-fires-an-edited-slot",
        "I2",
        [
            Edit(
                SCHEDULE_SYNC,
                "if row.next_slot is not None and timing.has(row.next_slot, row.anchor):",
                "if row.next_slot is not None:",
            )
        ],
        [
            f"{TICK_TESTS}a_row_whose_expression_was_changed_by_a_plain_update_fires_no_slot_of_the_old_one"
        ],
    ),
    Damage(
        "schedule-switched-on-by-the-code",
        "CONTRACT 10",
        [
            Edit(
                SCHEDULE_SYNC,
                'if row.error and row.error.get("code") in (REMOVED, BAD):',
                "if not row.enabled:",
            )
        ],
        [f"{TICK_TESTS}synchronising_never_switches_on_what_the_operator_switched_off"],
    ),
    Damage(
        "fixed-times-fire-in-both-showings",
        "I3",
        [
            Edit(
                TIMING,
                "            if not self.cron.is_fixed:\n                second",
                "            if True:\n                second",
            )
        ],
        ["tests/schedules/test_cron.py::test_i3_slots_at_a_change_of_the_clock"],
    ),
    Damage(
        "misfire-all-without-a-cap",
        "I3",
        [Edit(TICKING, "MOST = 100\n", "MOST = 100_000\n")],
        [f"{TICK_TESTS}i3_all_is_capped_at_the_newest_hundred_and_says_so"],
    ),
    Damage(
        "frozen-scheduler-keeps-its-slot",
        "L9",
        [Edit(TICKING, ", limit=conf.get().lease", "")],
        [
            "tests/schedules/test_soak.py::test_l9_a_scheduler_that_freezes_within_its_transaction_does_not_keep_the_slot"
        ],
        database="postgresql",
    ),
    Damage(
        "an-end-wakes-nobody",
        "W1",
        [Edit(ENDINGS, "        _wake_parents(session, listed)\n", "        pass\n")],
        [
            f"{WAIT_TESTS}a_child_is_a_job_of_its_own_and_its_typed_output_comes_back",
            f"{WAIT_TESTS}a_canceled_child_is_a_failure_of_its_own_kind_and_a_retry_starts_another",
        ],
    ),
    Damage(
        "falls-asleep-without-a-last-look",
        "W1",
        [Edit(RECORD, "        is_due, wake_at = waits.standing(", "        _, wake_at = waits.standing(")],
        [f"{WAIT_TESTS}what_comes_between_the_last_look_and_falling_asleep_is_not_missed[event]"],
    ),
    Damage(
        "judges-a-sleeper-before-it-is-locked",
        "W1",
        [Edit(WAKING, "{among(ids)} ORDER BY id", "{among(ids)} AND status = 'sleeping' ORDER BY id")],
        ["tests/waits/test_races.py::test_a_child_that_ends_while_its_parent_falls_asleep_wakes_it"],
        "postgresql",
    ),
    Damage(
        "event-consumed-again",
        "I4",
        [Edit(WAITS, "SET step_key = %(key)s WHERE id = %(id)s", "SET step_key = NULL WHERE id = %(id)s")],
        [f"{WAIT_TESTS}i4_an_event_sent_before_the_wait_is_kept_and_each_is_consumed_once_oldest_first"],
    ),
    Damage(
        "late-event-beats-the-limit",
        "I4",
        [Edit(WAITS, "OR sent_at <= {moment(limit)})", "OR sent_at > sent_at - sent_at)")],
        [f"{WAIT_TESTS}i4_an_event_after_the_limit_is_too_late_however_late_the_run_looks"],
        "sqlite",
    ),
    Damage(
        "event-key-forgotten",
        "I4",
        [Edit(EVENTS, "if key_hash is not None and _is_known(session, key_hash):", "if False:"),
         Edit(EVENTS, "_insert(session, [receiver], name, payload, key_hash)",
              "_insert(session, [receiver], name, payload, None)")],
        [f"{WAIT_TESTS}a_key_counts_once_for_each_receiver"],
    ),
    Damage(
        "sleep-counted-anew",
        "I6",
        [Edit(WAITS, "if found is None or found.status == StepStatus.PENDING:", "if True:")],
        [f"{WAIT_TESTS}i6_a_pause_does_not_move_the_wake_up"],
    ),
    Damage(
        "two-children-of-one-step",
        "P4",
        [Edit(WAITS, "child = _reopened(session, before.child) if before is not None and before.child else None",
              "child = None"),
         Edit(WAITS, "if found is None or found.status == StepStatus.PENDING:", "if True:")],
        [f"{WAIT_TESTS}a_child_is_a_job_of_its_own_and_its_typed_output_comes_back"],
    ),
    Damage(
        "time-limit-sleeps-too",
        "C4",
        [Edit(RECORD, "if claim.is_run and claim.deadline_at is not None:", "if False:")],
        ["tests/waits/test_time_limits.py::test_a_run_that_waits_fails_at_its_limit[event]"],
    ),
    Damage(
        "message-before-the-commit",
        "W5",
        [Edit(ENQUEUEING, "transaction.on_commit(lambda: starter(jobs, alias), using=alias)", "starter(jobs, alias)")],
        [f"{OUTBOX_TESTS}nothing_is_published_of_what_is_rolled_back"],
    ),
    Damage(
        "enqueue-fails-with-the-broker",
        "W5",
        [Edit(PUBLISHING, "except Exception", "except ZeroDivisionError")],
        [f"{OUTBOX_TESTS}an_enqueue_never_fails_because_of_the_broker"],
    ),
    Damage(
        "lost-message-is-lost",
        "P1",
        [Edit(PUBLISHING, 'return Delivery(message, "again", min(', 'return Delivery(message, "sent", min(')],
        [f"{OUTBOX_TESTS}a_lost_message_is_published_again_later_and_later"],
    ),
    Damage(
        "nobody-is-told-of-what-became-due",
        "P1",
        [Edit(PUBLISHING, "while lanes:", "while lanes and not lanes:")],
        [
            f"{OUTBOX_TESTS}a_delayed_job_is_published_when_it_is_due",
            f"{OUTBOX_TESTS}what_waits_for_a_retry_or_was_resumed_is_published_again",
        ],
    ),
    Damage(
        "message-taken-without-a-lease",
        "W6",
        [Edit(OUTBOX, '"AND (lease_expires_at IS NULL OR lease_expires_at < {now}) "', '""')],
        [f"{OUTBOX_TESTS}two_relays_send_a_message_once_and_a_dead_one_s_again"],
    ),
    Damage(
        "prefetched-jobs-charged",
        "L7",
        [Edit(SUPERVISOR, "(only is not None or (job.job_id, job.fence) in running)", "bool(running)")],
        [f"{RECOVERY_TESTS}l7_jobs_that_only_waited_in_a_killed_child_are_not_charged"],
    ),
    Damage(
        "outcome-of-a-batch-unchecked",
        "L3",
        [Edit(EXCHANGE, "== len(ended)", ">= 0")],
        [f"{ZOMBIE}[outcome Completed-task-retaken]"],
        # One round trip, whose answer alone tells what was written, is PostgreSQL's.
        database="postgresql",
    ),
    Damage(
        "step-of-one-run-without-fence",
        "L3",
        [
            Edit(LONE, " AND fence = %(fence)s::int", ""),
            Edit(LONE, "SELECT id, fence, status FROM owned", "SELECT id, %(fence)s::int, status FROM owned"),
        ],
        ["tests/engine/test_zombie.py::test_l3_a_zombies_step_that_has_the_trip_to_itself_is_dropped"],
        database="postgresql",
    ),
    Damage(
        "pen-drops-what-lay-on-the-desk",
        "P3",
        [Edit(PEN, "                self._desk.put_back(entries)\n                raise\n", "                raise\n")],
        ["tests/engine/test_pen.py::test_p3_a_lost_connection_leaves_all_of_it_to_the_database_thread"],
        database="postgresql",
    ),
    Damage(
        "heartbeat-waits-for-a-locked-row",
        "L5",
        [Edit(LEASES, 'lock = "{lock_rows}" if patient else "{skip_locked}"', 'lock = "{lock_rows}"')],
        [f"{RECOVERY_TESTS}l5_a_row_that_somebody_has_locked_keeps_no_other_lease_from_renewal"],
        database="postgresql",
    ),
    Damage(
        "replaced-process-without-successor",
        "L7",
        [Edit(SUPERVISOR, "if code in (REPLACED, REPLACED_FAILED) or not self", "if not self")],
        [f"{SUPERVISOR_TESTS}once_goes_on_in_a_successor_of_a_process_that_had_its_share"],
    ),
    Damage(
        "trouble-of-the-database-is-the-worker-s-end",
        "W7",
        [Edit(SQLITE, " or _name(error).startswith(TROUBLE)", "")],
        ["tests/engine/test_trouble.py::test_w7_what_the_database_cannot_take_now_is_kept_and_costs_nobody"],
    ),
    Damage(
        "session-left-to-the-next-handler",
        "C6",
        [Edit(LEFTOVERS, "            or not watch.is_unchanged(connection)\n", "")],
        [f"{MISBEHAVIOUR_TESTS}what_a_handler_changes_of_its_session_ends_with_it"],
    ),
    Damage(
        "transactional-step-writes-elsewhere",
        "W4",
        [Edit(SESSION, "if other is not self.connection:", "if other is None:")],
        ["tests/engine/test_transactional.py::test_w4_a_transactional_step_writes_to_no_other_database"],
    ),
    Damage(
        "unit-starts-whatever-its-run-says",
        "C1",
        [
            Edit(UNITS, "    if run.status not in GOING:\n", "    if run.status in FINAL:\n"),
            Edit(COMMANDS, "    units.withdraw(session, [one.job_id for one in moved])\n", ""),
        ],
        ["tests/dag/test_races.py::test_c1_a_unit_that_was_claimed_starts_nothing_once_its_run_is_paused"],
    ),
    Damage(
        "driver-lets-go-without-looking",
        "W1",
        [Edit(RECORD, "is_due = is_due or found.seen != outcome.seen", "is_due = bool(is_due)")],
        ["tests/dag/test_races.py::test_no_end_of_a_unit_is_lost_while_its_driver_lets_go"],
    ),
    Damage(
        "compensation-runs-again",
        "C3",
        [
            Edit(
                UNDO,
                "if undone is None or undone.status != StepStatus.COMPLETED:",
                "if undone is None or undone.status:",
            )
        ],
        ["tests/dag/test_sagas.py::test_a_compensation_that_finally_fails_stops_until_an_operator_retries"],
    ),
    Damage(
        "read-before-write-on-sqlite",
        "W7",
        [Edit(SQLITE, '(connection.transaction_mode or "DEFERRED").upper() == "DEFERRED"', "connection is None")],
        ["tests/engine/test_sqlite.py::test_w7_an_enqueue_waits_for_another_writer_instead_of_failing[False]"],
    ),
    Damage(
        "pooler-taken-for-the-server",
        "W9",
        [Edit(POOLING, "return answer is None or answer[0] != raw.info.backend_pid", "return answer is None")],
        [
            "tests/engine/test_pooler.py::test_w9_a_listener_that_would_hear_nothing_says_so_and_leaves_polling_on"
            "[transaction]"
        ],
        needs="pgbouncer",
    ),
    Damage(
        "frozen-transaction-kept",
        "L9",
        [Edit(POSTGRESQL, 'f"SET LOCAL idle_in_transaction_session_timeout = {pause}; SET', '"SET')],
        ["tests/engine/test_frozen.py::test_l9_the_server_ends_a_transaction_of_which_nothing_more_is_heard"],
        database="postgresql",
    ),
    Damage(
        "worker-dies-of-forgotten-statements",
        "W9",
        [Edit(SESSION, "if is_last or not self.dialect.is_forgotten(error):", "if is_last or error.args:")],
        ["tests/store/test_trip.py::test_statements_that_the_driver_has_forgotten_are_prepared_anew[prepared]"],
        database="postgresql",
    ),
    Damage(
        "forward-step-starts-while-undoing",
        "C3",
        [Edit(STEPS, 'return "written" if step.needs in (None, status) else "paused"', 'return "written"')],
        [f"{UNDO_TESTS}c3_the_step_in_hand_is_recorded_and_none_starts_before_the_undoing"],
    ),
    Damage(
        "undone-while-a-unit-works",
        "C3",
        [Edit(CLAIMABLE, "AND u.finished_at IS NULL) AND", "AND u.id IS NULL) AND")],
        [f"{UNDO_TESTS}c3_no_run_is_undone_before_its_units_have_ended"],
    ),
    Damage(
        "crashes-of-a-compensation-without-limit",
        "P10",
        [Edit(LEASES, "return Status.COMPENSATION_FAILED if fatal else Status.COMPENSATING", "return Status.COMPENSATING")],
        [f"{UNDO_TESTS}p10_a_compensation_that_kills_its_workers_fails_and_may_be_retried"],
    ),
    Damage(
        "undoing-passes-over-what-the-code-lost",
        "C3",
        [Edit(CODED, "            elif record.compensation is not None:\n", "            elif record.id is None:\n")],
        ["tests/engine/test_code_sagas.py::test_a_compensation_that_the_code_does_not_give_any_more_fails_in_its_place"],
    ),
    Damage(
        "looking-back-runs-steps",
        "P5",
        [Edit(CODED, "        if self.looks_back:\n            # Asked", "        if self.ends_at:\n            # Asked")],
        ["tests/engine/test_code_sagas.py::test_c3_looking_back_starts_no_step_of_new_code"],
    ),
    Damage(
        "time-limit-undoes-nothing",
        "S2",
        [Edit(RECORD, "and claim.is_run and undoing.is_due(session, claim.job_id):", "and claim.fence < 0:")],
        [f"{UNDO_TESTS}a_run_out_of_time_is_undone"],
    ),
]  # fmt: skip
