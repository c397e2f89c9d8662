--[[
  done: strike out claimed messages that have been published.

  KEYS[1]  {prefix}:lot:<circuit>:order      zset  entry -> priority, then age
  KEYS[2]  {prefix}:lot:<circuit>:envelopes  hash  entry -> message
  KEYS[3]  {prefix}:lot:<circuit>:claims     zset  entry -> Unix ms when the claim ends
  KEYS[4]  {prefix}:lots                     set   circuits that hold messages, percent-encoded

  ARGV[1+]  entries  strings

  Returns  how many were there
  Writes   KEYS[2], KEYS[3], KEYS[4]
  Cost     O(M log N), M = entries, N = messages claimed under this circuit
  Mirrors  omni_tasks/integration/store_lot.py: StoreLot.unpark()
]]
local struck = 0
for _, entry in ipairs(ARGV) do
  struck = struck + redis.call('HDEL', KEYS[2], entry)
  redis.call('ZREM', KEYS[3], entry)
end
if redis.call('EXISTS', KEYS[1], KEYS[3]) == 0 then
  redis.call('SREM', KEYS[4], string.match(KEYS[1], ':lot:([^:]*):order$'))
end
return struck
