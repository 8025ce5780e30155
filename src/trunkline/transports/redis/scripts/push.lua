-- Append one frame to a queue and wake one idle reader. Answers OK or FULL.
-- KEYS frames, deadlines, idle, last, refused
-- ARGV frame, capacity, ttl ms, seq, floor, memory ms
local last = redis.call('SET', KEYS[4], ARGV[4], 'PX', ARGV[6], 'GET')
if last and tonumber(last) >= tonumber(ARGV[4]) then
  -- Done before, only the answer was lost.
  redis.call('SET', KEYS[4], last, 'PX', ARGV[6])
  return redis.call('LPOS', KEYS[5], ARGV[4]) and 'FULL' or 'OK'
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local capacity, ttl = tonumber(ARGV[2]), tonumber(ARGV[3])
local length, first = redis.call('LLEN', KEYS[2]), nil
while length > 0 do
  first = tonumber(redis.call('LINDEX', KEYS[2], 0))
  if first > now then break end
  redis.call('LPOP', KEYS[1])
  redis.call('LPOP', KEYS[2])
  length = length - 1
end
if length >= capacity then
  -- A frame with a shorter life may have died behind one with a longer. No frame is empty, so '' can mark the dead.
  for place, deadline in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    if tonumber(deadline) <= now then
      redis.call('LSET', KEYS[1], place - 1, '')
      redis.call('LSET', KEYS[2], place - 1, '')
    end
  end
  redis.call('LREM', KEYS[1], 0, '')
  redis.call('LREM', KEYS[2], 0, '')
  length = redis.call('LLEN', KEYS[2])
end
if length >= capacity then
  first = redis.call('LINDEX', KEYS[5], 0)
  while first and tonumber(first) < tonumber(ARGV[5]) do
    redis.call('LPOP', KEYS[5])
    first = redis.call('LINDEX', KEYS[5], 0)
  end
  redis.call('RPUSH', KEYS[5], ARGV[4])
  redis.call('PEXPIRE', KEYS[5], ARGV[6])
  return 'FULL'
end
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('RPUSH', KEYS[2], string.format('%d', now + ttl))
if length == 0 or redis.call('PTTL', KEYS[1]) < ttl then
  redis.call('PEXPIRE', KEYS[1], math.floor(ttl * 1.25) + 10000)
  redis.call('PEXPIRE', KEYS[2], math.floor(ttl * 1.25) + 10000)
end
-- Who takes wakes the next one, so a burst wakes a reader or two; more when frames lie there for milliseconds.
if length < 2 or math.abs(now + ttl - first) > 3 then
  while true do
    local idle = redis.call('SPOP', KEYS[3])
    if not idle then break end
    local channel, slot = string.match(idle, '^(.*) (%S+)$')
    if redis.call('PUBLISH', channel, 'W' .. slot) > 0 then break end
  end
end
return 'OK'
