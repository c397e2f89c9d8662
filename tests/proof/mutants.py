"""
Ways in which a script could be wrong: ``(file, exact original text, replacement, what would go wrong)``.

None of them is equivalent to the original: each has a circuit, an instant and a question that tell them apart.
"""

from __future__ import annotations

__all__ = ["MUTANTS"]

_PRELUDE = [
    ("= 1000000, 200, 500", "= 1000000, 300, 500", "the ramp saves up too much"),
    ("= 70, 85, 20", "= 80, 85, 20", "a failure cuts the ramp too little"),
    ("= 70, 85, 20", "= 70, 90, 20", "slow growth begins too close to the rate that failed"),
    (" or field == 'ramp_tokens' and n >= -CALL", "", "the ramp's debt is forgotten"),
    ("  if c.override == 'forced_open' then return 'open' end\n", "", "a circuit forced open does not look open"),
    ("  if c.override == 'forced_closed' then return 'closed' end\n", "", "forced closed admits nobody"),
    ("  add('epoch', 1)\n  set('changed_at_ms', now)", "  set('changed_at_ms', now)", "a transition keeps its epoch"),
    ("  set('probe_successes', 0)\n", "", "successes of an earlier epoch help to close"),
    ("  if c.window ~= '' then set('window', '') end\n", "", "calls from before the opening trip again"),
    ("  if state ~= 'half_open' then set('drawn', 0) end\n", "", "tasks drawn as probes count past their epoch"),
    (
        "  set('ramp_rate_mps', 0)\n  set('ramp_tokens', 0)\n  if state",
        "  if state",
        "the ramp outlives the closed state",
    ),
    ("  if state == 'open' then add('opened', 1) end\n", "", "openings are not counted"),
    ("  if state == 'half_open' then add('half_opened', 1) end\n", "", "half-openings are not counted"),
    ("now + c.override_until_ms - c.changed_at_ms)", "c.override_until_ms)", "a clock step prolongs an override"),
    ("c.open_until_ms - c.opened_at_ms, policy", "policy.longest_open_ms, policy", "a clock step prolongs the wait"),
    ("  bound('changed_at_ms', now)\n", "", "the last change stays in the future"),
    ("  bound('opened_at_ms', now)\n", "", "the opening stays in the future"),
    ("  bound('open_until_ms', now + open_ms)\n", "", "after a step back the wait is an hour longer"),
    ("  bound('closed_at_ms', now)\n", "", "the last closing stays in the future"),
    ("now >= c.override_until_ms then", "now > c.override_until_ms then", "an override ends 1 ms late"),
    ("    set('override', 'auto')\n", "", "an override never ends"),
    ("    add('epoch', 1)\n  end\n  local gone", "  end\n  local gone", "an override ends within its epoch"),
    ("KEYS[2], '-inf', now)", "KEYS[2], '-inf', now - 1)", "a call's lease lasts 1 ms longer"),
    ("KEYS[3], '-inf', now)", "KEYS[3], '-inf', now - 1)", "a probe's lease lasts 1 ms longer"),
    ("add('expired', gone)", "add('expired', 1)", "many lapsed leases count as one"),
    ("    call('ZADD', KEYS[3], furthest, permit)\n", "", "a clock step prolongs a dead probe's lease"),
    ("  set('ramp_tokens', CALL)\n", "  set('ramp_tokens', 0)\n", "the ramp begins with no start in hand"),
    ("  set('ramp_filled_ms', now)\n  set('ramp_cut_ms', 0)", "  set('ramp_cut_ms', 0)", "the ramp earns from before"),
    ("  set('ramp_cut_ms', 0)\n", "", "the last ramp's cut protects the new one"),
    (
        "  set('ramp_tokens', 0)\n  set('ramp_ceiling_mps', 0)\n",
        "  set('ramp_tokens', 0)\n",
        "a ceiling is never forgotten",
    ),
    ("math.max(now - c.ramp_filled_ms, 0)", "(now - c.ramp_filled_ms)", "a clock step back costs starts"),
    ("math.max(CALL, c.ramp_rate_mps", "math.max(2 * CALL, c.ramp_rate_mps", "the bucket is too big"),
    ("math.max(c.ramp_tokens - starts * CALL, -CALL)", "c.ramp_tokens - starts * CALL", "the debt has no end"),
    ("rate = rate + 1000\n", "rate = rate + 2000\n", "the ramp grows too fast"),
    (" or c.drawn * CALL >= bucket()", "", "the ramp grows though the workers do not start what is drawn"),
    ("rate >= ceiling", "rate > ceiling", "the rate that failed is passed at full speed"),
    ("since < CUT_PAUSE_MS", "since <= CUT_PAUSE_MS", "a cut protects 1 ms too long"),
    ("since >= 0 and since", "since", "after a step back nothing cuts"),
    ("return now - math.min(c.ramp_cut_ms, c.drawn_ms) <", "return now - c.drawn_ms <", "any draw excuses failures"),
    ("return now - math.min(c.ramp_cut_ms, c.drawn_ms) <", "return now - c.ramp_cut_ms <", "any cut excuses failures"),
    (" or now < math.max(c.ramp_cut_ms, c.drawn_ms) then", " then", "a cut in the future excuses failures"),
    (
        "set('ramp_tokens', math.min(c.ramp_tokens, 0))",
        "set('ramp_tokens', c.ramp_tokens)",
        "a cut leaves saved starts",
    ),
    ("  if kept_version > policy.version then policy = kept end\n", "", "an older configuration decides"),
    ("kept_version > policy.version then", "kept_version >= policy.version then", "the first of two equals decides"),
    (
        "policy.version > kept_version then set",
        "policy.version >= kept_version then set",
        "the last of two equals is kept",
    ),
    ("return string.format('%.0f', c.epoch) .. ':' .. permit_id", "return '0:' .. permit_id", "permits have no epoch"),
    ("  if before ~= effective_state() then\n    note", "  if false then\n    note", "transitions are not logged"),
    ("'reason', reason or c.reason)", "'reason', c.reason)", "why the operator forces is not logged"),
    ("'MAXLEN', '=', LOG_LENGTH", "'MAXLEN', '=', 1", "the log keeps one record"),
    ("'actor', actor, ", "'actor', '', ", "nobody knows who has spoken"),
    ("known ~= op_id or ", "not known or ", "every word is taken for the last one"),
    ("'%s %s %.0f %.0f %s', before, state", "'%s %s %.0f %.0f %s', state, state", "a repetition gets another answer"),
]

