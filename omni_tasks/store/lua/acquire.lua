--[[
  acquire: decide whether one more call may run.

  KEYS[1..3]  see _prelude.lua

  ARGV[1..15]  see _prelude.lua
  ARGV[16]     permit_id  string, new for every attempt
  ARGV[17]     lease_ms   int >= 0; 0 for the circuit's own lease
  ARGV[18]     paced      1 when the ramp may refuse this call, else 0
  ARGV[19]     ticket     "gen:epoch" of the draw that paid for this start, or ""

  Returns  {kind, gen, epoch, state, retry_after_ms, previous_state, failures}
           kind  "call" | "probe" | "" when refused
  Writes   the permit; open -> half_open; counters; the ramp's tokens
  Cost     O(log P + lapsed), P = permits outstanding
  Mirrors  omni_tasks/core/machine.py: acquire()
]]
local permit_id, lease_ms = ARGV[16], tonumber(ARGV[17])
local paced, paid_ticket = ARGV[18] == '1', ARGV[19]

local function grant_call()
  if paid_ticket ~= ticket() then
    fill_ramp()
    if paced and c.override == 'auto' and c.ramp_rate_mps > 0 and c.ramp_tokens < CALL then return '' end
    take(1)
  end
  redis.call('ZADD', KEYS[2], now + math.max(lease_ms, policy.longest_lease_ms), permit_id)
  add('admitted', 1)
  return 'call'
end

local function grant()
  if redis.call('ZSCORE', KEYS[2], permit_id) then return 'call' end
  if redis.call('ZSCORE', KEYS[3], permit_id) then return 'probe' end
  if c.override == 'forced_open' then return '' end
  if effective_state() == 'closed' then return grant_call() end
  if c.state == 'open' then
    if now < c.open_until_ms then return '' end
    enter('half_open')
  end
  if redis.call('ZCARD', KEYS[3]) >= policy.probe_limit then return '' end
  local lease = math.min(lease_ms > 0 and lease_ms or policy.probe_lease_ms, policy.longest_lease_ms)
  redis.call('ZADD', KEYS[3], now + lease, permit_id)
  add('admitted', 1)
  set('drawn', math.max(c.drawn - 1, 0))
  return 'probe'
end

local function retry_after()
  local left
  if c.override == 'forced_open' then
    left = c.override_until_ms == FOREVER_MS and policy.recovery_ms or c.override_until_ms - now
  elseif effective_state() == 'closed' then
    left = math.ceil((CALL - c.ramp_tokens) / math.max(c.ramp_rate_mps, 1))
  elseif c.state == 'open' then
    left = c.open_until_ms - now
  else
    local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
    left = math.min((tonumber(first[2]) or now) - now, policy.recovery_ms)
  end
  return math.min(math.max(left, 1), policy.longest_open_ms)
end

if c.gen == '' then
  set('gen', permit_id)
  set('changed_at_ms', now)
end
tidy()
local kind = grant()
if kind == '' then add('rejected', 1) end
save()
return { kind, c.gen, c.epoch, effective_state(), kind == '' and retry_after() or 0, before, c.failures }
