--[[
  unpark: move held messages back to their queue in one step.

  KEYS[1]  {prefix}:lot:<circuit>:order      zset  entry -> priority, then age
  KEYS[2]  {prefix}:lot:<circuit>:envelopes  hash  entry -> message, NUL where the ticket goes
  KEYS[3]  the broker's list                   list  kombu's messages; the right end is served next
  KEYS[4]  {prefix}:lots                       set   circuits that hold messages, percent-encoded
  KEYS[5]  {prefix}:lot:<circuit>:deadlines  zset  entry -> Unix ms when it must leave

  ARGV[1]   ticket   string, "gen:epoch" that paid for these starts
  ARGV[2]   first    1 when they are served before what is in the list, 0 when behind it
  ARGV[3+]  entries  strings, first to be served first

  Returns  how many were moved; an entry that somebody else has moved is passed over
  Writes   all five keys
  Cost     O(M log N), M = entries, N = messages held under this circuit
  Mirrors  omni_tasks/integration/lot.py: Lot.unpark()
]]
local first = ARGV[2] == '1'
local moved = 0
-- What is pushed on the right goes in reverse, so that the first entry is popped first.
for n = 3, #ARGV do
  local entry = ARGV[first and #ARGV + 3 - n or n]
  local envelope = redis.call('HGET', KEYS[2], entry)
  if envelope and redis.call('ZSCORE', KEYS[1], entry) then
    local seam = string.find(envelope, '\0', 1, true)
    -- First: where this fails, the message is still in the lot.
    local message = string.sub(envelope, 1, seam - 1) .. ARGV[1] .. string.sub(envelope, seam + 1)
    if first then redis.call('RPUSH', KEYS[3], message) else redis.call('LPUSH', KEYS[3], message) end
    moved = moved + 1
  end
  redis.call('ZREM', KEYS[1], entry)
  redis.call('HDEL', KEYS[2], entry)
  redis.call('ZREM', KEYS[5], entry)
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SREM', KEYS[4], string.match(KEYS[1], ':lot:([^:]*):order$'))
end
return moved
