"""What makes a job one that may be taken, as SQL that several statements share."""

AVAILABLE = (
    "{job}.status = 'pending' AND {job}.gate IN ('open', 'permit', 'rate') AND {job}.due_at <= {now} "
    "AND ({job}.lease_expires_at IS NULL OR {job}.lease_expires_at < {now}) "
    "AND ({job}.expires_at IS NULL OR {job}.expires_at > {now} OR {job}.started_at IS NOT NULL)"
)
CLAIMABLE = AVAILABLE.replace("IN ('open', 'permit', 'rate')", "= 'open'")

#: The rows of the index of times to come, in the very words of that index: SQLite reads a partial index
#: only where it finds each of its terms, and the whole table otherwise.
TIMED = "(status = 'sleeping' OR (gate = 'timer' AND status = 'pending'))"

NOT_PAUSED = (
    "NOT EXISTS (SELECT 1 FROM {queue} q WHERE q.name = {job}.queue_name AND q.paused) "
    "AND NOT EXISTS (SELECT 1 FROM {task} t WHERE t.slug = {job}.slug AND t.paused)"
)
#: Runs that are to be undone now and that nobody holds.
UNHELD = (
    "{job}.status = 'compensating' AND {job}.lease_expires_at IS NULL "
    "AND ({job}.run_after IS NULL OR {job}.run_after <= {now})"
)
#: Those that may be taken: not before their units have ended.
UNDOABLE = (
    f"{UNHELD} AND NOT EXISTS (SELECT 1 FROM {{job}} u WHERE u.parent_id = {{job}}.id AND u.kind = 'step' "
    f"AND u.finished_at IS NULL) AND {NOT_PAUSED}"
)
