--[[
  take: hand out notifications to deliver, each to one process at a time.

  KEYS[1]  {prefix}:{monitor}:outbox:<sink>  hash  notification's id -> the notification, JSON
  KEYS[2]  {prefix}:{monitor}:due:<sink>     zset  notification's id -> when it may be delivered, Unix ms

  ARGV[1]  see _prelude.lua
  ARGV[2]  lease_ms  how long nobody else gets them
  ARGV[3]  most      notifications handed out at once

  Returns  {id, notification, ...}, the oldest first
  Writes   KEYS[2]: what is handed out is due again when the lease ends
  Cost     O(M log N), M = handed out, N = notifications kept
  Mirrors  omni_tasks/observe/state.py: MonitorState.take
]]
local answer = {}
for _, id in ipairs(call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[3])) do
  local text = call('HGET', KEYS[1], id)
  if text then
    call('ZADD', KEYS[2], now + tonumber(ARGV[2]), id)
    answer[#answer + 1] = id
    answer[#answer + 1] = text
  else
    call('ZREM', KEYS[2], id)
  end
end
return answer
