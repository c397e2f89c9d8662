--[[
  reset: close the circuit and clear everything it has counted.

  KEYS[1..3]  see _prelude.lua

  ARGV[1..15]  see _prelude.lua
  ARGV[16]     op_id  string, new for every reset

  Returns  {state, previous_state, epoch, failures}
  Writes   all three keys; only gen and epoch go on, so old permits stay fenced
  Cost     O(P), P = permits outstanding
  Mirrors  omni_tasks/core/machine.py: reset()
]]
local gen, epoch = c.gen, c.epoch
if gen == '' then gen = ARGV[16] end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
stored = {}
set('gen', gen)
set('epoch', epoch + 1)
set('changed_at_ms', now)
save()
return { effective_state(), before, c.epoch, c.failures }
