--[[
  settle: take a finished call's report.

  KEYS[1..3]  see _prelude.lua

  ARGV[1..10]  see _prelude.lua
  ARGV[11]     permit_id       string
  ARGV[12]     ticket          "gen:epoch" the permit was given in
  ARGV[13]     probe           1 when the permit was given while half open, else 0
  ARGV[14]     outcome         "success" | "failure" | "ignored"
  ARGV[15]     retry_after_ms  int >= 0, the dependency's own word

  Returns  {applied, state, open_ms, previous_state, epoch, failures}
           applied  1 when the permit was still held, else 0
           open_ms  ms the circuit stays open from now, 0 unless it is open
  Writes   takes the permit back; counters; trip, reopen or close; the ramp
  Cost     O(log P), P = permits outstanding
  Mirrors  omni_tasks/core/machine.py: settle()
]]
local permit_id, given_in, probe = ARGV[11], ARGV[12], ARGV[13] == '1'
local outcome, retry_after_ms = ARGV[14], tonumber(ARGV[15])

local function open()
  local open_ms = policy.recovery_ms
  for _ = 1, c.reopens do
    local longer_ms = math.floor(open_ms * policy.backoff_permille / 1000)
    if longer_ms == open_ms or open_ms >= policy.longest_open_ms then break end
    open_ms = longer_ms
  end
  open_ms = math.min(math.max(open_ms, retry_after_ms), policy.longest_open_ms)
  enter('open')
  set('opened_at_ms', now)
  set('open_until_ms', now + open_ms)
end

local function on_success()
  if c.state == 'closed' then
    if c.failures > 0 then set('failures', 0) end
    return grow_ramp()
  end
  if not probe then return end
  add('probe_successes', 1)
  if c.probe_successes < policy.success_threshold then return end
  set('failures', 0)
  set('reopens', 0)
  set('tripped_at_ms', 0)
  enter('closed')
  start_ramp()
end

local function on_failure()
  if c.state == 'closed' then
    add('failures', 1)
    if c.failures < policy.failure_threshold then return cut_ramp() end
    set('tripped_at_ms', now)
    return open()
  end
  if not probe then return end
  add('failures', 1)
  add('reopens', 1)
  open()
end

local function count()
  if outcome == 'success' then
    add('succeeded', 1)
    add('successes_in_a_row', 1)
    set('last_success_ms', now)
  elseif outcome == 'failure' then
    add('failed', 1)
    set('successes_in_a_row', 0)
    set('last_failure_ms', now)
  else
    add('ignored', 1)
  end
end

local held = redis.call('ZREM', KEYS[2], permit_id) + redis.call('ZREM', KEYS[3], permit_id)
if held > 0 then
  count()
  if outcome ~= 'ignored' and given_in == ticket() then
    if outcome == 'success' then on_success() else on_failure() end
  end
elseif c.gen ~= '' then
  add('stale', 1)
end
save()
local open_ms = c.state == 'open' and math.max(c.open_until_ms - now, 0) or 0
return { held > 0 and 1 or 0, effective_state(), open_ms, before, c.epoch, c.failures }
