--[[
  claim: take the first held messages out for a mover, until it has published them or its time is over.

  KEYS[1]  {prefix}:lot:<circuit>:order      zset  entry -> priority, then age
  KEYS[2]  {prefix}:lot:<circuit>:envelopes  hash  entry -> message
  KEYS[3]  {prefix}:lot:<circuit>:claims     zset  entry -> Unix ms when the claim ends

  ARGV[1]  count     int >= 1, messages wanted
  ARGV[2]  claim_ms  int >= 1, how long the mover may take

  Returns  entry, message, entry, message ...: first to leave first
  Writes   KEYS[1], KEYS[3]
  Clock    this server's TIME
  Cost     O(M log N), M = messages taken or given back, N = messages held under this circuit
  Mirrors  omni_tasks/integration/store_lot.py: StoreLot.unpark()
]]
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)

-- Whose mover died: they have waited longest.
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  redis.call('ZREM', KEYS[3], entry)
  redis.call('ZADD', KEYS[1], 0, entry)
end
local taken = {}
for _, entry in ipairs(redis.call('ZRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)) do
  redis.call('ZREM', KEYS[1], entry)
  local envelope = redis.call('HGET', KEYS[2], entry)
  if envelope then
    redis.call('ZADD', KEYS[3], string.format('%.0f', now + tonumber(ARGV[2])), entry)
    taken[#taken + 1] = entry
    taken[#taken + 1] = envelope
  end
end
return taken
