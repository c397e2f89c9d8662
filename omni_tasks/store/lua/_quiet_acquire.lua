--[[
  quiet_acquire: admit a call while nothing is going on.

  KEYS[1..5]  see _quiet.lua

  ARGV[1..2]  see _quiet.lua
  ARGV[3]     permit_id  string, new for every attempt
  ARGV[4]     lease_ms   int >= 0; 0 for the circuit's own lease

  Returns  text "epoch gen" when the call is admitted; else nothing, and acquire decides
  Writes   the permit; the count of admissions
  Cost     O(log P), P = permits outstanding
  Mirrors  omni_tasks/core/machine.py: acquire()
]]
if quiet then
  local first = call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  if not first.err and (not first[2] or tonumber(first[2]) > quiet.now) then
    local longest_lease_ms = string.match(ARGV[2], '^%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,%d+,(%d+)')
    local deadline = quiet.now + math.max(tonumber(ARGV[4]), tonumber(longest_lease_ms))
    local epoch = string.format('%.0f', quiet.epoch)
    -- Takes nothing away, but a script that began so may add, also on a server that is full.
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', quiet.now)
    -- The same question again is given the same answer, and not counted.
    if redis.call('ZADD', KEYS[2], 'NX', deadline, epoch .. ':' .. ARGV[3]) == 1 then
      redis.call('HSET', KEYS[1], 'admitted', string.format('%.0f', quiet.admitted + 1))
      if quiet.of_key then redis.call('ZADD', KEYS[5], quiet.now, quiet.of_key) end
    end
    return epoch .. ' ' .. quiet.gen
  end
end
