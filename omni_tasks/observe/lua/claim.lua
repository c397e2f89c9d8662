--[[
  claim: say which circuits are due for a look, and mark them as looked at.

  KEYS[1]  {prefix}:{monitor}:seen  hash  what is looked at -> moment of the last look, Unix ms

  ARGV[1]   see _prelude.lua
  ARGV[2+]  name, interval_ms, name, interval_ms, ...

  Returns  {now_ms, last_ms, name, ...}
           last_ms  when the first name was looked at before; 0 for never
           name     what is due: nobody has looked at it for nine tenths of its interval
  Writes   the moment of this look
  Cost     O(N), N = names
  Mirrors  omni_tasks/observe/state.py: MonitorState.claim
]]
local answer = { now, 0 }
for i = 2, #ARGV, 2 do
  local last = tonumber(call('HGET', KEYS[1], ARGV[i])) or 0
  if i == 2 then answer[2] = last end
  -- Beat is never quite on time.  A moment yet to come is one from before the clock stepped back.
  if last > now or now - last >= tonumber(ARGV[i + 1]) * 0.9 then
    call('HSET', KEYS[1], ARGV[i], integer(now))
    answer[#answer + 1] = ARGV[i]
  end
end
return answer
