--[[
  quiet: the circuit is closed and nothing is going on; put in front of the two verbs of that path.

  KEYS[1]  {prefix}:{<circuit>}:circuit  hash  the fields of core/model.py: Circuit
  KEYS[2]  {prefix}:{<circuit>}:calls    zset  epoch:permit id -> lease deadline, Unix ms
  KEYS[3]  {prefix}:{<circuit>}:probes   zset  epoch:permit id -> lease deadline, Unix ms
  KEYS[4]  {prefix}:{<circuit>}:log      stream  not looked at here
  KEYS[5]  {prefix}:{<circuit>}:keys     zset  key with a circuit of its own -> Unix ms of its last use

  ARGV[1]  now_ms  int >= 0, or "" to use this server's TIME (production)
  ARGV[2]  policy  see _prelude.lua

  Returns  nothing; what it looks at is in the table quiet, or in none when the whole rules are needed
  Writes   nothing
  Cost     O(1); eight times less than the prelude's reading of everything
  Clock    this server's TIME, unless a test gives its own
  Mirrors  omni_tasks/core/machine.py: acquire(), settle(); what those leave alone in such a circuit
]]
local quiet
-- To look: a key of another type is left to the rules.  What is written is not looked at: a refusal ends the script.
local call = redis.pcall
do
  local read = call('HMGET', KEYS[1], 'gen', 'state', 'override', 'policy', 'durations', 'epoch', 'failures',
    'ramp_rate_mps', 'changed_at_ms', 'closed_at_ms', 'opened_at_ms', 'open_until_ms', 'admitted', 'succeeded',
    'successes_in_a_row', 'took_ms')
  local there = not read.err and read[1] and read[1] ~= '' and (read[2] or 'closed') == 'closed'
    and (read[3] or 'auto') == 'auto'
    -- Our policy decides: it is the one that is kept, or none is kept and ours has no version to be kept by.
    and (read[4] == ARGV[2] or (read[4] or '') == '' and string.sub(ARGV[2], 1, 2) == '0,')
    and call('ZCARD', KEYS[3]) == 0
  local of_key = string.match(KEYS[1], '}:([^:]+):circuit$')
  -- A key that is not listed needs room first.
  there = there and (not of_key or type(call('ZSCORE', KEYS[5], of_key)) == 'string')
  for i = 6, there and 16 or 0 do
    local n = tonumber(read[i] or 0)
    read[i] = n
    -- What is damaged is left to the rules.
    if not n or not (n >= 0 and n < 1e14) or n % 1 > 0 then there = false break end
  end
  if there and read[8] == 0 then
    local now = ARGV[1]
    if now == '' then
      local t = call('TIME')
      now = t[1] * 1000 + math.floor(t[2] / 1000)
    end
    now = tonumber(now)
    -- Nothing is in the future: the server's clock has not stepped back.
    if read[9] <= now and read[10] <= now and read[11] <= read[12] and read[12] <= now then
      quiet = {
        now = now, of_key = of_key, gen = read[1], durations = read[5] or '', epoch = read[6], failures = read[7], admitted = read[13],
        succeeded = read[14], successes_in_a_row = read[15], took_ms = read[16],
      }
    end
  end
end
