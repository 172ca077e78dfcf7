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
