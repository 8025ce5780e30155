-- The owner replaces the counts by what it really holds, after a server lost or may have lost some.
-- KEYS depth
-- ARGV batch, ttl ms, then channel, count, ...
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], '@batch', ARGV[1])
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 'OK'