_ACQUIRE = [
    ("if paid_ticket ~= ticket() then", "if true then", "a start that was drawn is paid for twice"),
    ("c.ramp_tokens < CALL", "c.ramp_tokens <= CALL", "a full token is not enough"),
    ("if paced and", "if", "the ramp refuses plain calls"),
    ("    take(1)\n", "", "starts cost nothing"),
    ("    add('drawn', -1)\n", "", "a task that has arrived still counts as on its way"),
    ("math.max(lease_ms, policy.longest_lease_ms)", "policy.longest_lease_ms", "a long call's permit lapses early"),
    (
        "  if call('ZSCORE', KEYS[2], permit_key(permit_id)) then return 'call' end\n",
        "",
        "a call asked twice counts twice",
    ),
    (
        "  if call('ZSCORE', KEYS[3], permit_key(permit_id)) then return 'probe' end\n",
        "",
        "a probe asked twice is refused",
    ),
    ("  if c.override == 'forced_open' then return '' end\n", "", "calls pass a circuit forced open"),
    ("now >= c.open_until_ms", "now > c.open_until_ms", "the circuit half-opens 1 ms late"),
    ("elseif not health then", "elseif false then", "an open circuit lets a probe through at once"),
    (">= policy.half_open_max_calls", "> policy.half_open_max_calls", "one probe too many"),
    ("lease_ms > 0 and lease_ms or policy.probe_lease_ms", "policy.probe_lease_ms", "a probe's own lease is ignored"),
    ("  set('drawn', math.max(c.drawn - 1, 0))\n", "", "a probe that has arrived still counts as under way"),
    ("    enter('half_open')\n", "    set('state', 'half_open')\n", "half-opening skips its bookkeeping"),
    ("c.override_until_ms == FOREVER_MS and policy.recovery_ms or ", "", "an endless override asks to wait for ever"),
    ("math.ceil((CALL", "math.floor((CALL", "the ramp's wait ends 1 ms before the token is there"),
    ("now) - now, policy.recovery_ms)", "now) - now, 1e14)", "a refused caller waits for a whole long lease"),
    ("  set('gen', permit_id)\n", "  set('gen', 'circuit')\n", "every incarnation has one name"),
    ("  add('rejected', 1)\n", "", "refusals are not counted"),
    ("  if paced then add('held', 1) end\n", "", "refusals of tasks are not counted apart"),
    ("elseif not health then", "elseif true then", "a health check waits like any call"),
    ("adopt()\n", "", "a newer configuration is not kept"),
    ("kind == '' and retry_after() or 0", "0", "a refusal does not say how long to wait"),
]

