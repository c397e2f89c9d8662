--[[
  prelude: what every verb shares; put in front of each script.

  KEYS[1]  {prefix}:{<circuit>}:circuit  hash  the fields of core/model.py: Circuit
  KEYS[2]  {prefix}:{<circuit>}:calls    zset  epoch:permit id -> lease deadline, Unix ms
  KEYS[3]  {prefix}:{<circuit>}:probes   zset  epoch:permit id -> lease deadline, Unix ms
  KEYS[4]  {prefix}:{<circuit>}:log      stream  transitions and words of the operator, the last 1000
  KEYS[5]  {prefix}:{<circuit>}:keys     zset  key with a circuit of its own -> Unix ms of its last use

  ARGV[1]  now_ms  int >= 0, or "" to use this server's TIME (production)
  ARGV[2]  policy  whole numbers with commas between them, in the order of parse()

  Returns  nothing; the verb behind it does
  Writes   what lapse() takes back; the fields set() has noted, the log and the list of keys, when save() is called
  Cost     O(log P + lapsed), P = permits outstanding; the hash has a fixed number of fields
  Clock    this server's TIME, unless a test gives its own
  Mirrors  omni_tasks/core/steps.py, omni_tasks/core/waits.py and omni_tasks/core/ramp.py, by function name
]]
local CALL, BUCKET_MS, CUT_PAUSE_MS = 1000000, 200, 500
local CUT_PERCENT, CEILING_PERCENT, CREEP_PERMILLE = 70, 85, 20
local FASTEST_MPS = 10000000
-- The end of an override that has none, and the largest number that is read.
local FOREVER_MS = 1e14
local LOG_LENGTH = 1000

local now
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
else
  now = tonumber(ARGV[1])
end

