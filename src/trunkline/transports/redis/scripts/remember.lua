-- Append to what a topic remembers. Answers the place.
-- KEYS history, memory of what the sender appended
-- ARGV seq, floor, frame, size, seconds, memory ms
local known = redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[1], ARGV[1])[1]
if known then return tonumber(string.match(known, ' (%d+)$')) end -- done before, only the answer was lost
local now = tonumber(redis.call('TIME')[1])
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local place = newest and tonumber(string.match(newest[1], '^%d+')) + 1 or 1
redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[4], string.format('%d-0', place), 'd', ARGV[3],
  't', string.format('%d', now + math.ceil(tonumber(ARGV[5]))))
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
while tonumber(oldest[2][4]) <= now do
  redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%d-0', tonumber(string.match(oldest[1], '^%d+')) + 1))
  oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
end
redis.call('PEXPIRE', KEYS[1], string.format('%d', (math.ceil(tonumber(ARGV[5])) + 86400) * 1000))
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[1] .. ' ' .. string.format('%d', place))
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return place