_SETTLE = [
    ("not ignored and given_in == ticket()", "not ignored", "a late report decides"),
    ("not ignored and given_in", "given_in", "a neutral outcome closes"),
    ("if held > 0 then", "if true then", "a report counts twice"),
    ("  if not probe then return pace() end\n", "", "a call let through by the operator decides about the probing"),
    (" + call('ZREM', KEYS[3], permit)", "", "a probe's permit is not given back"),
    ("local held = call('ZREM', KEYS[2], permit) +", "local held =", "a call's permit is not given back"),
    ("elseif c.gen ~= '' then", "else", "a report to a circuit that is lost creates a field"),
    (
        "c.failures >= policy.failure_limit",
        "c.failures > policy.failure_limit",
        "one failure too many is let by",
    ),
    (" and not is_easing()", "", "what was started before a step back of the ramp trips"),
    ("  elseif c.failures > 0 then\n    set('failures', 0)\n", "", "failures need not be consecutive"),
    ("calls < policy.minimum_calls", "calls <= policy.minimum_calls", "a rate counts one call late"),
    ("failures * 1000000 >=", "failures * 1000000 >", "a failure rate at the threshold does not trip"),
    ("slow_calls * 1000000 >=", "slow_calls * 1000000 >", "a slow rate at the threshold does not trip"),
    ("(slow and policy.slow_rate_ppm > 0)", "slow", "a slow probe reopens a circuit without such a rule"),
    (" and not (slow and policy.slow_rate_ppm > 0)", "", "a slow probe is proof of health"),
    ("    add('reopens', 1)\n", "", "the wait never backs off"),
    ("< policy.success_threshold", "<= policy.success_threshold", "one probe more than asked for closes"),
    ("unstable and c.reopens + 1 or 0", "c.reopens", "back-off is never forgotten"),
    ("  set('tripped_at_ms', 0)\n", "", "a closed circuit is still in an outage"),
    ("  enter('closed')\n  start_ramp()\n", "  enter('closed')\n", "held tasks return as one wave"),
    ("math.max(open_ms, retry_after_ms)", "open_ms", "a Retry-After is not heard"),
    ("  for _ = 1, c.reopens do", "  for _ = 2, c.reopens do", "back-off begins one reopening late"),
    ("number > at - SLICES", "number >= at - SLICES", "the window is a slice too long"),
    (" and number <= at then", " then", "after a clock step back the window holds the future"),
    ("(slow and 2 or 0)), -policy", "(slow and 1 or 0)), -policy", "a slow call is noted as a failed one"),
    (", -policy.window_calls))\n", ", 1))\n", "a window over calls never slides"),
    ("'[13]'", "'1'", "a failure that was slow too is no failure"),
    ("'[23]'", "'2'", "a slow call that failed too is not slow"),
    ("  set('tripped_at_ms', now)\n", "", "nobody knows since when the circuit is open"),
    ("if failed then cut_ramp() else grow_ramp() end", "grow_ramp()", "failures make the ramp grow"),
    ("not (failed and trip) and not trips()", "not trips()", "no failure is enough alone"),
    ("not (failed and trip) and not trips()", "not trip and not trips()", "a success trips"),
    ("math.max(now - c.closed_at_ms, 0)", "(now - c.closed_at_ms)", "after a step back the back-off is not forgotten"),
    ("< policy.stable_ms", "<= policy.stable_ms", "a circuit is stable 1 ms late"),
    ("unstable and c.reopens + 1 or 0", "0", "a circuit that flaps never backs off"),
    ("  set('closed_at_ms', now)\n", "", "nobody knows since when the circuit is closed"),
    ("  set('reason', ARGV[11])\n", "", "nobody knows why the circuit is open"),
    ("  set('reason', '')\n", "", "a closed circuit says why it is open"),
    ("  if proved then return bound('open_until_ms', now) end\n", "", "a health check that succeeds ends no wait"),
    ("math.max(c.open_until_ms, asked_ms)", "asked_ms", "a health check that fails shortens the wait"),
    ("now + math.min(retry_after_ms, policy.longest_open_ms)", "now + retry_after_ms", "a health check has no cap"),
    ("  if c.state == 'half_open' then return", "  do return", "a health check decides like a probe"),
    ("string.byte(epoch, i)", "string.byte(epoch, 1)", "every epoch has the same chance"),
    ("for _ = 1, 2 do mixed", "for _ = 1, 1 do mixed", "chance is not mixed well"),
    ("policy.jitter_permille * chance()", "policy.jitter_permille * 1000", "jitter is no chance"),
    ("  return math.min(open_ms, policy.longest_open_ms)\n", "  return open_ms\n", "jitter has no cap"),
    ("duration_ms > BOUNDS_MS[range]", "duration_ms >= BOUNDS_MS[range]", "a bound belongs to the next range"),
    ("if duration_ms > 0 then took() end", "took()", "a call nobody measured counts as a fast one"),
    ("  add('took_ms', duration_ms)\n", "", "durations are not summed"),
    ("if not is_numbers(text, #BOUNDS_MS + 1) then", "if true then", "durations begin anew with each call"),
    ("duration_ms >= policy.slow_ms", "duration_ms > policy.slow_ms", "a call of just the duration is not slow"),
    ("    set('successes_in_a_row', 0)\n", "", "successes in a row outlive a failure"),
    (
        "c.state == 'open' and math.max(c.open_until_ms - now, 0) or 0",
        "0",
        "who trips the circuit is not told the wait",
    ),
]

