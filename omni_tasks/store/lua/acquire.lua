--[[
  acquire: decide whether one more call may run.

  KEYS[1..5]  see _prelude.lua

  ARGV[1..2]  see _prelude.lua
  ARGV[3]     permit_id  string, new for every attempt
  ARGV[4]     lease_ms   int >= 0; 0 for the circuit's own lease
  ARGV[5]     paced      1 when the ramp may refuse this call, else 0
  ARGV[6]     ticket     "gen:epoch" of the draw that paid for this start, or ""
  ARGV[7]     health     1 for a health check, which may ask while the circuit waits, else 0
  ARGV[8]     max_keys   int >= 1, most keys with a circuit of their own

  Returns  {kind, gen, epoch, state, retry_after_ms, previous_state, failures, reason, quiet}
           kind  "call" | "probe" | "" when refused | "crowded" when the key is not listed and the list is full:
                 nothing was decided or written
           quiet  the circuit's word for busy processes, or ""
  Writes   the permit; open -> half_open; counters; the ramp's tokens; the tasks on their way; a policy that is newer; the log
  Cost     O(log P + lapsed), P = permits outstanding
  Mirrors  omni_tasks/core/machine.py: acquire(), omni_tasks/core/waits.py: retry_after()
]]
local permit_id, lease_ms = ARGV[3], tonumber(ARGV[4])
local paced, paid_ticket, health = ARGV[5] == '1', ARGV[6], ARGV[7] == '1'

local function grant_call()
  if paid_ticket ~= ticket() then
    fill_ramp()
    if paced and c.override == 'auto' and c.ramp_rate_mps > 0 and c.ramp_tokens < CALL then return '' end
    take(1)
  end
  if c.drawn > 0 and (not paced or paid_ticket == ticket()) then
    add('drawn', -1)
  end
  call('ZADD', KEYS[2], now + math.max(lease_ms, policy.longest_lease_ms), permit_key(permit_id))
  add('admitted', 1)
  return 'call'
end

local function grant()
  if call('ZSCORE', KEYS[2], permit_key(permit_id)) then return 'call' end
  if call('ZSCORE', KEYS[3], permit_key(permit_id)) then return 'probe' end
  if c.override == 'forced_open' then return '' end
  if effective_state() == 'closed' then return grant_call() end
  if c.state == 'open' then
    if now >= c.open_until_ms then
      enter('half_open')
    elseif not health then
      return ''
    end
  end
  if call('ZCARD', KEYS[3]) >= policy.half_open_max_calls then return '' end
  local lease = math.min(lease_ms > 0 and lease_ms or policy.probe_lease_ms, policy.longest_lease_ms)
  call('ZADD', KEYS[3], now + lease, permit_key(permit_id))
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
    local first = call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
    left = math.min((tonumber(first[2]) or now) - now, policy.recovery_ms)
  end
  return math.min(math.max(left, 1), policy.longest_open_ms)
end

if of_key and not call('ZSCORE', KEYS[5], of_key) and call('ZCARD', KEYS[5]) >= tonumber(ARGV[8]) then
  return { 'crowded', '', 0, 'closed', 0, 'closed', 0, '', '' }
end
if c.gen == '' then
  set('gen', permit_id)
  set('changed_at_ms', now)
end
adopt()
tidy()
local kind = grant()
if kind == '' then
  add('rejected', 1)
  if paced then add('held', 1) end
end
save()
local wait_ms = kind == '' and retry_after() or 0
return { kind, c.gen, c.epoch, effective_state(), wait_ms, before, c.failures, c.reason, c.quiet }
