-- The owner replaces the counts by what it really holds, after a server lost or may have lost some.
-- Answers how many posts found it gone since it last did so.
-- KEYS depth
-- ARGV batch, ttl ms, then channel, count, ...
local missed = redis.call('HGET', KEYS[1], '@missed')
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], '@batch', ARGV[1])
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return missed or 0