_DRAW = [
    ("local DRAWN_MS = 1000", "local DRAWN_MS = 2000", "a drawn task that is lost delays the next by a second"),
    ("wanted == 0 and c.failures == 0", "wanted == 0", "a ramp ends in the middle of failures"),
    ("wanted > 0 and c.ramp_rate_mps == 0", "false", "tasks held by an override return as one wave"),
    ("  take(count)\n", "", "drawn starts cost nothing"),
    ("c.override == 'auto' and now", "now", "tasks are drawn out of a circuit forced open"),
    ("now >= c.open_until_ms", "now > c.open_until_ms", "held tasks probe 1 ms late"),
    ("KEYS[3]) - on_the_way\n", "KEYS[3])\n", "more tasks are drawn than may probe"),
    ("since >= 0 and since", "since", "after a clock step back drawn tasks block the others for an hour"),
    ("if count > 0 then set('drawn_ms', now) end\n", "", "drawn tasks are forgotten at once"),
    (" / CALL) - on_the_way\n", " / CALL)\n", "more tasks are drawn than the workers start"),
]

_FORCE = [
    ("add('epoch', 1)\n", "", "reports from before the operator's word still decide"),
    ("override == 'auto' and 0 or until_ms", "until_ms", "a lifted override still has an end"),
    ("ttl_ms > 0 and now + ttl_ms or FOREVER_MS", "now + ttl_ms", "an endless override ends at once"),
    ("set('changed_at_ms', now)\n", "", "an override's length cannot be known"),
    ("if c.gen == '' then set('gen', op_id) end\n", "", "a circuit begun by the operator has no name"),
    ("if known then return known end\n", "", "a word said again is followed again"),
    ("forced_open = 'force_open'", "forced_open = 'forced_open'", "the log has another name for a word"),
]

