-- A lessee waits no more: put back what it may have been given, uncounted, and pass on a wake that it may have had.
-- KEYS frames, deadlines, idle, schedule, contents
-- ARGV token, idle member
local ttl, frame = take_out(KEYS[4], KEYS[5], ARGV[1])
if frame then
  frame = string.char(math.max(string.byte(frame) - 1, 43)) .. string.sub(frame, 2)
  to_front(KEYS[1], KEYS[2], frame, now, ttl)
end
redis.call('SREM', KEYS[3], ARGV[2])
if redis.call('LLEN', KEYS[1]) > 0 then wake(KEYS[3]) end
return 'OK'
