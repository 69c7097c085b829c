-- Posts one fixed body and prints what wrk saw as a line of JSON (see outcome.py).
-- Environment: WRK_METHOD, WRK_BODY (a file), WRK_HEADERS (lines "name: value").
local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

wrk.method = os.getenv("WRK_METHOD")
wrk.body = read(os.getenv("WRK_BODY"))
for name, value in os.getenv("WRK_HEADERS"):gmatch("([^\n:]+): ([^\n]*)") do
  wrk.headers[name] = value
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\nOUTCOME {"client": "wrk", "requests": %d, "seconds": %.6f, '
      .. '"errors": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}, '
      .. '"p50_ms": %.4f, "p90_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f}\n',
    summary.requests - errors.status, summary.duration / 1e6,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3))
end
