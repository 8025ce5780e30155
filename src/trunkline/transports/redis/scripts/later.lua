-- Put a new frame off, if there is room. Answers 1, or 0 when there is none.
-- KEYS frames, deadlines, idle, schedule, contents, last, refused: the memories are those of push.lua
-- ARGV seq, floor, token, capacity, delay ms, ttl ms, memory ms, frame
local last = redis.call('SET', KEYS[6], ARGV[1], 'PX', ARGV[7], 'GET')
if last and tonumber(last) >= tonumber(ARGV[1]) then
  -- Done before, only the answer was lost.
  redis.call('SET', KEYS[6], last, 'PX', ARGV[7])
  return redis.call('ZRANGEBYSCORE', KEYS[7], ARGV[1], ARGV[1])[1] and 0 or 1
end
bring(KEYS[1], KEYS[2], KEYS[4], KEYS[5], now)
if redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[4]) then
  redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', '(' .. ARGV[2])
  redis.call('ZADD', KEYS[7], ARGV[1], ARGV[1] .. ' 0')
  redis.call('PEXPIRE', KEYS[7], ARGV[7])
  return 0
end
put_off(KEYS[4], KEYS[5], ARGV[3], now + tonumber(ARGV[5]), now, tonumber(ARGV[6]), ARGV[8])
wake(KEYS[3])
return 1
