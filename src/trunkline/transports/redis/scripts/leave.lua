-- A reader stops waiting: put back what its last request was given, and pass on a wake that it may have had.
-- KEYS frames, deadlines, idle, held
-- ARGV slot, request, idle member, memory ms
local held = redis.call('HGET', KEYS[4], ARGV[1])
local number, deadline, at
if held then number, deadline, at = string.match(held, '^(%d+) (%d*) ()') end
if not held or tonumber(number) <= tonumber(ARGV[2]) then
  if held and number == ARGV[2] and deadline ~= '' then
    redis.call('LPUSH', KEYS[1], string.sub(held, at))
    redis.call('LPUSH', KEYS[2], deadline)
    for key = 1, 2 do
      if redis.call('PTTL', KEYS[key]) < 0 then redis.call('PEXPIREAT', KEYS[key], deadline) end
    end
  end
  redis.call('HSET', KEYS[4], ARGV[1], ARGV[2] .. '  ')
  redis.call('PEXPIRE', KEYS[4], ARGV[4])
end
redis.call('SREM', KEYS[3], ARGV[3])
while redis.call('LLEN', KEYS[1]) > 0 do
  local idle = redis.call('SPOP', KEYS[3])
  if not idle then break end
  local channel, slot = string.match(idle, '^(.*) (%S+)$')
  if redis.call('PUBLISH', channel, 'W' .. slot) > 0 then break end
end
return 'OK'
