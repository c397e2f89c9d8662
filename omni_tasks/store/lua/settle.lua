--[[
  settle: take a finished call's report.

  KEYS[1..5]  see _prelude.lua

  ARGV[1..2]  see _prelude.lua
  ARGV[3]     permit_id       string
  ARGV[4]     gen             string, the incarnation that gave the permit
  ARGV[5]     epoch           int, the epoch that gave it
  ARGV[6]     probe           1 when the permit is a probe's, else 0
  ARGV[7]     outcome         "success" | "failure" | "ignored"
  ARGV[8]     retry_after_ms  int >= 0, the dependency's own word
  ARGV[9]     duration_ms     int >= 0; 0 when nobody measured
  ARGV[10]    trip            1 when this failure alone opens the circuit, else 0
  ARGV[11]    reason          text, why; at most 64 characters

  Returns  {applied, state, open_ms, previous_state, epoch, failures, reason}
           applied  1 when the permit was still held, else 0
           open_ms  ms the circuit stays open from now, 0 unless it is open
  Writes   takes the permit back; counters; the window; trip, reopen or close; the ramp; the log
  Cost     O(log P), P = permits outstanding
  Mirrors  omni_tasks/core/machine.py: settle(), omni_tasks/core/waits.py: open_time(),
           omni_tasks/core/window.py, omni_tasks/core/durations.py
]]
local permit, given_in, probe = ARGV[5] .. ':' .. ARGV[3], ARGV[4] .. ':' .. ARGV[5], ARGV[6] == '1'
local failed, ignored = ARGV[7] == 'failure', ARGV[7] == 'ignored'
local retry_after_ms, duration_ms, trip = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10] == '1'
local slow = policy.slow_ms > 0 and duration_ms >= policy.slow_ms
local SLICES = 10
local BOUNDS_MS = { 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000 }

local function chance()
  local mixed, epoch = 0, ticket()
  for i = 1, #epoch do mixed = (mixed * 69069 + string.byte(epoch, i)) % 4294967296 end
  for _ = 1, 2 do mixed = (mixed * 69069 + 1) % 4294967296 end
  return math.floor(mixed * 1001 / 4294967296)
end

local function open_time()
  local open_ms = policy.recovery_ms
  for _ = 1, c.reopens do
    local longer_ms = math.floor(open_ms * policy.backoff_permille / 1000)
    if longer_ms == open_ms or open_ms >= policy.longest_open_ms then break end
    open_ms = longer_ms
  end
  open_ms = math.min(math.max(open_ms, retry_after_ms), policy.longest_open_ms)
  if policy.jitter_permille > 0 then
    open_ms = open_ms + math.floor(open_ms * policy.jitter_permille * chance() / 1000000)
  end
  return math.min(open_ms, policy.longest_open_ms)
end

local function open()
  enter('open')
  set('reason', ARGV[11])
  set('opened_at_ms', now)
  set('open_until_ms', now + open_time())
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

local function record()
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
  local calls, failures, slow_calls = 0, 0, 0
  if policy.window_ms == 0 then
    local marks = string.sub(c.window, -policy.window_calls)
    calls = #marks
    failures = select(2, string.gsub(marks, '[13]', ''))
    slow_calls = select(2, string.gsub(marks, '[23]', ''))
  else
    for _, parts in ipairs(slices(slice())) do
      calls, failures, slow_calls = calls + parts[2], failures + parts[3], slow_calls + parts[4]
    end
  end
  return calls, failures, slow_calls
end

local function trips()
  if policy.failure_limit > 0 and c.failures >= policy.failure_limit and not is_easing() then return true end
  if c.window == '' then return false end
  local calls, failures, slow_calls = counts()
  if calls < policy.minimum_calls then return false end
  return (policy.failure_rate_ppm > 0 and failures * 1000000 >= policy.failure_rate_ppm * calls)
    or (policy.slow_rate_ppm > 0 and slow_calls * 1000000 >= policy.slow_rate_ppm * calls)
end

local function pace()
  if failed then cut_ramp() else grow_ramp() end
end

local function while_closed()
  if failed then
    add('failures', 1)
  elseif c.failures > 0 then
    set('failures', 0)
  end
  if policy.failure_rate_ppm > 0 or policy.slow_rate_ppm > 0 then record() end
  if not (failed and trip) and not trips() then return pace() end
  local unstable = math.max(now - c.closed_at_ms, 0) < policy.stable_ms
  set('tripped_at_ms', now)
  add('trips', 1)
  set('reopens', unstable and c.reopens + 1 or 0)
  open()
end

local function while_probing(proved)
  if not proved then
    add('failures', 1)
    add('reopens', 1)
    return open()
  end
  add('probe_successes', 1)
  if c.probe_successes < policy.success_threshold then return end
  set('failures', 0)
  set('tripped_at_ms', 0)
  set('closed_at_ms', now)
  set('reason', '')
  enter('closed')
  start_ramp()
end

local function while_waiting(proved)
  if proved then return bound('open_until_ms', now) end
  local asked_ms = now + math.min(retry_after_ms, policy.longest_open_ms)
  set('open_until_ms', math.max(c.open_until_ms, asked_ms))
end

local function decide()
  if c.state == 'closed' then return while_closed() end
  if not probe then return pace() end
  local proved = not failed and not (slow and policy.slow_rate_ppm > 0)
  if c.state == 'half_open' then return while_probing(proved) end
  while_waiting(proved)
end

local function took()
  local range, text = 1, c.durations
  while BOUNDS_MS[range] and duration_ms > BOUNDS_MS[range] do range = range + 1 end
  if not is_numbers(text, #BOUNDS_MS + 1) then text = string.rep('0,', #BOUNDS_MS) .. '0' end
  local i = 0
  set('durations', (string.gsub(text, '%d+', function(calls)
    i = i + 1
    return i == range and string.format('%.0f', calls + 1) or calls
  end)))
  add('took_ms', duration_ms)
end

local function count()
  if ignored then return add('ignored', 1) end
  if slow then add('slow', 1) end
  if duration_ms > 0 then took() end
  if failed then
    add('failed', 1)
    set('successes_in_a_row', 0)
    set('last_failure_ms', now)
  else
    add('succeeded', 1)
    add('successes_in_a_row', 1)
    set('last_success_ms', now)
  end
end

local held = call('ZREM', KEYS[2], permit) + call('ZREM', KEYS[3], permit)
if held > 0 then
  count()
  if not ignored and given_in == ticket() then decide() end
elseif c.gen ~= '' then
  add('stale', 1)
end
save()
local open_ms = c.state == 'open' and math.max(c.open_until_ms - now, 0) or 0
return { held > 0 and 1 or 0, effective_state(), open_ms, before, c.epoch, c.failures, c.reason }
