--[[
  fetch: take one message off the broker's lists, and note in the same step that somebody has it.

  KEYS[1]   unacked             hash  delivery tag -> [message, exchange, routing key]
  KEYS[2]   unacked_index       zset  delivery tag -> Unix seconds when it was taken
  KEYS[3+]  the broker's lists  list  kombu's messages, one list per queue and priority; the right end is served next

  ARGV[1]  now  Unix seconds by the worker's clock: workers judge by theirs what is too old

  Returns  the list's name and the message, or nothing
  Writes   all keys; of the lists the first that is not empty
  Cost     O(lists + bytes of the message)
  Mirrors  omni_tasks/integration/fetch.py: Channel._brpop_start()
]]
local function is_body(body, encoding)
  if encoding == nil or encoding == cjson.null then return true end
  return encoding == 'base64' and type(body) == 'string' and #body % 4 == 0 and string.find(body, '^[%w+/]*=?=?$') ~= nil
end

for n = 3, #KEYS do
  local message = redis.call('LINDEX', KEYS[n], -1)
  if message then
    local read, told = pcall(cjson.decode, message)
    local properties = read and type(told) == 'table' and told.properties
    local info = type(properties) == 'table' and properties.delivery_info
    -- What kombu cannot deliver, it drops with an error.  Noted, it would come back and fail for ever.
    local sound = type(info) == 'table' and info.exchange and info.routing_key
      and type(properties.delivery_tag) == 'string' and is_body(told.body, properties.body_encoding)
    if sound then
      local place = cjson.encode({info.exchange, info.routing_key})
      -- First: a server that is out of memory refuses to write this, and then the message stays on its list.
      redis.call('ZADD', KEYS[2], ARGV[1], properties.delivery_tag)
      redis.call('HSET', KEYS[1], properties.delivery_tag, '[' .. message .. ',' .. string.sub(place, 2))
    end
    redis.call('RPOP', KEYS[n])
    return {KEYS[n], message}
  end
end
return false
