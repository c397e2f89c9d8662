--[[
  force: follow the operator's word.

  KEYS[1..3]  see _prelude.lua

  ARGV[1..15]  see _prelude.lua
  ARGV[16]     override  "auto" | "forced_open" | "forced_closed"
  ARGV[17]     ttl_ms    int >= 0; 0 means until the next word
  ARGV[18]     op_id     string, new for every word

  Returns  {state, previous_state, epoch, failures}
  Writes   override, epoch
  Cost     O(1)
  Mirrors  omni_tasks/core/machine.py: force()
]]
local override, ttl_ms = ARGV[16], tonumber(ARGV[17])
local until_ms = ttl_ms > 0 and now + ttl_ms or FOREVER_MS

if c.gen == '' then set('gen', ARGV[18]) end
add('epoch', 1)
set('override', override)
set('override_until_ms', override == 'auto' and 0 or until_ms)
set('changed_at_ms', now)
save()
return { effective_state(), before, c.epoch, c.failures }
