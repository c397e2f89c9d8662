#!lua flags=no-writes
--[[
  snapshot: read one circuit; changes nothing.

  KEYS[1]  {prefix}:{<circuit>}:circuit  hash
  KEYS[2]  {prefix}:{<circuit>}:calls    zset  epoch:permit id -> lease deadline, Unix ms
  KEYS[3]  {prefix}:{<circuit>}:probes   zset  epoch:permit id -> lease deadline, Unix ms

  ARGV[1]  now_ms  int >= 0, or "" to use this server's TIME (production)

  Returns  {now_ms, {field, value, ...}, calls, probes, first_lease_ms}
           calls, probes   permits outstanding of each kind
           first_lease_ms  when the first probe's lease ends, Unix ms; 0 without a probe
  Writes   nothing
  Cost     O(1)
  Mirrors  omni_tasks/core/model.py: Circuit
]]
local now = tonumber(ARGV[1])
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- A key of another type reads as lost, as the verbs take it.
local function call(command, key, lost, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if string.sub(reply.err, 1, 9) ~= 'WRONGTYPE' then error(reply) end
  return lost
end

local first = call('ZRANGE', KEYS[3], {}, 0, 0, 'WITHSCORES')
return {
  now,
  call('HGETALL', KEYS[1], {}),
  call('ZCARD', KEYS[2], 0),
  call('ZCARD', KEYS[3], 0),
  tonumber(first[2]) or 0,
}
