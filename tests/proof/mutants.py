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
    ("now >= c.override_until_ms then", "now > c.override_until_ms then", "an override ends 1 ms late"),
    ("    set('override', 'auto')\n", "", "an override never ends"),
    ("    add('epoch', 1)\n  end\n  local gone", "  end\n  local gone", "an override ends within its epoch"),
    ("KEYS[2], '-inf', now)", "KEYS[2], '-inf', now - 1)", "a call's lease lasts 1 ms longer"),
    ("KEYS[3], '-inf', now)", "KEYS[3], '-inf', now - 1)", "a probe's lease lasts 1 ms longer"),
    ("add('expired', gone)", "add('expired', 1)", "many lapsed leases count as one"),
    ("    redis.call('ZADD', KEYS[3], furthest, permit)\n", "", "a clock step prolongs a dead probe's lease"),
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
    ("rate >= ceiling", "rate > ceiling", "the rate that failed is passed at full speed"),
    ("since < CUT_PAUSE_MS", "since <= CUT_PAUSE_MS", "a cut protects 1 ms too long"),
    ("since >= 0 and since", "since", "after a step back nothing cuts"),
    (
        "set('ramp_tokens', math.min(c.ramp_tokens, 0))",
        "set('ramp_tokens', c.ramp_tokens)",
        "a cut leaves saved starts",
    ),
]

_ACQUIRE = [
    ("if paid_ticket ~= ticket() then", "if true then", "a start that was drawn is paid for twice"),
    ("c.ramp_tokens < CALL", "c.ramp_tokens <= CALL", "a full token is not enough"),
    ("if paced and", "if", "the ramp refuses plain calls"),
    ("    take(1)\n", "", "starts cost nothing"),
    ("math.max(lease_ms, policy.longest_lease_ms)", "policy.longest_lease_ms", "a long call's permit lapses early"),
    ("  if redis.call('ZSCORE', KEYS[2], permit_id) then return 'call' end\n", "", "a call asked twice counts twice"),
    ("  if redis.call('ZSCORE', KEYS[3], permit_id) then return 'probe' end\n", "", "a probe asked twice is refused"),
    ("  if c.override == 'forced_open' then return '' end\n", "", "calls pass a circuit forced open"),
    ("now < c.open_until_ms", "now <= c.open_until_ms", "the circuit half-opens 1 ms late"),
    ("    if now < c.open_until_ms then return '' end\n", "", "an open circuit lets a probe through at once"),
    (">= policy.probe_limit", "> policy.probe_limit", "one probe too many"),
    ("lease_ms > 0 and lease_ms or policy.probe_lease_ms", "policy.probe_lease_ms", "a probe's own lease is ignored"),
    ("  set('drawn', math.max(c.drawn - 1, 0))\n", "", "a probe that has arrived still counts as under way"),
    ("    enter('half_open')\n", "    set('state', 'half_open')\n", "half-opening skips its bookkeeping"),
    ("c.override_until_ms == FOREVER_MS and policy.recovery_ms or ", "", "an endless override asks to wait for ever"),
    ("math.ceil((CALL", "math.floor((CALL", "the ramp's wait ends 1 ms before the token is there"),
    ("now) - now, policy.recovery_ms)", "now) - now, 1e14)", "a refused caller waits for a whole long lease"),
    ("  set('gen', permit_id)\n", "  set('gen', 'circuit')\n", "every incarnation has one name"),
    ("if kind == '' then add('rejected', 1) end\n", "", "refusals are not counted"),
    ("kind == '' and retry_after() or 0", "0", "a refusal does not say how long to wait"),
]

