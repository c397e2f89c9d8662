--[[
  supersede: of several copies of one message, let one stand.

  A worker that dies leaves two: the copy it was about to acknowledge, and the successor it had published.  The first
  of them to be taken up stands: the successor supersedes the copy, or the copy, delivered again, gets a higher
  number, and the successor, which carries the lower one, is void.

  KEYS[1]  {prefix}:superseded  zset  copy, or copy@ for its number -> Unix ms when it may be forgotten
  KEYS[2]  {prefix}:lots        set   circuits that hold messages, percent-encoded

  ARGV[1]   keep_ms  int >= 1, how long superseded copies may still turn up
  ARGV[2]   void_ms  int >= 1, how long void successors may
  ARGV[3]   circuit  string, percent-encoded; empty where no holding queue has the successors
  ARGV[4+]  triples  copy and number of what the message succeeds, as "copy.number", or empty; its own copy, or empty
                     where it is only just published; 1 where it was delivered before, else 0

  Returns  of each: the number its own successor shall carry, -1 where another copy stands for it
  Writes   both keys
  Clock    this server's TIME
  Cost     O(M log N + forgotten), M = messages, N = copies remembered
  Mirrors  omni_tasks/integration/ledger.py: Ledger.add(), Ledger.arrive()
]]
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)

local function number_of(copy) return tonumber(redis.call('ZSCORE', KEYS[1], copy .. '@') or 0) end

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[3] ~= '' then redis.call('SADD', KEYS[2], ARGV[3]) end
local numbers = {}
for i = 4, #ARGV, 3 do
  local before, number = string.match(ARGV[i], '^(.+)%.(%d+)$')
  local copy, stands = ARGV[i + 1], true
  if before then
    stands = number_of(before) <= tonumber(number)
    if stands then redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), before) end
  end
  stands = stands and not redis.call('ZSCORE', KEYS[1], copy)
  local own = stands and number_of(copy) or -1
  if stands and ARGV[i + 2] == '1' then
    -- Its number is the moment it may be forgotten: it grows with each delivery.
    own = math.max(own + 1, now + tonumber(ARGV[2]))
    redis.call('ZADD', KEYS[1], string.format('%.0f', own), copy .. '@')
  end
  numbers[#numbers + 1] = own
end
return numbers
