--[[
  settle: take a finished call's report.

  KEYS[1..3]  see _prelude.lua

  ARGV[1..15]  see _prelude.lua
  ARGV[16]     permit_id       string
  ARGV[17]     ticket          "gen:epoch" the permit was given in
  ARGV[18]     probe           1 when the permit was given while half open, else 0
  ARGV[19]     outcome         "success" | "failure" | "ignored"
  ARGV[20]     retry_after_ms  int >= 0, the dependency's own word
  ARGV[21]     slow            1 when the call took longer than a call should, else 0

  Returns  {applied, state, open_ms, previous_state, epoch, failures}
           applied  1 when the permit was still held, else 0
           open_ms  ms the circuit stays open from now, 0 unless it is open
  Writes   takes the permit back; counters; the window; trip, reopen or close; the ramp
  Cost     O(log P), P = permits outstanding
  Mirrors  omni_tasks/core/machine.py: settle(), omni_tasks/core/window.py
]]
local permit_id, given_in, probe = ARGV[16], ARGV[17], ARGV[18] == '1'
local outcome, retry_after_ms, slow = ARGV[19], tonumber(ARGV[20]), ARGV[21] == '1'
local SLICES = 10

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

local function slices(at)
  local found = {}
  for number, calls, failed, slow_calls in string.gmatch(c.window, '(%d+):(%d+):(%d+):(%d+)') do
    number = tonumber(number)
    if number > at - SLICES and number <= at then
      found[#found + 1] = { number, tonumber(calls), tonumber(failed), tonumber(slow_calls) }
    end
  end
  return found
end

local function slice() return math.floor(now / math.ceil(policy.window_ms / SLICES)) end

local function record(failed)
  if policy.window_ms == 0 then
    return set('window', string.sub(c.window .. ((failed and 1 or 0) + (slow and 2 or 0)), -policy.window_calls))
  end
  local found, at = slices(slice()), slice()
  if #found == 0 or found[#found][1] ~= at then found[#found + 1] = { at, 0, 0, 0 } end
  local newest = found[#found]
  newest[2] = newest[2] + 1
  if failed then newest[3] = newest[3] + 1 end
  if slow then newest[4] = newest[4] + 1 end
  for i, parts in ipairs(found) do found[i] = string.format('%.0f:%d:%d:%d', unpack(parts)) end
  set('window', table.concat(found, ' '))
end

local function counts()
  local calls, failed, slow_calls = 0, 0, 0
  if policy.window_ms == 0 then
    local marks = string.sub(c.window, -policy.window_calls)
    calls = #marks
    failed = select(2, string.gsub(marks, '[13]', ''))
    slow_calls = select(2, string.gsub(marks, '[23]', ''))
  else
    for _, parts in ipairs(slices(slice())) do
      calls, failed, slow_calls = calls + parts[2], failed + parts[3], slow_calls + parts[4]
    end
  end
  return calls, failed, slow_calls
end

local function trips()
  if policy.failure_threshold > 0 and c.failures >= policy.failure_threshold then return true end
  if c.window == '' then return false end
  local calls, failed, slow_calls = counts()
  if calls < policy.minimum_calls then return false end
  return (policy.failure_rate_ppm > 0 and failed * 1000000 >= policy.failure_rate_ppm * calls)
    or (policy.slow_rate_ppm > 0 and slow_calls * 1000000 >= policy.slow_rate_ppm * calls)
end

local function while_closed()
  local failed = outcome == 'failure'
  if failed then
    add('failures', 1)
  elseif c.failures > 0 then
    set('failures', 0)
  end
  if policy.failure_rate_ppm > 0 or policy.slow_rate_ppm > 0 then record(failed) end
  if trips() then
    set('tripped_at_ms', now)
    return open()
  end
  if failed then return cut_ramp() end
  grow_ramp()
end

local function while_probing()
  if outcome == 'failure' or (slow and policy.slow_rate_ppm > 0) then
    add('failures', 1)
    add('reopens', 1)
    return open()
  end
  add('probe_successes', 1)
  if c.probe_successes < policy.success_threshold then return end
  set('failures', 0)
  set('reopens', 0)
  set('tripped_at_ms', 0)
  enter('closed')
  start_ramp()
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
    return add('ignored', 1)
  end
  if slow then add('slow', 1) end
end

local held = redis.call('ZREM', KEYS[2], permit_id) + redis.call('ZREM', KEYS[3], permit_id)
if held > 0 then
  count()
  if outcome ~= 'ignored' and given_in == ticket() then
    if c.state == 'closed' then
      while_closed()
    elseif probe and c.state == 'half_open' then
      while_probing()
    elseif effective_state() == 'closed' then
      if outcome == 'failure' then cut_ramp() else grow_ramp() end
    end
  end
elseif c.gen ~= '' then
  add('stale', 1)
end
save()
local open_ms = c.state == 'open' and math.max(c.open_until_ms - now, 0) or 0
return { held > 0 and 1 or 0, effective_state(), open_ms, before, c.epoch, c.failures }
