/** For `--import`: the wall clock of every thread of a process jumps with the number of milliseconds in a file. */
import { readFileSync } from 'node:fs';

const POLL_MS = 10;
const file = process.env.NOSTOS_TEST_CLOCK;
if (file !== undefined) {
  const real = Date.now;
  let offsetMs = 0;
  setInterval(() => (offsetMs = Number(readFileSync(file, 'utf8')) || 0), POLL_MS).unref();
  Date.now = () => real() + offsetMs;
}
