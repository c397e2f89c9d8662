--[[
  record: add what a circuit has counted since the last time to its time buckets.

  The differences are taken here, in one step with the notes of what was there
  before: whoever records twice adds nothing the second time.

  KEYS[1]  {prefix}:{<circuit>}:circuit   hash    the circuit; only read
  KEYS[2]  {prefix}:{<circuit>}:buckets   hash    counters at the last record, and the bucket of each width that is open
  KEYS[3]  {prefix}:{<circuit>}:minutes   stream  finished buckets of one minute, id = begin, Unix ms
  KEYS[4]  {prefix}:{<circuit>}:quarters  stream  finished buckets of a quarter of an hour

  ARGV[1]  see _prelude.lua
  ARGV[2]  rate_ms    how far back calls and failures are added up for the answer
  ARGV[3]  trips_ms   how far back trips are added up for the answer
  ARGV[4]  minutes    most finished buckets kept of one minute
  ARGV[5]  quarters   most finished buckets kept of a quarter of an hour
  ARGV[6]  keep_ms    how long after the last record, or bucket, a key goes

  Returns  {calls, failed, trips}
           calls, failed  in the buckets that begin within rate_ms, and in the open one
           trips          in those that begin within trips_ms
  Writes   KEYS[2], KEYS[3], KEYS[4]; each stream keeps its newest buckets
  Cost     O(B), B = one-minute buckets within the longer of rate_ms and trips_ms
  Mirrors  omni_tasks/observe/history.py: Bucket
]]
-- The order is that of history.py: COUNTERS.
local COUNTERS = { 'calls', 'failed', 'slow', 'rejected', 'held', 'trips', 'took_ms' }
local CLASSES = 14

local circuit, notes = {}, {}
local flat = call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do circuit[flat[i]] = flat[i + 1] end
flat = call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do notes[flat[i]] = flat[i + 1] end

local function number(text)
  local n = tonumber(text)
  -- NaN and numbers we never write read as 0, as in the prelude.
  return n and n >= 0 and n <= 1e14 and math.floor(n) or 0
end

local function split(text)
  local found = {}
  for word in string.gmatch((text or '') .. ',', '([^,]*),') do found[#found + 1] = number(word) end
  return found
end

-- Zeros are left out between the commas: most classes of duration are empty.
local function join(counts, first, last)
  local words = {}
  for i = first, last do words[#words + 1] = (counts[i] or 0) > 0 and integer(counts[i]) or '' end
  return (string.gsub(table.concat(words, ','), ',*$', ''))
end

local sums = {
  number(circuit.succeeded) + number(circuit.failed) + number(circuit.ignored),
  number(circuit.failed), number(circuit.slow), number(circuit.rejected), number(circuit.held),
  number(circuit.trips), number(circuit.took_ms),
}
local durations = split(circuit.durations)
for i = 1, CLASSES do sums[#COUNTERS + i] = durations[i] or 0 end

local before = split(notes.counted)
-- An operator's reset starts the counters at 0 again, and so does a store that lost its data.
local restarted = notes.gen ~= (circuit.gen or '')
for i = 1, #COUNTERS do restarted = restarted or sums[i] < (before[i] or 0) end
local added, busy = {}, false
for i = 1, #sums do
  added[i] = math.max(sums[i] - (restarted and 0 or before[i] or 0), 0)
  busy = busy or added[i] > 0
end
if not notes.counted then
  -- Nobody knows when these were counted: they are no part of the last minute.
  for i = 1, #sums do added[i] = 0 end
  busy = false
end

-- The bucket that is open after this record, and the one that is finished with it, if any.
local function fold(width, field)
  local open = split(notes[field])
  local begin = math.max(math.floor(now / width) * width, open[1] or 0)
  local finished
  if begin > (open[1] or 0) then
    if (open[1] or 0) > 0 and (open[2] or 0) + (open[5] or 0) > 0 then finished = open end
    open = {}
  end
  open[1] = begin
  for i = 1, #sums do open[i + 1] = (open[i + 1] or 0) + added[i] end
  return join(open, 1, #sums + 1), finished
end

local function words(bucket)
  return integer(bucket[1]) .. '-0', 'n', join(bucket, 2, #COUNTERS + 1),
    'd', join(bucket, #COUNTERS + 2, #COUNTERS + 1 + CLASSES)
end

-- What a circuit leaves behind that is forgotten, or never called again, goes by itself.
local minute, quarter, finished
minute, finished = fold(60000, 'minute')
if finished then
  call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], words(finished))
  call('PEXPIRE', KEYS[3], ARGV[6])
end
quarter, finished = fold(900000, 'quarter')
if finished then
  call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], words(finished))
  call('PEXPIRE', KEYS[4], ARGV[6])
end
call('HSET', KEYS[2], 'gen', circuit.gen or '', 'counted', join(sums, 1, #sums),
  'minute', minute, 'quarter', quarter)
call('PEXPIRE', KEYS[2], ARGV[6])

local open = split(minute)
local calls, failed, trips = open[2] or 0, open[3] or 0, open[7] or 0
local longest = math.max(tonumber(ARGV[2]), tonumber(ARGV[3]))
for _, entry in ipairs(call('XRANGE', KEYS[3], integer(math.max(now - longest, 0)), '+')) do
  local age = now - number(string.match(entry[1], '^%d+'))
  local counts = split(entry[2][2])
  if age <= tonumber(ARGV[2]) then
    calls, failed = calls + (counts[1] or 0), failed + (counts[2] or 0)
  end
  if age <= tonumber(ARGV[3]) then trips = trips + (counts[6] or 0) end
end
return { calls, failed, trips }
