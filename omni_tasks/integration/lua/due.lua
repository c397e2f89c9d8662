#!lua flags=no-writes
--[[
  due: name the held messages that must leave now, whatever their circuit says.

  KEYS[1]  {prefix}:lot:<circuit>:deadlines  zset  entry -> Unix ms when it must leave

  ARGV[1]  most  int >= 1, how many at once

  Returns  their entries, first deadline first
  Writes   nothing
  Clock    this server's TIME
  Cost     O(log N + M), M = entries, N = messages held under this circuit
  Mirrors  omni_tasks/integration/lot.py: Lot.unpark_due()
]]
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
