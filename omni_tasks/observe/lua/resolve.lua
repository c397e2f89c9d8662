--[[
  resolve: end an alert's episode.

  KEYS[1]   {prefix}:{monitor}:alerts         hash  rule:circuit -> the episode, JSON
  KEYS[2+]  {prefix}:{monitor}:outbox:<sink>  hash  notification's id -> the notification, JSON
            {prefix}:{monitor}:due:<sink>     zset  notification's id -> when it may be delivered, Unix ms
            these two for every sink that is told, in turn

  ARGV[1]  see _prelude.lua
  ARGV[2]  field         rule:circuit
  ARGV[3]  episode       JSON as it was read: another episode that has begun since then is left alone
  ARGV[4]  id            the notification's
  ARGV[5]  notification  JSON
  ARGV[6]  keep_ms       how long notifications nobody takes are kept

  Returns  {ended}
           ended  1 when this call ended the episode, else 0
  Writes   all keys
  Cost     O(S log N), S = sinks, N = notifications kept
  Mirrors  omni_tasks/observe/state.py: MonitorState.resolve
]]
if call('HGET', KEYS[1], ARGV[2]) ~= ARGV[3] then return { 0 } end
call('HDEL', KEYS[1], ARGV[2])
for i = 2, #KEYS, 2 do
  -- Not bounded here: only an end whose beginning was kept comes this far, and those are.
  call('HSET', KEYS[i], ARGV[4], ARGV[5])
  call('ZADD', KEYS[i + 1], integer(now), ARGV[4])
  call('PEXPIRE', KEYS[i], ARGV[6])
  call('PEXPIRE', KEYS[i + 1], ARGV[6])
end
return { 1 }
