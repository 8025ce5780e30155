-- Append frames to a queue, as many as have room, and wake idle readers. Answers how many were taken.
-- KEYS frames, deadlines, idle, last, refused
-- ARGV capacity, ttl ms, seq, floor, memory ms, then frames
local count = #ARGV - 5
local last = redis.call('SET', KEYS[4], ARGV[3], 'PX', ARGV[5], 'GET')
if last and tonumber(last) >= tonumber(ARGV[3]) then
  -- Done before, only the answer was lost.
  redis.call('SET', KEYS[4], last, 'PX', ARGV[5])
  local refused = redis.call('ZRANGEBYSCORE', KEYS[5], ARGV[3], ARGV[3])[1]
  return refused and tonumber(string.match(refused, ' (%d+)$')) or count
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local capacity, ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local length = redis.call('LLEN', KEYS[2])
local oldest
while length > 0 do
  oldest = tonumber(redis.call('LINDEX', KEYS[2], 0))
  if oldest > now then break end
  redis.call('LPOP', KEYS[1])
  redis.call('LPOP', KEYS[2])
  length = length - 1
end
local age = length > 0 and now + ttl - oldest
if length + count > capacity then
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
if length + count > capacity then
  count = math.max(capacity - length, 0)
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', '(' .. ARGV[4])
  redis.call('ZADD', KEYS[5], ARGV[3], ARGV[3] .. ' ' .. count)
  redis.call('PEXPIRE', KEYS[5], ARGV[5])
  if count == 0 then return 0 end
end
local deadlines, deadline = {}, string.format('%d', now + ttl)
for i = 1, count do deadlines[i] = deadline end
redis.call('RPUSH', KEYS[1], unpack(ARGV, 6, 5 + count))
redis.call('RPUSH', KEYS[2], unpack(deadlines))
if length == 0 or redis.call('PTTL', KEYS[1]) < ttl then
  redis.call('PEXPIRE', KEYS[1], math.floor(ttl * 1.25) + 10000)
  redis.call('PEXPIRE', KEYS[2], math.floor(ttl * 1.25) + 10000)
end
-- What came a moment ago has woken a reader, who is on its way, or found all of them busy.
if age and age >= 0 and age < 5 then return count end
-- One is enough: who takes some wakes the next ones.
while true do
  local idle = redis.call('SPOP', KEYS[3])
  if not idle then return count end
  local channel, slot = string.match(idle, '^(.*) (%S+)$')
  if redis.call('PUBLISH', channel, 'W' .. slot) > 0 then return count end
end
