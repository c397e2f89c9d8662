--[[
  prelude: what every verb shares; put in front of each script.

  KEYS[1]  {prefix}:{<circuit>}:circuit  hash  the fields of core/model.py: Circuit
  KEYS[2]  {prefix}:{<circuit>}:calls    zset  permit id -> lease deadline, Unix ms
  KEYS[3]  {prefix}:{<circuit>}:probes   zset  permit id -> lease deadline, Unix ms

  ARGV[1]      now_ms  int >= 0, or "" to use this server's TIME (production)
  ARGV[2..15]  the policy, in the order of schema.py: policy_arguments()

  Returns  nothing; the verb behind it does
  Writes   what tidy() takes back; the fields set() has noted, when save() is called
  Cost     O(log P + lapsed), P = permits outstanding; the hash has a fixed number of fields
  Clock    this server's TIME, unless a test gives its own
  Mirrors  omni_tasks/core/machine.py and omni_tasks/core/ramp.py, by function name
]]
local CALL, BUCKET_MS, CUT_PAUSE_MS = 1000000, 200, 500
local CUT_PERCENT, CEILING_PERCENT, CREEP_PERMILLE = 70, 85, 20
local FASTEST_MPS = 10000000
-- The end of an override that has none, and the largest number that is read.
local FOREVER_MS = 1e14

local now
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
else
  now = tonumber(ARGV[1])
end

local policy = {
  failure_threshold = tonumber(ARGV[2]),
  recovery_ms = tonumber(ARGV[3]),
  longest_open_ms = tonumber(ARGV[4]),
  backoff_permille = tonumber(ARGV[5]),
  probe_limit = tonumber(ARGV[6]),
  success_threshold = tonumber(ARGV[7]),
  probe_lease_ms = tonumber(ARGV[8]),
  longest_lease_ms = tonumber(ARGV[9]),
  ramp_initial_mps = tonumber(ARGV[10]),
  failure_rate_ppm = tonumber(ARGV[11]),
  slow_rate_ppm = tonumber(ARGV[12]),
  minimum_calls = tonumber(ARGV[13]),
  window_calls = tonumber(ARGV[14]),
  window_ms = tonumber(ARGV[15]),
}

-- The circuit as stored.  A missing or unreadable number is 0 and an unreadable state is
-- closed, so that no single lost field can wedge the circuit.  Numbers we never write, too
-- large or negative, are unreadable.
local TEXT = { gen = '', state = 'closed', override = 'auto', window = '' }
local STATES = { closed = true, open = true, half_open = true }
local OVERRIDES = { auto = true, forced_open = true, forced_closed = true }
local stored = {}
do
  local flat = redis.call('HGETALL', KEYS[1])
  for i = 1, #flat, 2 do stored[flat[i]] = flat[i + 1] end
end
local c = setmetatable({}, { __index = function(_, field)
  if TEXT[field] then return stored[field] or TEXT[field] end
  local n = tonumber(stored[field])
  -- NaN is in no range.  A ramp may be in debt.
  if not n or not (n <= FOREVER_MS and (n >= 0 or field == 'ramp_tokens' and n >= -CALL)) then return 0 end
  return math.floor(n)
end })
if not STATES[c.state] then stored.state = 'closed' end
if not OVERRIDES[c.override] then stored.override = 'auto' end

local dirty = {}
local function set(field, value)
  stored[field] = type(value) == 'number' and string.format('%.0f', value) or value
  dirty[field] = true
end

local function add(field, amount) set(field, c[field] + amount) end

