--[[
  supersede: note that copies of messages have durable successors, and which circuit holds those.

  KEYS[1]  {prefix}:superseded  zset  copy -> Unix ms when it may be forgotten
  KEYS[2]  {prefix}:lots        set   circuits that hold messages, percent-encoded

  ARGV[1]   keep_ms  int >= 1, how long the copies may still turn up
  ARGV[2]   circuit  string, percent-encoded; empty where no lot or holding queue has the successors
  ARGV[3+]  copies   strings, what identifies each

  Returns  how many were not known before
  Writes   both keys
  Clock    this server's TIME
  Cost     O(M log N + forgotten), M = copies, N = copies remembered
  Mirrors  omni_tasks/integration/ledger.py: Ledger.add()
]]
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[2] ~= '' then redis.call('SADD', KEYS[2], ARGV[2]) end
local added = 0
for i = 3, #ARGV do
  added = added + redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), ARGV[i])
end
return added