-- A key of another type was written by somebody else: what it held is lost, and it begins anew.
local function call(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if string.sub(reply.err, 1, 9) ~= 'WRONGTYPE' then error(reply) end
  redis.call('DEL', key)
  return redis.call(command, key, ...)
end

-- Whether a text is so many whole numbers with commas between them.
local function is_numbers(text, count)
  return #text < 15 * count and string.find(text, '^' .. string.rep('%d+,', count - 1) .. '%d+$')
end

-- Mirrors omni_tasks/core/wire.py: Policy.
local function parse(text)
  local n = cjson.decode('[' .. text .. ']')
  return {
    version = n[1], failure_limit = n[2], recovery_ms = n[3], longest_open_ms = n[4], backoff_permille = n[5],
    jitter_permille = n[6], stable_ms = n[7], half_open_max_calls = n[8], success_threshold = n[9],
    probe_lease_ms = n[10], longest_lease_ms = n[11], ramp_initial_mps = n[12], failure_rate_ppm = n[13],
    slow_rate_ppm = n[14], slow_ms = n[15], minimum_calls = n[16], window_calls = n[17], window_ms = n[18],
  }
end

local policy = parse(ARGV[2])

-- The circuit as stored.  A missing or unreadable number is 0 and an unreadable state is
-- closed, so that no single lost field can wedge the circuit.  Numbers we never write, too
-- large or negative, are unreadable.
local TEXT = {
  gen = '', state = 'closed', override = 'auto', window = '', reason = '', durations = '', policy = '', last_op = '',
  quiet = '',
}
local STATES = { closed = true, open = true, half_open = true }
local OVERRIDES = { auto = true, forced_open = true, forced_closed = true }
local stored = {}
do
  local flat = call('HGETALL', KEYS[1])
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

-- The key this circuit is of, percent-encoded as in the names of its keys; nil without one.
local of_key = string.match(KEYS[1], '}:([^:]+):circuit$')

local dirty = {}
local function set(field, value)
  stored[field] = type(value) == 'number' and string.format('%.0f', value) or value
  dirty[field] = true
end

local function add(field, amount) set(field, c[field] + amount) end

local function effective_state()
  if c.override == 'forced_open' then return 'open' end
  if c.override == 'forced_closed' then return 'closed' end
  return c.state
end

local before = effective_state()

local function note(kind, ...)
  call('XADD', KEYS[4], 'MAXLEN', '=', LOG_LENGTH, '*', 'at_ms', string.format('%.0f', now), 'kind', kind, ...)
end

-- Mirrors omni_tasks/core/quiet.py: marked().
local function mark()
  local calm = c.gen ~= '' and c.state == 'closed' and c.override == 'auto' and c.failures == 0
    and c.ramp_rate_mps == 0 and policy.failure_rate_ppm == 0 and policy.slow_rate_ppm == 0
  local word = calm and string.format('%.0f ', c.epoch) .. c.gen or ''
  if c.quiet ~= word then set('quiet', word) end
end

local function save(reason)
  mark()
  local flat = {}
  for field in pairs(dirty) do
    flat[#flat + 1] = field
    flat[#flat + 1] = stored[field]
  end
  if #flat > 0 then
    call('HSET', KEYS[1], unpack(flat))
    -- A key is listed as long as its circuit is there.
    if of_key then call('ZADD', KEYS[5], now, of_key) end
  end
  if before ~= effective_state() then
    note('transition', 'from', before, 'to', effective_state(), 'epoch', c.epoch, 'failures', c.failures,
      'reason', reason or c.reason)
  end
end

-- A configuration with a higher version than ours decides in our place.
local kept_version = 0
if c.policy == ARGV[2] then
  kept_version = policy.version
elseif is_numbers(c.policy, 18) then
  local kept = parse(c.policy)
  kept_version = kept.version
  if kept_version > policy.version then policy = kept end
end

local function adopt()
  if policy.version > kept_version then set('policy', ARGV[2]) end
end

local function ticket() return c.gen .. ':' .. string.format('%.0f', c.epoch) end

local function permit_key(permit_id) return string.format('%.0f', c.epoch) .. ':' .. permit_id end

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
  bound('closed_at_ms', now)
  bound('opened_at_ms', now)
  bound('open_until_ms', now + open_ms)
end

local function bound_ramp()
  if c.ramp_rate_mps == 0 then return end
  bound('ramp_rate_mps', FASTEST_MPS)
  if c.ramp_rate_mps < policy.ramp_initial_mps then set('ramp_rate_mps', policy.ramp_initial_mps) end
end

local function lapse()
  local gone = call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if gone > 0 then add('expired', gone) end
  local furthest = now + policy.longest_lease_ms
  for _, permit in ipairs(call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do
    call('ZREM', KEYS[3], permit)
    call('ZADD', KEYS[2], furthest, permit)
  end
  for _, permit in ipairs(call('ZRANGEBYSCORE', KEYS[3], '(' .. string.format('%.0f', furthest), '+inf')) do
    call('ZADD', KEYS[3], furthest, permit)
  end
end

local function tidy()
  bound_waits()
  bound_ramp()
  if c.override ~= 'auto' and now >= c.override_until_ms then
    set('override', 'auto')
    set('override_until_ms', 0)
    add('epoch', 1)
  end
  lapse()
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

local function bucket() return math.max(CALL, c.ramp_rate_mps * BUCKET_MS) end

local function fill_ramp()
  if c.ramp_rate_mps == 0 then return end
  local elapsed = math.min(math.max(now - c.ramp_filled_ms, 0), 10000)
  set('ramp_tokens', math.min(c.ramp_tokens + elapsed * c.ramp_rate_mps, bucket()))
  set('ramp_filled_ms', now)
end

local function take(starts)
  if c.ramp_rate_mps == 0 then return end
  set('ramp_tokens', math.max(c.ramp_tokens - starts * CALL, -CALL))
end

local function grow_ramp()
  local rate, ceiling = c.ramp_rate_mps, c.ramp_ceiling_mps
  if rate == 0 or c.drawn * CALL >= bucket() then return end
  if ceiling > 0 and rate >= ceiling then
    rate = rate + math.floor(math.max(500, math.floor(ceiling * CREEP_PERMILLE / 1000)) * 1000 / rate)
  else
    rate = rate + 1000
  end
  if rate >= FASTEST_MPS then return stop_ramp() end
  set('ramp_rate_mps', rate)
end

local function is_easing()
  if c.ramp_rate_mps == 0 or now < math.max(c.ramp_cut_ms, c.drawn_ms) then return false end
  return now - math.min(c.ramp_cut_ms, c.drawn_ms) < CUT_PAUSE_MS
end

local function cut_ramp()
  local rate, since = c.ramp_rate_mps, now - c.ramp_cut_ms
  if rate == 0 or (since >= 0 and since < CUT_PAUSE_MS) then return end
  set('ramp_rate_mps', math.max(policy.ramp_initial_mps, math.floor(rate * CUT_PERCENT / 100)))
  set('ramp_ceiling_mps', math.max(policy.ramp_initial_mps, math.floor(rate * CEILING_PERCENT / 100)))
  set('ramp_tokens', math.min(c.ramp_tokens, 0))
  set('ramp_cut_ms', now)
end

-- The operator's verbs: the answer to a word that was followed already, or nil.
local function answer_to(op_id)
  local previous, state, epoch, failures, known = string.match(c.last_op, '^(%S+) (%S+) (%d+) (%d+) (.*)$')
  if known ~= op_id or not STATES[previous] or not STATES[state] or #epoch > 14 or #failures > 14 then return nil end
  return { state, previous, tonumber(epoch), tonumber(failures) }
end

local function say(op_id, action, ttl_ms, actor, reason)
  local state = effective_state()
  set('last_op', string.format('%s %s %.0f %.0f %s', before, state, c.epoch, c.failures, op_id))
  note('operator', 'action', action, 'actor', actor, 'reason', reason, 'ttl_ms', string.format('%.0f', ttl_ms))
  save(reason)
  return { state, before, c.epoch, c.failures }
end
