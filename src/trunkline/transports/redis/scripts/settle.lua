-- End a lease: now, for good (ms -1), or at another time. Answers 0 when it had ended.
-- KEYS idle, schedule, contents
-- ARGV token, ms
local due = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or '0')
if due <= now then return 0 end
local ms = tonumber(ARGV[2])
if ms < 0 then
  take_out(KEYS[2], KEYS[3], ARGV[1])
  return 1
end
local ttl, frame = take_out(KEYS[2], KEYS[3], ARGV[1])
put_off(KEYS[2], KEYS[3], ARGV[1], now + ms, now, ttl, frame)
if now + ms < due then wake(KEYS[1]) end -- whoever waits has set a clock to the time before
return 1
