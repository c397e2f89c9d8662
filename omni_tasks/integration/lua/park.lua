--[[
  park: set one message aside, durably, before it is acknowledged.

  KEYS[1]  {prefix}:lot:<circuit>:order       zset  entry -> priority, then age
  KEYS[2]  {prefix}:lot:<circuit>:envelopes   hash  entry -> message, NUL where the ticket goes
  KEYS[3]  {prefix}:lot:<circuit>:lists       hash  entry -> Redis list it goes back to
  KEYS[4]  {prefix}:superseded  zset  delivery tag -> Unix ms when it may be forgotten

  ARGV[1]  entry      string, the delivery tag of the copy that is being parked
  ARGV[2]  priority   int 0-9, lower leaves first
  ARGV[3]  since_ms   int >= 0, when the task was first held, Unix ms; 0 for now
  ARGV[4]  before     string, the message up to the value of its omni_held_since header
  ARGV[5]  between    string, on to the value of its omni_ticket header
  ARGV[6]  after      string, the rest
  ARGV[7]  list       string, the Redis list it goes back to
  ARGV[8]  keep_ms    int >= 1, how long a redelivered copy may still turn up
  ARGV[9]  behind     1 to leave after all that wait now, 0 to leave by age

  Returns  1 when it was parked now, 0 when this copy had been parked before
  Writes   all four keys
  Clock    this server's TIME
  Cost     O(log N + forgotten), N = messages held under this circuit
  Mirrors  omni_tasks/integration/lot.py: Lot.park()
]]
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)

redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
if redis.call('ZSCORE', KEYS[4], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[4], now + tonumber(ARGV[8]), ARGV[1])
local since = tonumber(ARGV[3])
if since == 0 then since = now end
local place = ARGV[9] == '1' and now or since
-- Unix ms stay below the step for 250 years, so priority comes before age.
redis.call('ZADD', KEYS[1], string.format('%.0f', tonumber(ARGV[2]) * 1e13 + place), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[4] .. string.format('%.0f', since) .. ARGV[5] .. '\0' .. ARGV[6])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[7])
return 1