local function save()
  local flat = {}
  for field in pairs(dirty) do
    flat[#flat + 1] = field
    flat[#flat + 1] = stored[field]
  end
  if #flat > 0 then redis.call('HSET', KEYS[1], unpack(flat)) end
end

local function effective_state()
  if c.override == 'forced_open' then return 'open' end
  if c.override == 'forced_closed' then return 'closed' end
  return c.state
end

local before = effective_state()

local function ticket() return c.gen .. ':' .. string.format('%.0f', c.epoch) end

local function enter(state)
  set('state', state)
  add('epoch', 1)
  set('changed_at_ms', now)
  set('probe_successes', 0)
  if c.window ~= '' then set('window', '') end
  if state ~= 'half_open' then set('drawn', 0) end
  set('ramp_rate_mps', 0)
  set('ramp_tokens', 0)
  if state == 'open' then add('opened', 1) end
  if state == 'half_open' then add('half_opened', 1) end
end

local function bound(field, most)
  if c[field] > most then set(field, most) end
end

local function bound_waits()
  if c.override ~= 'auto' and c.override_until_ms ~= FOREVER_MS then
    bound('override_until_ms', now + c.override_until_ms - c.changed_at_ms)
  end
  local open_ms = math.min(c.open_until_ms - c.opened_at_ms, policy.longest_open_ms)
  bound('changed_at_ms', now)
  bound('opened_at_ms', now)
  bound('open_until_ms', now + open_ms)
end

local function bound_ramp()
  if c.ramp_rate_mps == 0 then return end
  bound('ramp_rate_mps', FASTEST_MPS)
  if c.ramp_rate_mps < policy.ramp_initial_mps then set('ramp_rate_mps', policy.ramp_initial_mps) end
end

local function tidy()
  bound_waits()
  bound_ramp()
  if c.override ~= 'auto' and now >= c.override_until_ms then
    set('override', 'auto')
    set('override_until_ms', 0)
    add('epoch', 1)
  end
  local gone = redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if gone > 0 then add('expired', gone) end
  local furthest = now + policy.longest_lease_ms
  for _, permit in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do
    redis.call('ZREM', KEYS[3], permit)
    redis.call('ZADD', KEYS[2], furthest, permit)
  end
  for _, permit in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. string.format('%.0f', furthest), '+inf')) do
    redis.call('ZADD', KEYS[3], furthest, permit)
  end
end

local function start_ramp()
  set('ramp_rate_mps', policy.ramp_initial_mps)
  set('ramp_tokens', CALL)
  set('ramp_filled_ms', now)
  set('ramp_cut_ms', 0)
end

local function stop_ramp()
  if c.ramp_rate_mps == 0 and c.ramp_ceiling_mps == 0 and c.ramp_tokens == 0 then return end
  set('ramp_rate_mps', 0)
  set('ramp_tokens', 0)
  set('ramp_ceiling_mps', 0)
end

local function fill_ramp()
  if c.ramp_rate_mps == 0 then return end
  local elapsed = math.min(math.max(now - c.ramp_filled_ms, 0), 10000)
  local bucket = math.max(CALL, c.ramp_rate_mps * BUCKET_MS)
  set('ramp_tokens', math.min(c.ramp_tokens + elapsed * c.ramp_rate_mps, bucket))
  set('ramp_filled_ms', now)
end

local function take(starts)
  if c.ramp_rate_mps == 0 then return end
  set('ramp_tokens', math.max(c.ramp_tokens - starts * CALL, -CALL))
end

local function grow_ramp()
  local rate, ceiling = c.ramp_rate_mps, c.ramp_ceiling_mps
  if rate == 0 then return end
  if ceiling > 0 and rate >= ceiling then
    rate = rate + math.floor(math.max(500, math.floor(ceiling * CREEP_PERMILLE / 1000)) * 1000 / rate)
  else
    rate = rate + 1000
  end
  set('ramp_rate_mps', math.min(rate, FASTEST_MPS))
end

local function cut_ramp()
  local rate, since = c.ramp_rate_mps, now - c.ramp_cut_ms
  if rate == 0 or (since >= 0 and since < CUT_PAUSE_MS) then return end
  set('ramp_rate_mps', math.max(policy.ramp_initial_mps, math.floor(rate * CUT_PERCENT / 100)))
  set('ramp_ceiling_mps', math.max(policy.ramp_initial_mps, math.floor(rate * CEILING_PERCENT / 100)))
  set('ramp_tokens', math.min(c.ramp_tokens, 0))
  set('ramp_cut_ms', now)
end
