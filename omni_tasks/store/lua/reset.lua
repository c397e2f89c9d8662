--[[
  reset: close the circuit and clear everything it has counted.

  KEYS[1..5]  see _prelude.lua

  ARGV[1..2]  see _prelude.lua
  ARGV[3]     op_id   string, new for every reset
  ARGV[4]     actor   text for the log
  ARGV[5]     reason  text for the log

  Returns  {state, previous_state, epoch, failures}
  Writes   all keys; only gen, epoch and the log go on, so old permits stay fenced
  Cost     O(P), P = permits outstanding
  Mirrors  omni_tasks/core/operate.py: reset()
]]
local op_id = ARGV[3]

local known = answer_to(op_id)
if known then return known end
local gen, epoch = c.gen, c.epoch
if gen == '' then gen = op_id end
call('DEL', KEYS[1], KEYS[2], KEYS[3])
stored, policy = {}, parse(ARGV[2])
set('gen', gen)
set('epoch', epoch + 1)
set('changed_at_ms', now)
return say(op_id, 'reset', 0, ARGV[4], ARGV[5])
