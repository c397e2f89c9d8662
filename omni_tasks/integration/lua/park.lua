--[[
  park: set one message aside, durably, before it is acknowledged.

  KEYS[1]  {prefix}:lot:<circuit>:order       zset  entry -> priority, then age
  KEYS[2]  {prefix}:lot:<circuit>:envelopes   hash  entry -> message, NUL where the ticket goes
  KEYS[3]  {prefix}:superseded  zset  entry -> Unix ms when it may be forgotten
  KEYS[4]  {prefix}:lots        set   circuits that hold messages, percent-encoded
  KEYS[5]  {prefix}:lot:<circuit>:deadlines   zset  entry -> Unix ms when it must leave, whatever the circuit says

  ARGV[1]  entry      string, identifies the copy that is being parked, and ends with where it goes back to
  ARGV[2]  priority   int 0-9, lower leaves first
  ARGV[3]  since_ms   int >= 0, when the task was first held, Unix ms; 0 for now
  ARGV[4]  before     string, the message up to the value of its omni_held_since header
  ARGV[5]  between    string, on to the value of its omni_ticket header
  ARGV[6]  after      string, the rest
  ARGV[7]  keep_ms    int >= 1, how long a redelivered copy may still turn up
  ARGV[8]  behind     1 to leave after all that wait now, 0 to leave by age
  ARGV[9]  expires_ms  int >= 0, when the task expires, Unix ms; 0 for never
  ARGV[10]  longest_ms  int >= 0, how long it may be held from since_ms on; 0 for ever

  Returns  1 when it was parked now, 0 when this copy had been parked before
  Writes   all five keys
  Clock    this server's TIME
  Cost     O(log N + forgotten), N = messages held under this circuit
  Mirrors  omni_tasks/integration/lot.py: Lot.park()
]]
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)

redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if redis.call('ZSCORE', KEYS[3], ARGV[1]) then return 0 end
local since = tonumber(ARGV[3])
if since == 0 then since = now end
local place = ARGV[8] == '1' and now or since
redis.call('HSET', KEYS[2], ARGV[1], ARGV[4] .. string.format('%.0f', since) .. ARGV[5] .. '\0' .. ARGV[6])
-- Unix ms stay below the step for 250 years, so priority comes before age.
redis.call('ZADD', KEYS[1], string.format('%.0f', tonumber(ARGV[2]) * 1e13 + place), ARGV[1])
redis.call('SADD', KEYS[4], string.match(KEYS[1], ':lot:([^:]*):order$'))
local expires, longest = tonumber(ARGV[9]), tonumber(ARGV[10])
local leaves = expires > 0 and expires or math.huge
if longest > 0 then leaves = math.min(leaves, since + longest) end
if leaves < math.huge then redis.call('ZADD', KEYS[5], string.format('%.0f', leaves), ARGV[1]) end
-- Last: where a command before it fails, nothing is undone, and a copy that stands here is dropped.
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[7]), ARGV[1])
return 1
