--[[
  prelude: what the monitor's scripts share; put in front of each.

  KEYS[1+]  the script's own

  ARGV[1]  now_ms  int >= 0, or "" to use this server's TIME (production)

  Returns  nothing; the script behind it does
  Writes   nothing but keys of a wrong type, which begin anew
  Cost     O(1)
  Clock    this server's TIME, unless a test gives its own
  Mirrors  omni_tasks/observe/scripts.py: Scripts
]]
local now
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
else
  now = tonumber(ARGV[1])
end

-- A key of another type was written by somebody else: what it held is lost.  A circuit's own hash is its own
-- scripts' to mend; here it reads as empty.  A stream takes no entry from before its last one: that is lost too.
local function call(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if string.find(reply.err, 'equal or smaller than the target stream top item', 1, true) then return false end
  if string.sub(reply.err, 1, 9) ~= 'WRONGTYPE' then error(reply) end
  if string.sub(key, -8) == ':circuit' then return {} end
  redis.call('DEL', key)
  return redis.call(command, key, ...)
end

local function integer(n) return string.format('%.0f', n) end

