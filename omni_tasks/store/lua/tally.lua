--[[
  tally: hear of calls that a process let in while the circuit was quiet.

  KEYS[1..5]  see _prelude.lua

  ARGV[1..2]  see _prelude.lua
  ARGV[3]     gen        string, the incarnation that was quiet
  ARGV[4]     epoch      int, the epoch that was
  ARGV[5]     succeeded  int >= 0, calls that have ended, each of them well
  ARGV[6]     slow       int >= 0, how many of these were slow
  ARGV[7]     took_ms    int >= 0, how long they took together
  ARGV[8]     durations  text, how many took how long; as in the circuit
  ARGV[9]     permit_id  string, of a call that runs still
  ARGV[10+]   lease_ms   int >= 0, that call's own; then the next call's two

  Returns  {known}
           known  1 when the incarnation is the present one, else 0
  Writes   a permit for each call that runs still; counters; a policy that is newer
  Cost     O(N log P), N = calls that run still, P = permits outstanding
  Mirrors  omni_tasks/core/quiet.py: tally()
]]
local given_in, epoch = ARGV[3], ARGV[4]
local succeeded, took_ms = tonumber(ARGV[5]), tonumber(ARGV[7])

local function add_durations()
  if not is_numbers(c.durations, 14) then return set('durations', ARGV[8]) end
  local more, i = cjson.decode('[' .. ARGV[8] .. ']'), 0
  set('durations', (string.gsub(c.durations, '%d+', function(calls)
    i = i + 1
    return string.format('%.0f', calls + more[i])
  end)))
end

if c.gen ~= given_in then
  if c.gen ~= '' then add('stale', succeeded) end
  save()
  return { 0 }
end
adopt()
lapse()
for i = 9, #ARGV, 2 do
  local deadline = now + math.max(tonumber(ARGV[i + 1]), policy.longest_lease_ms)
  add('admitted', call('ZADD', KEYS[2], 'NX', deadline, epoch .. ':' .. ARGV[i]))
end
if succeeded > 0 then
  add('admitted', succeeded)
  add('succeeded', succeeded)
  add('successes_in_a_row', succeeded)
  add('slow', tonumber(ARGV[6]))
  add('took_ms', took_ms)
  if took_ms > 0 then add_durations() end
  set('last_success_ms', now)
end
save()
return { 1 }
