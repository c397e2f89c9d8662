--[[
  fire: begin an alert's episode, or refresh the one that is going on.

  The episode and what is to be delivered about it are written in one step: a
  process that dies right after has not left an alert that nobody hears of.

  KEYS[1]   {prefix}:{monitor}:alerts         hash  rule:circuit -> the episode, JSON
  KEYS[2+]  {prefix}:{monitor}:outbox:<sink>  hash  notification's id -> the notification, JSON
            {prefix}:{monitor}:due:<sink>     zset  notification's id -> when it may be delivered, Unix ms
            these two for every sink that is told, in turn

  ARGV[1]  see _prelude.lua
  ARGV[2]  field         rule:circuit
  ARGV[3]  episode       JSON of an episode that begins now
  ARGV[4]  details       JSON object, for one that goes on
  ARGV[5]  id            the notification's
  ARGV[6]  notification  JSON
  ARGV[7]  most          notifications kept for one sink; while there are as many, no more are added, and
                         the episode's "missed" names the outboxes that lack its beginning
  ARGV[8]  keep_ms       how long notifications nobody takes are kept

  Returns  {began}
           began  1 when this call began the episode, else 0
  Writes   all keys
  Cost     O(S log N), S = sinks, N = notifications kept
  Mirrors  omni_tasks/observe/state.py: MonitorState.fire
]]
-- Under another name: what is called "call" here goes to the server.
local protected = pcall

local going_on = call('HGET', KEYS[1], ARGV[2])
if going_on then
  local readable, episode = protected(cjson.decode, going_on)
  if readable and type(episode) == 'table' then
    episode.refreshed_ms = now
    episode.details = cjson.decode(ARGV[4])
    call('HSET', KEYS[1], ARGV[2], cjson.encode(episode))
    return { 0 }
  end
end
local missed = {}
for i = 2, #KEYS, 2 do
  if call('ZCARD', KEYS[i + 1]) < tonumber(ARGV[7]) then
    call('HSET', KEYS[i], ARGV[5], ARGV[6])
    call('ZADD', KEYS[i + 1], integer(now), ARGV[5])
    call('PEXPIRE', KEYS[i], ARGV[8])
    call('PEXPIRE', KEYS[i + 1], ARGV[8])
  else
    missed[#missed + 1] = KEYS[i]
  end
end
local episode = ARGV[3]
if #missed > 0 then
  episode = cjson.decode(episode)
  episode.missed = missed
  episode = cjson.encode(episode)
end
call('HSET', KEYS[1], ARGV[2], episode)
return { 1 }