_SETTLE = [
    ("outcome ~= 'ignored' and given_in == ticket()", "outcome ~= 'ignored'", "a late report decides"),
    ("outcome ~= 'ignored' and given_in", "given_in", "a neutral outcome closes"),
    ("if held > 0 then", "if true then", "a report counts twice"),
    ("elseif probe and c", "elseif c", "a call let through by the operator decides about the probing"),
    ("probe and c.state == 'half_open'", "probe", "a probe asked for again closes an open circuit"),
    (" + redis.call('ZREM', KEYS[3], permit_id)", "", "a probe's permit is not given back"),
    ("local held = redis.call('ZREM', KEYS[2], permit_id) +", "local held =", "a call's permit is not given back"),
    ("elseif c.gen ~= '' then", "else", "a report to a circuit that is lost creates a field"),
    (
        "c.failures >= policy.failure_threshold",
        "c.failures > policy.failure_threshold",
        "one failure too many is let by",
    ),
    ("  elseif c.failures > 0 then\n    set('failures', 0)\n", "", "failures need not be consecutive"),
    ("calls < policy.minimum_calls", "calls <= policy.minimum_calls", "a rate counts one call late"),
    ("failed * 1000000 >=", "failed * 1000000 >", "a failure rate at the threshold does not trip"),
    ("slow_calls * 1000000 >=", "slow_calls * 1000000 >", "a slow rate at the threshold does not trip"),
    ("(slow and policy.slow_rate_ppm > 0)", "slow", "a slow probe reopens a circuit without such a rule"),
    (" or (slow and policy.slow_rate_ppm > 0)", "", "a slow probe is proof of health"),
    ("    add('reopens', 1)\n", "", "the wait never backs off"),
    ("< policy.success_threshold", "<= policy.success_threshold", "one probe more than asked for closes"),
    ("  set('failures', 0)\n  set('reopens', 0)\n", "  set('failures', 0)\n", "back-off outlives a recovery"),
    ("  set('tripped_at_ms', 0)\n", "", "a closed circuit is still in an outage"),
    ("  enter('closed')\n  start_ramp()\n", "  enter('closed')\n", "held tasks return as one wave"),
    ("math.max(open_ms, retry_after_ms)", "open_ms", "a Retry-After is not heard"),
    ("retry_after_ms), policy.longest_open_ms)", "retry_after_ms), 1e14)", "a Retry-After has no cap"),
    ("  for _ = 1, c.reopens do", "  for _ = 2, c.reopens do", "back-off begins one reopening late"),
    ("number > at - SLICES", "number >= at - SLICES", "the window is a slice too long"),
    (" and number <= at then", " then", "after a clock step back the window holds the future"),
    ("(slow and 2 or 0)), -policy", "(slow and 1 or 0)), -policy", "a slow call is noted as a failed one"),
    (", -policy.window_calls))\n", ", 1))\n", "a window over calls never slides"),
    ("'[13]'", "'1'", "a failure that was slow too is no failure"),
    ("'[23]'", "'2'", "a slow call that failed too is not slow"),
    ("    set('tripped_at_ms', now)\n", "", "nobody knows since when the circuit is open"),
    ("  if failed then return cut_ramp() end\n", "", "failures make the ramp grow"),
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
    (" - on_the_way\n", "\n", "more tasks are drawn than may probe"),
    ("since >= 0 and since", "since", "after a clock step back drawn tasks block the others for an hour"),
    ("    set('drawn_ms', now)\n", "", "drawn tasks are forgotten at once"),
]

_FORCE = [
    ("add('epoch', 1)\n", "", "reports from before the operator's word still decide"),
    ("override == 'auto' and 0 or until_ms", "until_ms", "a lifted override still has an end"),
    ("ttl_ms > 0 and now + ttl_ms or FOREVER_MS", "now + ttl_ms", "an endless override ends at once"),
    ("set('changed_at_ms', now)\n", "", "an override's length cannot be known"),
    ("if c.gen == '' then set('gen', ARGV[18]) end\n", "", "a circuit begun by the operator has no name"),
]

_RESET = [
    ("epoch + 1", "epoch", "reports from before the reset still decide"),
    ("redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])", "redis.call('DEL', KEYS[1])", "permits survive a reset"),
    ("set('gen', gen)", "set('gen', ARGV[16])", "a reset makes a new incarnation"),
]

MUTANTS = [
    (file, *mutant)
    for file, mutants in (
        ("_prelude", _PRELUDE),
        ("acquire", _ACQUIRE),
        ("settle", _SETTLE),
        ("draw", _DRAW),
        ("force", _FORCE),
        ("reset", _RESET),
    )
    for mutant in mutants
]
