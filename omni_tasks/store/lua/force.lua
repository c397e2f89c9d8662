--[[
  force: follow the operator's word, once.

  KEYS[1..5]  see _prelude.lua

  ARGV[1..2]  see _prelude.lua
  ARGV[3]     override  "auto" | "forced_open" | "forced_closed"
  ARGV[4]     ttl_ms    int >= 0; 0 means until the next word
  ARGV[5]     op_id     string, new for every word
  ARGV[6]     actor     text for the log
  ARGV[7]     reason    text for the log

  Returns  {state, previous_state, epoch, failures}
  Writes   override, epoch; the log
  Cost     O(log P), P = permits outstanding
  Mirrors  omni_tasks/core/operate.py: force()
]]
local override, ttl_ms, op_id = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local ACTIONS = { auto = 'auto', forced_open = 'force_open', forced_closed = 'force_close' }
local until_ms = ttl_ms > 0 and now + ttl_ms or FOREVER_MS

local known = answer_to(op_id)
if known then return known end
-- Over its memory limit a server lets a script go on that has begun by taking away: an outage may be why it is full.
call('ZREM', KEYS[2], '')
if c.gen == '' then set('gen', op_id) end
add('epoch', 1)
set('override', override)
set('override_until_ms', override == 'auto' and 0 or until_ms)
set('changed_at_ms', now)
return say(op_id, ACTIONS[override], ttl_ms, ARGV[6], ARGV[7])