_RESET = [
    ("epoch + 1", "epoch", "reports from before the reset still decide"),
    ("call('DEL', KEYS[1], KEYS[2], KEYS[3])", "call('DEL', KEYS[1])", "permits survive a reset"),
    ("set('gen', gen)", "set('gen', op_id)", "a reset makes a new incarnation"),
    ("if known then return known end\n", "", "a reset said again resets again"),
]

_QUIET = [
    ("(read[2] or 'closed') == 'closed'", "true", "an open circuit is taken for a quiet one"),
    ("(read[3] or 'auto') == 'auto'", "true", "the operator's word is not heard while the circuit is closed"),
    (
        "(read[4] == ARGV[2] or (read[4] or '') == '' and string.sub",
        "(true or string.sub",
        "a newer policy is not heard",
    ),
    (" and string.sub(ARGV[2], 1, 2) == '0,'", "", "a newer policy is not kept"),
    ("and call('ZCARD', KEYS[3]) == 0", "", "a silent probe stays for ever while nothing else happens"),
    ("if there and read[8] == 0 then", "if there then", "a ramp neither limits nor grows"),
    ("if read[9] <= now and", "if", "after a step back the last change stays in the future"),
]

_QUIET_ACQUIRE = [
    ("if quiet.of_key then redis.call('ZADD', KEYS[5], quiet.now, quiet.of_key) end", "", "a key in use is forgotten"),
    ("or tonumber(first[2]) > quiet.now)", "or true)", "leases do not end while nothing is going on"),
    ("tonumber(first[2]) > quiet.now", "tonumber(first[2]) >= quiet.now", "a lease lasts 1 ms longer in quiet"),
    (
        "math.max(tonumber(ARGV[4]), tonumber(longest_lease_ms))",
        "tonumber(longest_lease_ms)",
        "a long call has no lease",
    ),
    ("deadline, epoch .. ':' .. ARGV[3]", "deadline, ARGV[3]", "a permit is put where nobody looks for it"),
    ("quiet.admitted + 1", "quiet.admitted + 2", "an admission counts twice"),
    ("ARGV[3]) == 1 then", "ARGV[3]) < 2 then", "a question asked again is counted again"),
]

_QUIET_SETTLE = [
    (
        "if quiet.of_key then redis.call('ZADD', KEYS[5], quiet.now, quiet.of_key) end",
        "",
        "a report is no use of a key",
    ),
    ("ARGV[7] ~= 'success' or ", "", "a failure counts as a success"),
    (" or quiet.failures > 0 then return false", " then return false", "a success does not end a row of failures"),
    (",0,0,0,')", ",%d+,%d+,%d+,')", "a rule over a rate is not fed"),
    ("start = string.find(text, ',', start, true) + 1", "", "all calls count as the shortest"),
    ("duration_ms > BOUNDS_MS[range]", "duration_ms >= BOUNDS_MS[range]", "a bound belongs to the longer range"),
    ("count + 1", "count + 2", "a duration counts twice"),
    ("type(call('ZSCORE', KEYS[2], permit)) == 'string'", "true", "a second report counts again"),
    ("    redis.call('ZREM', KEYS[2], permit)\n", "", "a permit is never taken back"),
    ("quiet.succeeded + 1", "quiet.succeeded", "a success is not counted"),
    ("quiet.successes_in_a_row + 1", "1", "a row of successes never grows"),
    ("quiet.took_ms + duration_ms", "duration_ms", "the sum of durations is the last one"),
    ("string.format('%.0f', quiet.now),", "'0',", "the last success has no moment"),
]

MUTANTS = [
    (file, *mutant)
    for file, mutants in (
        ("_quiet", _QUIET),
        ("_quiet_acquire", _QUIET_ACQUIRE),
        ("_quiet_settle", _QUIET_SETTLE),
        ("_prelude", _PRELUDE),
        ("acquire", _ACQUIRE),
        ("settle", _SETTLE),
        ("draw", _DRAW),
        ("force", _FORCE),
        ("reset", _RESET),
    )
    for mutant in mutants
]
