--[[
  force: follow the operator's word.

  KEYS[1..3]  see _prelude.lua

  ARGV[1..10]  see _prelude.lua
  ARGV[11]     override  "auto" | "forced_open" | "forced_closed"
  ARGV[12]     ttl_ms    int >= 0; 0 means until the next word
  ARGV[13]     op_id     string, new for every word

  Returns  {state, previous_state, epoch, failures}
  Writes   override, epoch
  Cost     O(1)
  Mirrors  omni_tasks/core/machine.py: force()
]]
local override, ttl_ms = ARGV[11], tonumber(ARGV[12])
local until_ms = ttl_ms > 0 and now + ttl_ms or FOREVER_MS

if c.gen == '' then set('gen', ARGV[13]) end
add('epoch', 1)
set('override', override)
set('override_until_ms', override == 'auto' and 0 or until_ms)
set('changed_at_ms', now)
save()
return { effective_state(), before, c.epoch, c.failures }
