--[[
  draw: decide how many held tasks may return to their queues now, and pay for their starts.

  KEYS[1..5]  see _prelude.lua

  ARGV[1..2]  see _prelude.lua
  ARGV[3]     wanted  int >= 0, tasks held; with 0 a ramp that has not failed ends

  Returns  {count, ticket, state, ramping, previous_state, epoch, failures, reason}
           ramping  1 while the circuit still limits the rate of starts, else 0
  Writes   the ramp's tokens; the tasks on their way; a policy that is newer; the log
  Cost     O(log P + lapsed), P = permits outstanding
  Mirrors  omni_tasks/core/held.py: draw()
]]
local DRAWN_MS = 1000
local wanted = tonumber(ARGV[3])
local count = 0

adopt()
tidy()
local since = now - c.drawn_ms
local on_the_way = (since >= 0 and since < DRAWN_MS) and c.drawn or 0
if effective_state() == 'closed' then
  if wanted == 0 and c.failures == 0 then
    stop_ramp()
    on_the_way = 0
  elseif wanted > 0 and c.ramp_rate_mps == 0 then
    start_ramp()
  end
  fill_ramp()
  local room = math.floor(bucket() / CALL) - on_the_way
  count = math.max(math.min(wanted, math.floor(c.ramp_tokens / CALL), room), 0)
  take(count)
elseif c.override == 'auto' and now >= c.open_until_ms then
  local free = policy.half_open_max_calls - call('ZCARD', KEYS[3]) - on_the_way
  count = math.max(math.min(wanted, free), 0)
end
if c.drawn ~= on_the_way + count then set('drawn', on_the_way + count) end
if count > 0 then set('drawn_ms', now) end
save()
return { count, ticket(), effective_state(), c.ramp_rate_mps > 0 and 1 or 0, before, c.epoch, c.failures, c.reason }
