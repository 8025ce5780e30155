-- Post one frame to a node, counting it against its channel. Answers OK, FULL or GONE.
-- KEYS inbox, alive, depth, last, refused
-- ARGV frame, void frame, channel, capacity (-1: none), oldest id to keep, seq, floor, ttl ms,
-- length to cut the log to (0: not now)
local last = redis.call('SET', KEYS[4], ARGV[6], 'PX', ARGV[8], 'GET')
if last and tonumber(last) >= tonumber(ARGV[6]) then
  -- Done before, only the answer was lost.
  redis.call('SET', KEYS[4], last, 'PX', ARGV[8])
  return redis.call('LPOS', KEYS[5], ARGV[6]) and 'FULL' or 'OK'
end
local alive = redis.call('GET', KEYS[2])
local listens = not alive and redis.call('PUBSUB', 'NUMSUB', KEYS[1])[2] > 0
-- It said good-bye; or it gives no sign of life and does not listen.
if alive == '' or (not alive and not listens) then
  redis.call('DEL', KEYS[4]) -- nothing was done
  if not alive then
    -- Perhaps it is only cut off: then it is told when it is back.
    redis.call('HINCRBY', KEYS[3], '@missed', 1)
    redis.call('PEXPIRE', KEYS[3], ARGV[8])
  end
  return 'GONE'
end
-- Cut off, but its connection has not ended: when that ends it gets as long to come back as one that was heard of just now.
if listens then redis.call('SET', KEYS[2], 'late', 'PX', 8000) end
local capacity = tonumber(ARGV[4])
local frame, answer = ARGV[1], 'OK'
local depth = redis.call('HINCRBY', KEYS[3], ARGV[3], 1)
if capacity >= 0 and depth > capacity then
  redis.call('HINCRBY', KEYS[3], ARGV[3], -1)
  frame, answer = ARGV[2], 'FULL'
  local first = redis.call('LINDEX', KEYS[5], 0)
  while first and tonumber(first) < tonumber(ARGV[7]) do
    redis.call('LPOP', KEYS[5])
    first = redis.call('LINDEX', KEYS[5], 0)
  end
  redis.call('RPUSH', KEYS[5], ARGV[6])
  redis.call('PEXPIRE', KEYS[5], ARGV[8])
elseif depth == 1 and redis.call('PTTL', KEYS[3]) < 0 then
  -- The owner prolongs it; should it die first, the count must not stay for ever.
  redis.call('PEXPIRE', KEYS[3], ARGV[8])
end
redis.call('XADD', KEYS[1], 'MINID', '~', ARGV[5], '*', 'd', frame)
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[8]) end
if ARGV[9] ~= '0' then redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[9]) end
redis.call('PUBLISH', KEYS[1], frame)
return answer
