# Sourced by the batch scripts here: submits a job again until its run has all its updates.
#
#     before=$(progress DIR)
#     ... flowmc run CONFIG --output DIR --resume ...
#     submit_again DIR "$before" COMMAND...

# How far the run is, as text without a clock; empty before the first checkpoint.
progress() {
    flowmc status "$1" --json 2>/dev/null | grep -E '"(update|total)"'
}

# COMMAND submits the next job.  A job that gained nothing is not repeated: its error, in the output
# of the job, would come again.
submit_again() {
    local output=$1 before=$2
    shift 2
    if flowmc status "$output"; then
        return 0
    fi
    if [ "$(progress "$output")" = "$before" ]; then
        echo "no progress in this job: see the messages above; nothing is submitted" >&2
        return 1
    fi
    "$@"
}
