-- Bind a queue to a topic and tell every node that the topic has bindings now.
-- KEYS bindings of the topic, topics with bindings
-- ARGV queue, capacity, ttl ms, topic, news channel
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ttl = tonumber(ARGV[3])
local deadline = string.format('%d', now + ttl)
redis.call('HSET', KEYS[1], ARGV[1], deadline .. ' ' .. ARGV[2])
redis.call('ZADD', KEYS[2], 'GT', deadline, ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
for key = 1, 2 do
  if redis.call('PTTL', KEYS[key]) < ttl then redis.call('PEXPIRE', KEYS[key], ttl) end
end
redis.call('PUBLISH', ARGV[5], 'B' .. ARGV[4])
return 'OK'
