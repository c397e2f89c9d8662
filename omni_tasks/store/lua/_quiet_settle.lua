--[[
  quiet_settle: count a success while nothing is going on.

  KEYS[1..5]  see _quiet.lua

  ARGV[1..2]  see _quiet.lua
  ARGV[3]     permit_id       string
  ARGV[4]     gen             string, the incarnation that gave the permit; not looked at here
  ARGV[5]     epoch           int, the epoch that gave it
  ARGV[6]     probe           1 when the permit is a probe's, else 0
  ARGV[7]     outcome         "success" | "failure" | "ignored"
  ARGV[8]     retry_after_ms  int >= 0, the dependency's own word
  ARGV[9]     duration_ms     int >= 0; 0 when nobody measured

  Returns  1 when the success is counted; else nothing, and settle decides
  Writes   takes the permit back; the counters of successes and of how long they took
  Cost     O(log P), P = permits outstanding
  Mirrors  omni_tasks/core/machine.py: settle(), omni_tasks/core/durations.py
]]
local BOUNDS_MS = { 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000 }

-- Whether the rules would only count this report, in whatever epoch its permit was given.
local function is_quiet()
  if not quiet or ARGV[7] ~= 'success' or ARGV[6] ~= '0' or quiet.failures > 0 then return false end
  -- No rule over a rate, and no call is slow.
  return string.find(ARGV[2], '^%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,0,0,0,')
end

-- The counts with one more in the range of so many ms; nil when the rules must look at what is there.
local function durations_then(duration_ms)
  local text, range, start = quiet.durations, 1, 1
  if #text >= 15 * 14 or not string.find(text, '^%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+$') then return nil end
  while BOUNDS_MS[range] and duration_ms > BOUNDS_MS[range] do
    range = range + 1
    start = string.find(text, ',', start, true) + 1
  end
  local _, stop = string.find(text, '^%d+', start)
  local count = string.sub(text, start, stop)
  return string.sub(text, 1, start - 1) .. string.format('%.0f', count + 1) .. string.sub(text, stop + 1)
end

if is_quiet() then
  local duration_ms = tonumber(ARGV[9])
  local durations = duration_ms > 0 and durations_then(duration_ms) or duration_ms == 0 and quiet.durations
  local permit = ARGV[5] .. ':' .. ARGV[3]
  if durations and type(call('ZSCORE', KEYS[2], permit)) == 'string' then
    redis.call('ZREM', KEYS[2], permit)
    local counted = {
      'succeeded', string.format('%.0f', quiet.succeeded + 1),
      'successes_in_a_row', string.format('%.0f', quiet.successes_in_a_row + 1),
      'last_success_ms', string.format('%.0f', quiet.now),
    }
    if duration_ms > 0 then
      counted[7], counted[8] = 'took_ms', string.format('%.0f', quiet.took_ms + duration_ms)
      counted[9], counted[10] = 'durations', durations
    end
    redis.call('HSET', KEYS[1], unpack(counted))
    if quiet.of_key then redis.call('ZADD', KEYS[5], quiet.now, quiet.of_key) end
    return 1
  end
end
