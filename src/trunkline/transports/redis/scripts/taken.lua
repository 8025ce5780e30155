-- The owner reports what its channels consumed; each batch counts once.
-- KEYS depth
-- ARGV batch, ttl ms, then channel, count, ...
if tonumber(redis.call('HGET', KEYS[1], '@batch') or '0') >= tonumber(ARGV[1]) then return 'OK' end
redis.call('HSET', KEYS[1], '@batch', ARGV[1])
for i = 3, #ARGV, 2 do
  if redis.call('HINCRBY', KEYS[1], ARGV[i], -tonumber(ARGV[i + 1])) <= 0 then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 'OK'
