--[[
  forget: make room for another key by forgetting a circuit that is closed and idle.

  KEYS[1]  {prefix}:{<circuit>}:<key>:circuit  hash
  KEYS[2]  {prefix}:{<circuit>}:<key>:calls    zset  epoch:permit id -> lease deadline, Unix ms
  KEYS[3]  {prefix}:{<circuit>}:<key>:probes   zset  epoch:permit id -> lease deadline, Unix ms
  KEYS[4]  {prefix}:{<circuit>}:<key>:log      stream
  KEYS[5]  {prefix}:{<circuit>}:keys           zset  key with a circuit of its own -> Unix ms of its last use

  ARGV[1]  now_ms    int >= 0, or "" to use this server's TIME (production)
  ARGV[2]  max_keys  int >= 1, most keys with a circuit of their own

  Returns  {forgotten}
           forgotten  1 when the circuit was forgotten, 0 when there is room already or it is in use
  Writes   deletes the circuit and takes it off the list; what is in use counts as used now
  Cost     O(log P + log K), P = permits outstanding, K = keys listed
  Mirrors  omni_tasks/store/memory.py: MemoryStore
]]
-- A key of another type reads as lost, as the verbs take it.
local function call(command, key, lost, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if string.sub(reply.err, 1, 9) ~= 'WRONGTYPE' then error(reply) end
  return lost
end

if call('ZCARD', KEYS[5], 0) < tonumber(ARGV[2]) then return { 0 } end

local now = tonumber(ARGV[1])
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local key = string.match(KEYS[1], '}:([^:]+):circuit$')
local state, override = unpack(call('HMGET', KEYS[1], {}, 'state', 'override'))
local decides = state == 'open' or state == 'half_open' or override == 'forced_open' or override == 'forced_closed'
if decides or call('ZCOUNT', KEYS[2], 0, now + 1, '+inf') + call('ZCOUNT', KEYS[3], 0, now + 1, '+inf') > 0 then
  redis.call('ZADD', KEYS[5], 'XX', now, key)
  return { 0 }
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
redis.call('ZREM', KEYS[5], key)
return { 1 }
