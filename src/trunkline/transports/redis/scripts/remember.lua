-- Append to what a topic remembers. Answers the place, and the mark of the frame before it.
-- KEYS history, memory of what the sender appended
-- ARGV seq, floor, frame, mark, size, seconds, memory ms
local known = redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[1], ARGV[1])[1]
if known then -- done before, only the answer was lost
  local place, before = string.match(known, ' (%d+) (.*)$')
  return {tonumber(place), before}
end
local now = tonumber(redis.call('TIME')[1])
local place, before = 1, ''
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if newest then place, before = tonumber(string.match(newest[1], '^%d+')) + 1, newest[2][6] end
redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[5], string.format('%d-0', place),
  'd', ARGV[3], 't', string.format('%d', now + math.ceil(tonumber(ARGV[6]))), 'm', ARGV[4])
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
while tonumber(oldest[2][4]) <= now do
  redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%d-0', tonumber(string.match(oldest[1], '^%d+')) + 1))
  oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
end
redis.call('PEXPIRE', KEYS[1], string.format('%d', (math.ceil(tonumber(ARGV[6])) + 86400) * 1000))
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[1], string.format('%s %d %s', ARGV[1], place, before))
redis.call('PEXPIRE', KEYS[2], ARGV[7])
return {place, before}
